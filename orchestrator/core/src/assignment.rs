//! What one node should have, numbered so that the past is refused. The leader makes those of all nodes in one pass over the
//! state and what it knows of the nodes ([`Assignments`]); the node keeps the last one.

use crate::{
    members::Members,
    model::{
        Desired, Live, Millis, NodeId, PortSpec, Role, Service, ServiceId, ServiceSpec, Settings, Slot, Task, TaskId,
        TaskSpec, TaskState,
    },
    state::State,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use serde::{Deserialize, Serialize};

/// Everything one node should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The receiver.
    pub node: NodeId,
    /// Term of the leader that made it.
    pub term: u64,
    /// Revision of the state it was made from.
    pub revision: u64,
    /// Edition of the leader's live knowledge ([`Live::edition`]) it was made from. It starts from the clock of the election,
    /// so that it grows within a term even if its leader was restarted.
    pub edition: u64,
    /// What the node is to the cluster, and how it finds the others.
    pub membership: Membership,
    /// Tasks of this node that have not ended, as far as the leader knows. One that ended stays here until its node has
    /// reported the end and the end is replicated.
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    /// Ended tasks of this node whose traces (logs, exit code) are kept. What is neither here nor in `tasks` is deleted.
    pub history: BTreeSet<TaskId>,
    /// Services that this node forwards to and resolves the names of: the same for all nodes, and shared between them.
    pub services: Arc<BTreeMap<ServiceId, AssignedService>>,
}

/// What a node must know of the cluster to be a member of it, with or without a leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// What its certificate should name.
    pub role: Role,
    /// The number under which it is to keep the log; `None` if it is to keep none. A node that is demoted has a number until
    /// the log's membership has let go of it, and one that is promoted anew meanwhile gets the new number only then.
    pub raft_id: Option<u64>,
    /// Where the managers are: `address:port`, IPv6 addresses in brackets.
    pub managers: BTreeMap<NodeId, String>,
    /// [`Settings::heartbeat`].
    pub heartbeat: Millis,
    /// [`Settings::down_after`].
    pub down_after: Millis,
    /// [`Settings::cert_validity`].
    pub cert_validity: Millis,
    /// Certificate of the authority, DER.
    pub ca: Vec<u8>,
}

/// One task of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedTask {
    /// The service.
    pub service: ServiceId,
    /// Name of the service.
    pub service_name: String,
    /// Its place within the service.
    pub slot: Slot,
    /// What to run.
    pub spec: TaskSpec,
    /// Run; or end, then report the end ([`Desired::Shutdown`]); or end, delete every trace, then report it no more
    /// ([`Desired::Remove`]).
    pub desired: Desired,
    /// Host part of its address on the node-local network.
    pub index: u16,
    /// The node stops it after this time without a manager; `None` if it keeps it.
    pub on_disconnect: Option<Millis>,
}

/// One service, as far as forwarding and names need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedService {
    /// Name that resolves to its tasks.
    pub name: String,
    /// Published ports, all with a number.
    pub ports: Vec<PortSpec>,
    /// Tasks that may get traffic.
    pub backends: Vec<AssignedBackend>,
}

/// One task that may get traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedBackend {
    /// The task.
    pub task: TaskId,
    /// Its node.
    pub node: NodeId,
    /// Host part of its address on its node's local network.
    pub index: u16,
    /// Its ports, with the cluster-wide number of each: (protocol and target port come from here, since versions differ).
    pub slots: Vec<(PortSpec, u16)>,
    /// It is told to end: old connections may finish, new ones go elsewhere.
    pub ending: bool,
    /// It runs, as far as the leader knows. Its own node knows better.
    pub up: bool,
}

impl AssignedBackend {
    /// Whether `node` may send new connections to it. A node decides for itself which of its own tasks are up.
    #[must_use]
    pub fn is_open_to(&self, node: NodeId) -> bool {
        !self.ending && (self.up || self.node == node)
    }
}

impl Assignment {
    /// Whether a node that holds `other` should take this one: the newer term, then state, then live knowledge.
    #[must_use]
    pub fn supersedes(&self, other: &Assignment) -> bool {
        self.number() > other.number()
    }

    /// Whether both ask for the same, whatever their numbers. The leader need not send what says nothing new, unless the
    /// node's report is to confirm the newer revision.
    #[must_use]
    pub fn says_the_same(&self, other: &Assignment) -> bool {
        (&self.node, &self.membership, &self.tasks, &self.history, &self.services)
            == (&other.node, &other.membership, &other.tasks, &other.history, &other.services)
    }

    fn number(&self) -> (u64, u64, u64) {
        (self.term, self.revision, self.edition)
    }
}

/// Makes the assignments of one state: what is the same for all nodes once, what is a node's own for each.
pub struct Assignments<'a> {
    state: &'a State,
    live: &'a Live,
    members: &'a Members,
    term: u64,
    settings: Settings,
    managers: BTreeMap<NodeId, String>,
    services: Arc<BTreeMap<ServiceId, AssignedService>>,
    tasks: BTreeMap<NodeId, Vec<OwnTask<'a>>>,
}

/// A task on its node.
struct OwnTask<'a> {
    task: &'a Task,
    index: u16,
    service: &'a Service,
    spec: &'a ServiceSpec,
}

impl<'a> Assignments<'a> {
    /// Sorts the tasks by node. `members` is the log's membership as the leader's store has it.
    #[must_use]
    pub fn new(state: &'a State, live: &'a Live, term: u64, members: &'a Members) -> Self {
        let mut services = services(state);
        let mut tasks: BTreeMap<NodeId, Vec<OwnTask<'a>>> = BTreeMap::new();
        for task in state.tasks.values() {
            let Some(placed) = &task.placed else { continue };
            let (Some(service), Some(version)) = (state.services.get(&task.service), state.spec_of(task)) else {
                continue;
            };
            let spec = &version.value.spec;
            tasks.entry(placed.node).or_default().push(OwnTask { task, index: placed.index, service, spec });
            if task.outcome.is_none()
                && let Some(service_of_task) = services.get_mut(&task.service)
            {
                let ports = published_ports(service, spec);
                service_of_task.backends.push(AssignedBackend {
                    task: task.id,
                    node: placed.node,
                    index: placed.index,
                    slots: ports.into_iter().zip(placed.backends.iter().copied()).collect(),
                    ending: task.desired != Desired::Run,
                    up: may_serve(live, placed.node, task.id),
                });
            }
        }
        let managers = state.nodes.values().filter(|node| node.raft_id.is_some());
        Self {
            state,
            live,
            members,
            term,
            settings: state.cluster.as_ref().map_or_else(Settings::default, |cluster| cluster.settings.clone()),
            managers: managers.filter_map(|node| Some((node.id, node.description.control()?))).collect(),
            services: Arc::new(services),
            tasks,
        }
    }

    /// Everything that `node` should have.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Assignment {
        let mut assignment = Assignment {
            node,
            term: self.term,
            revision: self.state.revision,
            edition: self.live.edition,
            membership: self.membership(node),
            tasks: BTreeMap::new(),
            history: BTreeSet::new(),
            services: self.services.clone(),
        };
        for own in self.tasks.get(&node).into_iter().flatten() {
            if own.task.outcome.is_none() {
                assignment.tasks.insert(own.task.id, own.assigned(&self.settings));
            } else if own.task.desired != Desired::Remove {
                assignment.history.insert(own.task.id);
            }
        }
        assignment
    }

    fn membership(&self, node: NodeId) -> Membership {
        let known = self.state.nodes.get(&node);
        let runs = self.live.nodes.get(&node).and_then(|known| known.report.raft);
        let runs = runs.filter(|id| self.members.contains(*id));
        Membership {
            role: known.map_or(Role::Worker, |known| known.role),
            raft_id: runs.or_else(|| known.and_then(|known| known.raft_id)),
            managers: self.managers.clone(),
            heartbeat: self.settings.heartbeat,
            down_after: self.settings.down_after,
            cert_validity: self.settings.cert_validity,
            ca: self.state.cluster.as_ref().map_or_else(Vec::new, |cluster| cluster.ca.certificate.clone()),
        }
    }
}

impl OwnTask<'_> {
    fn assigned(&self, settings: &Settings) -> AssignedTask {
        AssignedTask {
            service: self.service.id,
            service_name: self.service.name.to_string(),
            slot: self.task.slot,
            spec: self.spec.task.clone(),
            desired: self.task.desired,
            index: self.index,
            on_disconnect: self.spec.disconnect_stop(settings),
        }
    }
}

/// Everything that one node should have.
#[must_use]
pub fn assign(state: &State, live: &Live, node: NodeId, term: u64, members: &Members) -> Assignment {
    Assignments::new(state, live, term, members).of(node)
}

/// The ports of `spec` with a number for each that the cluster chose (0 if it has not yet). Ports that say the same take the
/// chosen numbers in order.
#[must_use]
pub fn published_ports(service: &Service, spec: &ServiceSpec) -> Vec<PortSpec> {
    let like = |a: &PortSpec, b: &PortSpec| (a.protocol, a.target, a.mode) == (b.protocol, b.target, b.mode);
    let current: &[PortSpec] = &service.ports;
    let mut chosen: Vec<&PortSpec> = current
        .iter()
        .filter(|port| !spec.endpoint.ports.iter().any(|own| own.published == port.published && like(own, port)))
        .collect();
    let resolve = |port: &PortSpec| {
        if port.published != 0 {
            return *port;
        }
        let found = chosen.iter().position(|known| like(known, port));
        found.map_or(*port, |at| *chosen.remove(at))
    };
    spec.endpoint.ports.iter().map(resolve).collect()
}

fn services(state: &State) -> BTreeMap<ServiceId, AssignedService> {
    let present = state.services.iter().filter(|(_, service)| !service.removed);
    let assigned = |(id, service): (&ServiceId, &crate::state::Stored<Service>)| {
        let ports = service.ports.iter().filter(|port| port.published != 0).copied().collect();
        (*id, AssignedService { name: service.name.to_string(), ports, backends: Vec::new() })
    };
    present.map(assigned).collect()
}

/// Whether a task of another node is up. A node that this leader has not heard yet gets the benefit of the doubt: after an
/// election traffic goes on as before, and if the node stays silent the planner replaces its tasks.
fn may_serve(live: &Live, node: NodeId, task: TaskId) -> bool {
    let Some(known) = live.nodes.get(&node) else { return true };
    known.ready && known.report.tasks.get(&task).is_some_and(|report| report.state == TaskState::Running)
}
