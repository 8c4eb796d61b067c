//! What users' commands become: each function looks at the state and either answers with the one log entry that carries
//! the command out, or refuses with the reason. Called by the APIs on the leader, which propose the entry and, if a guard
//! no longer held when it was applied, ask here again.
//!
//! Names and published ports are unique across services, which no guard on one service can see. Whoever takes one of them
//! therefore writes [`Turn`] too: two such entries that were decided on without seeing each other cannot both apply.
//!
//! Every update makes a new version of the spec, even one that says the same, and so does a rollback: the tasks of the
//! newest version are those of the latest attempt, and no clock is needed to tell its failures from older ones.

use crate::{
    find::FindError,
    members::would_lose_quorum,
    model::{
        Availability, Ca, Cluster, ClusterId, Invalid, Live, Mode, Name, Node, NodeDescription, NodeId, PortSpec,
        PublishMode, Role, Secret16, Service, ServiceId, ServiceSpec, Settings, SpecVersion, Tokens, Turn, UnixMillis,
        UpdateState, UpdateStatus,
    },
    state::{Change, Entry, Guard, Key, Object, State, Stored},
};
use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::Arc,
    vec,
    vec::Vec,
};

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A value must be changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// What the command names does not exist, or not uniquely.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Another service has this name: choose another, or remove that one.
    #[error("name conflicts with an existing object: service {name} already exists")]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// Another service publishes this port: choose another, or change that one.
    #[error("port '{port}' is already in use by service '{service}' ({id}) as {}", mode_text(*.mode))]
    PortTaken {
        /// The port.
        port: u16,
        /// Name of the service that has it.
        service: Name,
        /// Its id.
        id: ServiceId,
        /// How it publishes the port.
        mode: PublishMode,
    },
    /// The object changed since the caller read it: read it again and decide anew.
    #[error("update out of sequence")]
    OutOfSequence,
    /// No such change is possible: create a new service instead.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The object is not in the state that the command needs.
    #[error("{0}")]
    Precondition(String),
    /// The node was removed: it may come back under a new key only.
    #[error("node {0} was removed from the cluster: run \"edgectl cluster leave --force\" on it, then join again")]
    Removed(NodeId),
    /// The cluster was not initialised.
    #[error("this node is not part of a cluster: run \"edgectl cluster init\" to make it the first node of one")]
    NoCluster,
}

fn mode_text(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "an ingress port",
        PublishMode::Host => "a host-published port",
    }
}

/// Makes the cluster with its first node, a manager that keeps the log under number 1.
///
/// # Errors
/// There is a cluster already, or a setting is out of bounds.
pub fn init_cluster(
    state: &State,
    id: ClusterId,
    node: Node,
    ca: Ca,
    tokens: Tokens,
    settings: Settings,
    now: UnixMillis,
) -> Result<Entry, Refusal> {
    if state.cluster.is_some() {
        return Err(Refusal::Precondition("this node is already part of a cluster".into()));
    }
    settings.check()?;
    let cluster = Cluster::new(id, ca, tokens, settings, now);
    let node = Node { role: Role::Manager, raft_id: Some(Cluster::FIRST_RAFT_ID), created_at: now, ..node };
    Ok(entry(now, vec![state.put_change(Object::Cluster(cluster)), state.put_change(Object::Node(node))]))
}

/// Changes the settings of the cluster. `version_index` is the revision of the cluster as the caller read it.
///
/// # Errors
/// No cluster, it changed since, or a setting is out of bounds.
pub fn update_cluster(
    state: &State,
    version_index: u64,
    settings: Settings,
    now: UnixMillis,
) -> Result<Entry, Refusal> {
    if cluster(state)?.revision != version_index {
        return Err(Refusal::OutOfSequence);
    }
    settings.check()?;
    let mut next = next_cluster(state, now)?;
    next.longest_validity = next.longest_validity.max(settings.cert_validity);
    next.settings = settings;
    Ok(entry(now, vec![state.put_change(Object::Cluster(next))]))
}

/// Replaces the secret that lets nodes of this role in; tokens with the old one are worth nothing from then on.
///
/// # Errors
/// No cluster.
pub fn rotate_token(state: &State, role: Role, secret: Secret16, now: UnixMillis) -> Result<Entry, Refusal> {
    let mut next = next_cluster(state, now)?;
    match role {
        Role::Worker => next.tokens.worker = secret,
        Role::Manager => next.tokens.manager = secret,
    }
    Ok(entry(now, vec![state.put_change(Object::Cluster(next))]))
}

/// After the majority of the managers was lost for good: `own` is the only manager from now on; the others are workers, and
/// come back as such or are promoted anew.
///
/// # Errors
/// No cluster, or `own` is no member of it.
pub fn force_new_cluster(state: &State, own: NodeId, own_raft_id: u64, now: UnixMillis) -> Result<Entry, Refusal> {
    let mut next = next_cluster(state, now)?;
    next.next_raft_id = next.next_raft_id.max(own_raft_id.saturating_add(1));
    let mut changes = vec![state.put_change(Object::Cluster(next))];
    node_at(state, own)?;
    for (id, node) in &state.nodes {
        let (role, raft_id) = if *id == own { (Role::Manager, Some(own_raft_id)) } else { (Role::Worker, None) };
        if (node.role, node.raft_id) != (role, raft_id) {
            changes.push(state.put_change(Object::Node(Node { role, raft_id, ..Node::clone(node) })));
        }
    }
    Ok(entry(now, changes))
}

/// Makes a service.
///
/// # Errors
/// The name or a published port is taken, or there is no cluster.
pub fn create_service(state: &State, spec: ServiceSpec, now: UnixMillis) -> Result<(ServiceId, Entry), Refusal> {
    let turn = take_turn(state)?;
    if present(state).any(|service| service.name == spec.name) {
        return Err(Refusal::NameTaken { name: spec.name.clone() });
    }
    check_ports(state, None, &spec.endpoint.ports)?;
    let id = ServiceId::derive(state.seed(), state.revision, 0);
    let service = Service {
        id,
        name: spec.name.clone(),
        current: 1,
        previous: None,
        removed: false,
        created_at: now,
        updated_at: now,
        ports: Vec::new(),
        update: None,
    };
    let version = SpecVersion { service: id, number: 1, spec: Arc::new(spec) };
    let changes = vec![turn, state.put_change(Object::Service(service)), state.put_change(Object::Spec(version))];
    Ok((id, entry(now, changes)))
}

/// Wants another spec for a service. The same spec again resumes an update that was paused.
///
/// `version_index` is the revision of the service as the caller read it.
///
/// # Errors
/// No such service, it changed since, a port is taken, or a change that a service cannot go through (name, mode).
pub fn update_service(
    state: &State,
    id: ServiceId,
    version_index: u64,
    spec: ServiceSpec,
    now: UnixMillis,
) -> Result<Entry, Refusal> {
    let turn = take_turn(state)?;
    let service = service_at(state, id, version_index)?;
    if spec.name != service.name {
        return Err(Refusal::Unsupported("renaming services is not supported"));
    }
    let current = state.current_spec(service).map(|version| &version.value.spec);
    let global = |mode| matches!(mode, Mode::Global);
    if current.is_some_and(|current| global(current.mode) != global(spec.mode)) {
        return Err(Refusal::Unsupported("service mode change is not allowed"));
    }
    check_ports(state, Some(id), &spec.endpoint.ports)?;

    let ports_change = current.is_none_or(|current| current.endpoint.ports != spec.endpoint.ports);
    let next = Service {
        current: service.current + 1,
        previous: Some(service.current),
        updated_at: now,
        update: None,
        ..Service::clone(service)
    };
    let version = SpecVersion { service: id, number: next.current, spec: Arc::new(spec) };
    let changes = [state.put_change(Object::Spec(version)), state.put_change(Object::Service(next))];
    Ok(entry(now, ports_change.then_some(turn).into_iter().chain(changes).collect()))
}

/// Returns to the version before. A second rollback returns to the version that the first one left.
///
/// # Errors
/// No such service, it changed since, there is no version before, or a port of it is taken meanwhile.
pub fn rollback_service(state: &State, id: ServiceId, version_index: u64, now: UnixMillis) -> Result<Entry, Refusal> {
    let turn = take_turn(state)?;
    let service = service_at(state, id, version_index)?;
    let previous = service.previous.and_then(|number| state.specs.get(&(id, number)));
    let Some(spec) = previous.map(|version| version.spec.clone()) else {
        return Err(Refusal::Precondition(format!("service {} does not have a previous spec", service.name)));
    };
    check_ports(state, Some(id), &spec.endpoint.ports)?;
    let next = Service {
        current: service.current + 1,
        previous: Some(service.current),
        updated_at: now,
        update: Some(UpdateStatus {
            state: UpdateState::RollbackStarted,
            on_failure: spec.rollback.on_failure,
            started_at: now,
            completed_at: None,
            message: "manually requested rollback".into(),
        }),
        ..Service::clone(service)
    };
    let version = SpecVersion { service: id, number: next.current, spec };
    Ok(entry(now, vec![turn, state.put_change(Object::Spec(version)), state.put_change(Object::Service(next))]))
}

/// Ends all tasks of a service, then the service.
///
/// # Errors
/// No such service.
pub fn remove_service(state: &State, id: ServiceId, now: UnixMillis) -> Result<Entry, Refusal> {
    let service = service(state, id)?;
    let next = Service { removed: true, updated_at: now, update: None, ..Service::clone(service) };
    Ok(entry(now, vec![state.put_change(Object::Service(next))]))
}

/// What users decide about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWish {
    /// Whether it keeps the replicated state.
    pub role: Role,
    /// Whether tasks may be placed on it.
    pub availability: Availability,
    /// Labels for constraints.
    pub labels: BTreeMap<String, String>,
}

/// Changes what users decide about a node. `version_index` is the revision of the node as the caller read it.
///
/// A new manager gets a number to keep the log under; the leader then makes it a member of the log, and takes one that is
/// demoted out of it.
///
/// # Errors
/// No such node, it changed since, or it would stop being a manager that cannot be spared.
pub fn update_node(
    state: &State,
    live: &Live,
    id: NodeId,
    version_index: u64,
    wish: NodeWish,
    now: UnixMillis,
) -> Result<Entry, Refusal> {
    let node = node_at(state, id)?;
    if node.revision != version_index {
        return Err(Refusal::OutOfSequence);
    }
    let NodeWish { role, availability, labels } = wish;
    let mut next = Node { role, availability, labels, ..Node::clone(node) };
    let (mut reads, mut changes) = (Vec::new(), Vec::new());
    match (node.role, role) {
        (Role::Manager, Role::Worker) => {
            if let Some(refusal) = would_lose_quorum(state, live, id) {
                return Err(refusal);
            }
            // Of two managers, each demoted with the other in mind, one stays.
            let others = state.nodes.iter().filter(|(other, node)| **other != id && node.role == Role::Manager);
            reads.extend(others.map(|(other, node)| Guard { key: Key::Node(*other), expect: node.revision }));
            next.raft_id = None;
        }
        (Role::Worker, Role::Manager) => {
            // One that is still being demoted stays what it is.
            next.raft_id = live.nodes.get(&id).and_then(|known| known.report.raft);
            if next.raft_id.is_none() {
                let mut cluster = next_cluster(state, now)?;
                next.raft_id = Some(take_raft_id(&mut cluster));
                changes.push(state.put_change(Object::Cluster(cluster)));
            }
        }
        (Role::Worker, Role::Worker) | (Role::Manager, Role::Manager) => {}
    }
    changes.push(state.put_change(Object::Node(next)));
    Ok(Entry { at: now, reads, changes })
}

/// A node joins with a token for `role`. One that is a member already keeps what users decided about it, its role included:
/// joining twice is joining once, and promotes nobody. But a manager gets another number to keep the log under: it would not ask
/// to be let in if it had its log still. `None` if all of it is known.
///
/// # Errors
/// The cluster was not initialised, or the node was removed from it.
pub fn join_node(state: &State, node: Node, role: Role, now: UnixMillis) -> Result<Option<Entry>, Refusal> {
    if is_removed(state, node.id, now) {
        return Err(Refusal::Removed(node.id));
    }
    let mut next = next_cluster(state, now)?;
    if let Some(known) = state.nodes.get(&node.id) {
        if known.role == Role::Worker {
            return describe_node(state, node.id, node.hostname, node.description, now);
        }
        let raft_id = Some(take_raft_id(&mut next));
        let Node { hostname, description, .. } = node;
        let node = Node { raft_id, hostname, description, ..Node::clone(known) };
        let changes = vec![state.put_change(Object::Cluster(next)), state.put_change(Object::Node(node))];
        return Ok(Some(entry(now, changes)));
    }
    let mut changes = Vec::new();
    let raft_id = (role == Role::Manager).then(|| take_raft_id(&mut next));
    if raft_id.is_some() {
        changes.push(state.put_change(Object::Cluster(next)));
    }
    changes.push(state.put_change(Object::Node(Node { role, raft_id, created_at: now, ..node })));
    Ok(Some(entry(now, changes)))
}

/// A member tells what it is. `None` if that is known, so that a node that connects anew writes nothing.
///
/// # Errors
/// No such node.
pub fn describe_node(
    state: &State,
    id: NodeId,
    hostname: String,
    description: NodeDescription,
    now: UnixMillis,
) -> Result<Option<Entry>, Refusal> {
    let known = node_at(state, id)?;
    if (&known.hostname, &known.description) == (&hostname, &description) {
        return Ok(None);
    }
    let next = Node { hostname, description, ..Node::clone(known) };
    Ok(Some(entry(now, vec![state.put_change(Object::Node(next))])))
}

/// Gives a manager that lost its log under the number `lost` a new one: it comes back as a new member of the log. `None` if it
/// has another number already.
///
/// # Errors
/// No such node, or no cluster.
pub fn renew_raft_id(state: &State, id: NodeId, lost: u64, now: UnixMillis) -> Result<Option<Entry>, Refusal> {
    let node = node_at(state, id)?;
    if node.raft_id != Some(lost) {
        return Ok(None);
    }
    let mut cluster = next_cluster(state, now)?;
    let next = Node { raft_id: Some(take_raft_id(&mut cluster)), ..Node::clone(node) };
    Ok(Some(entry(now, vec![state.put_change(Object::Cluster(cluster)), state.put_change(Object::Node(next))])))
}

/// Removes a node for good: its certificate is refused from then on, and its tasks are replaced.
///
/// # Errors
/// No such node, it is a manager or still being demoted, or it is up and `force` was not given.
pub fn remove_node(state: &State, live: &Live, id: NodeId, force: bool, now: UnixMillis) -> Result<Entry, Refusal> {
    let node = node_at(state, id)?;
    if node.role == Role::Manager {
        return Err(Refusal::Precondition(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        )));
    }
    let up = live.nodes.get(&id).filter(|known| known.ready);
    if up.is_some_and(|known| known.report.raft.is_some()) {
        return Err(Refusal::Precondition(format!(
            "node {id} is being demoted and still a member of the raft cluster: remove it in a moment"
        )));
    }
    if !force && up.is_some() {
        return Err(Refusal::Precondition(format!("node {id} is not down and can't be removed")));
    }
    let mut next = next_cluster(state, now)?;
    next.removed.insert(id, now + next.longest_validity);
    Ok(entry(now, vec![state.put_change(Object::Cluster(next)), state.delete_change(Key::Node(id))]))
}

/// Whether the node was removed from the cluster and a certificate that names it may still be good.
#[must_use]
pub fn is_removed(state: &State, id: NodeId, now: UnixMillis) -> bool {
    let until = state.cluster.as_ref().and_then(|cluster| cluster.removed.get(&id));
    until.is_some_and(|until| *until > now)
}

fn take_raft_id(cluster: &mut Cluster) -> u64 {
    let id = cluster.next_raft_id;
    cluster.next_raft_id += 1;
    id
}

fn entry(at: UnixMillis, changes: Vec<Change>) -> Entry {
    Entry { at, reads: Vec::new(), changes }
}

fn take_turn(state: &State) -> Result<Change, Refusal> {
    cluster(state)?;
    Ok(state.put_change(Object::Turn(Turn)))
}

fn cluster(state: &State) -> Result<&Stored<Cluster>, Refusal> {
    state.cluster.as_ref().ok_or(Refusal::NoCluster)
}

/// A copy to change; removals that are over are forgotten on the way.
fn next_cluster(state: &State, now: UnixMillis) -> Result<Cluster, Refusal> {
    let mut next = Cluster::clone(cluster(state)?);
    next.removed.retain(|_, until| *until > now);
    Ok(next)
}

fn node_at(state: &State, id: NodeId) -> Result<&Stored<Node>, Refusal> {
    state.nodes.get(&id).ok_or_else(|| not_found(crate::find::Kind::Node, id.to_string()))
}

fn present(state: &State) -> impl Iterator<Item = &Stored<Service>> {
    state.services.values().filter(|service| !service.removed)
}

fn service(state: &State, id: ServiceId) -> Result<&Stored<Service>, Refusal> {
    let found = state.services.get(&id).filter(|service| !service.removed);
    found.ok_or_else(|| not_found(crate::find::Kind::Service, id.to_string()))
}

fn service_at(state: &State, id: ServiceId, version_index: u64) -> Result<&Stored<Service>, Refusal> {
    let service = service(state, id)?;
    if service.revision == version_index { Ok(service) } else { Err(Refusal::OutOfSequence) }
}

fn not_found(kind: crate::find::Kind, text: String) -> Refusal {
    Refusal::Find(FindError::NotFound { kind, text })
}

/// An ingress port belongs to one service. Host-published ports may be shared, as long as the tasks meet on no node.
pub(crate) fn check_ports(state: &State, own: Option<ServiceId>, wanted: &[PortSpec]) -> Result<(), Refusal> {
    for service in present(state).filter(|service| Some(service.id) != own) {
        let spec = state.current_spec(service).map_or(&[][..], |version| &version.value.spec.endpoint.ports);
        for taken in service.ports.iter().chain(spec).filter(|taken| taken.published != 0) {
            let clash = wanted.iter().any(|port| {
                (port.published, port.protocol) == (taken.published, taken.protocol)
                    && (port.mode == PublishMode::Ingress || taken.mode == PublishMode::Ingress)
            });
            if clash {
                return Err(Refusal::PortTaken {
                    port: taken.published,
                    service: service.name.clone(),
                    id: service.id,
                    mode: taken.mode,
                });
            }
        }
    }
    Ok(())
}
