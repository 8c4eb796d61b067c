//! Updates: slots whose tasks are of an old version get new ones, in batches, one way or the other round; an update that
//! fails pauses, goes on or is rolled back. There is no update object with a life of its own: where an update stands is read
//! off the tasks, the reports and the status in [`Service::update`] each time.
//!
//! ```text
//!             dirty slots            all new tasks up for `monitor`
//!   none ───────────────► updating ────────────────────────────────► completed
//!                            │ too many failures
//!                            ├──────────► paused                      (the user updates or rolls back)
//!                            └──────────► rollback started ─► rollback completed | rollback paused
//! ```

use super::{
    Subject, Why,
    outcomes::lost,
    work::{Life, SlotTasks, Work},
};
use crate::{
    intent::check_ports,
    model::{
        Desired, End, FailureAction, Service, ServiceId, ServiceSpec, Slot, TaskId, UpdateConfig, UpdateOrder,
        UpdateState, UpdateStatus,
    },
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

/// Pauses updates that failed too often, or returns to the version before.
pub(super) fn judge_failures(work: &mut Work<'_>) {
    for id in work.service_ids() {
        let Some((service, version)) = work.wanted(id) else { continue };
        let Some(update) = service.update.as_ref().filter(|update| is_active(update.state)) else { continue };
        let config = config_of(&version.spec, update.state);
        let Some(failed) = too_many_failures(work, &service, config) else { continue };
        let rolling_back = update.state == UpdateState::RollbackStarted;
        let why = |what: &str| format!("{what} due to failure or early termination of task {failed}");
        match (config.on_failure, service.previous) {
            (FailureAction::Continue, _) => {}
            // A port that the update gave up may be another service's by now: the user has to choose.
            (FailureAction::Rollback, Some(previous)) if !rolling_back && has_ports(work, id, previous) => {
                let on_failure = work.state.specs.get(&(id, previous)).map(|version| version.spec.rollback.on_failure);
                work.return_to(&service, previous);
                let message = why("update rolled back");
                let on_failure = on_failure.unwrap_or(FailureAction::Pause);
                set_status(work, id, UpdateState::RollbackStarted, on_failure, message);
            }
            (on_failure, _) => {
                let (state, message) = if rolling_back {
                    (UpdateState::RollbackPaused, why("rollback paused"))
                } else {
                    (UpdateState::Paused, why("update paused"))
                };
                set_status(work, id, state, on_failure, message);
            }
        }
    }
}

/// Whether the published ports of an older version are still there for its service.
fn has_ports(work: &Work<'_>, id: ServiceId, number: u32) -> bool {
    let version = work.state.specs.get(&(id, number));
    version.is_some_and(|version| check_ports(&work.state, Some(id), &version.spec.endpoint.ports).is_ok())
}

/// Goes one step further with each update, and notes where it stands.
pub(super) fn advance(work: &mut Work<'_>) {
    for id in work.service_ids() {
        let Some((service, version)) = work.wanted(id) else { continue };
        if service.removed {
            continue;
        }
        let state = service.update.as_ref().map(|update| update.state);
        if !state.is_some_and(is_active) && !has_old_tasks(work, &service) {
            continue;
        }
        adopt(work, &service, &version.spec);
        let slots = updatable(work, id);
        let leaving = leaving(work, &slots);
        for (_, tasks) in &slots {
            settle(work, &service, tasks, &leaving);
        }
        let dirty = slots.iter().any(|(_, tasks)| is_dirty(work, &service, tasks));
        if matches!(state, Some(UpdateState::Paused | UpdateState::RollbackPaused)) {
            if dirty {
                work.explain(Subject::Service(id), Why::UpdatePaused);
            }
            continue;
        }
        let config = config_of(&version.spec, state.unwrap_or(UpdateState::Updating));
        if dirty {
            replace_batch(work, &service, config, &slots, &leaving);
        }
        note_progress(work, &service, config, dirty, &slots);
    }
}

/// Whether there is anything to update: two tasks of one slot that shall run are never of one version, either.
fn has_old_tasks(work: &Work<'_>, service: &Service) -> bool {
    let mut tasks = work.slots.get(&service.id).into_iter().flat_map(|slots| slots.values()).flatten();
    tasks.any(|id| work.task(*id).desired == Desired::Run && work.task(*id).version != service.current)
}

/// The slots that an update goes through: a global service's slot on a node that is down waits for the node, and the others
/// do not wait for it.
fn updatable(work: &mut Work<'_>, id: ServiceId) -> Vec<(Slot, SlotTasks)> {
    let mut slots: Vec<(Slot, SlotTasks)> =
        work.slots_of(id).iter().map(|(slot, tasks)| (*slot, tasks.clone())).collect();
    slots.retain(|(slot, tasks)| {
        let reachable = match slot {
            Slot::Replica(_) => true,
            Slot::Node(node) => work.life(*node) == Life::Up,
        };
        reachable && work.head(tasks).is_some()
    });
    slots
}

fn is_active(state: UpdateState) -> bool {
    matches!(state, UpdateState::Updating | UpdateState::RollbackStarted)
}

/// Returning to an older version has its own rules.
fn config_of(spec: &ServiceSpec, state: UpdateState) -> &UpdateConfig {
    match state {
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => &spec.rollback,
        UpdateState::Updating | UpdateState::Paused | UpdateState::Completed => &spec.update,
    }
}

/// The task whose failure was one too many: in more than the allowed share of the slots, tasks of the new version failed.
fn too_many_failures(work: &Work<'_>, service: &Service, config: &UpdateConfig) -> Option<TaskId> {
    let mut last = None;
    let (mut failed, mut total) = (0u64, 0u64);
    for tasks in work.slots_of(service.id).values() {
        total += u64::from(work.head(tasks).is_some());
        let failure = tasks.iter().rev().find(|id| {
            let task = work.task(**id);
            task.version == service.current
                && task.outcome.as_ref().is_some_and(|end| matches!(end.end, End::Failed | End::Rejected))
        });
        if let Some(id) = failure {
            failed += 1;
            last = Some(*id);
        }
    }
    let allowed = u64::from(config.max_failure_ppm) * total;
    last.filter(|_| failed * 1_000_000 > allowed)
}

/// A task whose container the new version would not change belongs to the new version from now on: after scaling, or a
/// change of labels or published ports, nothing is replaced.
fn adopt(work: &mut Work<'_>, service: &Service, spec: &ServiceSpec) {
    let current = service.current;
    let mut same: BTreeMap<u32, bool> = BTreeMap::new();
    for &id in work.slots_of(service.id).values().flatten() {
        let task = work.task(id);
        let version = task.version;
        if version == current || task.outcome.is_some() || task.desired != Desired::Run {
            continue;
        }
        if !*same.entry(version).or_insert_with(|| work.is_current(service, version)) {
            continue;
        }
        let old = work.state.specs.get(&(service.id, version)).map(|old| old.spec.endpoint.ports.clone());
        let ports = old.as_deref().unwrap_or_default();
        work.change_task(id, |task| {
            task.version = current;
            if let Some(placed) = &mut task.placed {
                placed.backends = super::address::carry_over(&placed.backends, ports, &spec.endpoint.ports);
            }
        });
    }
}

/// Tasks of a slot that shall run and have not ended.
fn open<'t>(work: &'t Work<'_>, tasks: &'t [TaskId]) -> impl DoubleEndedIterator<Item = TaskId> + 't {
    let runs = |id: &TaskId| work.task(*id).desired == Desired::Run && work.task(*id).outcome.is_none();
    tasks.iter().copied().filter(runs)
}

/// Whether a slot has a task of an old version, running or waiting to be replaced.
fn is_dirty(work: &Work<'_>, service: &Service, tasks: &[TaskId]) -> bool {
    work.head(tasks).into_iter().chain(open(work, tasks)).any(|id| !work.is_current(service, work.task(id).version))
}

/// Tasks that serve until their successor elsewhere does: whatever their version, they are old.
fn leaving(work: &mut Work<'_>, slots: &[(Slot, SlotTasks)]) -> BTreeSet<TaskId> {
    let mut leaving = BTreeSet::new();
    for (slot, tasks) in slots {
        leaving.extend(tasks.iter().copied().filter(|id| lost(work, *slot, *id)));
    }
    leaving
}

/// Ends what a slot needs no more: all but the new task once that is up; until then the old one that serves, if any, stays
/// beside the new one.
fn settle(work: &mut Work<'_>, service: &Service, tasks: &[TaskId], leaving: &BTreeSet<TaskId>) {
    let all: Vec<TaskId> = open(work, tasks).collect();
    let is_new = |id: &TaskId| work.task(*id).version == service.current && !leaving.contains(id);
    let newest = |which: &dyn Fn(&TaskId) -> bool| all.iter().rev().copied().find(|id| which(id));
    let kept = match newest(&|id| is_new(id) && work.running_since(*id).is_some()) {
        Some(up) => [Some(up), None],
        None => {
            let serving = newest(&|id| !is_new(id) && work.may_serve(*id));
            [serving, newest(&is_new).or(work.head(tasks))]
        }
    };
    for id in all.into_iter().filter(|id| !kept.contains(&Some(*id))) {
        work.end_task(id);
    }
}

/// Starts the replacement of as many dirty slots as may be under way at once.
fn replace_batch(
    work: &mut Work<'_>,
    service: &Service,
    config: &UpdateConfig,
    slots: &[(Slot, SlotTasks)],
    leaving: &BTreeSet<TaskId>,
) {
    let mut busy = 0;
    let mut waiting: Vec<(bool, Slot, &SlotTasks)> = Vec::new();
    for (slot, tasks) in slots {
        let Some(head) = work.head(tasks) else { continue };
        let current = work.is_current(service, work.task(head).version);
        // An ended task is replaced by its restart policy.
        if work.task(head).outcome.is_some() {
            continue;
        }
        if current {
            busy += usize::from(under_way(work, head, tasks, config));
        } else if work.task(head).placed.is_none() && tasks.len() == 1 {
            work.end_task(head);
            work.create_task(service, *slot);
        } else if open(work, tasks).all(|id| work.task(id).version != service.current || leaving.contains(&id)) {
            let serves = open(work, tasks).any(|id| work.may_serve(id));
            waiting.push((serves, *slot, tasks));
        }
    }
    // Slots that do not serve have nothing to lose.
    waiting.sort_by_key(|(serves, slot, _)| (*serves, *slot));
    let at_once = if config.parallelism == 0 { usize::MAX } else { config.parallelism as usize };
    for (_, slot, tasks) in waiting.into_iter().take(at_once.saturating_sub(busy)) {
        let old: Vec<TaskId> = open(work, tasks).collect();
        let stays = match config.order {
            UpdateOrder::StopFirst => None,
            UpdateOrder::StartFirst => old.iter().rev().copied().find(|id| work.may_serve(*id)),
        };
        for id in old.into_iter().filter(|id| Some(*id) != stays) {
            work.end_task(id);
        }
        work.create_task(service, slot);
    }
}

/// Whether a task of the new version counts against the parallelism of the update: until it is up, and then for the delay.
/// One in whose slot nothing was before, and that no node takes, holds nothing up.
fn under_way(work: &mut Work<'_>, id: TaskId, tasks: &[TaskId], config: &UpdateConfig) -> bool {
    if work.task(id).placed.is_none() && tasks.len() == 1 {
        return false;
    }
    work.running_since(id).is_none_or(|since| !work.passed(since, config.delay))
}

/// Begins or completes the status of the update.
fn note_progress(
    work: &mut Work<'_>,
    service: &Service,
    config: &UpdateConfig,
    dirty: bool,
    slots: &[(Slot, SlotTasks)],
) {
    let active = service.update.as_ref().filter(|update| is_active(update.state));
    match active {
        None if dirty => {
            let message = "update in progress".into();
            set_status(work, service.id, UpdateState::Updating, config.on_failure, message);
        }
        Some(update) if !dirty && slots.iter().all(|(_, tasks)| stands(work, tasks, config)) => {
            let (state, message) = match update.state {
                UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
                _ => (UpdateState::Completed, "update completed"),
            };
            set_status(work, service.id, state, update.on_failure, message.into());
        }
        _ => {}
    }
}

/// Whether the slot's task is up for the time that an update is monitored, or has ended: failures are counted elsewhere.
fn stands(work: &mut Work<'_>, tasks: &[TaskId], config: &UpdateConfig) -> bool {
    let Some(head) = work.head(tasks) else { return true };
    work.task(head).outcome.is_some()
        || work.running_since(head).is_some_and(|since| work.passed(since, config.monitor))
}

fn set_status(work: &mut Work<'_>, id: ServiceId, state: UpdateState, on_failure: FailureAction, message: String) {
    let now = work.now;
    work.change_service(id, |service| {
        let started_at = match (&service.update, state) {
            (Some(update), _) if !is_active(state) => update.started_at,
            _ => now,
        };
        let completed = matches!(state, UpdateState::Completed | UpdateState::RollbackCompleted);
        service.update =
            Some(UpdateStatus { state, on_failure, started_at, completed_at: completed.then_some(now), message });
    });
}
