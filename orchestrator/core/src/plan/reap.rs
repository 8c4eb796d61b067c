//! Deletes what nobody needs any more: tasks that left no trace, old history, versions without tasks, removed services.

use super::{outcomes::answers, restart::kept_attempts, slots::emptied, work::Work};
use crate::{
    model::{Desired, ServiceId, Task, TaskId},
    state::{Key, Stored},
};
use alloc::{collections::BTreeSet, vec::Vec};

/// Deletes tasks that were to vanish and have: what they held is free.
pub(super) fn vanished(work: &mut Work<'_>) {
    let gone: Vec<TaskId> =
        work.state.tasks.iter().filter(|(_, task)| has_vanished(work, task)).map(|(id, _)| *id).collect();
    for id in gone {
        work.delete(Key::Task(id));
    }
}

/// Deletes tasks that are only history, and too many; then versions and services that no task needs.
pub(super) fn history(work: &mut Work<'_>) {
    let limit = work.state.cluster.as_ref().map_or(0, |cluster| cluster.settings.task_history) as usize;
    for service in work.service_ids() {
        let policy = work.wanted(service).map(|(_, version)| version.spec.task.restart);
        let limit = limit.max(policy.as_ref().map_or(0, kept_attempts));
        for tasks in work.slots_of(service).values() {
            // While a task has no node, the one before tells that its slot served.
            let waits = work.head(tasks).is_some_and(|head| work.task(head).placed.is_none());
            let kept = limit.max(usize::from(waits));
            let traces: Vec<TaskId> = tasks.iter().copied().filter(|id| is_trace(work.task(*id))).collect();
            let old = traces.len().saturating_sub(kept);
            for id in traces.into_iter().take(old) {
                work.delete(Key::Task(id));
            }
        }
    }
    for service in emptied(work) {
        for number in versions(work, service) {
            work.delete(Key::Spec(service, number));
        }
        work.delete(Key::Service(service));
    }
    delete_versions(work);
}

/// Told to vanish, and has: it ended, or was nowhere, or its node, knowing that it should, no longer reports it.
fn has_vanished(work: &Work<'_>, task: &Stored<Task>) -> bool {
    if task.desired != Desired::Remove {
        return false;
    }
    let Some(placed) = task.placed.as_ref().filter(|_| task.outcome.is_none()) else { return true };
    // What this plan wants, no node knows yet.
    work.is_unchanged(task.id) && answers(work, placed.node, task.revision) && work.report(task).is_none()
}

/// Kept for `service ps` only: the one that stands for its slot is not.
fn is_trace(task: &Task) -> bool {
    task.outcome.is_some() && task.desired == Desired::Shutdown
}

fn versions(work: &Work<'_>, service: ServiceId) -> Vec<u32> {
    work.state.specs.range((service, 0)..=(service, u32::MAX)).map(|((_, number), _)| *number).collect()
}

fn delete_versions(work: &mut Work<'_>) {
    let kept = |(service, number): &(ServiceId, u32)| {
        let wanted = work.state.services.get(service);
        wanted.is_some_and(|wanted| wanted.current == *number || wanted.previous == Some(*number))
    };
    let mut unused: BTreeSet<(ServiceId, u32)> = work.state.specs.keys().copied().filter(|key| !kept(key)).collect();
    if !unused.is_empty() {
        for task in work.state.tasks.values() {
            unused.remove(&(task.service, task.version));
        }
    }
    for (service, number) in unused {
        work.delete(Key::Spec(service, number));
    }
}
