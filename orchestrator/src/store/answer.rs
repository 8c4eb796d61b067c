//! What a member makes of another one's request.
//!
//! In: bytes that another member's [`Peers`](super::Peers) carried here. Out: bytes to carry back: an answer, or as text why there
//! is none. Caller: `transport`, which has made sure which node asks.

use std::sync::atomic::Ordering;

use openraft::{ServerState, Snapshot, raft::AppendEntriesResponse};
use serde::Serialize;

use super::{
    handle::Store,
    log::{record::Position, writer::Health},
    network::{Message, Request},
    raft,
};

/// On a full disk, bytes of the last segment that only appends up to [`SMALL_APPEND`] may take.
const RESERVE: usize = 64 * 1024;
/// See [`RESERVE`].
const SMALL_APPEND: usize = 1024;

fn encode<T: Serialize, E: ToString>(answer: Result<T, E>) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(&answer.map_err(|error| error.to_string()))
}

impl Store {
    /// Answers a request that another member's [`Peers`](super::Peers) carried here. `from` is the id of the node that sent it, as
    /// its certificate says.
    ///
    /// # Errors
    /// The request cannot be decoded: whoever sent it is no member.
    pub async fn answer(&self, from: &str, request: &[u8]) -> Result<Vec<u8>, postcard::Error> {
        let raft = &self.inner.raft;
        self.inner.assembly.forget_abandoned();
        let bytes = request.len();
        let Request { to, message } = raft::decode(request)?;
        if to != self.inner.raft_id {
            return encode::<(), _>(Err(format!("member {to} is not here")));
        }
        let refuse = |why: String| {
            tracing::debug!(from, why, "a request is refused");
            encode::<(), _>(Err(why))
        };
        if let Err(why) = self.check(from, &message).await {
            return refuse(why);
        }
        let (message, bytes) = match message {
            Message::Part(part) => match self.inner.assembly.take(part) {
                Ok(Some(whole)) => {
                    let message = raft::decode(&whole)?;
                    if let Err(why) = self.check(from, &message).await {
                        return refuse(why);
                    }
                    (message, whole.len())
                }
                Ok(None) => return encode(Ok::<_, String>(())),
                Err(error) => return encode::<(), _>(Err(error)),
            },
            message => (message, bytes),
        };
        let silence = &self.inner.silence;
        match message {
            Message::Append(rpc) if !rpc.entries.is_empty() && !self.has_room_for(bytes) => {
                encode::<(), _>(Err("its disk is full"))
            }
            Message::Append(rpc) => {
                let answer = raft.append_entries(rpc).await;
                if !matches!(answer, Err(_) | Ok(AppendEntriesResponse::HigherVote(_))) {
                    silence.end();
                }
                encode(answer)
            }
            Message::Vote(rpc) => {
                let answer = raft.vote(rpc).await;
                if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
                    silence.end();
                }
                encode(answer)
            }
            Message::Snapshot(vote, meta, state) => {
                silence.end();
                if self.room() < 2 * bytes as u64 {
                    return encode::<(), _>(Err("its disk has no room for a snapshot"));
                }
                let snapshot = Snapshot { meta, snapshot: Box::new(state) };
                encode(raft.install_full_snapshot(vote, snapshot).await)
            }
            Message::Part(_) => encode::<(), _>(Err("a part cannot hold a part")),
            Message::Elect { term, last } => encode(self.elect(term, last).await),
            Message::VoteWithConsent(rpc) => encode(self.vote_with_consent(rpc).await),
            Message::WouldElect { candidate, last, writable } => {
                encode(Ok::<_, String>(self.would_elect(candidate, last, writable)))
            }
        }
    }

    /// Can the log take an append of this size? On a full disk what is left of a segment is kept for small ones: a new leader's
    /// first entry, changes of the members. A write that fails for want of room would end the log.
    fn has_room_for(&self, bytes: usize) -> bool {
        if !matches!(*self.inner.health.borrow(), Health::ReadOnly { .. }) {
            return true;
        }
        let reserve = if bytes <= SMALL_APPEND { SMALL_APPEND } else { RESERVE };
        (bytes + reserve) as u64 <= self.inner.segment_room.load(Ordering::Relaxed)
    }

    /// Would this member elect `candidate`, whose log ends at `last`? Not while there is a leader, nor one that cannot write if
    /// it could lead as well itself.
    fn would_elect(&self, candidate: u64, last: Option<Position>, writable: bool) -> bool {
        if self.inner.leadership.borrow().is_some() {
            return false;
        }
        let own = self.inner.raft.data_metrics().borrow().last_log.as_ref().map(raft::position);
        let could_lead = own == last && *self.inner.health.borrow() == Health::Writable;
        let fit = last >= own && (writable || !could_lead);
        let leads = self.inner.raft.server_metrics().borrow().state == ServerState::Leader;
        fit && self.inner.silence.lets_stand(candidate, leads)
    }
}
