//! What nodes observe and tell the leader. Kept in the leader's memory and collected anew after an election; never replicated.

use super::{NodeDescription, NodeId, Protocol, TaskId, UnixMillis};
use alloc::{collections::BTreeMap, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// All that the leader knows and the log does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Nodes that have reported since this leader was elected.
    pub nodes: BTreeMap<NodeId, NodeLive>,
    /// Nodes that have not reported are down from this time on: the election plus one grace period.
    pub down_after: UnixMillis,
    /// Raised by the leader whenever a report or a lost session changes something here: tells two assignments that were
    /// made from one revision of the state apart. It starts from the leader's clock in milliseconds, not from 0: a leader
    /// that is restarted may lead again in the same term, and what it assigns then is newer than what it assigned before.
    pub edition: u64,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLive {
    /// Whether its session is alive.
    pub ready: bool,
    /// Since when.
    pub since: UnixMillis,
    /// Its last report.
    pub report: Report,
}

/// Everything one node tells of itself; complete each time, so that the newest one says it all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sender.
    pub node: NodeId,
    /// Term of the assignment this answers.
    pub term: u64,
    /// Revision of the assignment this answers.
    pub revision: u64,
    /// What it is.
    pub description: NodeDescription,
    /// The number that it keeps the log under; `None` while it keeps none.
    pub raft: Option<u64>,
    /// The number under which it kept the log until it lost it: its disk failed or the log was damaged. It needs another one
    /// ([`crate::intent::renew_raft_id`]).
    pub lost_log: Option<u64>,
    /// Its tasks.
    pub tasks: BTreeMap<TaskId, TaskReport>,
    /// Ports that processes outside our containers hold on it.
    pub held_ports: Vec<HeldPort>,
}

/// A port that a process of the host holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// For people: process name and id, if known.
    pub holder: String,
}

/// One task, seen by its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// How far it is.
    pub state: TaskState,
    /// Since when.
    pub since: UnixMillis,
    /// For people: what it is doing or what went wrong.
    pub message: String,
    /// Process id of its first process on the node.
    pub pid: Option<u32>,
    /// Exit code, once it ended.
    pub exit_code: Option<i32>,
}

/// SwarmKit's task states in the order in which a task passes them (`design/task_model.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaskState {
    /// Made.
    New,
    /// Waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// Its node knows.
    Accepted,
    /// Its node gets the image, network and file system ready.
    Preparing,
    /// Waits for its start.
    Ready,
    /// Its process starts; not healthy yet.
    Starting,
    /// Runs, and is healthy where a check is asked for.
    Running,
    /// Ended with 0.
    Complete,
    /// Ended as told.
    Shutdown,
    /// Ended badly.
    Failed,
    /// Could not be started.
    Rejected,
    /// Waits to be removed.
    Remove,
    /// Its node is gone.
    Orphaned,
}

impl TaskState {
    /// Whether the task will not change any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(
            self,
            Self::New
                | Self::Pending
                | Self::Assigned
                | Self::Accepted
                | Self::Preparing
                | Self::Ready
                | Self::Starting
                | Self::Running
        )
    }

    /// Docker's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}
