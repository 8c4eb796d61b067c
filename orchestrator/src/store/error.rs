//! What can go wrong with the store, by what the caller can do about it.

use std::{path::PathBuf, sync::Arc};

use openraft::error::Fatal;

use super::{handle::MAX_ENTRY_BYTES, log::LogError, raft::Member};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store in {dir} is in use by another process")]
    Locked {
        /// The store's folder.
        dir: PathBuf,
    },
    /// What had been durable is missing or broken. Nothing was changed. The member must not go on with this store: it is set
    /// aside, and the node joins anew under a new raft id (or, alone, is restored from a backup).
    #[error("the store in {dir} is damaged: {file} at byte {offset}: {why}")]
    Corrupt {
        /// The store's folder.
        dir: PathBuf,
        /// The damaged file's name.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A newer version wrote it, or another member did.
    #[error("cannot use the store in {dir}")]
    Foreign {
        /// The store's folder.
        dir: PathBuf,
        /// Who wrote it.
        #[source]
        source: LogError,
    },
    /// The kernel refused a file operation; a full disk, for instance.
    #[error("cannot open the store in {dir}")]
    Io {
        /// The store's folder.
        dir: PathBuf,
        /// What was tried, and what the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no cluster in it to go on with.
    #[error("the store in {dir} belongs to no cluster")]
    Empty {
        /// The store's folder.
        dir: PathBuf,
    },
    /// Raft could not start from what the store holds.
    #[error("cannot start raft on the store in {dir}")]
    Raft {
        /// The store's folder.
        dir: PathBuf,
        /// What openraft said.
        #[source]
        source: Box<Fatal<u64>>,
    },
}

/// Why a cluster cannot be founded here.
#[derive(Debug, thiserror::Error)]
pub enum InitializeError {
    /// The store already belongs to a cluster.
    #[error("this node is already part of a cluster")]
    AlreadyInitialized,
    /// The first entry could not be committed.
    #[error("cannot commit the cluster's first entry")]
    Propose(#[source] ProposeError),
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none. Nothing was changed.
    #[error("this node does not lead the cluster{}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Member>,
    },
    /// No majority confirmed it in time, or before this node ceased to lead. The entry may still be committed later.
    #[error("no majority of the managers confirmed the change in time; it may still take effect")]
    Timeout,
    /// The store takes no changes at present. Nothing was changed.
    #[error("the disk is full: the store takes no changes until there is room ({reason})")]
    ReadOnly {
        /// What the kernel said.
        reason: Arc<str>,
    },
    /// The entry is too large. Nothing was changed.
    #[error("a change of {bytes} bytes is above the limit of {MAX_ENTRY_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The store has failed and must be opened anew. The entry may be there then.
    #[error("the store has failed: {reason}")]
    Failed {
        /// What failed.
        reason: Arc<str>,
    },
    /// The store was shut down. The entry may be there when it is opened again.
    #[error("the store is shut down")]
    ShutDown,
}

/// Why the newest state cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another member leads, or none.
    #[error("this node does not lead the cluster{}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Member>,
    },
    /// Most managers cannot be reached.
    #[error("no majority of the managers answers")]
    NoQuorum,
    /// The store was shut down or has failed.
    #[error("the store is shut down")]
    ShutDown,
}

/// Why the membership was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Another member leads, or none: ask that one.
    #[error("this node does not lead the cluster{}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Member>,
    },
    /// A change is under way: ask again in a moment.
    #[error("another change of the managers is still under way")]
    InProgress,
    /// The member cannot vote yet: ask again later.
    #[error("manager {raft_id} cannot vote yet: {why}")]
    NotYet {
        /// The member.
        raft_id: u64,
        /// What it lacks.
        why: String,
    },
    /// Most of the voters after the change do not answer, so it could never be completed: bring them back, or take others out.
    #[error("of the {voters} voting managers after this change, {} do not answer", silent.len())]
    NoQuorum {
        /// Voters after the change.
        voters: usize,
        /// Those of them that do not answer.
        silent: Vec<u64>,
    },
    /// The member to take out is the leader: hand over first.
    #[error("the leader cannot take itself out")]
    Leads,
    /// No majority confirmed it in time, or before this node ceased to lead. It may still take effect.
    #[error("no majority of the managers confirmed the change of managers in time; it may still take effect")]
    Timeout,
    /// The store was shut down or has failed.
    #[error("the store is shut down")]
    ShutDown,
}

/// Why this member leads on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// No other voter could be made the leader.
    #[error("no other manager can lead: {why}")]
    NoCandidate {
        /// What stood in the way of the last one that was tried.
        why: String,
    },
    /// The store was shut down or has failed.
    #[error("the store is shut down")]
    ShutDown,
}

fn leader_text(leader: &Option<Member>) -> String {
    leader.as_ref().map_or_else(|| "; no leader is known".into(), |leader| format!("; node {leader} does"))
}

/// What a proposer is told when raft has ended.
pub(super) fn fatal_error(fatal: &Fatal<u64>) -> ProposeError {
    match fatal {
        Fatal::Stopped => ProposeError::ShutDown,
        Fatal::StorageError(_) | Fatal::Panicked => ProposeError::Failed { reason: fatal.to_string().into() },
    }
}
