//! Replicated objects: what the cluster agreed on. Each has a revision, the index of the log entry that wrote it last.

use super::{
    ClusterId, FailureAction, Invalid, Millis, Name, NodeId, Platform, PortSpec, Secret, Secret16, ServiceId,
    ServiceSpec, TaskId, UnixMillis,
};
use alloc::{collections::BTreeMap, format, string::String, sync::Arc, vec::Vec};
use core::ops::RangeInclusive;
use serde::{Deserialize, Serialize};

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its identity and the seed of all ids.
    pub id: ClusterId,
    /// When it was initialised.
    pub created_at: UnixMillis,
    /// What users may change.
    pub settings: Settings,
    /// The number that the next manager keeps the log under. Each promotion and each join takes a new one: a member that lost
    /// its log must not vote under the number that it voted under before.
    pub next_raft_id: u64,
    /// What signs the certificates of all nodes.
    pub ca: Ca,
    /// What lets nodes in.
    pub tokens: Tokens,
    /// The longest [`Settings::cert_validity`] that was ever in force.
    pub longest_validity: Millis,
    /// Nodes that were removed, each with the time until which it is refused: its last certificate has run out then.
    pub removed: BTreeMap<NodeId, UnixMillis>,
}

impl Cluster {
    /// The number that the first manager keeps the log under.
    pub const FIRST_RAFT_ID: u64 = 1;

    /// A cluster that begins now, with one manager.
    #[must_use]
    pub fn new(id: ClusterId, ca: Ca, tokens: Tokens, settings: Settings, now: UnixMillis) -> Self {
        let longest_validity = settings.cert_validity;
        Self {
            id,
            created_at: now,
            settings,
            next_raft_id: Self::FIRST_RAFT_ID + 1,
            ca,
            tokens,
            longest_validity,
            removed: BTreeMap::new(),
        }
    }
}

/// What users may change about the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Ended tasks kept per slot for `service ps`.
    pub task_history: u32,
    /// Time between two signs of life of a node.
    pub heartbeat: Millis,
    /// A node that was not heard of for this long is down.
    pub down_after: Millis,
    /// How long new node certificates are good for.
    pub cert_validity: Millis,
    /// Labels of the cluster.
    pub labels: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Docker's `--task-history-limit`.
            task_history: 5,
            heartbeat: Millis(1000),
            // Five missed heartbeats: Wi-Fi loses one or two now and then.
            down_after: Millis(5000),
            // Docker's `--cert-expiry`: 90 days.
            cert_validity: Millis::from_secs(90 * 24 * 60 * 60),
            labels: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Bounds of the time between two signs of life: below, the cluster is busy with them; above, nobody would call it alive.
    pub const HEARTBEAT: RangeInclusive<Millis> = Millis(100)..=Millis::from_secs(60);
    /// Signs of life that may be lost in a row before a node is down.
    pub const MISSED_HEARTBEATS_MIN: u64 = 3;
    /// Shorter lives of certificates would have nodes renew them all the time, and clocks are rarely that exact.
    pub const CERT_VALIDITY_MIN: Millis = Millis::from_secs(60 * 60);

    /// Whether the values fit together.
    ///
    /// # Errors
    /// The first one that does not, by its name.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self { heartbeat, down_after, cert_validity, .. } = self;
        if !Self::HEARTBEAT.contains(heartbeat) {
            return Err(Invalid::new("heartbeat", format!("{} ms is not between 100 ms and 60 s", heartbeat.0)));
        }
        let least = heartbeat.0 * Self::MISSED_HEARTBEATS_MIN;
        if down_after.0 < least {
            let why = format!("{} ms is less than three heartbeats ({least} ms)", down_after.0);
            return Err(Invalid::new("down-after", why));
        }
        if *cert_validity < Self::CERT_VALIDITY_MIN {
            let why = format!("{} s is less than an hour", cert_validity.0 / 1000);
            return Err(Invalid::new("cert-expiry", why));
        }
        Ok(())
    }
}

/// The authority that signs the certificates of all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its key, PKCS #8 DER.
    pub key: Secret,
}

/// The secrets in join tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Lets a worker in.
    pub worker: Secret16,
    /// Lets a manager in.
    pub manager: Secret16,
}

/// What everyone who decides relies on as a whole: which names, ports, addresses and numbers are free. No guard on single
/// objects can tell that; such decisions therefore write this object, and of two that did not see each other one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Host name, as the node told it.
    pub hostname: String,
    /// Whether it shall keep the replicated state.
    pub role: Role,
    /// The number that it keeps the log under; there is one exactly if it shall be a manager. Whether it is a member of the
    /// log yet, or still, only the log's own membership tells ([`crate::members`]).
    pub raft_id: Option<u64>,
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
    /// UDP port of its control endpoint.
    pub port: u16,
}

impl NodeDescription {
    /// Its control endpoint as `address:port`, an IPv6 address in brackets; `None` if it has told no address.
    #[must_use]
    pub fn control(&self) -> Option<String> {
        let Self { address, port, .. } = self;
        match address.as_str() {
            "" => None,
            v6 if v6.contains(':') => Some(format!("[{v6}]:{port}")),
            _ => Some(format!("{address}:{port}")),
        }
    }
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
