//! The protocols of the control channel, one ALPN (RFC 7301) each, and how their connections are kept.

use super::limits;
use std::{fmt, time::Duration};

/// What a connection is for. Each has its own connections, so that a large answer of one never holds up another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// Between managers: raft.
    Raft,
    /// Between a node and the leader: assignments and reports.
    Node,
    /// API requests, logs, exec and stats between nodes.
    Api,
    /// A node without a certificate asks for one.
    Join,
}

impl Alpn {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raft, Self::Node, Self::Api, Self::Join];

    /// As it is offered in the handshake.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raft => "edge-raft/1",
            Self::Node => "edge-node/1",
            Self::Api => "edge-api/1",
            Self::Join => "edge-join/1",
        }
    }

    pub(super) fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.name().as_bytes() == name)
    }

    /// Whether a peer must show a certificate.
    #[must_use]
    pub const fn needs_certificate(self) -> bool {
        !matches!(self, Self::Join)
    }

    /// Largest frame in bytes. Raft carries snapshots, which stay below 5 MB for 1,000 services; an assignment has a few hundred
    /// tasks of some 2 KiB; a certificate request has 300 bytes.
    #[must_use]
    pub const fn frame_limit(self) -> usize {
        match self {
            Self::Raft => 16 << 20,
            Self::Node => 4 << 20,
            Self::Api => 1 << 20,
            Self::Join => 64 << 10,
        }
    }

    /// A connection over which nothing came for this long is dead. Where others wait for its end to elect or to look for a
    /// leader, it is as short as the time after which a node counts as down.
    pub(super) const fn idle_time(self) -> Duration {
        match self {
            Self::Raft | Self::Node => Duration::from_secs(5),
            Self::Api | Self::Join => Duration::from_secs(15),
        }
    }

    /// How often the dialler says that it is there when it has nothing to say: two losses in a row are forgiven. Heartbeats of raft
    /// and of nodes are more frequent and make it silent.
    pub(super) const fn keep_alive(self) -> Duration {
        match self {
            Self::Raft | Self::Node => Duration::from_millis(1_500),
            Self::Api | Self::Join => Duration::from_secs(4),
        }
    }

    /// When a connection that nobody uses is closed; `None` keeps it.
    pub(super) const fn close_unused(self) -> Option<Duration> {
        match self {
            Self::Raft | Self::Node => None,
            Self::Api | Self::Join => Some(limits::UNUSED),
        }
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
