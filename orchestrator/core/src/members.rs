//! Who keeps the log: the managers that are wanted ([`Node::raft_id`](crate::model::Node)) against the members that there are.
//!
//! In: the state, what is known of the nodes, and the log's own membership as the leader's store tells it. Out: the one next
//! step that brings the membership closer to what is wanted without giving up a majority that is alive. Called by the leader
//! whenever one of them changed; commands ask [`would_lose_quorum`] before they want fewer managers.
//!
//! ```text
//!   wanted, reports its number        added, alive                  wanted no more
//!   ───────────────────► learner ───────────────► voter ───────────────────────────► gone
//!                                                   │ it leads              ▲
//!                                                   └─► hand over, then the next leader removes it
//! ```

use crate::{
    intent::Refusal,
    model::{Live, NodeId, Role},
    state::State,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
};

/// The log's membership, as the leader's store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Numbers of those that vote.
    pub voters: BTreeSet<u64>,
    /// Numbers of those that only keep the log.
    pub learners: BTreeSet<u64>,
    /// The number of this node.
    pub own: u64,
}

impl Members {
    /// Whether the number belongs to a member.
    #[must_use]
    pub fn contains(&self, raft_id: u64) -> bool {
        self.voters.contains(&raft_id) || self.learners.contains(&raft_id)
    }
}

/// One change of the log's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends the log to a new member, which does not vote yet.
    AddLearner {
        /// Its number.
        raft_id: u64,
        /// The node.
        node: NodeId,
    },
    /// Lets a learner vote.
    MakeVoter(u64),
    /// Takes a member out.
    Remove(u64),
    /// Lets another voter lead: this node is to be taken out, and the next leader does that.
    HandOver,
}

/// The next step from the members that there are to those that are wanted; `None` if there is none, or none that is safe now.
/// Only the leader asks, with its own store's membership.
#[must_use]
pub fn next_step(state: &State, live: &Live, members: &Members) -> Option<Step> {
    let wanted: BTreeMap<u64, NodeId> =
        state.nodes.iter().filter_map(|(id, node)| Some((node.raft_id?, *id))).collect();
    // Keeping the log under this number, by its own word.
    let mut alive: BTreeSet<u64> =
        live.nodes.values().filter(|known| known.ready).filter_map(|known| known.report.raft).collect();
    alive.insert(members.own);
    let has_majority = |voters: &BTreeSet<u64>| voters.intersection(&alive).count() > voters.len() / 2;
    // Without a majority no change of the membership is committed, either.
    if !has_majority(&members.voters) {
        return None;
    }
    let without = |id: u64| members.voters.iter().copied().filter(|other| *other != id).collect::<BTreeSet<u64>>();
    let unwanted =
        |ids: &BTreeSet<u64>| ids.iter().copied().filter(|id| !wanted.contains_key(id)).collect::<BTreeSet<_>>();

    if let Some(learner) = unwanted(&members.learners).first() {
        return Some(Step::Remove(*learner));
    }
    let leaving = unwanted(&members.voters);
    let removable = |id: &u64| *id != members.own && has_majority(&without(*id));
    // A dead voter only makes majorities harder to find: it goes first. A living one goes once its successors vote.
    if let Some(dead) = leaving.iter().find(|id| !alive.contains(id) && removable(id)) {
        return Some(Step::Remove(*dead));
    }
    if let Some(ready) = members.learners.intersection(&alive).next() {
        return Some(Step::MakeVoter(*ready));
    }
    if let Some((raft_id, node)) = wanted.iter().find(|(id, _)| alive.contains(id) && !members.contains(**id)) {
        return Some(Step::AddLearner { raft_id: *raft_id, node: *node });
    }
    let heir = members.voters.iter().any(|id| wanted.contains_key(id) && alive.contains(id));
    // Without an heir, only what keeps one from coming goes.
    let may_go = |id: &u64| heir || keeps_out(state, live, *id);
    if let Some(living) = leaving.iter().find(|id| removable(id) && may_go(id)) {
        return Some(Step::Remove(*living));
    }
    let own = &members.own;
    (leaving.contains(own) && may_go(own) && members.voters.len() > 1 && has_majority(&without(*own)))
        .then_some(Step::HandOver)
}

/// Whether a node still keeps the log under this number and is wanted under another: a node has one log at a time.
fn keeps_out(state: &State, live: &Live, raft_id: u64) -> bool {
    let mut keepers = live.nodes.iter().filter(|(_, known)| known.report.raft == Some(raft_id));
    keepers.any(|(id, _)| state.nodes.get(id).is_some_and(|node| node.raft_id.is_some_and(|other| other != raft_id)))
}

/// Why the node must not stop being a manager now: it is the last one, or too few of the others are reachable to go on
/// without it. `None` if it may.
#[must_use]
pub fn would_lose_quorum(state: &State, live: &Live, node: NodeId) -> Option<Refusal> {
    let others = state.nodes.values().filter(|other| other.id != node && other.role == Role::Manager);
    let others: BTreeSet<NodeId> = others.map(|other| other.id).collect();
    if others.is_empty() {
        return Some(Refusal::Precondition("attempting to demote the last manager of the swarm".into()));
    }
    let reachable = others.iter().filter(|id| live.nodes.get(id).is_some_and(|known| known.ready)).count();
    let needed = others.len() / 2 + 1;
    (reachable < needed).then(|| {
        Refusal::Precondition(format!(
            "can't remove member from the raft: this would result in a loss of quorum ({reachable} of the {} other managers \
             reachable, {needed} needed)",
            others.len()
        ))
    })
}
