//! Container events for the API, told from what two looks at the node differ in.

use crate::{
    agent::{View, task_name},
    api::node::Event,
    clock,
};
use orchestrator_core::{
    model::TaskId,
    node::{Health, Observed, Phase, TaskObserved},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::{broadcast, watch};

/// Tells events for as long as the agent's view changes.
pub(in crate::daemon) async fn tell(mut views: watch::Receiver<View>, events: broadcast::Sender<Event>) {
    // What is there when the daemon starts was told by the one before.
    let mut before = None::<View>;
    while views.changed().await.is_ok() {
        let now = views.borrow_and_update().clone();
        if let Some(before) = &before {
            for (task, action, exit_code) in changes(&before.observed, &now.observed) {
                let _nobody_listens = events.send(event(&now, before, task, action, exit_code));
            }
        }
        before = Some(now);
    }
}

/// What happened to containers between two looks, in the order of Docker's events.
fn changes(before: &Observed, now: &Observed) -> Vec<(TaskId, &'static str, Option<i32>)> {
    let nothing = TaskObserved::default();
    let tasks = before.tasks.keys().chain(now.tasks.keys()).copied().collect::<BTreeSet<_>>();
    let mut out = Vec::new();
    for task in tasks {
        let (old, new) = (before.tasks.get(&task).unwrap_or(&nothing), now.tasks.get(&task).unwrap_or(&nothing));
        let phase = |seen: &TaskObserved| seen.container.as_ref().map(|container| container.phase.clone());
        let (was, is) = (phase(old), phase(new));
        if was.is_none() && is.is_some() {
            out.push((task, "create", None));
        }
        let started = |phase: &Option<Phase>| matches!(phase, Some(Phase::Running { .. } | Phase::Exited { .. }));
        if !started(&was) && started(&is) {
            out.push((task, "start", None));
        }
        match (&was, &is) {
            (Some(Phase::Exited { .. }), _) => {}
            (_, Some(Phase::Exited { code, oom, .. })) => {
                if *oom {
                    out.push((task, "oom", None));
                }
                out.push((task, "die", Some(*code)));
            }
            _ => {}
        }
        let health = |seen: &TaskObserved| seen.container.as_ref().and_then(|container| container.health.clone());
        match (health(old), health(new)) {
            (was, Some(Health::Healthy)) if was != Some(Health::Healthy) => {
                out.push((task, "health_status: healthy", None));
            }
            (was, Some(Health::Unhealthy(_))) if !matches!(was, Some(Health::Unhealthy(_))) => {
                out.push((task, "health_status: unhealthy", None));
            }
            _ => {}
        }
        if was.is_some() && is.is_none() {
            out.push((task, "destroy", None));
        }
    }
    out
}

fn event(now: &View, before: &View, task: TaskId, action: &str, exit_code: Option<i32>) -> Event {
    let mut attributes = BTreeMap::new();
    let assigned = |view: &View| Some(view.assignment.as_ref()?.tasks.get(&task)?.clone());
    if let Some(assigned) = assigned(now).or_else(|| assigned(before)) {
        attributes.extend(assigned.spec.container.labels.clone());
        attributes.insert("image".into(), assigned.spec.container.image.to_string());
        attributes.insert("name".into(), task_name(&assigned, task));
        attributes.insert("com.docker.swarm.service.name".into(), assigned.service_name);
        attributes.insert("com.docker.swarm.task.id".into(), task.to_string());
    }
    if let Some(code) = exit_code {
        attributes.insert("exitCode".into(), code.to_string());
    }
    let at = clock::now().0 * 1_000_000;
    Event { at, kind: "container", action: action.into(), scope: "local", id: task.to_string(), attributes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestrator_core::{model::UnixMillis, node::Container};

    fn look(phase: Option<Phase>) -> Observed {
        let container = phase.map(|phase| Container { phase, health: None });
        let seen = TaskObserved { container, ..TaskObserved::default() };
        Observed { tasks: [(TaskId(1), seen)].into(), ..Observed::default() }
    }

    #[test]
    fn a_life_that_nobody_saw_in_between_is_told_whole() {
        let end = Phase::Exited { code: 137, oom: true, at: UnixMillis(1) };
        let told = changes(&look(None), &look(Some(end.clone())));
        let actions = told.iter().map(|(_, action, _)| *action).collect::<Vec<_>>();
        assert_eq!(actions, ["create", "start", "oom", "die"]);
        assert_eq!(told[3].2, Some(137));
        assert_eq!(changes(&look(Some(end.clone())), &look(Some(end.clone()))), []);
        assert_eq!(changes(&look(Some(end)), &Observed::default()), [(TaskId(1), "destroy", None)]);
    }
}
