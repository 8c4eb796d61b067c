//! What users' commands become: each function looks at the state and either answers with the one log entry that carries
//! the command out, or refuses with the reason. Called by the APIs on the leader, which propose the entry and, if a guard
//! no longer held when it was applied, ask here again.
//!
//! Names and published ports are unique across services, which no guard on one service can see. Whoever takes one of them
//! therefore writes the cluster object too (unchanged): two such entries that were decided on without seeing each other
//! cannot both apply.
//!
//! Every update makes a new version of the spec, even one that says the same, and so does a rollback: the tasks of the
//! newest version are those of the latest attempt, and no clock is needed to tell its failures from older ones.

use crate::{
    find::FindError,
    model::{
        Availability, Cluster, ClusterId, Invalid, Mode, Name, Node, NodeId, PortSpec, PublishMode, Role, Service,
        ServiceId, ServiceSpec, SpecVersion, UnixMillis, UpdateState, UpdateStatus,
    },
    state::{Change, Entry, Guard, Key, Object, State, Stored},
};
use alloc::{
    collections::BTreeMap,
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

/// Makes the cluster with its first node, a manager.
///
/// # Errors
/// There is a cluster already.
pub fn init_cluster(state: &State, id: ClusterId, node: Node, now: UnixMillis) -> Result<Entry, Refusal> {
    if state.cluster.is_some() {
        return Err(Refusal::Precondition("this node is already part of a cluster".into()));
    }
    let cluster = Cluster { id, created_at: now, task_history: Cluster::TASK_HISTORY };
    let node = Node { role: Role::Manager, created_at: now, ..node };
    Ok(entry(now, vec![state.put_change(Object::Cluster(cluster)), state.put_change(Object::Node(node))]))
}

/// Makes a service.
///
/// # Errors
/// The name or a published port is taken, or there is no cluster.
pub fn create_service(state: &State, spec: ServiceSpec, now: UnixMillis) -> Result<(ServiceId, Entry), Refusal> {
    let touch = touch_cluster(state)?;
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
    let changes = vec![touch, state.put_change(Object::Service(service)), state.put_change(Object::Spec(version))];
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
    let touch = touch_cluster(state)?;
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
    Ok(entry(now, ports_change.then_some(touch).into_iter().chain(changes).collect()))
}

/// Returns to the version before. A second rollback returns to the version that the first one left.
///
/// # Errors
/// No such service, it changed since, there is no version before, or a port of it is taken meanwhile.
pub fn rollback_service(state: &State, id: ServiceId, version_index: u64, now: UnixMillis) -> Result<Entry, Refusal> {
    let touch = touch_cluster(state)?;
    let service = service_at(state, id, version_index)?;
    let previous = service.previous.and_then(|number| state.specs.get(&(id, number)));
    let Some(spec) = previous.map(|version| version.spec.clone()) else {
        return Err(Refusal::Precondition(alloc::format!("service {} does not have a previous spec", service.name)));
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
    Ok(entry(now, vec![touch, state.put_change(Object::Spec(version)), state.put_change(Object::Service(next))]))
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
/// # Errors
/// No such node, it changed since, or it is the last manager and would stop being one.
pub fn update_node(
    state: &State,
    id: NodeId,
    version_index: u64,
    wish: NodeWish,
    now: UnixMillis,
) -> Result<Entry, Refusal> {
    let node = state.nodes.get(&id).ok_or_else(|| not_found(crate::find::Kind::Node, id.to_string()))?;
    if node.revision != version_index {
        return Err(Refusal::OutOfSequence);
    }
    let mut reads = Vec::new();
    if node.role == Role::Manager && wish.role == Role::Worker {
        let others = state.nodes.iter().filter(|(other, node)| **other != id && node.role == Role::Manager);
        reads.extend(others.map(|(other, node)| Guard { key: Key::Node(*other), expect: node.revision }));
        if reads.is_empty() {
            return Err(Refusal::Precondition("attempting to demote the last manager of the cluster".into()));
        }
    }
    let NodeWish { role, availability, labels } = wish;
    let next = Node { role, availability, labels, ..Node::clone(node) };
    Ok(Entry { at: now, reads, changes: vec![state.put_change(Object::Node(next))] })
}

/// A node joins, or tells what it is: a new node is taken as given, of a known one only the host name and the description.
/// `None` if all of it is known, so that a node that connects anew writes nothing.
///
/// # Errors
/// The cluster was not initialised.
pub fn put_node(state: &State, node: Node, now: UnixMillis) -> Result<Option<Entry>, Refusal> {
    if state.cluster.is_none() {
        return Err(Refusal::NoCluster);
    }
    let next = match state.nodes.get(&node.id) {
        None => Node { created_at: now, ..node },
        Some(known) => Node { hostname: node.hostname, description: node.description, ..Node::clone(known) },
    };
    let known = state.nodes.get(&next.id).is_some_and(|known| *known.value == next);
    Ok((!known).then(|| entry(now, vec![state.put_change(Object::Node(next))])))
}

fn entry(at: UnixMillis, changes: Vec<Change>) -> Entry {
    Entry { at, reads: Vec::new(), changes }
}

fn touch_cluster(state: &State) -> Result<Change, Refusal> {
    let cluster = state.cluster.as_ref().ok_or(Refusal::NoCluster)?;
    Ok(state.put_change(Object::Cluster(Cluster::clone(cluster))))
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
fn check_ports(state: &State, own: Option<ServiceId>, wanted: &[PortSpec]) -> Result<(), Refusal> {
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
