//! Why the planner did not do what a user might expect, as values; printed by `service ps` and `service explain`. The texts
//! that Docker has words for are Docker's (SwarmKit `manager/scheduler/filter.go`, `pipeline.go`).

use crate::{
    forwarding::LAST_BACKEND,
    model::{Constraint, NodeId, Protocol, ServiceId, TaskId, UnixMillis},
};
use alloc::{collections::BTreeMap, format, string::String, sync::Arc, vec::Vec};
use core::fmt;

/// What a reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A service as a whole.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

/// Why something is not done, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// No node takes the task; for each node the first reason.
    NoNode(Arc<BTreeMap<NodeId, NodeRefusal>>),
    /// The task before it in the slot has not ended.
    Predecessor(TaskId),
    /// The task ended and is replaced at this time.
    RestartDelay(UnixMillis),
    /// The task ended and the restart policy says that it is not replaced.
    NotRestarted,
    /// The task ended and was replaced as often as the restart policy allows.
    AttemptsUsedUp(u32),
    /// All numbers of backends are in use.
    NoBackendNumber,
    /// All ports that the cluster may choose are in use.
    NoPort,
    /// The update waits for the user.
    UpdatePaused,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoNode(nodes) if nodes.is_empty() => f.write_str("no suitable node"),
            Why::NoNode(nodes) => write!(f, "no suitable node ({})", summary(nodes)),
            Why::Predecessor(task) => write!(f, "waits for the end of task {task}"),
            Why::RestartDelay(_) => f.write_str("waits for the restart delay"),
            Why::NotRestarted => f.write_str("not restarted: its restart condition does not ask for it"),
            Why::AttemptsUsedUp(attempts) => write!(f, "not restarted: all {attempts} attempts are used up"),
            Why::NoBackendNumber => write!(f, "all {LAST_BACKEND} numbers of published ports are in use"),
            Why::NoPort => f.write_str("all ports between 30000 and 32767 are in use: publish a port of your choice"),
            Why::UpdatePaused => f.write_str("update paused: update the service again to go on, or roll it back"),
        }
    }
}

/// Why one node does not take a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeRefusal {
    /// It is not connected.
    Down,
    /// Its availability is pause.
    Paused,
    /// Its availability is drain.
    Drained,
    /// A constraint does not hold.
    Constraint(Constraint),
    /// The image has no variant for it.
    Platform,
    /// It runs as many tasks of the service as allowed.
    MaxPerNode(u32),
    /// It has less CPU time left than the task reserves.
    Cpu {
        /// Asked for, in billionths of a core.
        wanted: u64,
        /// Left, in billionths of a core.
        free: u64,
    },
    /// It has less memory left than the task reserves.
    Memory {
        /// Asked for, in bytes.
        wanted: u64,
        /// Left, in bytes.
        free: u64,
    },
    /// A host-published port is in use by another task.
    HostPort {
        /// Protocol.
        protocol: Protocol,
        /// Port.
        port: u16,
        /// The task that has it.
        task: TaskId,
    },
    /// A published port is held by a process of the host.
    HeldPort {
        /// Protocol.
        protocol: Protocol,
        /// Port.
        port: u16,
        /// Who holds it, if known.
        holder: String,
    },
    /// All addresses of its local network are in use.
    NoAddress,
}

impl NodeRefusal {
    /// Docker's summary for some nodes that refuse for this reason.
    fn docker(&self, nodes: usize) -> String {
        let s = if nodes == 1 { "" } else { "s" };
        match self {
            Self::Down | Self::Paused | Self::Drained => format!("{nodes} node{s} not available for new tasks"),
            Self::Constraint(_) => format!("scheduling constraints not satisfied on {nodes} node{s}"),
            Self::Platform => format!("unsupported platform on {nodes} node{s}"),
            Self::MaxPerNode(_) => "max replicas per node limit exceed".into(),
            Self::Cpu { .. } | Self::Memory { .. } => format!("insufficient resources on {nodes} node{s}"),
            Self::HostPort { .. } => format!("host-mode port already in use on {nodes} node{s}"),
            Self::HeldPort { protocol, port, holder } => {
                let holder = if holder.is_empty() { "a process of the host" } else { holder.as_str() };
                let protocol = protocol.as_str();
                format!(
                    "port {port}/{protocol} is held by {holder} on {nodes} node{s}: stop it or publish another port"
                )
            }
            Self::NoAddress => format!("no free address on {nodes} node{s}"),
        }
    }
}

impl fmt::Display for NodeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = |nano: &u64| *nano as f64 / 1e9;
        let mebibytes = |bytes: &u64| bytes >> 20;
        match self {
            Self::Down => f.write_str("it is down"),
            Self::Paused => f.write_str("its availability is pause"),
            Self::Drained => f.write_str("its availability is drain"),
            Self::Constraint(Constraint { key, equal, value }) => {
                write!(f, "it does not satisfy {key}{}{value}", if *equal { "==" } else { "!=" })
            }
            Self::Platform => f.write_str("the image has no variant for its platform"),
            Self::MaxPerNode(max) => write!(f, "it runs {max} tasks of the service, the maximum per node"),
            Self::Cpu { wanted, free } => {
                write!(f, "{} cores are reserved for the task, it has {} left", cores(wanted), cores(free))
            }
            Self::Memory { wanted, free } => {
                write!(f, "{} MiB are reserved for the task, it has {} left", mebibytes(wanted), mebibytes(free))
            }
            Self::HostPort { protocol, port, task } => {
                write!(f, "its port {port}/{} is in use by task {task}", protocol.as_str())
            }
            Self::HeldPort { protocol, port, holder } if holder.is_empty() => {
                write!(f, "its port {port}/{} is held by a process of the host", protocol.as_str())
            }
            Self::HeldPort { protocol, port, holder } => {
                write!(f, "its port {port}/{} is held by {holder}", protocol.as_str())
            }
            Self::NoAddress => f.write_str("all addresses of its local network are in use"),
        }
    }
}

/// The reasons with the most nodes first, as Docker lists them.
fn summary(nodes: &BTreeMap<NodeId, NodeRefusal>) -> String {
    let mut kinds: Vec<(&NodeRefusal, usize)> = Vec::new();
    for refusal in nodes.values() {
        match kinds.iter_mut().find(|(kind, _)| kind.docker(1) == refusal.docker(1)) {
            Some((_, count)) => *count += 1,
            None => kinds.push((refusal, 1)),
        }
    }
    kinds.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
    let parts: Vec<String> = kinds.iter().map(|(kind, count)| kind.docker(*count)).collect();
    parts.join("; ")
}
