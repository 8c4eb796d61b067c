//! Random histories: users change their minds, tasks fail, nodes die and come back with clocks of their own, leaders are
//! replaced and leave plans of the past behind. Whatever happens, the state keeps its rules; when the faults stop, the
//! cluster arrives at what is wanted, woken by nothing but `wake_at`.

#![cfg(test)]

use orchestrator_core::{
    assignment::{Assignment, assign},
    find::find_service,
    intent,
    members::Members,
    model::*,
    plan::{Plan, plan},
    state::{Applied, Entry, State},
    wire,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NODES: u8 = 4;
const NAMES: [&str; 3] = ["web", "api", "agent"];

#[derive(Clone, Debug)]
enum Event {
    Create {
        name: usize,
        flavour: Flavour,
    },
    Update {
        name: usize,
        flavour: Flavour,
    },
    Rollback {
        name: usize,
    },
    Remove {
        name: usize,
    },
    /// The node takes its assignment and goes one step.
    Node {
        node: u8,
    },
    /// One of the node's tasks ends.
    Fail {
        node: u8,
        pick: usize,
        rejected: bool,
    },
    Down {
        node: u8,
    },
    Up {
        node: u8,
    },
    Availability {
        node: u8,
        to: Availability,
    },
    /// The node leaves the cluster for good.
    Leave {
        node: u8,
    },
    /// Its disk is lost: it forgets its tasks.
    Wipe {
        node: u8,
    },
    /// A new leader, which knows nothing of the nodes.
    Election,
    /// Seconds; negative when a clock is set back or the new leader's clock is behind.
    Time {
        seconds: i32,
    },
    Plan,
    /// A plan is made and proposed, but applied only later.
    PlanLate,
    /// A service is created by somebody who saw the state before the latest entries.
    CreateLate {
        name: usize,
        flavour: Flavour,
    },
    ApplyLate,
}

/// What may differ between versions of a service.
#[derive(Clone, Debug)]
struct Flavour {
    replicas: u32,
    image: u8,
    start_first: bool,
    parallelism: u32,
    published: u16,
    on_failure: FailureAction,
    max_per_node: bool,
    restart_delay: u64,
}

fn flavour() -> impl Strategy<Value = Flavour> {
    let on_failure =
        prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)];
    let first = (0u32..6, 0u8..3, any::<bool>(), 0u32..3);
    let second = (0u16..4, on_failure, proptest::bool::weighted(0.2), 0u64..8);
    (first, second).prop_map(|((replicas, image, start_first, parallelism), rest)| {
        let (published, on_failure, max_per_node, restart_delay) = rest;
        // A new task that must run before an old one ends may find no node with a place left.
        let start_first = start_first && !max_per_node;
        Flavour { replicas, image, start_first, parallelism, published, on_failure, max_per_node, restart_delay }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..NAMES.len();
    let node = 0..NODES;
    let availability = prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)];
    prop_oneof![
        3 => (name.clone(), flavour()).prop_map(|(name, flavour)| Event::Create { name, flavour }),
        4 => (name.clone(), flavour()).prop_map(|(name, flavour)| Event::Update { name, flavour }),
        1 => name.clone().prop_map(|name| Event::Rollback { name }),
        1 => name.clone().prop_map(|name| Event::Remove { name }),
        12 => node.clone().prop_map(|node| Event::Node { node }),
        5 => (node.clone(), 0usize..8, any::<bool>())
            .prop_map(|(node, pick, rejected)| Event::Fail { node, pick, rejected }),
        2 => node.clone().prop_map(|node| Event::Down { node }),
        2 => node.clone().prop_map(|node| Event::Up { node }),
        2 => (node.clone(), availability).prop_map(|(node, to)| Event::Availability { node, to }),
        1 => node.clone().prop_map(|node| Event::Leave { node }),
        1 => node.prop_map(|node| Event::Wipe { node }),
        1 => Just(Event::Election),
        4 => (-100i32..1000).prop_map(|seconds| Event::Time { seconds }),
        15 => Just(Event::Plan),
        2 => Just(Event::PlanLate),
        1 => (name, flavour()).prop_map(|(name, flavour)| Event::CreateLate { name, flavour }),
        3 => Just(Event::ApplyLate),
    ]
}

/// A node: its tasks, and a clock that is wrong by a constant.
#[derive(Default)]
struct SimNode {
    tasks: BTreeMap<TaskId, TaskReport>,
    assignment: Option<Assignment>,
    up: bool,
    skew: i64,
}

struct World {
    state: State,
    live: Live,
    now: UnixMillis,
    term: u64,
    nodes: BTreeMap<NodeId, SimNode>,
    late: Vec<Entry>,
}

impl World {
    fn new() -> Self {
        let now = UnixMillis(1_000_000_000);
        let mut world = World {
            state: State::default(),
            live: Live { down_after: now + Millis(5000), ..Live::default() },
            now,
            term: 1,
            nodes: BTreeMap::new(),
            late: vec![],
        };
        for number in 0..NODES {
            let id = node_id(number);
            let entry = if number == 0 {
                let ca = Ca { certificate: vec![], key: Secret(vec![]) };
                let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
                intent::init_cluster(&world.state, ClusterId(99), node(id), ca, tokens, Settings::default(), now)
                    .unwrap()
            } else {
                intent::join_node(&world.state, node(id), Role::Worker, now).unwrap().unwrap()
            };
            world.apply(&entry);
            let skew = [0, 3_600_000, -3_600_000, 40][usize::from(number)];
            world.nodes.insert(id, SimNode { up: true, skew, ..SimNode::default() });
            world.report(id);
        }
        world
    }

    fn apply(&mut self, entry: &Entry) -> bool {
        let before = self.state.clone();
        let index = self.state.revision + 1;
        let applied = self.state.apply(index, entry);
        let done = applied == Applied::Done { revision: index };
        if !done {
            let revision = self.state.revision;
            assert_eq!(self.state, State { revision, ..before }, "a refused entry changes nothing");
        }
        assert_eq!(self.state.check(), vec![], "after {entry:?}");
        done
    }

    fn handle(&mut self, event: &Event) {
        match event {
            Event::Create { name, flavour } => {
                if let Ok((_, entry)) = intent::create_service(&self.state, spec(*name, flavour), self.now) {
                    assert!(self.apply(&entry));
                }
            }
            Event::CreateLate { name, flavour } => {
                let created = intent::create_service(&self.state, spec(*name, flavour), self.now);
                self.late.extend(created.ok().map(|(_, entry)| entry));
            }
            Event::Update { name, flavour } => self.change(*name, |state, id, revision, now| {
                intent::update_service(state, id, revision, spec(*name, flavour), now)
            }),
            Event::Rollback { name } => self.change(*name, intent::rollback_service),
            Event::Remove { name } => self.change(*name, |state, id, _, now| intent::remove_service(state, id, now)),
            Event::Node { node } => self.step(node_id(*node)),
            Event::Fail { node, pick, rejected } => self.fail(node_id(*node), *pick, *rejected),
            Event::Down { node } => self.set_up(node_id(*node), false),
            Event::Up { node } => self.set_up(node_id(*node), true),
            Event::Availability { node, to } => self.set_availability(node_id(*node), *to),
            Event::Leave { node } => {
                let id = node_id(*node);
                if self.state.nodes.contains_key(&id) && self.state.nodes.len() > 2 {
                    let change = self.state.delete_change(orchestrator_core::state::Key::Node(id));
                    self.apply(&Entry { at: self.now, reads: vec![], changes: vec![change] });
                    self.live.nodes.remove(&id);
                }
            }
            Event::Wipe { node } => {
                if let Some(node) = self.nodes.get_mut(&node_id(*node)) {
                    node.tasks.clear();
                    node.assignment = None;
                }
                self.report(node_id(*node));
            }
            Event::Election => {
                self.term += 1;
                self.live = Live { down_after: self.now + Millis(5000), ..Live::default() };
            }
            Event::Time { seconds } => {
                let millis = i64::from(*seconds) * 1000;
                self.now = UnixMillis(self.now.0.saturating_add_signed(millis));
            }
            Event::Plan => drop(self.plan()),
            Event::PlanLate => self.late.extend(plan(&self.state, &self.live, self.now).entry),
            Event::ApplyLate => {
                if let Some(entry) = self.late.pop() {
                    self.apply(&entry);
                }
            }
        }
    }

    fn change(
        &mut self,
        name: usize,
        command: impl FnOnce(&State, ServiceId, u64, UnixMillis) -> Result<Entry, intent::Refusal>,
    ) {
        let Ok(id) = find_service(&self.state, NAMES[name]) else { return };
        if let Ok(entry) = command(&self.state, id, self.state.services[&id].revision, self.now) {
            assert!(self.apply(&entry));
        }
    }

    /// Plans and applies, and sees that planning again changes nothing.
    fn plan(&mut self) -> Plan {
        let first = plan(&self.state, &self.live, self.now);
        if let Some(entry) = &first.entry {
            let bytes = wire::encode(&self.state).unwrap();
            let same: State = wire::decode(&bytes).unwrap();
            assert_eq!(plan(&same, &self.live, self.now), first, "a plan depends on nothing but its input");
            assert!(self.apply(entry));
            let mut twice = self.state.clone();
            let index = twice.revision + 1;
            assert!(matches!(twice.apply(index, entry), Applied::Conflict { .. }), "an entry is applied once");
        }
        let again = plan(&self.state, &self.live, self.now);
        assert_eq!(again.entry, None, "planning again changes something: {:?}\n{:?}", first.entry, self.state);
        Plan { entry: first.entry, ..again }
    }

    fn step(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if !node.up || !self.state.nodes.contains_key(&id) {
            return;
        }
        let assignment = assign(&self.state, &self.live, id, self.term, &Members::default());
        if node.assignment.as_ref().is_none_or(|old| assignment.supersedes(old)) {
            node.assignment = Some(assignment);
        }
        let assignment = node.assignment.as_ref().unwrap();
        let since = UnixMillis(self.now.0.saturating_add_signed(node.skew));
        node.tasks.retain(|id, _| assignment.tasks.contains_key(id) || assignment.history.contains(id));
        for (id, task) in &assignment.tasks {
            let known = node.tasks.get(id).map(|report| report.state);
            let state = match (task.desired, known) {
                (_, Some(ended)) if ended.is_terminal() && task.desired != Desired::Remove => continue,
                (Desired::Run, None) => TaskState::Preparing,
                (Desired::Run, Some(TaskState::Preparing)) => TaskState::Running,
                (Desired::Run, Some(_)) => continue,
                (Desired::Shutdown, _) => TaskState::Shutdown,
                (Desired::Remove, _) => {
                    node.tasks.remove(id);
                    continue;
                }
            };
            node.tasks.insert(*id, TaskReport { state, since, message: String::new(), pid: None, exit_code: None });
        }
        self.report(id);
    }

    fn fail(&mut self, id: NodeId, pick: usize, rejected: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let since = UnixMillis(self.now.0.saturating_add_signed(node.skew));
        let open = node.tasks.values_mut().filter(|report| !report.state.is_terminal());
        if let Some(report) = open.into_iter().nth(pick) {
            report.state = if rejected { TaskState::Rejected } else { TaskState::Failed };
            (report.since, report.exit_code) = (since, Some(1));
        }
        self.report(id);
    }

    /// The leader hears from the node.
    fn report(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if !node.up || !self.state.nodes.contains_key(&id) {
            return;
        }
        let (term, revision) = node.assignment.as_ref().map_or((0, 0), |known| (known.term, known.revision));
        let report = Report {
            node: id,
            term,
            revision,
            description: NodeDescription::default(),
            raft: None,
            lost_log: None,
            tasks: node.tasks.clone(),
            held_ports: vec![],
        };
        let since = self.live.nodes.get(&id).filter(|known| known.ready).map_or(self.now, |known| known.since);
        self.live.nodes.insert(id, NodeLive { ready: true, since, report });
        self.live.edition += 1;
    }

    fn set_up(&mut self, id: NodeId, up: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.up = up;
        if up {
            self.report(id);
        } else if let Some(known) = self.live.nodes.get_mut(&id).filter(|known| known.ready) {
            (known.ready, known.since) = (false, self.now);
            self.live.edition += 1;
        }
    }

    fn set_availability(&mut self, id: NodeId, availability: Availability) {
        let Some(node) = self.state.nodes.get(&id) else { return };
        let wish = intent::NodeWish { role: node.role, availability, labels: node.labels.clone() };
        let entry = intent::update_node(&self.state, &self.live, id, node.revision, wish, self.now).unwrap();
        assert!(self.apply(&entry));
    }

    /// The faults stop; time passes only when there is something to wait for.
    fn come_to_rest(&mut self) {
        let members: Vec<NodeId> = self.state.nodes.keys().copied().collect();
        for id in &members {
            self.set_up(*id, true);
            self.set_availability(*id, Availability::Active);
        }
        for round in 0.. {
            assert!(round < 1000, "does not come to rest: {:?}", self.state);
            let before = (self.state.clone(), self.live.nodes.clone());
            let planned = self.plan();
            for id in &members {
                self.step(*id);
            }
            let after = plan(&self.state, &self.live, self.now);
            // Reports say new revisions even when nothing else is new.
            let reports = |nodes: &BTreeMap<NodeId, NodeLive>| {
                nodes.iter().map(|(id, node)| (*id, node.report.tasks.clone())).collect::<Vec<_>>()
            };
            let still =
                planned.entry.is_none() && after.entry.is_none() && reports(&before.1) == reports(&self.live.nodes);
            match (still, after.wake_at) {
                (false, _) => {}
                (true, Some(at)) => {
                    assert!(at > self.now, "asks to be woken in the past");
                    self.now = at;
                }
                (true, None) => return,
            }
        }
    }

    fn assert_converged(&self) {
        for (id, service) in &self.state.services {
            assert!(!service.removed, "a removed service is gone");
            let version = self.state.current_spec(service).unwrap();
            let places = self.state.nodes.len();
            // Old tasks in the way of a new maximum per node hold the update up, by design: they still serve.
            let limited = version.spec.task.placement.max_per_node == 1;
            let wanted = match version.spec.mode {
                Mode::Replicated { replicas } if limited => places.min(replicas as usize)..=replicas as usize,
                Mode::Replicated { replicas } => replicas as usize..=replicas as usize,
                Mode::Global => places..=places,
            };
            let running: Vec<Slot> = self
                .state
                .tasks
                .values()
                .filter(|task| task.service == *id && task.desired == Desired::Run && task.outcome.is_none())
                .filter(|task| {
                    let node = task.placed.as_ref().and_then(|placed| self.nodes.get(&placed.node));
                    let report = node.and_then(|node| node.tasks.get(&task.id));
                    report.is_some_and(|report| report.state == TaskState::Running)
                })
                .map(|task| task.slot)
                .collect();
            let slots: BTreeSet<Slot> = running.iter().copied().collect();
            assert_eq!(slots.len(), running.len(), "one task of each slot runs: {:?}", self.state);
            assert!(
                wanted.contains(&running.len()),
                "{} has other than the wanted slots: {:?}",
                service.name,
                self.state
            );
            if let Some(update) = &service.update {
                let unfinished = [UpdateState::Updating, UpdateState::RollbackStarted].contains(&update.state);
                assert!(!unfinished || limited, "{}: {update:?}", service.name);
            }
            let ports = version.spec.endpoint.ports.len();
            assert_eq!(service.ports.iter().filter(|port| port.published != 0).count(), ports);
        }
        for (id, task) in &self.state.tasks {
            assert!(self.state.services.contains_key(&task.service), "{id} has no service");
            assert!(task.outcome.is_some() || task.desired == Desired::Run, "{id} was not ended");
        }
    }
}

fn node_id(number: u8) -> NodeId {
    NodeId(u128::from(number) + 1)
}

fn node(id: NodeId) -> Node {
    Node {
        id,
        hostname: format!("n{}", id.0),
        role: Role::Manager,
        raft_id: None,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        description: NodeDescription::default(),
        created_at: UnixMillis(0),
    }
}

fn spec(name: usize, flavour: &Flavour) -> ServiceSpec {
    let update = UpdateConfig {
        parallelism: flavour.parallelism,
        delay: Millis(flavour.restart_delay * 500),
        on_failure: flavour.on_failure,
        order: if flavour.start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst },
        ..UpdateConfig::default()
    };
    // 0 publishes nothing, 1 a port of the cluster's choice, others collide across services.
    let published = [None, Some(0), Some(8000 + name as u16), Some(30001)][usize::from(flavour.published)];
    let port = |published| PortSpec { protocol: Protocol::Tcp, target: 80, published, mode: PublishMode::Ingress };
    let global = NAMES[name] == "agent";
    ServiceSpec::new(ServiceParts {
        name: Name::new(NAMES[name]).unwrap(),
        labels: BTreeMap::new(),
        mode: if global { Mode::Global } else { Mode::Replicated { replicas: flavour.replicas } },
        task: TaskSpec {
            container: ContainerSpec::new(ImageName::new(format!("image:{}", flavour.image)).unwrap()),
            resources: Resources::default(),
            restart: RestartPolicy { delay: Millis::from_secs(flavour.restart_delay), ..RestartPolicy::default() },
            placement: Placement { max_per_node: u32::from(flavour.max_per_node), ..Placement::default() },
            force_update: 0,
        },
        rollback: UpdateConfig { on_failure: FailureAction::Pause, ..update },
        update,
        endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: published.map(port).into_iter().collect() },
        on_disconnect: None,
        disconnect_grace: None,
    })
    .unwrap()
}

/// 400 cases take about 2 s in a debug build; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_history_keeps_the_rules_and_comes_to_rest_at_what_is_wanted(events in prop::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        for event in &events {
            world.handle(event);
        }
        world.come_to_rest();
        world.assert_converged();
    }

    #[test]
    fn of_two_plans_from_one_revision_one_applies(events in prop::collection::vec(event(), 1..40), other in event()) {
        let mut world = World::new();
        for event in &events {
            world.handle(event);
        }
        let one = plan(&world.state, &world.live, world.now);
        // The other leader has heard something else.
        if let Event::Node { .. } | Event::Fail { .. } | Event::Down { .. } | Event::Time { .. } = other {
            world.handle(&other);
        }
        let two = plan(&world.state, &world.live, world.now);
        if let (Some(one), Some(two)) = (one.entry, two.entry) {
            prop_assert!(world.apply(&one));
            prop_assert!(!world.apply(&two));
        }
    }
}
