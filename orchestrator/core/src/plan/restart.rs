//! Slots whose task ended get a new one: when, and whether at all, is the restart policy's to say.

use super::{Subject, Why, outcomes::lost, work::Work};
use crate::model::{
    Desired, End, Millis, Outcome, RestartCondition, RestartPolicy, Service, Slot, Task, TaskId, UnixMillis,
    UpdateState,
};
use alloc::vec::Vec;

/// What could not be started is tried again ever more seldom, up to this interval: each attempt may load a registry and each
/// end is written to flash. 5 minutes is where Kubernetes' image pull back-off ends, too.
const REJECTED_DELAY_MAX: Millis = Millis::from_secs(5 * 60);
/// The shortest time between two attempts at what could not be started, for services with a restart delay of 0.
const REJECTED_DELAY_MIN: Millis = Millis::from_secs(1);

/// Makes tasks for slots whose task ended, once their delay is over.
pub(super) fn replace_ended(work: &mut Work<'_>) {
    for id in work.service_ids() {
        let Some((service, version)) = work.wanted(id) else { continue };
        if service.removed {
            continue;
        }
        let policy = version.spec.task.restart;
        for (&slot, tasks) in work.slots_of(id).iter() {
            let Some(head) = work.head(tasks) else { continue };
            if work.task(head).outcome.is_none() {
                continue;
            }
            let task = work.task(head).value.clone();
            let Some(outcome) = &task.outcome else { continue };
            // The old half of a start-first update, which is wanted again: it takes the slot back. One that is being moved
            // away serves on, but does not.
            let stands_by = tasks.iter().any(|id| {
                let other = work.task(*id);
                let open = other.desired == Desired::Run && other.outcome.is_none();
                open && other.version == service.current && !lost(work, slot, *id)
            });
            if stands_by {
                work.end_task(head);
                continue;
            }
            match decide(work, &service, &policy, slot, tasks, &task, outcome) {
                None => {
                    work.end_task(head);
                    work.create_task(&service, slot);
                }
                Some(why) => work.explain(Subject::Task(head), why),
            }
        }
    }
}

/// `None` if the task is to be replaced now.
fn decide(
    work: &mut Work<'_>,
    service: &Service,
    policy: &RestartPolicy,
    slot: Slot,
    tasks: &[TaskId],
    task: &Task,
    outcome: &Outcome,
) -> Option<Why> {
    // Its node left; for a global service this slot goes with it.
    if outcome.end == End::Orphaned {
        return if matches!(slot, Slot::Replica(_)) { None } else { Some(Why::NotRestarted) };
    }
    // The user changed the spec since: what the old one did is no measure for the new one.
    let paused = service
        .update
        .as_ref()
        .is_some_and(|update| matches!(update.state, UpdateState::Paused | UpdateState::RollbackPaused));
    if !work.is_current(service, task.version) && !paused {
        return None;
    }
    // Told to end though it should run: no doing of its own, so no condition applies.
    if outcome.end != End::Shutdown {
        let wanted = match policy.condition {
            RestartCondition::None => false,
            RestartCondition::OnFailure => outcome.end != End::Complete,
            RestartCondition::Any => true,
        };
        if !wanted {
            return Some(Why::NotRestarted);
        }
        if policy.max_attempts != 0
            && restarts(work, service, policy, tasks, outcome.at) >= policy.max_attempts as usize
        {
            return Some(Why::AttemptsUsedUp(policy.max_attempts));
        }
    }
    let delay = match outcome.end {
        End::Rejected => rejected_delay(work, service, policy, tasks, task),
        _ => policy.delay,
    };
    work.due(outcome.at, delay).map(Why::RestartDelay)
}

/// How many tasks of the slot, the one that ended at `end` included, were replacements made within the window before.
/// The oldest attempt that is known was not a replacement, or is one too many anyway: [`kept_attempts`] are kept.
fn restarts(work: &Work<'_>, service: &Service, policy: &RestartPolicy, tasks: &[TaskId], end: UnixMillis) -> usize {
    let attempts = tasks.iter().map(|id| work.task(*id)).filter(|task| {
        let own_end = task.outcome.as_ref().is_some_and(|end| !matches!(end.end, End::Shutdown | End::Orphaned));
        own_end && work.is_current(service, task.version)
    });
    let in_window = |at: UnixMillis| policy.window.0 == 0 || end.since(at) < policy.window;
    attempts.skip(1).filter(|task| in_window(task.created_at)).count()
}

/// How many ended tasks of a slot must be kept so that the attempts can be counted.
pub(super) fn kept_attempts(policy: &RestartPolicy) -> usize {
    if policy.max_attempts == 0 { 0 } else { policy.max_attempts as usize + 1 }
}

/// Twice the time between the last two attempts: the kept history is memory enough for an exponential back-off.
fn rejected_delay(work: &Work<'_>, service: &Service, policy: &RestartPolicy, tasks: &[TaskId], task: &Task) -> Millis {
    let least = policy.delay.max(REJECTED_DELAY_MIN);
    let older: Vec<TaskId> = tasks.iter().copied().take_while(|id| *id != task.id).collect();
    let before = older.last().map(|id| work.task(*id)).filter(|before| work.is_current(service, before.version));
    let rejected = before.and_then(|before| before.outcome.as_ref()).filter(|before| before.end == End::Rejected);
    let Some(rejected) = rejected else { return least };
    let waited = task.created_at.since(rejected.at);
    Millis(waited.0.saturating_mul(2)).min(REJECTED_DELAY_MAX).max(least)
}
