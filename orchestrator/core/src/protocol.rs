//! What nodes say to each other on streams of their own: joining, and the session of a node with its leader. Each message
//! travels in the envelope of [`crate::wire`].

use crate::{
    assignment::Assignment,
    model::{Availability, ClusterId, NodeDescription, NodeId, Report, UnixMillis},
};
use alloc::{boxed::Box, collections::BTreeMap, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// A node asks to be let in (`edge-join/1`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret half of the join token; it also says as what the node joins.
    pub secret: [u8; 16],
    /// Certificate signing request of the node's own key, PKCS#10 in DER (RFC 2986).
    pub csr: Vec<u8>,
    /// Host name.
    pub hostname: String,
    /// What the node is.
    pub description: NodeDescription,
    /// Whether tasks may be placed on it from the start.
    pub availability: Availability,
}

impl core::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("JoinRequest").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// What a manager answers to one that asks to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// It is a member now.
    Welcome(Box<Welcome>),
    /// Another manager leads: its address and port.
    Ask(String),
    /// Not now, for example while no leader is elected; trying again may help.
    Later(String),
    /// No, and trying again does not help.
    Refused(String),
}

/// What a new member needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its certificate, X.509 in DER.
    pub certificate: Vec<u8>,
    /// The cluster's CA certificate, X.509 in DER; the joiner has its digest from the token.
    pub ca: Vec<u8>,
    /// Its number among the voters, if it joins as a manager.
    pub raft_id: Option<u64>,
    /// Managers and where they listen.
    pub managers: BTreeMap<NodeId, String>,
    /// The leader's time of day; the joiner's clock may still be in 1970.
    pub now: UnixMillis,
}

/// What a node says to its leader (`edge-node/1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Up {
    /// It is alive and nothing changed.
    Heartbeat,
    /// Everything about it.
    Report(Box<Report>),
    /// It wants a new certificate for its key: a signing request.
    Renew(Vec<u8>),
    /// It leaves the cluster; a manager becomes a worker first.
    Leave,
}

/// What a leader says to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Down {
    /// The node was heard. Answers every heartbeat.
    Heard {
        /// The leader's time of day.
        now: UnixMillis,
    },
    /// Everything that the node should have.
    Assignment(Box<Assignment>),
    /// The certificate that was asked for.
    Certificate(Vec<u8>),
    /// The certificate that was asked for is refused, and why.
    NoCertificate(String),
    /// Another manager leads, or none is known to; the session ends.
    Elsewhere {
        /// The leader and where it listens.
        leader: Option<(NodeId, String)>,
    },
    /// The node is no member any more; the session ends.
    Removed,
}
