//! `GET /events`: what happens. Events of containers and images come from the node's drivers; those of services and nodes
//! are read off the differences between two states, so that they are the same on every manager and after a restart.

use super::frames;
use crate::api::{
    App,
    error::ApiError,
    node::Event,
    request::{Filters, Params},
    time,
};
use axum::{extract::State, response::Response};
use futures_util::{StreamExt, stream};
use orchestrator_core::{
    model::{Availability, UpdateState},
    state::State as Cluster,
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::broadcast::{self, error::RecvError};

/// Events kept for `since`, as many as Docker keeps.
const KEPT: usize = 256;
/// Events that a slow client may lag behind before it loses some.
const LAG: usize = 1024;

/// The last events and the way to new ones.
pub struct EventLog {
    kept: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
}

impl EventLog {
    pub(crate) fn new() -> Arc<Self> {
        let (sender, _) = broadcast::channel(LAG);
        Arc::new(Self { kept: Mutex::new(VecDeque::with_capacity(KEPT)), sender })
    }

    fn push(&self, event: Event) {
        let event = Arc::new(event);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        // Sent under the lock, so that a subscriber sees each event once: in `kept` or in the channel. No receiver, no error.
        let _ = self.sender.send(event);
    }

    fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }
}

/// Gathers events until the server stops.
pub(crate) async fn collect(app: App) {
    let mut local = app.node.events();
    let mut changes = app.cluster.watch();
    let mut before = app.cluster.state();
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            event = local.recv() => match event {
                Ok(event) => app.events.push(event),
                Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "events were lost: too many at once"),
                Err(RecvError::Closed) => return,
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                changes.borrow_and_update();
                let after = app.cluster.state();
                for event in differences(&before, &after, time::nanos((app.now)())) {
                    app.events.push(event);
                }
                before = after;
            }
        }
    }
}

fn update_state(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// What changed between two states, as Docker's swarm events.
fn differences(before: &Cluster, after: &Cluster, at: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut push = |kind, action: &str, id: String, attributes: Vec<(&str, String)>| {
        let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        events.push(Event { at, kind, action: action.into(), scope: "swarm", id, attributes });
    };
    let visible = |state: &Cluster, id| state.services.get(id).is_some_and(|service| !service.removed);
    for (id, service) in after.services.iter().filter(|(_, service)| !service.removed) {
        let name = ("name", service.name.to_string());
        match before.services.get(id) {
            None => push("service", "create", id.to_string(), vec![name]),
            Some(old) if old.value != service.value => {
                let mut attributes = vec![name];
                let state = |s: &orchestrator_core::model::Service| s.update.as_ref().map(|update| update.state);
                if let (old, Some(new)) = (state(old), state(service))
                    && old != Some(new)
                {
                    attributes.push(("updatestate.new", update_state(new).into()));
                    attributes.extend(old.map(|old| ("updatestate.old", update_state(old).to_owned())));
                }
                push("service", "update", id.to_string(), attributes);
            }
            Some(_) => {}
        }
    }
    for (id, service) in before.services.iter().filter(|(id, _)| visible(before, id) && !visible(after, id)) {
        push("service", "remove", id.to_string(), vec![("name", service.name.to_string())]);
    }
    for (id, node) in &after.nodes {
        let name = ("name", node.hostname.clone());
        match before.nodes.get(id) {
            None => push("node", "create", id.to_string(), vec![name]),
            Some(old) if old.value != node.value => {
                let mut attributes = vec![name];
                if old.availability != node.availability {
                    attributes.push(("availability.new", availability(node.availability).into()));
                    attributes.push(("availability.old", availability(old.availability).into()));
                }
                push("node", "update", id.to_string(), attributes);
            }
            Some(_) => {}
        }
    }
    for (id, node) in before.nodes.iter().filter(|(id, _)| !after.nodes.contains_key(id)) {
        push("node", "remove", id.to_string(), vec![("name", node.hostname.clone())]);
    }
    events
}

const FILTERS: [&str; 10] =
    ["type", "event", "scope", "container", "image", "service", "node", "label", "daemon", "network"];

fn matches(event: &Event, filters: &Filters) -> bool {
    let actor = |kind: &str| {
        filters.any(kind, |wanted| {
            let name = event.attributes.get("name").is_some_and(|name| name == wanted);
            let image = kind == "image" && event.attributes.get("image").is_some_and(|image| image == wanted);
            (event.kind == kind && (event.id.starts_with(wanted) || name)) || image
        })
    };
    filters.any("type", |wanted| wanted == event.kind)
        && filters.any("scope", |wanted| wanted == event.scope)
        && filters.any("event", |wanted| {
            event.action == wanted || event.action.split_once(':').is_some_and(|(action, _)| action == wanted)
        })
        && ["container", "image", "service", "node", "network", "daemon"].into_iter().all(actor)
        && filters.labels("label", &event.attributes)
}

fn show(event: &Event) -> Value {
    let mut value = json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": event.scope,
        "time": event.at / 1_000_000_000,
        "timeNano": event.at,
    });
    if let (true, Some(map)) = (event.scope == "local", value.as_object_mut()) {
        map.insert("status".into(), event.action.as_str().into());
        map.insert("id".into(), event.id.as_str().into());
        if let Some(image) = event.attributes.get("image") {
            map.insert("from".into(), image.as_str().into());
        }
    }
    value
}

pub(super) async fn stream(State(app): State<App>, params: Params) -> Result<Response, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let since = params.instant("since")?;
    let until = params.instant("until")?;
    let now = time::nanos((app.now)());
    let (kept, receiver) = app.events.subscribe();
    let old: Vec<_> = match since {
        Some(since) => kept.into_iter().filter(|e| e.at >= since && until.is_none_or(|until| e.at <= until)).collect(),
        None => Vec::new(),
    };
    let new = stream::unfold(receiver, |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((event, receiver)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let end = async move {
        match until {
            Some(until) => tokio::time::sleep(Duration::from_nanos(until.saturating_sub(now))).await,
            None => std::future::pending().await,
        }
    };
    let events = stream::iter(old).chain(new.take_until(Box::pin(end)));
    let shown = events.filter_map(move |event| {
        let value = matches(&event, &filters).then(|| show(&event));
        std::future::ready(value)
    });
    Ok(frames::json_lines(&app, shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn filters_name_kinds_actions_and_actors() {
        let event = Event {
            at: 1,
            kind: "container",
            action: "exec_start: sh".into(),
            scope: "local",
            id: "abc".into(),
            attributes: BTreeMap::from([("name".into(), "web.1".into()), ("image".into(), "nginx".into())]),
        };
        let cases = [
            (r#"{"type":{"container":true}}"#, true),
            (r#"{"type":{"service":true}}"#, false),
            (r#"{"event":{"exec_start":true},"container":{"web.1":true}}"#, true),
            (r#"{"container":{"ab":true}}"#, true),
            (r#"{"image":{"nginx":true}}"#, true),
            (r#"{"label":{"image=redis":true}}"#, false),
        ];
        for (text, expected) in cases {
            let encoded = crate::api::request::encode(text);
            let filters = Params::parse(&format!("filters={encoded}")).filters(&FILTERS).unwrap();
            assert_eq!(matches(&event, &filters), expected, "{text}");
        }
    }
}
