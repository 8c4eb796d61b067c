//! The types openraft is instantiated with, and how its ids look in the log.
//!
//! In and out: openraft's `LogId`, `Vote`, `Membership` and entries against the log's own [`Position`], [`Vote`] and bytes.
//! Callers: `log_store`, `machine`, `handle`. What lies on disk is described by types of this crate only, so that openraft's
//! may change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, StoredMembership};
use orchestrator_core::{
    state::{Applied, Entry},
    wire::{self, WireError},
};
use serde::{Deserialize, Serialize};

use super::log::record::{Position, Vote};

openraft::declare_raft_types!(
    /// The types of this cluster's raft. A node id is the member's raft id: drawn anew for every join, so that a node whose
    /// disk was lost never speaks for what it once promised.
    pub TypeConfig:
        D = Entry,
        R = Option<Applied>,
        NodeId = u64,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Vec<u8>,
);

/// What every member knows of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The node's id as text, which its certificate must carry. Addresses are looked up by it.
    pub node: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.node)
    }
}

/// What an entry carries: the first byte of its payload in the log. The numbers are never given to something else.
const BLANK: u8 = 0;
/// An [`Entry`] in its envelope follows.
const CHANGE: u8 = 1;
/// [`Members`] follow.
const MEMBERS: u8 = 2;

/// Bytes cannot be made of a value, or a value of bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error(transparent)]
    Envelope(#[from] WireError),
    #[error(transparent)]
    Postcard(#[from] postcard::Error),
    #[error("payload of kind {0:?} is unknown")]
    UnknownKind(Option<u8>),
}

/// A membership, as it lies in the log and in snapshots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Members {
    voters: Vec<BTreeSet<u64>>,
    all: BTreeMap<u64, Member>,
}

impl Members {
    /// A membership of one.
    pub(super) fn only(id: u64, member: Member) -> Self {
        Members { voters: vec![BTreeSet::from([id])], all: BTreeMap::from([(id, member)]) }
    }

    /// The greatest number of a member, 0 without any.
    pub(super) fn greatest(&self) -> u64 {
        self.all.keys().next_back().copied().unwrap_or(0)
    }
}

impl From<&Membership<u64, Member>> for Members {
    fn from(membership: &Membership<u64, Member>) -> Self {
        Members {
            voters: membership.get_joint_config().clone(),
            all: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }
}

impl From<Members> for Membership<u64, Member> {
    fn from(members: Members) -> Self {
        Membership::new(members.voters, members.all)
    }
}

/// A membership and the entry it comes from, as openraft keeps it.
pub(super) fn stored(at: Option<Position>, members: Members) -> StoredMembership<u64, Member> {
    StoredMembership::new(at.map(log_id), members.into())
}

/// Our position of openraft's log id.
pub(super) fn position(id: &LogId<u64>) -> Position {
    Position { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

/// Openraft's log id of our position.
pub(super) fn log_id(at: Position) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(at.term, at.node), at.index)
}

/// Our vote of openraft's.
pub(super) fn vote(vote: &openraft::Vote<u64>) -> Vote {
    Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

/// Openraft's vote of ours.
pub(super) fn raft_vote(vote: Vote) -> openraft::Vote<u64> {
    let Vote { term, node, committed } = vote;
    if committed { openraft::Vote::new_committed(term, node) } else { openraft::Vote::new(term, node) }
}

/// The bytes of an entry's payload.
pub(super) fn encode_payload(payload: EntryPayload<TypeConfig>) -> Result<Vec<u8>, FormatError> {
    let (kind, content) = match payload {
        EntryPayload::Blank => (BLANK, Vec::new()),
        EntryPayload::Normal(entry) => (CHANGE, wire::encode(&entry)?),
        EntryPayload::Membership(membership) => (MEMBERS, postcard::to_allocvec(&Members::from(&membership))?),
    };
    Ok([&[kind], content.as_slice()].concat())
}

/// The entry at a position, from the bytes of its payload.
pub(super) fn decode_entry(at: Position, bytes: &[u8]) -> Result<openraft::Entry<TypeConfig>, FormatError> {
    let payload = match bytes.split_first() {
        Some((&BLANK, [])) => EntryPayload::Blank,
        Some((&CHANGE, content)) => EntryPayload::Normal(wire::decode(content)?),
        Some((&MEMBERS, content)) => EntryPayload::Membership(decode::<Members>(content)?.into()),
        other => return Err(FormatError::UnknownKind(other.map(|(kind, _)| *kind))),
    };
    Ok(openraft::Entry { log_id: log_id(at), payload })
}

/// Reads one value that takes up all of `bytes`.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}
