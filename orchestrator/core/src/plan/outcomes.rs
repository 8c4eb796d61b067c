//! Takes over what nodes reported: ends of tasks, and nodes that are down, drained or gone.

use super::{
    constraint::broken_constraint,
    work::{Life, Work},
};
use crate::{
    model::{
        Availability, Desired, End, HeldPort, Millis, NodeId, Outcome, Service, Slot, Task, TaskId, TaskReport,
        TaskState, UnixMillis, UpdateOrder,
    },
    state::Stored,
};
use alloc::vec::Vec;

/// A node that is down for this long will not tell any more how its tasks ended (SwarmKit `defaultOrphanTimeout`, 24 h).
const ORPHANED_AFTER: Millis = Millis::from_secs(24 * 60 * 60);

/// Writes the ends of tasks into the state.
pub(super) fn record(work: &mut Work<'_>) {
    let base = work.base;
    for (id, task) in &base.tasks {
        let outcome = if task.outcome.is_none() { end_of(work, task) } else { None };
        if let Some(outcome) = outcome {
            work.change_task(*id, |task| task.outcome = Some(outcome));
        }
    }
}

fn end_of(work: &mut Work<'_>, task: &Stored<Task>) -> Option<Outcome> {
    let node = task.placed.as_ref()?.node;
    let now = work.now.max(task.created_at);
    let ended = |end: End, message: &str| Some(Outcome { end, at: now, exit_code: None, message: message.into() });
    let ending = task.desired != Desired::Run;
    match work.life(node) {
        Life::Gone => ended(End::Orphaned, "its node left the cluster"),
        Life::Down(since) if ending => {
            if work.passed(since, ORPHANED_AFTER) {
                ended(End::Orphaned, "its node is down for a day")
            } else {
                None
            }
        }
        Life::Down(_) | Life::Unknown => None,
        Life::Up => match work.report(task) {
            // It leaves no trace; that it is gone shows when its node no longer reports it.
            Some(_) if task.desired == Desired::Remove => None,
            Some(report) => outcome(task, report, work.now),
            None if task.desired == Desired::Shutdown && answers(work, node, task.revision) => ended(End::Shutdown, ""),
            None => None,
        },
    }
}

/// Whether the node's last report was made knowing this revision.
pub(super) fn answers(work: &Work<'_>, node: NodeId, revision: u64) -> bool {
    work.live.nodes.get(&node).is_some_and(|known| known.ready && known.report.revision >= revision)
}

fn outcome(task: &Task, report: &TaskReport, now: UnixMillis) -> Option<Outcome> {
    let end = match report.state {
        TaskState::Complete => End::Complete,
        TaskState::Shutdown | TaskState::Remove => End::Shutdown,
        TaskState::Failed => End::Failed,
        TaskState::Rejected => End::Rejected,
        TaskState::Orphaned => End::Orphaned,
        _ => return None,
    };
    // The node's clock may be wrong: a task does not end before it was made, nor in the future.
    let at = report.since.max(task.created_at).min(now);
    Some(Outcome { end, at, exit_code: report.exit_code, message: report.message.clone() })
}

/// Ends tasks whose place is lost and makes others for their slots: nodes that are down, drained or that a constraint of the
/// task now excludes. Tasks of global services, and those that a constraint binds to their node, wait for it to come back.
///
/// A service that is updated start-first is moved that way, too: what serves on a drained node goes once its successor is up.
pub(super) fn evict(work: &mut Work<'_>) {
    for service in work.service_ids() {
        let Some((wanted, version)) = work.wanted(service) else { continue };
        if wanted.removed {
            continue;
        }
        let start_first = version.spec.update.order == UpdateOrder::StartFirst;
        for (&slot, tasks) in work.slots_of(service).iter() {
            evict_slot(work, &wanted, start_first, slot, tasks);
        }
    }
}

fn evict_slot(work: &mut Work<'_>, service: &Service, start_first: bool, slot: Slot, tasks: &[TaskId]) {
    let Some(head) = work.head(tasks) else { return };
    let is_open = |id: &TaskId| work.task(*id).desired == Desired::Run && work.task(*id).outcome.is_none();
    let open: Vec<TaskId> = tasks.iter().copied().filter(is_open).collect();
    if let [only] = open[..]
        && !lost(work, slot, only)
    {
        return;
    }
    let (leaving, staying): (Vec<TaskId>, Vec<TaskId>) = open.iter().partition(|id| lost(work, slot, **id));
    one_of(work, &staying);
    if leaving.is_empty() {
        return;
    }
    let is_replica = matches!(slot, Slot::Replica(_));
    let replaced = staying.iter().any(|id| work.running_since(*id).is_some());
    let serves = leaving.iter().rev().copied().find(|id| work.may_serve(*id));
    let kept = serves.filter(|_| start_first && is_replica && !replaced);
    for id in leaving.iter().copied().filter(|id| Some(*id) != kept) {
        work.end_task(id);
    }
    if is_replica && staying.is_empty() && leaving.contains(&head) {
        work.create_task(service, slot);
    }
}

/// Of two tasks of one version that a move left in a slot, when there is no need for it any more, the one that serves stays.
fn one_of(work: &mut Work<'_>, open: &[TaskId]) {
    let Some((newest, others)) = open.split_last() else { return };
    let version = work.task(*newest).version;
    let twins: Vec<TaskId> = others.iter().copied().filter(|id| work.task(*id).version == version).collect();
    if work.running_since(*newest).is_none() && twins.iter().any(|id| work.may_serve(*id)) {
        work.end_task(*newest);
    } else {
        for id in twins {
            work.end_task(id);
        }
    }
}

/// Whether a task that is to run must leave its place.
pub(super) fn lost(work: &mut Work<'_>, slot: Slot, id: TaskId) -> bool {
    let task = work.task(id).value.clone();
    let open = task.desired == Desired::Run && task.outcome.is_none();
    let Some(placed) = task.placed.as_ref().filter(|_| open) else { return false };
    match work.life(placed.node) {
        Life::Gone => false,
        // What no other node may run waits for its node, on which it may well run on.
        Life::Down(_) => {
            matches!(slot, Slot::Replica(_))
                && !work.state.spec_of(&task).is_some_and(|version| version.spec.is_bound_to_one_node())
        }
        Life::Up | Life::Unknown => work.state.nodes.get(&placed.node).is_some_and(|node| {
            let placement = work.state.task_spec(&task).map(|spec| &spec.placement);
            node.availability == Availability::Drain
                || placement.is_some_and(|placement| broken_constraint(placement, node).is_some())
                || meets_held_port(work, &task, placed.node)
        }),
    }
}

/// Whether a task that does not run yet was placed where a process of the host holds a port of its service, which its node
/// told too late. One that runs stays: its port was free when it came.
fn meets_held_port(work: &Work<'_>, task: &Task, node: NodeId) -> bool {
    let Some(report) = work.live.nodes.get(&node).map(|known| &known.report) else { return false };
    let Some(service) = work.state.services.get(&task.service) else { return false };
    let coming_up = report.tasks.get(&task.id).is_some_and(|told| told.state < TaskState::Running);
    let published = |held: &HeldPort| {
        service.ports.iter().any(|port| (port.protocol, port.published) == (held.protocol, held.port))
    };
    coming_up && report.held_ports.iter().any(published)
}
