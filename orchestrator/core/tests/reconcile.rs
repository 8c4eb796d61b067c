//! The node's half of the pattern: what it has and what it should have in, steps, forwarding and reports out.

use orchestrator_core::{
    assignment::{AssignedBackend, AssignedService, AssignedTask, Assignment, Membership},
    forwarding::BackendState,
    model::{
        ContainerSpec, Desired, ImageName, Millis, NodeId, Placement, PortSpec, Protocol, PublishMode, Resources,
        RestartPolicy, Role, ServiceId, Slot, TaskId, TaskSpec, TaskState, UnixMillis,
    },
    node::{
        Attached, Container, Failure, Health, Observed, Op, Phase, Stopping, TaskObserved, forwarding, names,
        reconcile, report,
    },
};
use std::collections::BTreeMap;

const TASK: TaskId = TaskId(1);
const HERE: NodeId = NodeId(7);
const NOW: UnixMillis = UnixMillis(100_000);
const WEB: PortSpec = PortSpec { protocol: Protocol::Tcp, target: 80, published: 8080, mode: PublishMode::Ingress };

fn image() -> ImageName {
    ImageName::new("nginx").expect("a plain name")
}

fn assigned(desired: Desired) -> Assignment {
    let task = AssignedTask {
        service: ServiceId(1),
        service_name: "web".into(),
        slot: Slot::Replica(1),
        spec: TaskSpec {
            container: ContainerSpec::new(image()),
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            force_update: 0,
        },
        desired,
        index: 2,
        on_disconnect: None,
    };
    let backend =
        AssignedBackend { task: TASK, node: HERE, index: 2, slots: vec![(WEB, 5)], active: desired == Desired::Run };
    let service = AssignedService { name: "web".into(), ports: vec![WEB], backends: vec![backend] };
    Assignment {
        node: HERE,
        term: 1,
        revision: 1,
        edition: 0,
        membership: Membership {
            role: Role::Worker,
            raft_id: None,
            managers: BTreeMap::new(),
            heartbeat: Millis(1000),
            down_after: Millis(5000),
            cert_validity: Millis(3_600_000),
            ca: vec![],
        },
        tasks: [(TASK, task)].into(),
        history: Default::default(),
        services: [(ServiceId(1), service)].into(),
    }
}

/// Nothing is assigned but the memory of the task.
fn history(kept: bool) -> Assignment {
    let history = if kept { [TASK].into() } else { Default::default() };
    Assignment { tasks: BTreeMap::new(), history, services: BTreeMap::new(), ..assigned(Desired::Run) }
}

fn attached() -> Attached {
    Attached { v4: [10, 231, 0, 2].into(), v6: None, ifindex: 9 }
}

fn in_phase(phase: Phase, health: Option<Health>) -> TaskObserved {
    TaskObserved {
        attached: Some(attached()),
        mounted: true,
        traces: true,
        container: Some(Container { phase, health }),
        ..TaskObserved::default()
    }
}

fn running() -> TaskObserved {
    in_phase(Phase::Running { pid: 42, since: UnixMillis(90_000) }, None)
}

fn exited(code: i32, oom: bool) -> TaskObserved {
    in_phase(Phase::Exited { code, oom, at: UnixMillis(95_000) }, None)
}

fn observed(task: TaskObserved) -> Observed {
    Observed { tasks: [(TASK, task)].into(), ..Observed::default() }
}

fn steps(assignment: &Assignment, observed: &Observed) -> Vec<Op> {
    reconcile(assignment, observed, NOW).tasks.remove(&TASK).unwrap_or_default()
}

#[test]
fn a_wanted_task_comes_up_from_nothing_in_order() {
    let all = [Op::Fetch(image()), Op::Attach(2), Op::Mount, Op::Create, Op::Start];
    assert_eq!(steps(&assigned(Desired::Run), &Observed::default()), all);
}

#[test]
fn what_is_there_is_not_done_again() {
    let run = assigned(Desired::Run);
    let with_image = Observed { images: [image()].into(), ..Observed::default() };
    assert_eq!(steps(&run, &with_image), [Op::Attach(2), Op::Mount, Op::Create, Op::Start]);
    assert_eq!(steps(&run, &observed(in_phase(Phase::Created, None))), [Op::Start]);
    assert_eq!(steps(&run, &observed(running())), []);
}

#[test]
fn steps_under_way_and_failed_tasks_are_left_alone() {
    let run = assigned(Desired::Run);
    assert_eq!(steps(&run, &observed(TaskObserved { busy: true, ..TaskObserved::default() })), []);
    let failure = Some(Failure { at: NOW, message: "no such image".into() });
    assert_eq!(steps(&run, &observed(TaskObserved { failure, ..TaskObserved::default() })), []);
}

#[test]
fn a_running_task_gets_its_interface_back() {
    let lost = TaskObserved { attached: None, damaged_link: true, ..running() };
    assert_eq!(steps(&assigned(Desired::Run), &observed(lost)), [Op::Attach(2)]);
}

#[test]
fn traffic_leaves_before_the_stop_signal() {
    let stop = assigned(Desired::Shutdown);
    let serving = Observed { serving: [5].into(), ..observed(running()) };
    assert_eq!(steps(&stop, &serving), []);
    assert_eq!(steps(&stop, &observed(running())), [Op::Stop]);
}

#[test]
fn a_task_that_does_not_end_is_killed_after_its_grace() {
    let stop = assigned(Desired::Shutdown);
    let stopping = |since, killed| {
        observed(TaskObserved { stopping: Some(Stopping { since: UnixMillis(since), killed }), ..running() })
    };
    let waiting = reconcile(&stop, &stopping(NOW.0 - 4_000, false), NOW);
    assert_eq!(waiting.tasks, BTreeMap::new());
    assert_eq!(waiting.wake_at, Some(NOW + Millis(6_000)));
    assert_eq!(steps(&stop, &stopping(NOW.0 - 10_000, false)), [Op::Kill]);
    assert_eq!(steps(&stop, &stopping(NOW.0 - 20_000, true)), []);
}

#[test]
fn an_end_is_kept_until_the_leader_knows_it_and_traces_until_they_are_reaped() {
    let ended = observed(exited(0, false));
    assert_eq!(steps(&assigned(Desired::Run), &ended), []);
    assert_eq!(steps(&assigned(Desired::Shutdown), &ended), []);
    assert_eq!(steps(&history(true), &ended), [Op::Delete, Op::Unmount, Op::Detach]);
    assert_eq!(steps(&history(false), &ended), [Op::Delete, Op::Unmount, Op::Detach, Op::Forget]);
    let only_logs = observed(TaskObserved { traces: true, ..TaskObserved::default() });
    assert_eq!(steps(&history(true), &only_logs), []);
    assert_eq!(steps(&history(false), &only_logs), [Op::Forget]);
}

#[test]
fn what_runs_without_being_assigned_is_ended() {
    assert_eq!(steps(&history(false), &observed(running())), [Op::Stop]);
    let broken = observed(in_phase(Phase::Broken { why: "its shim is gone".into() }, None));
    assert_eq!(steps(&history(false), &broken), [Op::Delete, Op::Unmount, Op::Detach, Op::Forget]);
}

#[test]
fn only_healthy_tasks_get_traffic_and_names() {
    let run = assigned(Desired::Run);
    let phase = || Phase::Running { pid: 42, since: NOW };
    for (health, ready) in [
        (None, true),
        (Some(Health::Starting), false),
        (Some(Health::Healthy), true),
        (Some(Health::Unhealthy("no".into())), false),
    ] {
        let seen = observed(in_phase(phase(), health));
        assert_eq!(forwarding(&run, &seen).backends.contains_key(&5), ready);
        assert_eq!(names(&run, &seen)["tasks.web"].len(), usize::from(ready));
    }
}

#[test]
fn an_unhealthy_task_is_ended_with_its_own_grace_before_its_failure_is_told() {
    let run = assigned(Desired::Run);
    let unhealthy = || in_phase(Phase::Running { pid: 42, since: NOW }, Some(Health::Unhealthy("no".into())));
    assert_eq!(steps(&run, &Observed { serving: [5].into(), ..observed(unhealthy()) }), []);
    assert_eq!(steps(&run, &observed(unhealthy())), [Op::Stop]);
    let stopping = Some(Stopping { since: UnixMillis(NOW.0 - 10_000), killed: false });
    assert_eq!(steps(&run, &observed(TaskObserved { stopping, ..unhealthy() })), [Op::Kill]);
}

#[test]
fn a_container_that_nobody_goes_on_making_is_made_anew() {
    let half = TaskObserved { busy: false, ..in_phase(Phase::Creating, None) };
    let with_image = Observed { images: [image()].into(), ..observed(half) };
    assert_eq!(steps(&assigned(Desired::Run), &with_image), [Op::Delete, Op::Create, Op::Start]);
}

#[test]
fn a_task_told_to_end_drains() {
    let table = forwarding(&assigned(Desired::Shutdown), &observed(running()));
    assert_eq!(table.backends[&5].state, BackendState::Draining);
    assert!(table.serving().is_empty());
    assert_eq!(names(&assigned(Desired::Shutdown), &observed(running()))["web"], []);
}

#[test]
fn reports_say_how_far_a_task_is_and_why_it_ended() {
    let phase = || Phase::Running { pid: 42, since: NOW };
    let failed = TaskObserved {
        failure: Some(Failure { at: NOW, message: "No such image: nginx".into() }),
        ..TaskObserved::default()
    };
    let busy = TaskObserved { busy: true, activity: "pulling nginx".into(), ..TaskObserved::default() };
    for (desired, seen, state, message) in [
        (Desired::Run, TaskObserved::default(), TaskState::Accepted, ""),
        (Desired::Run, busy, TaskState::Preparing, "pulling nginx"),
        (Desired::Run, failed, TaskState::Rejected, "No such image: nginx"),
        (Desired::Run, in_phase(Phase::Created, None), TaskState::Ready, ""),
        (Desired::Run, running(), TaskState::Running, ""),
        (
            Desired::Run,
            in_phase(phase(), Some(Health::Starting)),
            TaskState::Starting,
            "waiting for the first successful health check",
        ),
        (
            Desired::Run,
            in_phase(phase(), Some(Health::Unhealthy("refused\n".into()))),
            TaskState::Starting,
            "unhealthy container: refused; it is being ended",
        ),
        (
            Desired::Run,
            in_phase(Phase::Exited { code: 0, oom: false, at: NOW }, Some(Health::Unhealthy("refused\n".into()))),
            TaskState::Failed,
            "unhealthy container: refused",
        ),
        (Desired::Run, exited(0, false), TaskState::Complete, ""),
        (Desired::Run, exited(3, false), TaskState::Failed, "task: non-zero exit (3)"),
        (
            Desired::Run,
            exited(137, true),
            TaskState::Failed,
            "task: out of memory: killed by the kernel at its memory limit (137)",
        ),
        (Desired::Shutdown, exited(143, false), TaskState::Shutdown, ""),
        (Desired::Shutdown, TaskObserved::default(), TaskState::Shutdown, ""),
    ] {
        let told = report(&assigned(desired), &observed(seen.clone()), NOW);
        assert_eq!((told[&TASK].state, told[&TASK].message.as_str()), (state, message), "{seen:?}");
    }
}

#[test]
fn a_task_that_is_to_vanish_is_told_of_until_nothing_is_left() {
    let remove = assigned(Desired::Remove);
    assert!(report(&remove, &observed(running()), NOW).contains_key(&TASK));
    let logs = observed(TaskObserved { traces: true, ..TaskObserved::default() });
    assert!(report(&remove, &logs, NOW).contains_key(&TASK));
    assert!(report(&remove, &Observed::default(), NOW).is_empty());
}
