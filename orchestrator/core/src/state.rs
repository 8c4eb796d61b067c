//! The replicated facts and the only way they change: entries of puts and deletes, applied whole or not at all.
//!
//! [`State::apply`] is called once for each committed log entry, on every manager, in log order; it must mean the same on
//! every version. Decisions are made before an entry is proposed; the guards of the entry tell whether they still hold.

use crate::model::{
    Cluster, ClusterId, Node, NodeId, Service, ServiceId, SpecVersion, Task, TaskId, TaskSpec, Turn, UnixMillis,
};
use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::ops::Deref;
use serde::{Deserialize, Serialize};

/// All replicated facts. Cheap to clone: objects are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Index of the last applied log entry.
    pub revision: u64,
    /// The cluster; `None` before it is initialised.
    pub cluster: Option<Stored<Cluster>>,
    /// Members.
    pub nodes: BTreeMap<NodeId, Stored<Node>>,
    /// Services.
    pub services: BTreeMap<ServiceId, Stored<Service>>,
    /// Versions of service specs.
    pub specs: BTreeMap<(ServiceId, u32), Stored<SpecVersion>>,
    /// Tasks.
    pub tasks: BTreeMap<TaskId, Stored<Task>>,
    /// See [`Turn`].
    pub turn: Option<Stored<Turn>>,
}

/// An object and the entries that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored<T> {
    /// Index of the entry that made it.
    pub created: u64,
    /// Index of the entry that wrote it last; users know it as the version index.
    pub revision: u64,
    /// The object.
    pub value: Arc<T>,
}

impl<T> Deref for Stored<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One log entry: all of its changes or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was decided.
    pub at: UnixMillis,
    /// Objects that must still be as they were read, though the entry does not write them.
    pub reads: Vec<Guard>,
    /// What changes, in order.
    pub changes: Vec<Change>,
}

/// Put or delete of one object, guarded by its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Revision that the object must have; 0 means that it must not exist.
    pub expect: u64,
    /// What to do.
    pub action: Action,
}

/// What a change does.
#[allow(clippy::large_enum_variant, reason = "entries are short-lived and mostly puts")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Writes an object whole.
    Put(Object),
    /// Removes an object.
    Delete(Key),
}

impl Action {
    /// The object that is written or removed.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Action::Put(object) => object.key(),
            Action::Delete(key) => *key,
        }
    }
}

/// An object must have this revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The object.
    pub key: Key,
    /// Its revision; 0 means that it must not exist.
    pub expect: u64,
}

/// Any replicated object. New kinds are appended: the order is part of the log's format.
#[allow(clippy::large_enum_variant, reason = "entries are short-lived")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// The cluster.
    Cluster(Cluster),
    /// A member.
    Node(Node),
    /// A service.
    Service(Service),
    /// A version of a service's spec.
    Spec(SpecVersion),
    /// A task.
    Task(Task),
    /// The right to decide on what is free.
    Turn(Turn),
}

/// Names a replicated object. New kinds are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// The cluster.
    Cluster,
    /// A member.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A version of a service's spec.
    Spec(ServiceId, u32),
    /// A task.
    Task(TaskId),
    /// The right to decide on what is free.
    Turn,
}

impl Object {
    /// The name of this object.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Object::Cluster(_) => Key::Cluster,
            Object::Node(node) => Key::Node(node.id),
            Object::Service(service) => Key::Service(service.id),
            Object::Spec(version) => Key::Spec(version.service, version.number),
            Object::Task(task) => Key::Task(task.id),
            Object::Turn(_) => Key::Turn,
        }
    }
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// All changes are in force, with this revision.
    Done {
        /// Index of the entry.
        revision: u64,
    },
    /// A guard did not hold and nothing changed. The proposer looks again and decides anew.
    Conflict {
        /// The object.
        key: Key,
        /// The revision that was expected.
        expected: u64,
        /// The revision that it has; 0 means that it does not exist.
        found: u64,
    },
}

impl State {
    /// Applies the entry with this log index.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Applied {
        debug_assert!(index > self.revision, "entries are applied once and in order");
        self.revision = index;
        let reads = entry.reads.iter().copied();
        let writes = entry.changes.iter().map(|change| Guard { key: change.action.key(), expect: change.expect });
        for Guard { key, expect: expected } in reads.chain(writes) {
            let found = self.revision_of(key);
            if found != expected {
                return Applied::Conflict { key, expected, found };
            }
        }
        for change in &entry.changes {
            match &change.action {
                Action::Put(object) => self.put(index, object.clone()),
                Action::Delete(key) => self.delete(*key),
            }
        }
        Applied::Done { revision: index }
    }

    /// Index of the entry that wrote the object last; 0 if there is no such object.
    #[must_use]
    pub fn revision_of(&self, key: Key) -> u64 {
        fn of<T>(stored: Option<&Stored<T>>) -> u64 {
            stored.map_or(0, |stored| stored.revision)
        }
        match key {
            Key::Cluster => of(self.cluster.as_ref()),
            Key::Node(id) => of(self.nodes.get(&id)),
            Key::Service(id) => of(self.services.get(&id)),
            Key::Spec(id, number) => of(self.specs.get(&(id, number))),
            Key::Task(id) => of(self.tasks.get(&id)),
            Key::Turn => of(self.turn.as_ref()),
        }
    }

    /// A change that writes `object` if nobody wrote it since.
    #[must_use]
    pub fn put_change(&self, object: Object) -> Change {
        Change { expect: self.revision_of(object.key()), action: Action::Put(object) }
    }

    /// A change that removes an object if nobody wrote it since.
    #[must_use]
    pub fn delete_change(&self, key: Key) -> Change {
        Change { expect: self.revision_of(key), action: Action::Delete(key) }
    }

    /// The seed of ids; 0 before the cluster is initialised.
    #[must_use]
    pub fn seed(&self) -> u128 {
        self.cluster.as_ref().map_or(ClusterId(0), |cluster| cluster.id).0
    }

    /// The spec of a service as it is wanted now.
    #[must_use]
    pub fn current_spec(&self, service: &Service) -> Option<&Stored<SpecVersion>> {
        self.specs.get(&(service.id, service.current))
    }

    /// The spec that a task was made from.
    #[must_use]
    pub fn spec_of(&self, task: &Task) -> Option<&Stored<SpecVersion>> {
        self.specs.get(&(task.service, task.version))
    }

    /// What a task is.
    #[must_use]
    pub fn task_spec(&self, task: &Task) -> Option<&TaskSpec> {
        self.spec_of(task).map(|version| &version.value.spec.task)
    }

    fn put(&mut self, index: u64, object: Object) {
        fn store<K: Ord, T>(map: &mut BTreeMap<K, Stored<T>>, key: K, index: u64, value: T) {
            let created = map.get(&key).map_or(index, |old| old.created);
            map.insert(key, Stored { created, revision: index, value: Arc::new(value) });
        }
        fn store_one<T>(place: &mut Option<Stored<T>>, index: u64, value: T) {
            let created = place.as_ref().map_or(index, |old| old.created);
            *place = Some(Stored { created, revision: index, value: Arc::new(value) });
        }
        match object {
            Object::Cluster(cluster) => store_one(&mut self.cluster, index, cluster),
            Object::Node(node) => store(&mut self.nodes, node.id, index, node),
            Object::Service(service) => store(&mut self.services, service.id, index, service),
            Object::Spec(version) => store(&mut self.specs, (version.service, version.number), index, version),
            Object::Task(task) => store(&mut self.tasks, task.id, index, task),
            Object::Turn(turn) => store_one(&mut self.turn, index, turn),
        }
    }

    fn delete(&mut self, key: Key) {
        match key {
            Key::Cluster => self.cluster = None,
            Key::Node(id) => drop(self.nodes.remove(&id)),
            Key::Service(id) => drop(self.services.remove(&id)),
            Key::Spec(id, number) => drop(self.specs.remove(&(id, number))),
            Key::Task(id) => drop(self.tasks.remove(&id)),
            Key::Turn => self.turn = None,
        }
    }
}
