//! What one node should have, numbered so that the past is refused. The leader makes it, the node keeps the last one.

use crate::model::{Desired, NodeId, PortSpec, ServiceId, Slot, TaskId, TaskSpec};
use alloc::{collections::BTreeMap, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Everything one node should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The receiver.
    pub node: NodeId,
    /// Term of the leader that made it.
    pub term: u64,
    /// Revision of the state it was made from. A node takes only assignments with a higher (term, revision).
    pub revision: u64,
    /// Tasks of this node.
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    /// Ended tasks of this node whose traces are kept.
    pub history: alloc::collections::BTreeSet<TaskId>,
    /// Services that this node forwards to and resolves the names of.
    pub services: BTreeMap<ServiceId, AssignedService>,
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
    /// Run or end.
    pub desired: Desired,
    /// Host part of its address on the node-local network.
    pub index: u16,
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
    /// Whether new connections may go to it; if not, old ones may finish.
    pub active: bool,
}
