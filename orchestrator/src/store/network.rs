//! The seam to the other members: how raft's messages leave this node.
//!
//! In: openraft's calls. Out: for each, bytes to one member and bytes back, over whatever implements [`Peers`]. Callers:
//! openraft's replication tasks. A member that cannot be reached is an answer, not a failure: raft tries again by itself.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use openraft::{
    AnyError, RaftNetwork, RaftNetworkFactory, Snapshot, Vote,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::raft::{self, Member, TypeConfig};

/// Carries one request to another member and its answer back. The implementation must make sure that who answers is the node
/// that [`Member`] names.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Sends `request` to `member` and returns what its [`Store::answer`](super::Store::answer) made of it.
    ///
    /// # Errors
    /// The member could not be reached, or did not answer.
    async fn call(&self, member: &Member, request: Vec<u8>) -> Result<Vec<u8>, PeerError>;
}

/// A member could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach manager {node}: {why}")]
pub struct PeerError {
    /// The member's node id.
    pub node: String,
    /// What stood in the way.
    pub why: String,
}

/// The peers of a node that has no connection to any other: nobody can be reached.
#[derive(Debug)]
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, member: &Member, _request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        Err(PeerError { node: member.node.clone(), why: "this node has no connection to other managers".into() })
    }
}

/// A message between members. New kinds are appended.
#[derive(Serialize, Deserialize)]
pub(super) enum Message {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<TypeConfig>),
    /// A candidate asks for a vote.
    Vote(VoteRequest<u64>),
    /// The whole state, for a member that the log no longer reaches back to.
    Snapshot(Vote<u64>, openraft::SnapshotMeta<u64, Member>, Vec<u8>),
}

/// openraft's factory of connections.
pub(super) struct Network(pub Arc<dyn Peers>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, _target: u64, member: &Member) -> Connection {
        Connection { peers: self.0.clone(), member: member.clone() }
    }
}

/// openraft's connection to one member.
pub(super) struct Connection {
    peers: Arc<dyn Peers>,
    member: Member,
}

impl Connection {
    async fn call<T: DeserializeOwned>(&self, message: &Message) -> Result<T, Unreachable> {
        let request = postcard::to_allocvec(message).map_err(|error| Unreachable::new(&error))?;
        let answer = self.peers.call(&self.member, request).await.map_err(|error| Unreachable::new(&error))?;
        let answer: Result<T, String> = raft::decode(&answer).map_err(|error| Unreachable::new(&error))?;
        answer.map_err(|error| Unreachable::new(&AnyError::error(error)))
    }
}

type RpcError = RPCError<u64, Member, RaftError<u64>>;

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        Ok(self.call(&Message::Append(rpc)).await?)
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _option: RPCOption) -> Result<VoteResponse<u64>, RpcError> {
        Ok(self.call(&Message::Vote(rpc)).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let message = Message::Snapshot(vote, snapshot.meta, *snapshot.snapshot);
        tokio::select! {
            // Cancel-safe because a member takes in a snapshot whole or not at all.
            closed = cancel => Err(closed.into()),
            answer = self.call(&message) => Ok(answer?),
        }
    }
}
