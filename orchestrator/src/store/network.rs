//! The seam to the other members: how raft's messages leave this node.
//!
//! In: openraft's calls. Out: for each, bytes to one member and bytes back, over whatever implements [`Peers`]; large messages
//! in [`parts`](super::parts). Callers: openraft's replication tasks, and `handover`. A member that cannot be reached is an
//! answer, not a failure: raft tries again by itself.
//!
//! openraft gives an append one heartbeat's time (250 ms) and then sends it again from the beginning, which a large entry on slow
//! Wi-Fi would never survive. So an append of more than [`QUICK_BYTES`] travels in a task of its own, while the calls that
//! wait for it keep the follower from electing by heartbeats and report "nothing new yet".

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use openraft::{
    AnyError, LogId, RaftNetwork, RaftNetworkFactory, Snapshot, Vote,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    contacts::Contacts,
    log::record::Position,
    parts::{self, PART_BYTES, Part},
    raft::{self, Member, TypeConfig},
};

/// An append up to this size is sent like any other request: at the 4 Mbit/s of bad Wi-Fi it takes half a heartbeat.
pub(super) const QUICK_BYTES: usize = 64 * 1024;
/// How long a call waits for an append that travels by itself: within the heartbeat that openraft gives it.
const WAIT_FOR_LARGE: Duration = Duration::from_millis(150);
/// A part, or a small message, that has no answer by then is lost: 20 KB/s carry it in that time, or an SD card takes in the
/// snapshot that a last part completes.
const ANSWER: Duration = Duration::from_secs(30);

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

/// A request: a message, and which member it is for. A node that left and joined again, or was demoted and promoted, has another
/// member's store; what it says must never be taken for the word of the member that it was.
#[derive(Serialize, Deserialize)]
pub(super) struct Request<M> {
    pub(super) to: u64,
    pub(super) message: M,
}

/// A message between members. New kinds are appended.
#[derive(Serialize, Deserialize)]
pub(super) enum Message {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<TypeConfig>),
    /// A candidate asks for a vote.
    Vote(VoteRequest<u64>),
    /// The whole state, for a member that the log no longer reaches back to.
    Snapshot(Vote<u64>, openraft::SnapshotMeta<u64, Member>, #[serde(with = "parts::whole")] Vec<u8>),
    /// A piece of another message.
    Part(Part),
    /// The leader of `term` asks the member, whose log should reach to `last`, to lead.
    Elect { term: u64, last: Option<Position> },
    /// A candidate asks for a vote with the leader's consent: what binds the voter to that leader for a while is no hindrance.
    VoteWithConsent(VoteRequest<u64>),
    /// Would the member elect `candidate`, whose log ends at `last`, and which can or cannot write more?
    WouldElect { candidate: u64, last: Option<Position>, writable: bool },
}

/// The way to the others: what all of this member's connections share.
pub(super) struct Links {
    own: u64,
    peers: Arc<dyn Peers>,
    contacts: Arc<Contacts>,
    /// Number of the next message that travels in parts.
    next_message: AtomicU64,
    /// The term for which the leader before it asked this member to stand.
    consent: AtomicU64,
}

impl Links {
    pub(super) fn new(own: u64, peers: Arc<dyn Peers>, contacts: Arc<Contacts>) -> Self {
        Links { own, peers, contacts, next_message: AtomicU64::new(0), consent: AtomicU64::new(0) }
    }

    /// From now on, votes for `term` are asked for with the consent of the leader before it.
    pub(super) fn set_consent(&self, term: u64) {
        self.consent.fetch_max(term, Ordering::Relaxed);
    }

    /// Sends a message, in parts if need be, and returns the member's answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, to: &Target, message: &Message) -> Result<T, Unreachable> {
        self.send(to, encode(message)?).await
    }

    async fn send<T: DeserializeOwned>(&self, to: &Target, message: Vec<u8>) -> Result<T, Unreachable> {
        if message.len() <= PART_BYTES {
            return self.send_whole(to, message).await;
        }
        let number = self.next_message.fetch_add(1, Ordering::Relaxed);
        for part in parts::split(self.own, number, &message) {
            let last = part.last;
            let part = encode(&Message::Part(part))?;
            if last {
                return self.send_whole(to, part).await;
            }
            self.send_whole::<()>(to, part).await?;
        }
        unreachable!("a split message has a last part")
    }

    async fn send_whole<T: DeserializeOwned>(&self, to: &Target, message: Vec<u8>) -> Result<T, Unreachable> {
        // Fields follow each other, so this is the encoding of a `Request`.
        let request = [encode(&to.id)?, message].concat();
        let answer =
            timeout(ANSWER, self.peers.call(&to.member, request)).await.map_err(|late| Unreachable::new(&late))?;
        let answer = answer.map_err(|error| Unreachable::new(&error))?;
        let answer: Result<T, String> = raft::decode(&answer).map_err(|error| Unreachable::new(&error))?;
        answer.map_err(|error| Unreachable::new(&AnyError::error(error)))
    }
}

/// A member to be called.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Its raft id.
    pub(super) id: u64,
    /// Where it runs.
    pub(super) member: Member,
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Unreachable> {
    postcard::to_allocvec(value).map_err(|error| Unreachable::new(&error))
}

/// openraft's factory of connections.
pub(super) struct Network(pub(super) Arc<Links>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, member: &Member) -> Connection {
        Connection { links: self.0.clone(), target: Target { id: target, member: member.clone() }, large: None }
    }
}

/// openraft's connection to one member.
pub(super) struct Connection {
    links: Arc<Links>,
    target: Target,
    /// An append on its way.
    large: Option<Large>,
}

/// An append that takes longer than one call.
struct Large {
    vote: Vote<u64>,
    prev: Option<LogId<u64>>,
    last: LogId<u64>,
    /// One task; it ends with this value.
    task: JoinSet<Result<AppendEntriesResponse<u64>, Unreachable>>,
}

impl Connection {
    async fn append(&mut self, rpc: AppendEntriesRequest<TypeConfig>) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let (vote, prev) = (rpc.vote, rpc.prev_log_id);
        let Some(last) = rpc.entries.last().map(|entry| entry.log_id) else {
            return Ok(self.links.call(&self.target, &Message::Append(rpc)).await?);
        };
        let heartbeat =
            AppendEntriesRequest { vote, prev_log_id: prev, entries: vec![], leader_commit: rpc.leader_commit };
        // What is on its way already may end earlier than what openraft would send by now.
        let under_way = |large: &Large| large.vote == vote && large.prev == prev && large.last <= last;
        if !self.large.as_ref().is_some_and(under_way) {
            self.large = None;
            let request = encode(&Message::Append(rpc))?;
            if request.len() <= QUICK_BYTES {
                return Ok(self.links.send_whole(&self.target, request).await?);
            }
            let (links, target) = (self.links.clone(), self.target.clone());
            let mut task = JoinSet::new();
            task.spawn(async move { links.send(&target, request).await });
            self.large = Some(Large { vote, prev, last, task });
        }
        let large = self.large.as_mut().expect("it was just made where there was none");
        let sent = large.last;
        let following = async {
            let heartbeat = Message::Append(heartbeat);
            let answer = self.links.call(&self.target, &heartbeat);
            tokio::join!(answer, sleep(WAIT_FOR_LARGE)).0
        };
        tokio::select! {
            // Cancel-safe: a result that is not taken here stays in the set, and a heartbeat may always be lost.
            Some(arrived) = large.task.join_next() => {
                self.large = None;
                let answer = arrived.map_err(|error| Unreachable::new(&error))??;
                Ok(match answer {
                    AppendEntriesResponse::Success => AppendEntriesResponse::PartialSuccess(Some(sent)),
                    other => other,
                })
            }
            answer = following => match answer? {
                // Nothing new is there yet, and this member is still followed.
                AppendEntriesResponse::Success if prev.is_some() => Ok(AppendEntriesResponse::PartialSuccess(prev)),
                AppendEntriesResponse::Success => {
                    Err(Unreachable::new(&AnyError::error("the first entries are still on their way")).into())
                }
                other => Ok(other),
            }
        }
    }
}

type RpcError = RPCError<u64, Member, RaftError<u64>>;

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let sent = Instant::now();
        let answer = self.append(rpc).await?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.links.contacts.note(self.target.id, sent);
        }
        Ok(answer)
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _option: RPCOption) -> Result<VoteResponse<u64>, RpcError> {
        let consent = self.links.consent.load(Ordering::Relaxed) == rpc.vote.leader_id.term;
        let message = if consent { Message::VoteWithConsent(rpc) } else { Message::Vote(rpc) };
        Ok(self.links.call(&self.target, &message).await?)
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
            answer = self.links.call(&self.target, &message) => Ok(answer?),
        }
    }
}
