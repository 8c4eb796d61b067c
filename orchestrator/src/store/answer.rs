//! What a member makes of another one's request.
//!
//! In: bytes that another member's [`Peers`](super::Peers) carried here. Out: bytes to carry back: an answer, or as text why there
//! is none. Caller: `transport`, which has made sure that a member asks.

use openraft::{ServerState, Snapshot, raft::AppendEntriesResponse};
use serde::Serialize;

use super::{
    handle::Store,
    log::{record::Position, writer::Health},
    network::Message,
    raft,
};

fn encode<T: Serialize, E: ToString>(answer: Result<T, E>) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(&answer.map_err(|error| error.to_string()))
}

impl Store {
    /// Answers a request that another member's [`Peers`] carried here.
    ///
    /// # Errors
    /// The request cannot be decoded: whoever sent it is no member.
    pub async fn answer(&self, request: &[u8]) -> Result<Vec<u8>, postcard::Error> {
        let raft = &self.inner.raft;
        self.inner.assembly.forget_abandoned();
        let message = match raft::decode(request)? {
            Message::Part(part) => match self.inner.assembly.take(part) {
                Ok(Some(whole)) => raft::decode(&whole)?,
                Ok(None) => return encode(Ok::<_, String>(())),
                Err(error) => return encode::<(), _>(Err(error)),
            },
            message => message,
        };
        let silence = &self.inner.silence;
        match message {
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
                let snapshot = Snapshot { meta, snapshot: Box::new(state) };
                encode(raft.install_full_snapshot(vote, snapshot).await)
            }
            Message::Part(_) => encode::<(), _>(Err("a part cannot hold a part")),
            Message::Elect { term, last } => encode(self.elect(term, last).await),
            Message::VoteWithConsent(rpc) => encode(self.vote_with_consent(rpc).await),
            Message::WouldElect { last, writable } => encode(Ok::<_, String>(self.would_elect(last, writable))),
        }
    }

    /// Would this member elect one whose log ends at `last`? Not while it follows a leader, nor one that cannot write if it
    /// could lead as well itself.
    fn would_elect(&self, last: Option<Position>, writable: bool) -> bool {
        let leads = self.inner.leadership.borrow().is_some();
        let follows =
            self.inner.raft.server_metrics().borrow().state != ServerState::Leader && !self.inner.silence.is_long();
        if leads || follows {
            return false;
        }
        let own = self.inner.raft.data_metrics().borrow().last_log.as_ref().map(raft::position);
        let could_lead = own == last && *self.inner.health.borrow() == Health::Writable;
        last >= own && (writable || !could_lead)
    }
}
