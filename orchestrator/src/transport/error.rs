//! Why a node could not be reached or asked.

use super::{Alpn, frames::FrameError};
use crate::pki;
use orchestrator_core::model::NodeId;
use quinn::{ApplicationClose, ConnectionClose, ConnectionError, VarInt};
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

/// No connection came about. Cheap to clone: all who waited for one dial get the same error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// This node has no certificate to show.
    #[error("this node belongs to no cluster")]
    NotMember,
    /// Nothing says where the node is.
    #[error("no address of node {0} is known")]
    NoAddress(NodeId),
    /// The last dial failed a moment ago.
    #[error("node {node} is tried again in {} ms", retry_in.as_millis())]
    Waiting {
        /// The node.
        node: NodeId,
        /// When another dial makes sense, unless a new address becomes known first.
        retry_in: Duration,
        /// Why the last dial failed.
        #[source]
        last: Arc<ConnectError>,
    },
    /// All addresses failed.
    #[error("no connection to {peer} for {alpn}: {}", List(attempts))]
    Failed {
        /// Whom: "node X" or "a manager".
        peer: String,
        /// For what.
        alpn: Alpn,
        /// What happened at each address, in the order of the answers.
        attempts: Arc<[Attempt]>,
    },
    /// The endpoint was closed, or the node was dropped while it was dialled.
    #[error("the dial was called off")]
    CalledOff,
}

/// What happened at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The address.
    pub addr: SocketAddr,
    /// What happened.
    pub fault: Fault,
}

/// Why an address did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing came back.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Whoever is there may not be trusted; certificates say why.
    #[error("not trusted: {0}")]
    Untrusted(String),
    /// The peer is who it should be and does not want this node; it says why.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer, or the way to it, is out of order.
    #[error("{0}")]
    Broken(String),
}

/// A call was not answered. It may have been carried out all the same.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was not sent.
    #[error("the call was not sent")]
    Connect(#[source] ConnectError),
    /// The connection ended.
    #[error("the connection to node {node} ended: {reason}")]
    Lost {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// Question or answer are no good frames, or the peer gave the stream up.
    #[error("the call to node {node} failed")]
    Frame {
        /// The node.
        node: NodeId,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// No answer came.
    #[error("node {node} did not answer within {} s", after.as_secs())]
    TimedOut {
        /// The node.
        node: NodeId,
        /// How long it was waited for.
        after: Duration,
    },
}

impl ConnectError {
    /// What the peer itself said against this node, if it did.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Failed { attempts, .. } => attempts.iter().find_map(|attempt| match &attempt.fault {
                Fault::Refused(reason) => Some(reason.as_str()),
                Fault::Silent(_) | Fault::Untrusted(_) | Fault::Broken(_) => None,
            }),
            Self::Waiting { last, .. } => last.refusal(),
            Self::NotMember | Self::NoAddress(_) | Self::CalledOff => None,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.addr, self.fault)
    }
}

struct List<'a>(&'a [Attempt]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, attempt) in self.0.iter().enumerate() {
            write!(f, "{}{attempt}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why one side closed a connection. The code says who may care, the text is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// Nothing is wrong: the endpoint ends, or nobody used the connection.
    Done = 0,
    /// The peer may not come in.
    Refused = 1,
    /// The peer is no longer a member.
    Dropped = 2,
}

impl Close {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Longest reason that is sent; the rest of a packet's 1,200 bytes stays free for its headers.
const REASON_LIMIT: usize = 512;

/// `reason` as the bytes of a close frame.
pub(super) fn reason_bytes(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.floor_char_boundary(REASON_LIMIT)]
}

/// What the end of a connection means for who dialled it.
pub(super) fn fault(error: &ConnectionError) -> Fault {
    match error {
        ConnectionError::TransportError(error) if is_tls(error.code.into()) => {
            Fault::Untrusted(pki::reason(&error.reason).to_owned())
        }
        ConnectionError::ConnectionClosed(ConnectionClose { error_code, reason, .. }) => {
            let text = String::from_utf8_lossy(reason);
            match pki::reason(&text) {
                _ if !is_tls((*error_code).into()) => Fault::Broken(error.to_string()),
                "" => Fault::Refused(error_code.to_string()),
                said => Fault::Refused(said.to_owned()),
            }
        }
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason })
            if *error_code == Close::Refused.code() || *error_code == Close::Dropped.code() =>
        {
            Fault::Refused(String::from_utf8_lossy(reason).into_owned())
        }
        other => Fault::Broken(describe(other)),
    }
}

/// Why a connection ended, for people.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        ConnectionError::Reset => "the peer has restarted".to_owned(),
        ConnectionError::TimedOut => "nothing was heard of the peer any more".to_owned(),
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        other => other.to_string(),
    }
}

/// CRYPTO_ERROR codes, which carry a TLS alert (RFC 9001 section 4.8).
fn is_tls(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}
