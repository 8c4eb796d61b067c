//! Replicated objects: what the cluster agreed on. Each has a revision, the index of the log entry that wrote it last.

use super::{ClusterId, FailureAction, Name, NodeId, Platform, PortSpec, ServiceId, ServiceSpec, TaskId, UnixMillis};
use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use serde::{Deserialize, Serialize};

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its identity and the seed of all ids.
    pub id: ClusterId,
    /// When it was initialised.
    pub created_at: UnixMillis,
    /// Ended tasks kept per slot for `service ps`.
    pub task_history: u32,
}

impl Cluster {
    /// Docker's `--task-history-limit`.
    pub const TASK_HISTORY: u32 = 5;
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Host name, as the node told it.
    pub hostname: String,
    /// Whether it keeps the replicated state.
    pub role: Role,
    /// Whether tasks may be placed on it.
    pub availability: Availability,
    /// Labels set by users.
    pub labels: BTreeMap<String, String>,
    /// What the node says of itself; changes seldom.
    pub description: NodeDescription,
    /// When it joined.
    pub created_at: UnixMillis,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Operating system and architecture.
    pub platform: Option<Platform>,
    /// CPU time in billionths of a core.
    pub nano_cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Version of `edged`.
    pub version: String,
    /// Labels from the node's own configuration.
    pub labels: BTreeMap<String, String>,
    /// Address that others reach it by, without port.
    pub address: String,
}

/// Whether a node keeps the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs tasks only.
    Worker,
    /// Also votes and keeps the state.
    Manager,
}

/// Whether tasks may be placed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// Tasks may be placed.
    Active,
    /// No new tasks; those that run stay.
    Pause,
    /// No tasks; those that run are moved away.
    Drain,
}

/// A service: which version of its spec is wanted, and what the planner gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// Its name, which is also in every version of its spec.
    pub name: Name,
    /// The version that is wanted; see [`SpecVersion`].
    pub current: u32,
    /// The version before, for rollback.
    pub previous: Option<u32>,
    /// The user removed it: its tasks are being ended, then it goes.
    pub removed: bool,
    /// When it was created.
    pub created_at: UnixMillis,
    /// When its spec changed last.
    pub updated_at: UnixMillis,
    /// The published ports with those that the planner chose filled in; written by the planner.
    pub ports: Vec<PortSpec>,
    /// The update under way or the last one; written by the planner.
    pub update: Option<UpdateStatus>,
}

/// Where an update stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// State of the update.
    pub state: UpdateState,
    /// What is done when it fails.
    pub on_failure: FailureAction,
    /// When it began.
    pub started_at: UnixMillis,
    /// When it ended.
    pub completed_at: Option<UnixMillis>,
    /// For people.
    pub message: String,
}

/// Docker's update states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    /// Under way.
    Updating,
    /// Stopped after failures.
    Paused,
    /// Done.
    Completed,
    /// Returning to the version before.
    RollbackStarted,
    /// Stopped while returning.
    RollbackPaused,
    /// Returned.
    RollbackCompleted,
}

/// One version of a service's spec. Written once, never changed, deleted when no task uses it and history does not keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecVersion {
    /// The service.
    pub service: ServiceId,
    /// 1, 2, 3, …
    pub number: u32,
    /// The spec.
    pub spec: Arc<ServiceSpec>,
}

/// The place of a task within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// One of the replicas, from 1.
    Replica(u32),
    /// The node of a global service.
    Node(NodeId),
}

/// One attempt to fill a slot. Never moved and never restarted; a new task replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its identity.
    pub id: TaskId,
    /// The service.
    pub service: ServiceId,
    /// The place it fills.
    pub slot: Slot,
    /// The version of the spec it was made from.
    pub version: u32,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Where it runs; `None` until it is placed.
    pub placed: Option<Placed>,
    /// What it should do.
    pub desired: Desired,
    /// How it ended; `None` until it has.
    pub outcome: Option<Outcome>,
}

/// Where a task runs and what was set aside for it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The node.
    pub node: NodeId,
    /// Host part of its address on the node-local network; from 2, as 1 is the gateway.
    pub index: u16,
    /// Cluster-wide numbers of its published ports, in the order of the spec's ports; from 1. The dataplane finds a backend
    /// by this number, across nodes too.
    pub backends: Vec<u16>,
}

/// What a task should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Desired {
    /// Run.
    Run,
    /// End and leave its trace in the history.
    Shutdown,
    /// End and vanish.
    Remove,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The kind of end.
    pub end: End,
    /// When.
    pub at: UnixMillis,
    /// Exit code of its process, if it had one.
    pub exit_code: Option<i32>,
    /// For people: what was tried and why it ended; empty when it was wanted.
    pub message: String,
}

/// The kinds of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Its process ended with 0.
    Complete,
    /// It was told to end.
    Shutdown,
    /// Its process failed, or it was unhealthy, or killed for memory.
    Failed,
    /// It could not be started: no image, no such command, a bad mount.
    Rejected,
    /// Its node is gone.
    Orphaned,
}
