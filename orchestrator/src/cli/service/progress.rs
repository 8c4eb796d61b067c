//! Waiting until a service is as it was asked for, and has been so for its monitor time. Bars on a terminal, lines elsewhere.

use super::super::{Error, Result, client::Client, output::Out};
use crate::api::{
    docker::objects::{Node, Service, Task},
    request::encode,
    time,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How often the service is looked at, as `docker` does.
const LOOK: Duration = Duration::from_millis(200);
/// Lines for single tasks; beyond it only the total is shown, as `docker` does.
const TASK_LINES: usize = 20;

/// States of a task in order, for the bars.
const STATES: [&str; 9] =
    ["new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete"];

/// What the user asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// A new or a changed service; a rollback means that it failed.
    Forward,
    /// The version before.
    Rollback,
}

/// Waits. Ctrl-C ends the waiting and leaves the service to itself.
pub(super) async fn wait(client: &Client, out: &mut Out, id: &str, wish: Wish, quiet: bool) -> Result {
    let mut screen = Screen::new(out, quiet);
    let result = tokio::select! {
        result = converge(client, out, id, wish, &mut screen) => result,
        _ = tokio::signal::ctrl_c() => {
            screen.end();
            out.error("Operation continuing in background.");
            out.error(&format!("Use \"edgectl service ps {id}\" to check progress."));
            return Ok(());
        }
    };
    screen.end();
    result
}

async fn converge(client: &Client, out: &mut Out, id: &str, wish: Wish, screen: &mut Screen) -> Result {
    let filter = encode(&format!("{{\"service\":{{\"{id}\":true}},\"_up-to-date\":{{\"true\":true}}}}"));
    let mut stable: Option<Instant> = None;
    loop {
        let service: Service = client.get(&format!("/services/{id}")).await?;
        let tasks: Vec<Task> = client.get(&format!("/tasks?filters={filter}")).await?;
        let nodes: Vec<Node> = client.get("/nodes").await?;
        let picture = Picture::of(&service, &tasks, &nodes);
        screen.show(out, &picture)?;
        let monitor = Duration::from_nanos(service.spec.update_config.as_ref().map_or(0, |config| config.monitor));
        let update = service.update_status.as_ref();
        match update.map(|update| (update.state.as_str(), update.message.as_str())) {
            Some(("paused", message)) => return Err(Error::new(format!("service update paused: {message}"))),
            Some(("rollback_paused", message)) => {
                return Err(Error::new(format!("service rollback paused: {message}")));
            }
            Some(("rollback_completed", message)) if picture.done() && wish == Wish::Forward => {
                return Err(Error::new(format!("service rolled back: {message}")));
            }
            Some(("updating" | "rollback_started", _)) => stable = None,
            // The planner has watched the tasks for the monitor time already.
            Some(("completed" | "rollback_completed", _)) if picture.done() && stable.is_some() => {
                return screen.verified(out, &service);
            }
            _ if picture.done() => {
                let since = *stable.get_or_insert_with(Instant::now);
                let left = monitor.saturating_sub(since.elapsed());
                if left.is_zero() {
                    return screen.verified(out, &service);
                }
                screen.verifying(out, left)?;
            }
            _ if picture.ended_for_good(&service) => {
                let why =
                    if picture.errors.is_empty() { String::new() } else { format!(": {}", picture.errors.join("; ")) };
                return Err(Error::new(format!("all tasks ended and none is restarted{why}")));
            }
            _ => stable = None,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One look at a service.
struct Picture {
    wanted: usize,
    running: usize,
    /// By place: what is shown and how far it is.
    lines: BTreeMap<String, (String, usize)>,
    errors: Vec<String>,
    active: bool,
}

impl Picture {
    fn of(service: &Service, tasks: &[Task], nodes: &[Node]) -> Self {
        let replicas =
            service.spec.mode.replicated.as_ref().map(|replicated| replicated.replicas.unwrap_or(1) as usize);
        let hostname = |id: &str| {
            nodes.iter().find(|node| node.id == id).map_or(id.to_owned(), |node| node.description.hostname.clone())
        };
        let mut newest: BTreeMap<(u32, &str), &Task> = BTreeMap::new();
        for task in tasks {
            let place = if replicas.is_some() { (task.slot, "") } else { (0, task.node_id.as_str()) };
            let rank = |task: &Task| (task.desired_state == "running", task.created_at.clone(), task.id.clone());
            match newest.get(&place) {
                Some(known) if rank(known) >= rank(task) => {}
                _ => drop(newest.insert(place, task)),
            }
        }
        if let Some(replicas) = replicas {
            newest.retain(|(slot, _), task| *slot as usize <= replicas || task.desired_state == "running");
        }
        let wanted = replicas.unwrap_or(newest.len());
        let mut picture = Self { wanted, running: 0, lines: BTreeMap::new(), errors: Vec::new(), active: false };
        for ((slot, node), task) in newest {
            let place = if replicas.is_some() { format!("{slot:>3}/{wanted}") } else { hostname(node) };
            let state = task.status.state.as_str();
            let wanted = task.desired_state == "running";
            picture.active |= wanted && STATES[..8].contains(&state);
            picture.running += usize::from(state == "running" && wanted);
            let mut text = state.to_owned();
            if !task.status.err.is_empty() {
                text = format!("{state}: {}", task.status.err);
                picture.errors.push(format!("{}: {}", place.trim(), task.status.err));
            }
            let step = STATES.iter().position(|known| *known == state).unwrap_or(0);
            picture.lines.insert(place, (text, step));
        }
        picture
    }

    fn done(&self) -> bool {
        self.running >= self.wanted && (self.wanted > 0 || !self.active)
    }

    /// Whether nothing runs, nothing starts, and the service wants it so.
    fn ended_for_good(&self, service: &Service) -> bool {
        let policy = service.spec.task_template.restart_policy.as_ref();
        let never = policy.is_some_and(|policy| policy.condition == "none");
        never && !self.active && self.running == 0 && self.lines.len() >= self.wanted && self.wanted > 0
    }
}

/// What the user sees.
struct Screen {
    quiet: bool,
    bars: Option<Bars>,
    shown: BTreeMap<String, String>,
    total: String,
    verify: String,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    tasks: BTreeMap<String, ProgressBar>,
    verify: ProgressBar,
}

impl Screen {
    fn new(out: &Out, quiet: bool) -> Self {
        let bars = (out.width.is_some() && out.colour && !quiet).then(|| {
            let all = MultiProgress::new();
            let plain = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let total = all.add(ProgressBar::new_spinner().with_style(plain.clone()));
            let verify = all.add(ProgressBar::new_spinner().with_style(plain));
            Bars { all, total, tasks: BTreeMap::new(), verify }
        });
        Self { quiet, bars, shown: BTreeMap::new(), total: String::new(), verify: String::new() }
    }

    fn show(&mut self, out: &mut Out, picture: &Picture) -> Result {
        if self.quiet {
            return Ok(());
        }
        let total =
            format!("overall progress: {} out of {} tasks", picture.running.min(picture.wanted), picture.wanted);
        let lines = if picture.lines.len() > TASK_LINES { &BTreeMap::new() } else { &picture.lines };
        if let Some(bars) = &mut self.bars {
            bars.total.set_message(total);
            for (place, (text, step)) in lines {
                let bar = bars.tasks.entry(place.clone()).or_insert_with(|| {
                    let style = ProgressStyle::with_template("{prefix}: {wide_msg} [{bar:24}]")
                        .unwrap_or_else(|_| ProgressStyle::default_bar())
                        .progress_chars("=> ");
                    let bar = ProgressBar::new(STATES.len() as u64 - 2).with_style(style).with_prefix(place.clone());
                    bars.all.insert_before(&bars.verify, bar)
                });
                bar.set_position(*step as u64);
                bar.set_message(text.clone());
            }
            bars.tasks.retain(|place, bar| {
                let keep = lines.contains_key(place);
                if !keep {
                    bars.all.remove(bar);
                }
                keep
            });
            return Ok(());
        }
        for (place, (text, _)) in lines {
            if self.shown.get(place) != Some(text) {
                out.line(&format!("{}: {text}", place.trim()))?;
                self.shown.insert(place.clone(), text.clone());
            }
        }
        if self.total != total {
            out.line(&total)?;
            self.total = total;
        }
        Ok(out.flush()?)
    }

    fn verifying(&mut self, out: &mut Out, left: Duration) -> Result {
        let secs = left.as_nanos().div_ceil(1_000_000_000);
        if let Some(bars) = &self.bars {
            bars.verify.set_message(format!("verify: Waiting {secs} seconds to verify that tasks are stable..."));
        } else if !self.quiet && self.verify.is_empty() {
            let text = time::duration(u64::try_from(secs * 1_000_000_000).unwrap_or(u64::MAX));
            self.verify = format!("verify: waiting {text} to verify that tasks are stable");
            out.line(&self.verify)?;
            out.flush()?;
        }
        Ok(())
    }

    fn verified(&mut self, out: &mut Out, service: &Service) -> Result {
        let text = format!("verify: Service {} converged", service.spec.name);
        match &self.bars {
            Some(bars) => bars.verify.set_message(text),
            None if self.quiet => {}
            None => out.line(&text)?,
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.tasks.values().chain([&bars.total, &bars.verify]).for_each(ProgressBar::abandon);
        }
    }
}
