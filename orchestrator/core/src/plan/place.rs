//! Which node a task runs on: each service is spread over the nodes that can take its tasks; what no node can take waits and
//! says why. Addresses and backend numbers are set aside in the same step, so that a placed task has all it needs.

use super::{
    NodeRefusal, Subject, Why,
    address::Numbers,
    constraint::{broken_constraint, fits_platform},
    work::{Life, Work},
};
use crate::{
    assignment::published_ports,
    model::{
        Availability, Desired, End, HeldPort, Millis, Node, NodeId, Placed, Placement, PortSpec, Protocol, PublishMode,
        Resources, Service, ServiceId, ServiceSpec, Slot, Task, TaskId,
    },
    state::Key,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
    vec::Vec,
};

/// A task that was told to end and does not, beyond its grace period, holds up its successor no longer (SwarmKit
/// `defaultOldTaskTimeout`).
const PREDECESSOR_WAIT: Millis = Millis::from_secs(60);

/// A node on which this many tasks of a service failed within [`FAILURES_WITHIN`] comes after all others for that service.
/// SwarmKit's rule (`manager/scheduler/nodeinfo.go`) with 3 instead of 5: what could not be started is tried ever more seldom.
const FAILING: u32 = 3;
const FAILURES_WITHIN: Millis = Millis::from_secs(5 * 60);

/// Places what has no node, and completes the backend numbers of what has one.
pub(super) fn place(work: &mut Work<'_>) {
    let waiting = waiting(work);
    let incomplete = |task: &Task| task.placed.as_ref().is_some_and(|placed| placed.backends.contains(&0));
    let incomplete: Vec<TaskId> = work
        .state
        .tasks
        .iter()
        .filter(|(_, task)| task.outcome.is_none() && incomplete(task))
        .map(|(id, _)| *id)
        .collect();
    if waiting.is_empty() && incomplete.is_empty() {
        return;
    }
    let mut usage = Usage::of(work);
    for id in incomplete {
        complete_backends(work, &mut usage, id);
    }
    for ((service, number), tasks) in waiting {
        let Some(service) = work.state.services.get(&service).map(|stored| stored.value.clone()) else { continue };
        let Some(version) = work.state.specs.get(&(service.id, number)).map(|stored| stored.value.clone()) else {
            continue;
        };
        Group::new(&service, &version.spec).place_all(work, &mut usage, &tasks);
    }
}

/// Tasks that need a node and may have one now, by version of a service, oldest first.
fn waiting(work: &mut Work<'_>) -> BTreeMap<(ServiceId, u32), Vec<TaskId>> {
    let open = |task: &Task| task.placed.is_none() && task.outcome.is_none() && task.desired == Desired::Run;
    let mut tasks: Vec<(u64, Slot, TaskId)> = Vec::new();
    for (id, task) in &work.state.tasks {
        if open(task) {
            tasks.push((task.created, task.slot, *id));
        }
    }
    tasks.sort();
    let mut waiting: BTreeMap<(ServiceId, u32), Vec<TaskId>> = BTreeMap::new();
    for (_, _, id) in tasks {
        match predecessor(work, id) {
            Some(before) => work.explain(Subject::Task(id), Why::Predecessor(before)),
            None => {
                let key = (work.task(id).service, work.task(id).version);
                waiting.entry(key).or_default().push(id);
            }
        }
    }
    waiting
}

/// The task of the same slot that must end first: only one of a slot is up, save in a start-first update. What became of it
/// on a node that is down nobody knows.
fn predecessor(work: &mut Work<'_>, id: TaskId) -> Option<TaskId> {
    let task = work.task(id).value.clone();
    let others = work.slots.get(&task.service).and_then(|slots| slots.get(&task.slot)).cloned().unwrap_or_default();
    for other in others.into_iter().take_while(|other| *other != id) {
        let before = work.task(other).value.clone();
        let Some(placed) = before.placed.as_ref().filter(|_| before.outcome.is_none()) else { continue };
        if before.desired == Desired::Run || matches!(work.life(placed.node), Life::Down(_) | Life::Gone) {
            continue;
        }
        let grace = work.state.task_spec(&before).map_or(Millis(0), |spec| spec.container.stop_grace);
        if !work.passed(task.created_at, Millis(grace.0.saturating_add(PREDECESSOR_WAIT.0))) {
            return Some(other);
        }
    }
    None
}

/// What tasks have on the nodes, and cluster-wide.
struct Usage {
    nodes: BTreeMap<NodeId, NodeUsage>,
    backends: Numbers,
}

struct NodeUsage {
    /// Tasks that have not ended.
    tasks: u32,
    /// Of each service, those that shall run.
    services: BTreeMap<ServiceId, u32>,
    /// Of each service, those that failed lately.
    failures: BTreeMap<ServiceId, u32>,
    nano_cpus: u64,
    memory_bytes: u64,
    host_ports: BTreeMap<(Protocol, u16), TaskId>,
    addresses: Numbers,
}

impl Default for NodeUsage {
    fn default() -> Self {
        Self {
            tasks: 0,
            services: BTreeMap::new(),
            failures: BTreeMap::new(),
            nano_cpus: 0,
            memory_bytes: 0,
            host_ports: BTreeMap::new(),
            addresses: Numbers::of_addresses(),
        }
    }
}

impl Usage {
    fn of(work: &Work<'_>) -> Self {
        let mut usage = Self { nodes: BTreeMap::new(), backends: Numbers::of_backends() };
        for (id, task) in &work.state.tasks {
            let Some(placed) = &task.placed else { continue };
            for number in placed.backends.iter().filter(|number| **number != 0) {
                usage.backends.note(*number, task, task.created);
            }
            let node = usage.nodes.entry(placed.node).or_default();
            node.addresses.note(placed.index, task, task.created);
            if let Some(outcome) = &task.outcome {
                let failed = matches!(outcome.end, End::Failed | End::Rejected);
                if failed && work.now.since(outcome.at) < FAILURES_WITHIN {
                    *node.failures.entry(task.service).or_default() += 1;
                }
                continue;
            }
            let Some(service) = work.state.services.get(&task.service) else { continue };
            let Some(version) = work.state.spec_of(task) else { continue };
            node.add(*id, task.desired, service, &version.spec);
        }
        usage
    }
}

impl NodeUsage {
    fn add(&mut self, id: TaskId, desired: Desired, service: &Service, spec: &ServiceSpec) {
        self.tasks += 1;
        if desired == Desired::Run {
            *self.services.entry(service.id).or_default() += 1;
        }
        self.nano_cpus = self.nano_cpus.saturating_add(spec.task.resources.reserve_nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_add(spec.task.resources.reserve_memory_bytes);
        if spec.endpoint.ports.is_empty() {
            return;
        }
        let host = published_ports(service, spec).into_iter().filter(|port| port.mode == PublishMode::Host);
        self.host_ports.extend(host.map(|port| ((port.protocol, port.published), id)));
    }

    fn of_service(&self, id: ServiceId) -> u32 {
        self.services.get(&id).copied().unwrap_or(0)
    }
}

/// A node in the order in which it is tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Tasks of the service kept failing there: it would otherwise look the least loaded and get the next one, too.
    failing: bool,
    of_service: u32,
    tasks: u32,
    node: NodeId,
}

/// Tasks of one version of a service, placed together: what does not change from task to task is asked once per node.
struct Group<'g> {
    service: &'g Service,
    spec: &'g ServiceSpec,
    ports: Vec<PortSpec>,
}

impl<'g> Group<'g> {
    fn new(service: &'g Service, spec: &'g ServiceSpec) -> Self {
        Self { service, spec, ports: published_ports(service, spec) }
    }

    fn place_all(&self, work: &mut Work<'_>, usage: &mut Usage, tasks: &[TaskId]) {
        if self.ports.iter().any(|port| port.published == 0) {
            for id in tasks {
                work.explain(Subject::Task(*id), Why::NoPort);
            }
            return;
        }
        let mut refused: BTreeMap<NodeId, NodeRefusal> = BTreeMap::new();
        let nodes: BTreeMap<NodeId, Arc<Node>> =
            work.state.nodes.iter().map(|(id, node)| (*id, node.value.clone())).collect();
        let mut spread = Spread::default();
        for node in nodes.values() {
            match self.refuses_all(work, node) {
                Some(refusal) => drop(refused.insert(node.id, refusal)),
                None => spread.add(&self.spec.task.placement, node, self.rank(usage, node.id)),
            }
        }
        // Once no node takes one of these tasks, none takes the others: places only get fewer.
        let mut nowhere: Option<Arc<BTreeMap<NodeId, NodeRefusal>>> = None;
        for id in tasks {
            let task = work.task(*id).value.clone();
            let chosen = match task.slot {
                Slot::Node(node) => self.only(node, &nodes, &refused, usage).map_err(Arc::new),
                Slot::Replica(_) => match (self.instead_of(work, &task, &nodes, &refused, usage), &nowhere) {
                    (Some(node), _) => {
                        spread.remove(node);
                        Ok(node)
                    }
                    (None, Some(refused)) => Err(refused.clone()),
                    (None, None) => self.best(&nodes, &mut spread, &refused, usage).map_err(|refused| {
                        let refused = Arc::new(refused);
                        nowhere = Some(refused.clone());
                        refused
                    }),
                },
            };
            match chosen {
                Ok(node) => {
                    if let Err(why) = self.settle(work, usage, &task, node) {
                        work.explain(Subject::Task(*id), why);
                    } else if matches!(task.slot, Slot::Replica(_)) {
                        spread.add(&self.spec.task.placement, &nodes[&node], self.rank(usage, node));
                    }
                }
                Err(refused) => work.explain(Subject::Task(*id), Why::NoNode(refused)),
            }
        }
    }

    fn rank(&self, usage: &Usage, node: NodeId) -> Rank {
        usage.nodes.get(&node).map_or(Rank { failing: false, of_service: 0, tasks: 0, node }, |known| Rank {
            failing: known.failures.get(&self.service.id).is_some_and(|failures| *failures >= FAILING),
            of_service: known.of_service(self.service.id),
            tasks: known.tasks,
            node,
        })
    }

    /// Why a node takes no task of this version at all, as long as nodes and reports are as they are.
    fn refuses_all(&self, work: &mut Work<'_>, node: &Node) -> Option<NodeRefusal> {
        let placement = &self.spec.task.placement;
        if work.life(node.id) != Life::Up {
            return Some(NodeRefusal::Down);
        }
        match node.availability {
            Availability::Active => {}
            Availability::Pause => return Some(NodeRefusal::Paused),
            Availability::Drain => return Some(NodeRefusal::Drained),
        }
        if let Some(constraint) = broken_constraint(placement, node) {
            return Some(NodeRefusal::Constraint(constraint.clone()));
        }
        if !fits_platform(placement, node) {
            return Some(NodeRefusal::Platform);
        }
        let held = |held: &&HeldPort| {
            self.ports.iter().any(|port| (port.protocol, port.published) == (held.protocol, held.port))
        };
        let report = work.live.nodes.get(&node.id).map(|known| &known.report)?;
        report.held_ports.iter().find(held).map(|held| NodeRefusal::HeldPort {
            protocol: held.protocol,
            port: held.port,
            holder: held.holder.clone(),
        })
    }

    /// Why a node does not take this task, with what it has now.
    fn refuses_now(&self, node: &Node, usage: &Usage, replaced_here: u32) -> Option<NodeRefusal> {
        let Some(used) = usage.nodes.get(&node.id) else {
            return self.lacks_resources(node, 0, 0);
        };
        let max = self.spec.task.placement.max_per_node;
        if max != 0 && used.of_service(self.service.id).saturating_sub(replaced_here) >= max {
            return Some(NodeRefusal::MaxPerNode(max));
        }
        let taken = self.ports.iter().filter(|port| port.mode == PublishMode::Host).find_map(|port| {
            let task = used.host_ports.get(&(port.protocol, port.published))?;
            Some(NodeRefusal::HostPort { protocol: port.protocol, port: port.published, task: *task })
        });
        if taken.is_some() {
            return taken;
        }
        if used.addresses.is_exhausted() {
            return Some(NodeRefusal::NoAddress);
        }
        self.lacks_resources(node, used.nano_cpus, used.memory_bytes)
    }

    fn lacks_resources(&self, node: &Node, nano_cpus: u64, memory_bytes: u64) -> Option<NodeRefusal> {
        let Resources { reserve_nano_cpus: cpu, reserve_memory_bytes: memory, .. } = self.spec.task.resources;
        let free_cpu = node.description.nano_cpus.saturating_sub(nano_cpus);
        let free_memory = node.description.memory_bytes.saturating_sub(memory_bytes);
        if cpu > free_cpu {
            return Some(NodeRefusal::Cpu { wanted: cpu, free: free_cpu });
        }
        (memory > free_memory).then_some(NodeRefusal::Memory { wanted: memory, free: free_memory })
    }

    /// The node of a global service's slot.
    fn only(
        &self,
        node: NodeId,
        nodes: &BTreeMap<NodeId, Arc<Node>>,
        refused: &BTreeMap<NodeId, NodeRefusal>,
        usage: &Usage,
    ) -> Result<NodeId, BTreeMap<NodeId, NodeRefusal>> {
        let Some(known) = nodes.get(&node) else { return Err(BTreeMap::new()) };
        let refusal = refused.get(&node).cloned().or_else(|| self.refuses_now(known, usage, 1));
        refusal.map_or(Ok(node), |refusal| Err(BTreeMap::from([(node, refusal)])))
    }

    /// The node of the old half of a start-first update, where the maximum per node would otherwise leave no place for the
    /// new half: the old one is about to leave.
    fn instead_of(
        &self,
        work: &Work<'_>,
        task: &Task,
        nodes: &BTreeMap<NodeId, Arc<Node>>,
        refused: &BTreeMap<NodeId, NodeRefusal>,
        usage: &Usage,
    ) -> Option<NodeId> {
        if self.spec.task.placement.max_per_node == 0 {
            return None;
        }
        let slot = work.slots.get(&task.service)?.get(&task.slot)?.iter().map(|id| work.task(*id));
        let old = slot.filter(|old| old.id != task.id && old.desired == Desired::Run && old.outcome.is_none());
        let node = old.filter_map(|old| old.placed.as_ref()).next()?.node;
        let fits = !refused.contains_key(&node) && self.refuses_now(nodes.get(&node)?, usage, 1).is_none();
        fits.then_some(node)
    }

    /// The best node that takes a task. A node that refuses one is not asked again for the other tasks of the group.
    fn best(
        &self,
        nodes: &BTreeMap<NodeId, Arc<Node>>,
        spread: &mut Spread,
        refused: &BTreeMap<NodeId, NodeRefusal>,
        usage: &Usage,
    ) -> Result<NodeId, BTreeMap<NodeId, NodeRefusal>> {
        while let Some(node) = spread.take() {
            match self.refuses_now(&nodes[&node], usage, 0) {
                None => return Ok(node),
                Some(refusal) => drop(spread.full.insert(node, refusal)),
            }
        }
        Err(refused.iter().chain(&spread.full).map(|(node, refusal)| (*node, refusal.clone())).collect())
    }

    /// Sets aside what the task needs on the node, and places it there.
    fn settle(&self, work: &mut Work<'_>, usage: &mut Usage, task: &Task, node: NodeId) -> Result<(), Why> {
        let mut backends = Vec::with_capacity(self.ports.len());
        for _ in &self.ports {
            backends.push(usage.backends.take(task.id).ok_or(Why::NoBackendNumber)?);
        }
        let used = usage.nodes.entry(node).or_default();
        let index = used.addresses.take(task.id).expect("a node without addresses refuses the task");
        used.add(task.id, task.desired, self.service, self.spec);
        work.rely_on(Key::Node(node));
        work.change_task(task.id, |task| task.placed = Some(Placed { node, index, backends }));
        Ok(())
    }
}

/// Nodes that may take a task, by the values of the labels over which the service is spread; without such labels all are
/// alike. Among the values the one with the fewest tasks comes first, label by label, then the best rank.
#[derive(Default)]
struct Spread {
    /// By path of label values.
    buckets: BTreeMap<Vec<String>, BTreeSet<Rank>>,
    /// Tasks of the service below each path and each start of one.
    tasks: BTreeMap<Vec<String>, u32>,
    paths: BTreeMap<NodeId, Vec<String>>,
    /// Nodes that had no place left.
    full: BTreeMap<NodeId, NodeRefusal>,
}

impl Spread {
    fn add(&mut self, placement: &Placement, node: &Node, rank: Rank) {
        let value = |key: &String| {
            let key = key.strip_prefix("node.labels.").unwrap_or(key);
            let engine = key.strip_prefix("engine.labels.");
            let found = engine.map_or_else(|| node.labels.get(key), |key| node.description.labels.get(key));
            found.cloned().unwrap_or_default()
        };
        let known = self.paths.contains_key(&node.id);
        let path: Vec<String> = placement.spread.iter().map(value).collect();
        // A node that is seen anew brings the tasks it has; one that comes back has got one more.
        let more = if known { 1 } else { rank.of_service };
        for depth in 1..=path.len() {
            *self.tasks.entry(path[..depth].to_vec()).or_default() += more;
        }
        self.buckets.entry(path.clone()).or_default().insert(rank);
        self.paths.insert(node.id, path);
    }

    /// Takes one node out.
    fn remove(&mut self, node: NodeId) {
        for ranks in self.buckets.values_mut() {
            ranks.retain(|rank| rank.node != node);
        }
    }

    /// Takes the best node out.
    fn take(&mut self) -> Option<NodeId> {
        let load = |path: &Vec<String>| -> Vec<u32> {
            (1..=path.len()).map(|depth| self.tasks.get(&path[..depth]).copied().unwrap_or(0)).collect()
        };
        let open = self.buckets.iter().filter(|(_, ranks)| !ranks.is_empty());
        let best =
            open.min_by_key(|(path, ranks)| (load(path), ranks.first().copied())).map(|(path, _)| path.clone())?;
        self.buckets.get_mut(&best)?.pop_first().map(|rank| rank.node)
    }
}

/// Chooses the backend numbers that a change of published ports left open.
fn complete_backends(work: &mut Work<'_>, usage: &mut Usage, id: TaskId) {
    let Some(mut placed) = work.task(id).placed.clone() else { return };
    for number in placed.backends.iter_mut().filter(|number| **number == 0) {
        match usage.backends.take(id) {
            Some(free) => *number = free,
            None => {
                work.explain(Subject::Task(id), Why::NoBackendNumber);
                return;
            }
        }
    }
    work.change_task(id, |task| task.placed = Some(placed));
}
