//! What a request must be before openraft sees it.
//!
//! In: the node that sent it, and the message. Out: whether it can come from the member it claims to come from, and whether it
//! agrees with what is committed here. Caller: `answer`. openraft 0.9 asks for neither: it believes every vote that is greater than its
//! own, and ends in a panic where the log of a leader contradicts what was committed.

use openraft::{LogId, Vote, raft::AppendEntriesRequest};
use orchestrator_core::{state::State, wire};

use super::{handle::Store, network::Message, raft::TypeConfig};

/// A greater term is no result of elections: at one a second it would take 30,000 years. What counts on from it must not overflow.
const MAX_TERM: u64 = 1 << 40;
/// Likewise for the number of an entry.
const MAX_INDEX: u64 = 1 << 60;

impl Store {
    /// Refuses what no member in its right mind sends, by saying why.
    pub(super) async fn check(&self, from: &str, message: &Message) -> Result<(), String> {
        match message {
            Message::Append(rpc) => {
                check_vote(&rpc.vote, true)?;
                self.check_sender(from, rpc.vote.leader_id.node_id)?;
                check_order(rpc)?;
                let ids = rpc.entries.iter().map(|entry| entry.log_id);
                self.check_history(rpc.prev_log_id.into_iter().chain(ids).chain(rpc.leader_commit).collect()).await
            }
            Message::Vote(rpc) | Message::VoteWithConsent(rpc) => {
                check_vote(&rpc.vote, false)?;
                self.check_sender(from, rpc.vote.leader_id.node_id)
            }
            Message::Snapshot(vote, meta, state) => {
                check_vote(vote, true)?;
                self.check_sender(from, vote.leader_id.node_id)?;
                // Once raft has taken it for one, a snapshot that cannot be read is the end of the store.
                wire::decode::<State>(state).map_err(|error| format!("the snapshot cannot be read: {error}"))?;
                self.check_history(meta.last_log_id.into_iter().collect()).await
            }
            Message::Part(part) => self.check_sender(from, part.from),
            Message::Elect { .. } => {
                let vote = self.inner.raft.server_metrics().borrow().vote;
                self.check_sender(from, vote.leader_id.node_id)
            }
            Message::WouldElect { candidate, .. } => self.check_sender(from, *candidate),
        }
    }

    /// The member `raft_id` speaks from its own node only. One that is not known here may have come while this member was away.
    fn check_sender(&self, from: &str, raft_id: u64) -> Result<(), String> {
        if raft_id == self.inner.raft_id {
            return Err(format!("node {from} speaks for member {raft_id}, which is here"));
        }
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        match metrics.membership_config.membership().get_node(&raft_id) {
            Some(member) if member.node != from => {
                Err(format!("node {from} speaks for member {raft_id}, which is on node {member}"))
            }
            _ => Ok(()),
        }
    }

    /// Entries up to the last committed one are older than it, the others newer: anything else is the log of another cluster.
    async fn check_history(&self, ids: Vec<LogId<u64>>) -> Result<(), String> {
        let agrees = self.inner.raft.with_raft_state(move |state| {
            let Some(committed) = state.committed else { return Ok(()) };
            let odd = ids.into_iter().find(|id| (id.index <= committed.index) != (*id <= committed));
            odd.map_or(Ok(()), |id| Err(format!("entry {id} contradicts {committed}, which is committed")))
        });
        agrees.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// A leader's vote is one that was won, a candidate's is not.
fn check_vote(vote: &Vote<u64>, won: bool) -> Result<(), String> {
    if vote.committed != won || vote.leader_id.term > MAX_TERM {
        return Err(format!("{vote} is no vote to ask this with"));
    }
    Ok(())
}

/// Entries follow each other, and none is newer than the leader that sends it.
fn check_order(rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
    let mut before = rpc.prev_log_id;
    for id in rpc.entries.iter().map(|entry| entry.log_id) {
        let follows =
            before.map_or(id.index == 0, |before| id.index == before.index + 1 && id.leader_id >= before.leader_id);
        if !follows {
            return Err(format!("entry {id} does not follow"));
        }
        before = Some(id);
    }
    let newest = before.max(rpc.leader_commit);
    let known = |id: LogId<u64>| {
        (id.leader_id.term, id.leader_id.node_id) <= (rpc.vote.leader_id.term, rpc.vote.leader_id.node_id)
    };
    match newest {
        Some(id) if id.index > MAX_INDEX || !known(id) => Err(format!("entry {id} is newer than {}", rpc.vote)),
        _ => Ok(()),
    }
}
