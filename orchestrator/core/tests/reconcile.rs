//! The node's half of the pattern: what it has and what it should have in, steps, forwarding and reports out.

use orchestrator_core::{
    assignment::{AssignedBackend, AssignedService, AssignedTask, Assignment, Membership},
    forwarding::BackendState,
    model::{
        ContainerSpec, Desired, ImageName, Millis, NodeId, Placement, PortSpec, Protocol, PublishMode, Resources,
        RestartCondition, RestartPolicy, Role, ServiceId, Slot, TaskId, TaskSpec, TaskState, UnixMillis,
    },
    node::{
        Attached, Container, Failure, Health, Observed, Op, Phase, Stopping, TaskObserved, forwarding, names,
        note_restart, reconcile, report,
    },
};
use std::{collections::BTreeMap, sync::Arc};

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
    let ending = desired != Desired::Run;
    let backend = AssignedBackend { task: TASK, node: HERE, index: 2, slots: vec![(WEB, 5)], ending, up: false };
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
        services: Arc::new([(ServiceId(1), service)].into()),
    }
}

/// Nothing is assigned but the memory of the task.
fn history(kept: bool) -> Assignment {
    let history = if kept { [TASK].into() } else { Default::default() };
    Assignment { tasks: BTreeMap::new(), history, services: Arc::default(), ..assigned(Desired::Run) }
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
        assert_eq!(forwarding(&run, &seen, NOW).backends.contains_key(&5), ready);
        assert_eq!(names(&run, &seen, NOW)["tasks.web"].len(), usize::from(ready));
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
    let table = forwarding(&assigned(Desired::Shutdown), &observed(running()), NOW);
    assert_eq!(table.backends[&5].state, BackendState::Draining);
    assert!(table.serving().is_empty());
    assert_eq!(names(&assigned(Desired::Shutdown), &observed(running()), NOW)["web"], []);
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

/// What the node has while it hears no manager since a moment.
fn alone(since: u64, task: Option<TaskObserved>) -> Observed {
    let tasks = task.map(|task| (TASK, task)).into_iter().collect();
    let (images, cut_off_since) = ([image()].into(), Some(UnixMillis(since)));
    Observed { images, tasks, cut_off_since, ..Observed::default() }
}

fn with(change: impl FnOnce(&mut AssignedTask)) -> Assignment {
    let mut assignment = assigned(Desired::Run);
    change(assignment.tasks.get_mut(&TASK).expect("the only task"));
    assignment
}

fn restart(condition: RestartCondition, delay: u64, max_attempts: u32, window: u64) -> Assignment {
    let policy = RestartPolicy { condition, delay: Millis(delay), max_attempts, window: Millis(window) };
    with(|task| task.spec.restart = policy)
}

/// A service that must not run twice.
fn only_one() -> Assignment {
    with(|task| task.on_disconnect = Some(Millis(10_000)))
}

const AGAIN: [Op; 3] = [Op::Delete, Op::Create, Op::Start];

#[test]
fn after_a_power_cut_the_ledger_brings_everything_back_without_a_manager() {
    let run = assigned(Desired::Run);
    let from_nothing = [Op::Attach(2), Op::Mount, Op::Create, Op::Start];
    assert_eq!(steps(&run, &alone(NOW.0, None)), from_nothing);
    // Its logs and its image are on disk, its container is not.
    let logs = TaskObserved { traces: true, ..TaskObserved::default() };
    assert_eq!(steps(&run, &alone(0, Some(logs))), from_nothing);
    assert!(reconcile(&run, &alone(0, None), NOW).restarts.is_empty(), "the first start is no restart");
    let seen = alone(0, Some(running()));
    assert_eq!(forwarding(&run, &seen, NOW).backends[&5].state, BackendState::Active);
    assert_eq!(names(&run, &seen, NOW)["web"], [attached()]);
}

#[test]
fn without_a_manager_what_ended_is_started_again_after_its_delay() {
    // It ended 5 s ago.
    let policy = restart(RestartCondition::Any, 5_000, 0, 0);
    let work = reconcile(&policy, &alone(0, Some(exited(0, false))), NOW);
    assert_eq!((&work.tasks[&TASK][..], &work.restarts), (&AGAIN[..], &[TASK].into()));
    let patient = restart(RestartCondition::Any, 6_000, 0, 0);
    let work = reconcile(&patient, &alone(0, Some(exited(0, false))), NOW);
    assert_eq!((work.tasks, work.wake_at), (BTreeMap::new(), Some(UnixMillis(101_000))));
    // Its shim is gone too, and since when nobody knows.
    let broken = in_phase(Phase::Broken { why: "its shim is gone".into() }, None);
    assert_eq!(steps(&patient, &alone(0, Some(broken))), AGAIN);
    // With a manager, that one decides.
    assert_eq!(steps(&policy, &observed(exited(0, false))), []);
}

#[test]
fn without_a_manager_the_restart_policy_has_the_last_word() {
    let is_restarted =
        |policy: &Assignment, seen| reconcile(policy, &alone(0, Some(seen)), NOW).restarts.contains(&TASK);
    let never = restart(RestartCondition::None, 0, 0, 0);
    let on_failure = restart(RestartCondition::OnFailure, 0, 0, 0);
    assert!(!is_restarted(&never, exited(1, false)));
    assert!(!is_restarted(&on_failure, exited(0, false)));
    assert!(is_restarted(&on_failure, exited(1, false)));
    let unhealthy = Some(Health::Unhealthy("no".into()));
    assert!(is_restarted(&on_failure, in_phase(Phase::Exited { code: 0, oom: false, at: NOW }, unhealthy)));

    // It ended at 95,000.
    let often = |restarts: &[u64]| TaskObserved {
        restarts: restarts.iter().copied().map(UnixMillis).collect(),
        ..exited(1, false)
    };
    let twice = restart(RestartCondition::Any, 0, 2, 0);
    assert!(is_restarted(&twice, often(&[1])));
    assert!(!is_restarted(&twice, often(&[1, 2])));
    let twice_in_10_s = restart(RestartCondition::Any, 0, 2, 10_000);
    assert!(is_restarted(&twice_in_10_s, often(&[80_000, 90_000])));
    assert!(!is_restarted(&twice_in_10_s, often(&[86_000, 90_000])));
}

#[test]
fn without_a_manager_a_failed_step_is_tried_again_but_not_all_the_time() {
    let failed = |at| {
        let failure = Some(Failure { at: UnixMillis(at), message: "no such volume".into() });
        alone(0, Some(TaskObserved { failure, ..TaskObserved::default() }))
    };
    let policy = restart(RestartCondition::Any, 1_000, 0, 0);
    let work = reconcile(&policy, &failed(95_000), NOW);
    assert_eq!((work.tasks, work.wake_at), (BTreeMap::new(), Some(UnixMillis(105_000))));
    assert_eq!(steps(&policy, &failed(90_000)), [Op::Attach(2), Op::Mount, Op::Create, Op::Start]);
}

#[test]
fn only_as_many_restarts_are_remembered_as_the_policy_counts() {
    let mut restarts = vec![];
    let policy = RestartPolicy { max_attempts: 3, ..RestartPolicy::default() };
    for at in 0..10 {
        note_restart(&mut restarts, &policy, UnixMillis(at));
    }
    assert_eq!(restarts, [7, 8, 9].map(UnixMillis));
}

#[test]
fn what_must_not_run_twice_ends_after_its_time_without_a_manager() {
    let early = alone(95_000, Some(running()));
    let work = reconcile(&only_one(), &early, NOW);
    assert_eq!((work.tasks, work.wake_at), (BTreeMap::new(), Some(UnixMillis(105_000))), "it has its time");
    assert_eq!(forwarding(&only_one(), &early, NOW).backends[&5].state, BackendState::Active);

    let late = alone(90_000, Some(running()));
    assert_eq!(forwarding(&only_one(), &late, NOW).backends[&5].state, BackendState::Draining);
    assert_eq!(names(&only_one(), &late, NOW)["web"], []);
    assert_eq!(steps(&only_one(), &Observed { serving: [5].into(), ..late.clone() }), [], "traffic leaves first");
    assert_eq!(steps(&only_one(), &late), [Op::Stop]);
    let stopping = Some(Stopping { since: UnixMillis(90_000), killed: false });
    assert_eq!(steps(&only_one(), &alone(80_000, Some(TaskObserved { stopping, ..running() }))), [Op::Kill]);

    // It stays down, and a manager that is back learns that it was stopped, not that it failed.
    let stopped = TaskObserved { stopping, ..exited(143, false) };
    assert_eq!(steps(&only_one(), &alone(80_000, Some(stopped.clone()))), []);
    let told = report(&only_one(), &observed(stopped), NOW);
    assert_eq!(told[&TASK].state, TaskState::Shutdown);
    assert_eq!(told[&TASK].message, "stopped: its node reached no manager");
}

#[test]
fn what_must_not_run_twice_is_not_started_without_a_manager() {
    for seen in [None, Some(in_phase(Phase::Created, None)), Some(exited(1, false))] {
        assert_eq!(steps(&only_one(), &alone(99_000, seen)), []);
    }
    let lost = TaskObserved { attached: None, ..running() };
    assert_eq!(steps(&only_one(), &alone(99_000, Some(lost))), [Op::Attach(2)], "what runs is kept whole");
    assert_eq!(steps(&only_one(), &observed(in_phase(Phase::Created, None))), [Op::Start]);
}

#[test]
fn without_a_manager_orders_are_still_carried_out_and_no_trace_is_lost() {
    assert_eq!(steps(&assigned(Desired::Shutdown), &alone(0, Some(running()))), [Op::Stop]);
    let over = alone(0, Some(exited(0, false)));
    assert_eq!(steps(&history(false), &over), [Op::Delete, Op::Unmount, Op::Detach]);
    assert_eq!(steps(&assigned(Desired::Remove), &over), [Op::Delete, Op::Unmount, Op::Detach, Op::Forget]);
}

#[test]
fn once_a_manager_is_back_what_runs_goes_on() {
    let run = assigned(Desired::Run);
    let back = observed(TaskObserved { restarts: vec![UnixMillis(90_000)], ..running() });
    assert_eq!(steps(&run, &back), []);
    assert_eq!(report(&run, &back, NOW)[&TASK].state, TaskState::Running);
}
