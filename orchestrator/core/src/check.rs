//! What must hold of every state that was reached by applying entries, whatever the history. Called by tests and, in debug
//! builds, by the leader after each entry.

use crate::{
    model::{Desired, Name, Node, NodeId, Protocol, PublishMode, Role, ServiceId, Slot, TaskId},
    state::State,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

/// A rule that a state breaks. None is expected; a violation is a bug of the planner or of an API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A service has no spec for the version that it wants, or no version to return to.
    #[error("service {service} wants version {version}, which does not exist")]
    NoVersion {
        /// The service.
        service: ServiceId,
        /// The version.
        version: u32,
    },
    /// A task's service does not exist.
    #[error("task {task} belongs to service {service}, which does not exist")]
    NoService {
        /// The task.
        task: TaskId,
        /// The service.
        service: ServiceId,
    },
    /// A task's version does not exist.
    #[error("task {task} is of version {version}, which does not exist")]
    NoTaskVersion {
        /// The task.
        task: TaskId,
        /// The version.
        version: u32,
    },
    /// An object is stored under another key than its own.
    #[error("an object is stored under a key that is not its own")]
    WrongKey,
    /// A node is a manager without a number to keep the log under, or the other way round.
    #[error("node {node} is a {role:?} with raft id {raft_id:?}")]
    RoleWithoutLog {
        /// The node.
        node: NodeId,
        /// Its role.
        role: Role,
        /// Its number.
        raft_id: Option<u64>,
    },
    /// Two managers keep the log under one number, or one does under a number that was not given out.
    #[error("node {node} has raft id {raft_id}, which is another's or not given out yet")]
    BadRaftId {
        /// The node.
        node: NodeId,
        /// The number.
        raft_id: u64,
    },
    /// A node was removed and is a member.
    #[error("node {0} was removed and is a member")]
    RemovedMember(NodeId),
    /// Two services have one name.
    #[error("services {0} and {1} are both named {2}")]
    SameName(ServiceId, ServiceId, Name),
    /// Two services publish one port.
    #[error("services {0} and {1} both publish port {3}/{p}", p = .2.as_str())]
    SamePort(ServiceId, ServiceId, Protocol, u16),
    /// Two tasks that have not ended have one address.
    #[error("tasks {0} and {1} both have address {3} on node {2}")]
    SameAddress(TaskId, TaskId, NodeId, u16),
    /// Two tasks that have not ended have one backend number.
    #[error("tasks {0} and {1} both have backend number {2}")]
    SameBackend(TaskId, TaskId, u16),
    /// An address is not one that a task may have.
    #[error("task {0} has address {1}, outside 2 to 65533")]
    BadAddress(TaskId, u16),
    /// A task has not one backend number for each published port of its version.
    #[error("task {task} has {found} backend numbers for {ports} published ports")]
    Backends {
        /// The task.
        task: TaskId,
        /// Its numbers.
        found: usize,
        /// Published ports of its version.
        ports: usize,
    },
    /// More than one task of a slot shall run, and not as the two halves of a start-first update or move.
    #[error("{count} tasks of slot {slot:?} of service {service} shall run")]
    CrowdedSlot {
        /// The service.
        service: ServiceId,
        /// The slot.
        slot: Slot,
        /// Tasks that shall run and have not ended.
        count: usize,
    },
    /// A task ended before it had a node.
    #[error("task {0} has an outcome, but was never placed")]
    EndedUnplaced(TaskId),
}

impl State {
    /// The rules that this state breaks.
    #[must_use]
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_keys(&mut found);
        self.check_nodes(&mut found);
        self.check_services(&mut found);
        self.check_tasks(&mut found);
        self.check_slots(&mut found);
        found
    }

    fn check_keys(&self, found: &mut Vec<Violation>) {
        let right = self.nodes.iter().all(|(id, node)| *id == node.id)
            && self.services.iter().all(|(id, service)| *id == service.id)
            && self.specs.iter().all(|(key, version)| *key == (version.service, version.number))
            && self.tasks.iter().all(|(id, task)| *id == task.id);
        if !right {
            found.push(Violation::WrongKey);
        }
    }

    fn check_nodes(&self, found: &mut Vec<Violation>) {
        let mut numbers = BTreeSet::new();
        for (id, node) in &self.nodes {
            let &Node { role, raft_id, .. } = &*node.value;
            if (role == Role::Manager) != raft_id.is_some() {
                found.push(Violation::RoleWithoutLog { node: *id, role, raft_id });
            }
            let Some(cluster) = &self.cluster else { continue };
            if let Some(raft_id) = raft_id.filter(|number| *number >= cluster.next_raft_id || !numbers.insert(*number))
            {
                found.push(Violation::BadRaftId { node: *id, raft_id });
            }
            // One that came back after its time is forgotten with the next write of the cluster.
            if cluster.removed.get(id).is_some_and(|until| *until > node.created_at) {
                found.push(Violation::RemovedMember(*id));
            }
        }
    }

    fn check_services(&self, found: &mut Vec<Violation>) {
        let mut names: BTreeMap<&Name, ServiceId> = BTreeMap::new();
        let mut ports: BTreeMap<(Protocol, u16), (ServiceId, PublishMode)> = BTreeMap::new();
        for (id, service) in &self.services {
            for version in [Some(service.current), service.previous].into_iter().flatten() {
                if !self.specs.contains_key(&(*id, version)) {
                    found.push(Violation::NoVersion { service: *id, version });
                }
            }
            if service.removed {
                continue;
            }
            if let Some(other) = names.insert(&service.name, *id) {
                found.push(Violation::SameName(other, *id, service.name.clone()));
            }
            for port in service.ports.iter().filter(|port| port.published != 0) {
                let both_host = |mode| mode == PublishMode::Host && port.mode == PublishMode::Host;
                match ports.insert((port.protocol, port.published), (*id, port.mode)) {
                    Some((other, mode)) if other != *id && !both_host(mode) => {
                        found.push(Violation::SamePort(other, *id, port.protocol, port.published));
                    }
                    _ => {}
                }
            }
        }
    }

    fn check_tasks(&self, found: &mut Vec<Violation>) {
        let mut addresses: BTreeMap<(NodeId, u16), TaskId> = BTreeMap::new();
        let mut backends: BTreeMap<u16, TaskId> = BTreeMap::new();
        for (id, task) in &self.tasks {
            if !self.services.contains_key(&task.service) {
                found.push(Violation::NoService { task: *id, service: task.service });
            }
            let Some(version) = self.spec_of(task) else {
                found.push(Violation::NoTaskVersion { task: *id, version: task.version });
                continue;
            };
            let Some(placed) = &task.placed else {
                if task.outcome.is_some() {
                    found.push(Violation::EndedUnplaced(*id));
                }
                continue;
            };
            if task.outcome.is_some() {
                continue;
            }
            if !(2..=65533).contains(&placed.index) {
                found.push(Violation::BadAddress(*id, placed.index));
            }
            if let Some(other) = addresses.insert((placed.node, placed.index), *id) {
                found.push(Violation::SameAddress(other, *id, placed.node, placed.index));
            }
            let ports = version.spec.endpoint.ports.len();
            if placed.backends.len() != ports {
                found.push(Violation::Backends { task: *id, found: placed.backends.len(), ports });
            }
            for number in placed.backends.iter().filter(|number| **number != 0) {
                if let Some(other) = backends.insert(*number, *id) {
                    found.push(Violation::SameBackend(other, *id, *number));
                }
            }
        }
    }

    fn check_slots(&self, found: &mut Vec<Violation>) {
        /// Version and node of a task.
        type Open = (u32, Option<NodeId>);
        let mut slots: BTreeMap<(ServiceId, Slot), Vec<Open>> = BTreeMap::new();
        for task in self.tasks.values().filter(|task| task.desired == Desired::Run && task.outcome.is_none()) {
            slots
                .entry((task.service, task.slot))
                .or_default()
                .push((task.version, task.placed.as_ref().map(|placed| placed.node)));
        }
        for ((service, slot), open) in slots {
            // Of another version, or elsewhere.
            let start_first = matches!(open[..], [one, other] if one != other);
            if open.len() > 1 && !start_first {
                found.push(Violation::CrowdedSlot { service, slot, count: open.len() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Placed, Service, Task, UnixMillis};
    use crate::state::Object;
    use std::string::ToString;

    fn task(id: u128, index: u16, backends: Vec<u16>) -> Object {
        Object::Task(Task {
            id: TaskId(id),
            service: ServiceId(1),
            slot: Slot::Replica(1),
            version: 1,
            created_at: UnixMillis(0),
            placed: Some(Placed { node: NodeId(1), index, backends }),
            desired: Desired::Run,
            outcome: None,
        })
    }

    fn service(id: u128) -> Object {
        Object::Service(Service {
            id: ServiceId(id),
            name: Name::new("web").expect("a valid name"),
            current: 1,
            previous: None,
            removed: false,
            created_at: UnixMillis(0),
            updated_at: UnixMillis(0),
            ports: Vec::new(),
            update: None,
        })
    }

    fn violations(objects: Vec<Object>) -> Vec<std::string::String> {
        let mut state = State::default();
        let changes = objects.into_iter().map(|object| state.put_change(object)).collect();
        state.apply(1, &crate::state::Entry { at: UnixMillis(0), reads: Vec::new(), changes });
        state.check().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_state_is_in_order() {
        assert_eq!(State::default().check(), []);
    }

    #[test]
    fn what_refers_to_nothing_is_found() {
        let found = violations(std::vec![service(1), service(2), task(9, 2, Vec::new())]);
        assert_eq!(found.len(), 4);
        assert!(found[0].ends_with("wants version 1, which does not exist"), "{found:?}");
        assert!(found[2].ends_with("are both named web"), "{found:?}");
        assert!(found[3].ends_with("is of version 1, which does not exist"), "{found:?}");
    }
}
