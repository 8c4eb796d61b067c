//! The node's half of the pattern: which steps bring what it has closer to what it should have, and what it tells the leader.
//!
//! In: the last [`Assignment`] and [`Observed`], read from the kernel. Out: [`Work`], steps that are safe to repeat. Called by
//! the agent whenever something may have changed. Traffic leaves a task before its process is told to end, and reaches it only
//! once it runs and is healthy:
//!
//! ```text
//!            image      attach     mount      create     start                 forward
//!  assigned ───────► · ───────► · ───────► · ───────► created ───────► running ═══════► serving
//!                                                                        │ exited          │ unhealthy, told to end
//!                                                                        ▼                 ▼
//!                         gone ◄─────── delete, unmount, detach ◄── end told ◄── forward away, signal, kill
//! ```
//!
//! A node that hears no manager goes on with its last assignment, and does one thing more: what ended it starts again by
//! the service's restart policy, as no manager replaces it. Of a service that must not run twice it starts nothing, and ends
//! what runs once the time for that has come ([`AssignedTask::on_disconnect`]).

use crate::{
    assignment::{AssignedBackend, AssignedTask, Assignment},
    forwarding::{Backend, BackendState, Table},
    model::{
        Desired, ImageName, Millis, PortSpec, RestartCondition, RestartPolicy, TaskId, TaskReport, TaskState,
        UnixMillis,
    },
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};
use core::net::{Ipv4Addr, Ipv6Addr};

/// What the node has, as far as tasks are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Images that are complete on the node.
    pub images: BTreeSet<ImageName>,
    /// What there is of each task; tasks of which nothing is left are absent.
    pub tasks: BTreeMap<TaskId, TaskObserved>,
    /// Backend numbers that new connections may be sent to.
    pub serving: BTreeSet<u16>,
    /// When the node heard a manager for the last time, or when the agent started if it has heard none since; `None` as long
    /// as it counts itself connected. The time of the last sign of life, not of the moment at which the silence was noticed:
    /// the cluster counts from there, too.
    pub cut_off_since: Option<UnixMillis>,
}

/// What there is of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskObserved {
    /// Steps of this task are being carried out.
    pub busy: bool,
    /// What the steps are doing, for people.
    pub activity: String,
    /// When the node first worked on it.
    pub begun: Option<UnixMillis>,
    /// Its network interface, if it is whole.
    pub attached: Option<Attached>,
    /// There are parts of a network interface that do not make a whole.
    pub damaged_link: bool,
    /// Whether its root file system is mounted.
    pub mounted: bool,
    /// Its container.
    pub container: Option<Container>,
    /// When its process was told to end, and that it was killed.
    pub stopping: Option<Stopping>,
    /// A step that failed for good.
    pub failure: Option<Failure>,
    /// When the node started it again by itself, oldest first ([`note_restart`]).
    pub restarts: Vec<UnixMillis>,
    /// Files of it that outlive the container: logs.
    pub traces: bool,
}

/// A network interface of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// IPv4 address on the node-local network.
    pub v4: Ipv4Addr,
    /// IPv6 address on the node-local network.
    pub v6: Option<Ipv6Addr>,
    /// Index of the interface's host side.
    pub ifindex: u32,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// How far its process is.
    pub phase: Phase,
    /// Health, where a check is asked for.
    pub health: Option<Health>,
}

/// How far a container's process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Half made, and nobody goes on with it.
    Creating,
    /// Made, not started.
    Created,
    /// Runs.
    Running {
        /// Its process id.
        pid: u32,
        /// Since when.
        since: UnixMillis,
    },
    /// Ended.
    Exited {
        /// Exit code; 128 + signal if a signal ended it.
        code: i32,
        /// Whether the kernel killed it for lack of memory.
        oom: bool,
        /// When.
        at: UnixMillis,
    },
    /// Nobody watches it any more; how its process ended, or whether it did, is not known.
    Broken {
        /// Why, for people.
        why: String,
    },
}

/// What health checks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not known yet.
    Starting,
    /// Well.
    Healthy,
    /// Failed too often in a row; with the last output.
    Unhealthy(String),
}

/// How the end of a process goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// When the stop signal was sent.
    pub since: UnixMillis,
    /// Whether SIGKILL was sent.
    pub killed: bool,
}

/// A step that failed and will not be tried again for this task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: UnixMillis,
    /// What was tried on what and why it failed, in one line.
    pub message: String,
}

/// One idempotent side effect for one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the image complete on the node.
    Fetch(ImageName),
    /// Make its network namespace and interface, with this host part of the address.
    Attach(u16),
    /// Mount its root file system.
    Mount,
    /// Make its container.
    Create,
    /// Start its process.
    Start,
    /// Send its stop signal.
    Stop,
    /// Send SIGKILL to all of its processes.
    Kill,
    /// Remove its container.
    Delete,
    /// Unmount and remove its root file system.
    Unmount,
    /// Remove its network interface and namespace.
    Detach,
    /// Remove its logs.
    Forget,
}

/// Notes that the node started a task again by itself. Only as many are kept as the policy counts.
pub fn note_restart(restarts: &mut Vec<UnixMillis>, policy: &RestartPolicy, now: UnixMillis) {
    restarts.push(now);
    let kept = (policy.max_attempts as usize).max(1);
    restarts.drain(..restarts.len().saturating_sub(kept));
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Steps of each task, to be done in order; the first failure ends the chain.
    pub tasks: BTreeMap<TaskId, Vec<Op>>,
    /// Those of them that ended and are started again: the agent notes it ([`note_restart`]), and forgets how they ended.
    pub restarts: BTreeSet<TaskId>,
    /// When to look again though nothing has changed.
    pub wake_at: Option<UnixMillis>,
}

/// The steps from what the node has to what it should have.
#[must_use]
pub fn reconcile(assignment: &Assignment, observed: &Observed, now: UnixMillis) -> Work {
    let mut work = Work::default();
    let known = assignment.tasks.keys().chain(observed.tasks.keys()).copied().collect::<BTreeSet<_>>();
    let nothing = TaskObserved::default();
    for id in known {
        let seen = observed.tasks.get(&id).unwrap_or(&nothing);
        if seen.busy {
            continue;
        }
        let assigned = assignment.tasks.get(&id);
        let ops = match assigned {
            Some(task) if task.desired == Desired::Run && wants_end(task, seen, observed, now) => {
                if is_serving(assignment, id, &observed.serving) {
                    Vec::new()
                } else {
                    retire(assigned, seen, Keep::End, now, &mut work.wake_at)
                }
            }
            Some(task) if task.desired == Desired::Run => match observed.cut_off_since {
                None => advance(task, seen, &observed.images),
                Some(since) => advance_alone(task, seen, observed, since, now).into_ops(id, &mut work),
            },
            _ if is_serving(assignment, id, &observed.serving) => Vec::new(),
            _ => {
                let keep = if assigned.is_some_and(|task| task.desired == Desired::Shutdown) {
                    Keep::End
                } else if assignment.history.contains(&id) || (assigned.is_none() && observed.cut_off_since.is_some()) {
                    // Without a manager nobody can say that the traces of a task are not wanted.
                    Keep::Traces
                } else {
                    Keep::Nothing
                };
                retire(assigned, seen, keep, now, &mut work.wake_at)
            }
        };
        if !ops.is_empty() {
            work.tasks.insert(id, ops);
        }
    }
    work
}

/// Brings a wanted task up.
fn advance(task: &AssignedTask, seen: &TaskObserved, images: &BTreeSet<ImageName>) -> Vec<Op> {
    let mut ops = Vec::new();
    if seen.failure.is_some() {
        return ops;
    }
    match seen.container.as_ref().map(|container| &container.phase) {
        Some(Phase::Exited { .. } | Phase::Broken { .. }) => {}
        Some(Phase::Running { .. }) => ops.extend(repair(task, seen)),
        Some(Phase::Created) => ops.push(Op::Start),
        None | Some(Phase::Creating) => ops = make(task, seen, images),
    }
    ops
}

/// What a running task lacks: somebody took its interface away; its namespace is still there.
fn repair(task: &AssignedTask, seen: &TaskObserved) -> Option<Op> {
    seen.attached.is_none().then_some(Op::Attach(task.index))
}

/// Makes a container, in the place of one that is half made or over.
fn make(task: &AssignedTask, seen: &TaskObserved, images: &BTreeSet<ImageName>) -> Vec<Op> {
    let mut ops = Vec::new();
    if seen.container.is_some() {
        ops.push(Op::Delete);
    }
    let image = &task.spec.container.image;
    if !images.contains(image) {
        ops.push(Op::Fetch(image.clone()));
    }
    if seen.attached.is_none() {
        ops.push(Op::Attach(task.index));
    }
    if !seen.mounted {
        ops.push(Op::Mount);
    }
    ops.extend([Op::Create, Op::Start]);
    ops
}

/// What a node does for a wanted task while it hears no manager.
enum Alone {
    /// These steps, now.
    Now(Vec<Op>),
    /// These steps, which start again what ended.
    Again(Vec<Op>),
    /// Nothing before this moment.
    Later(UnixMillis),
}

impl Alone {
    fn into_ops(self, id: TaskId, work: &mut Work) -> Vec<Op> {
        match self {
            Self::Now(ops) => ops,
            Self::Again(ops) => {
                work.restarts.insert(id);
                ops
            }
            Self::Later(due) => {
                wake(&mut work.wake_at, due);
                Vec::new()
            }
        }
    }
}

/// Brings a wanted task up, or up again, while no manager is heard.
fn advance_alone(
    task: &AssignedTask,
    seen: &TaskObserved,
    observed: &Observed,
    since: UnixMillis,
    now: UnixMillis,
) -> Alone {
    if let Some(grace) = task.on_disconnect {
        // Another node may run it by now: it is not started here. What runs is kept whole until its time has come.
        let running = matches!(&seen.container, Some(Container { phase: Phase::Running { .. }, .. }));
        return match repair(task, seen).filter(|_| running) {
            Some(repair) => Alone::Now(alloc::vec![repair]),
            None if running => Alone::Later(since + grace),
            None => Alone::Now(Vec::new()),
        };
    }
    let Some(end) = how_it_ended(seen) else { return Alone::Now(advance(task, seen, &observed.images)) };
    let policy = &task.spec.restart;
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => end.failed,
        RestartCondition::Any => true,
    };
    let in_window = |at: &&UnixMillis| policy.window.0 == 0 || end.at.since(**at) < policy.window;
    let attempts = seen.restarts.iter().filter(in_window).count();
    if !wanted || (policy.max_attempts != 0 && attempts >= policy.max_attempts as usize) {
        return Alone::Now(Vec::new());
    }
    let delay = if seen.failure.is_some() { policy.delay.max(FAILED_STEP_DELAY) } else { policy.delay };
    let due = end.at + delay;
    // A clock that was set back does not lengthen the delay.
    if due > now && end.at <= now { Alone::Later(due) } else { Alone::Again(make(task, seen, &observed.images)) }
}

/// The shortest time between two attempts at a step that failed for good, while no manager can be told of it.
const FAILED_STEP_DELAY: Millis = Millis::from_secs(10);

/// How a task ended, as far as its restart goes.
struct Ended {
    at: UnixMillis,
    failed: bool,
}

/// `None` if it has not ended.
fn how_it_ended(seen: &TaskObserved) -> Option<Ended> {
    if let Some(failure) = &seen.failure {
        return Some(Ended { at: failure.at, failed: true });
    }
    let container = seen.container.as_ref()?;
    match container.phase {
        Phase::Exited { code, at, .. } => {
            Some(Ended { at, failed: code != 0 || matches!(container.health, Some(Health::Unhealthy(_))) })
        }
        // Nobody knows when, but not before its last start.
        Phase::Broken { .. } => Some(Ended { at: seen.restarts.last().copied().unwrap_or_default(), failed: true }),
        Phase::Creating | Phase::Created | Phase::Running { .. } => None,
    }
}

/// Whether the node ends a task though it is told to run it.
fn wants_end(task: &AssignedTask, seen: &TaskObserved, observed: &Observed, now: UnixMillis) -> bool {
    is_unhealthy(seen) || is_left(task, observed, now)
}

/// Whether no manager was heard for so long that the task is to end. A clock that was set back does not lengthen the time.
fn is_left(task: &AssignedTask, observed: &Observed, now: UnixMillis) -> bool {
    let (Some(since), Some(grace)) = (observed.cut_off_since, task.on_disconnect) else { return false };
    since + grace <= now || since > now
}

fn wake(wake_at: &mut Option<UnixMillis>, due: UnixMillis) {
    *wake_at = Some(wake_at.map_or(due, |earlier| earlier.min(due)));
}

/// Whether a task runs and its health check has failed too often: it is ended as if told to, and its end is a failure.
fn is_unhealthy(seen: &TaskObserved) -> bool {
    matches!(&seen.container, Some(Container { phase: Phase::Running { .. }, health: Some(Health::Unhealthy(_)) }))
}

/// What stays of a task that is not wanted any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// How it ended, which the leader has not heard of yet.
    End,
    /// Its logs.
    Traces,
    /// Nothing.
    Nothing,
}

/// Ends a task and takes away what is left of it.
fn retire(
    assigned: Option<&AssignedTask>,
    seen: &TaskObserved,
    keep: Keep,
    now: UnixMillis,
    wake_at: &mut Option<UnixMillis>,
) -> Vec<Op> {
    let grace = assigned.map_or(Millis::from_secs(10), |task| task.spec.container.stop_grace);
    let running = matches!(&seen.container, Some(Container { phase: Phase::Running { .. }, .. }));
    if running {
        return match seen.stopping {
            None => alloc::vec![Op::Stop],
            // A clock that was set back does not lengthen the grace.
            Some(Stopping { since, killed: false }) if since + grace <= now || since > now => alloc::vec![Op::Kill],
            Some(Stopping { since, killed }) => {
                if !killed {
                    wake(wake_at, since + grace);
                }
                Vec::new()
            }
        };
    }
    if keep == Keep::End && matches!(&seen.container, Some(Container { phase: Phase::Exited { .. }, .. })) {
        return Vec::new();
    }
    let mut ops = Vec::new();
    if seen.container.is_some() {
        ops.push(Op::Delete);
    }
    if seen.mounted {
        ops.push(Op::Unmount);
    }
    if seen.attached.is_some() || seen.damaged_link {
        ops.push(Op::Detach);
    }
    if keep == Keep::Nothing && (seen.traces || !ops.is_empty()) {
        ops.push(Op::Forget);
    }
    ops
}

/// Whether new connections may still be sent to the task.
fn is_serving(assignment: &Assignment, task: TaskId, serving: &BTreeSet<u16>) -> bool {
    assignment
        .services
        .values()
        .flat_map(|service| &service.backends)
        .filter(|backend| backend.task == task)
        .flat_map(|backend| &backend.slots)
        .any(|(_, slot)| serving.contains(slot))
}

/// Whether a task may get traffic: it runs and, where a check is asked for, is healthy.
#[must_use]
pub fn is_ready(seen: &TaskObserved) -> bool {
    matches!(&seen.container, Some(Container { phase: Phase::Running { .. }, health: None | Some(Health::Healthy) }))
}

/// Whether new connections may go to a task of this node, once it is ready.
fn is_open(assignment: &Assignment, backend: &AssignedBackend, observed: &Observed, now: UnixMillis) -> bool {
    let left = assignment.tasks.get(&backend.task).is_some_and(|task| is_left(task, observed, now));
    backend.is_open_to(assignment.node) && !left
}

/// The forwarding tables that the node should have: published ports, with those local tasks behind them that are ready.
/// Tasks that are told to end, or that the node ends by itself, drain: connections they have may finish for as long as their
/// process runs.
#[must_use]
pub fn forwarding(assignment: &Assignment, observed: &Observed, now: UnixMillis) -> Table {
    let mut table = Table::default();
    for service in assignment.services.values() {
        for port in &service.ports {
            let here = service.backends.iter().filter(|backend| backend.node == assignment.node);
            let ready = here.filter_map(|backend| {
                let seen = observed.tasks.get(&backend.task).filter(|seen| is_ready(seen))?;
                let attached = seen.attached.as_ref()?;
                let same = |own: &PortSpec| (own.protocol, own.published) == (port.protocol, port.published);
                let (own, slot) = backend.slots.iter().find(|(own, _)| same(own))?;
                let open = is_open(assignment, backend, observed, now);
                let state = if open { BackendState::Active } else { BackendState::Draining };
                let (v4, v6, ifindex) = (Some(attached.v4), attached.v6, attached.ifindex);
                Some((*slot, Backend { v4, v6, port: own.target, ifindex, state }))
            });
            table.publish(port.protocol, port.published, None, ready);
        }
    }
    table
}

/// What the resolver answers: names of services, `tasks.` names, and addresses of ready local tasks.
#[must_use]
pub fn names(assignment: &Assignment, observed: &Observed, now: UnixMillis) -> BTreeMap<String, Vec<Attached>> {
    let mut out: BTreeMap<String, Vec<Attached>> = BTreeMap::new();
    for service in assignment.services.values() {
        let ready = service
            .backends
            .iter()
            .filter(|backend| backend.node == assignment.node && is_open(assignment, backend, observed, now))
            .filter_map(|backend| observed.tasks.get(&backend.task))
            .filter(|seen| is_ready(seen))
            .filter_map(|seen| seen.attached.clone())
            .collect::<Vec<_>>();
        out.insert(format!("tasks.{}", service.name), ready.clone());
        out.insert(service.name.clone(), ready);
    }
    out
}

/// What the node tells of its tasks.
#[must_use]
pub fn report(assignment: &Assignment, observed: &Observed, now: UnixMillis) -> BTreeMap<TaskId, TaskReport> {
    let nothing = TaskObserved::default();
    let mut out = BTreeMap::new();
    for (id, task) in &assignment.tasks {
        let seen = observed.tasks.get(id).unwrap_or(&nothing);
        // A task that is to vanish is told of for as long as something of it is left.
        if task.desired != Desired::Remove || has_rest(seen) {
            out.insert(*id, report_task(task, seen, now));
        }
    }
    out
}

/// Whether something of a task is left on the node.
#[must_use]
pub fn has_rest(seen: &TaskObserved) -> bool {
    seen.busy || seen.container.is_some() || seen.mounted || seen.attached.is_some() || seen.damaged_link || seen.traces
}

fn report_task(task: &AssignedTask, seen: &TaskObserved, now: UnixMillis) -> TaskReport {
    let begun = seen.begun.unwrap_or(now);
    let told_to_end = task.desired != Desired::Run;
    let of = |state, since, message: &str, pid, exit_code| TaskReport {
        state,
        since,
        message: message.into(),
        pid,
        exit_code,
    };
    if let Some(failure) = &seen.failure {
        return of(TaskState::Rejected, failure.at, &failure.message, None, None);
    }
    let Some(container) = &seen.container else {
        return if told_to_end && !seen.busy {
            of(TaskState::Shutdown, now, "", None, None)
        } else if seen.busy {
            of(TaskState::Preparing, begun, &seen.activity, None, None)
        } else {
            of(TaskState::Accepted, begun, "", None, None)
        };
    };
    match (&container.phase, &container.health) {
        (Phase::Creating, _) => of(TaskState::Preparing, begun, &seen.activity, None, None),
        (Phase::Created, _) => of(TaskState::Ready, begun, "", None, None),
        (Phase::Running { pid, since }, Some(Health::Starting)) => {
            of(TaskState::Starting, *since, "waiting for the first successful health check", Some(*pid), None)
        }
        (Phase::Running { pid, .. }, Some(Health::Unhealthy(output))) if !told_to_end => {
            let message = format!("unhealthy container: {}; it is being ended", output.trim());
            of(TaskState::Starting, begun, &message, Some(*pid), None)
        }
        (Phase::Running { pid, since }, _) => of(TaskState::Running, *since, "", Some(*pid), None),
        (Phase::Broken { why }, _) => of(TaskState::Failed, now, why, None, None),
        (Phase::Exited { code, at, .. }, _) if told_to_end => of(TaskState::Shutdown, *at, "", None, Some(*code)),
        (Phase::Exited { code, at, .. }, Some(Health::Unhealthy(output))) => {
            let message = format!("unhealthy container: {}", output.trim());
            of(TaskState::Failed, *at, &message, None, Some(*code))
        }
        // It was no doing of its own: the restart policy has no say in its replacement.
        (Phase::Exited { code, at, .. }, _) if seen.stopping.is_some() => {
            of(TaskState::Shutdown, *at, "stopped: its node reached no manager", None, Some(*code))
        }
        (Phase::Exited { code: 0, at, .. }, _) => of(TaskState::Complete, *at, "", None, Some(0)),
        (Phase::Exited { code, at, oom }, _) => {
            let message = if *oom {
                format!("task: out of memory: killed by the kernel at its memory limit ({code})")
            } else {
                format!("task: non-zero exit ({code})")
            };
            of(TaskState::Failed, *at, &message, None, Some(*code))
        }
    }
}
