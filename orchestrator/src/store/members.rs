//! Changes of the membership: one at a time, each brought to its end or left for the next leader to finish.
//!
//! In: what the cluster's leader decided. Out: the membership in force, or why it was not changed, by what the caller can do
//! about it. Caller: `leader`, which asks again until what is wanted is there: every call is idempotent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers, Membership,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
    metrics::RaftServerMetrics,
};
use orchestrator_core::members::Members;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    error::MembersError,
    handle::{PROPOSE, REGAIN, Store},
    leadership::{LEASE, Leadership, is_settled},
    raft::Member,
};

/// How long a caller waits for a change. It goes on afterwards, for [`PROPOSE`] in all.
pub(super) const CHANGE: Duration = Duration::from_secs(5);
/// A learner may vote when it lacks at most this many entries: what the next append brings it.
const CLOSE: u64 = 100;

/// The newest membership, as openraft reports it to `own`. In the middle of a change, whoever votes in either of the two is a
/// voter.
pub(super) fn members(metrics: &RaftServerMetrics<u64, Member>, own: u64) -> Members {
    let membership = metrics.membership_config.membership();
    Members { voters: membership.voter_ids().collect(), learners: membership.learner_ids().collect(), own }
}

impl Store {
    /// The node that keeps the log under a number, as far as this node knows.
    pub fn node_of(&self, raft_id: u64) -> Option<Member> {
        self.membership().get_node(&raft_id).cloned()
    }

    /// Lets the member `raft_id`, which runs on `node`, keep the log without voting. Returns when that is committed; the log
    /// is sent from then on.
    ///
    /// # Errors
    /// [`MembersError`].
    pub async fn add_learner(&self, raft_id: u64, node: impl Into<String>) -> Result<(), MembersError> {
        let leadership = self.may_change().await?;
        if self.membership().get_node(&raft_id).is_some() {
            return Ok(());
        }
        let member = Member { node: node.into() };
        self.change(leadership, ChangeMembers::AddNodes(BTreeMap::from([(raft_id, member)])), true).await
    }

    /// Lets the learner `raft_id` vote, once it has (nearly) all of the log and answers.
    ///
    /// # Errors
    /// [`MembersError`]; [`MembersError::NotYet`] says what it still lacks.
    pub async fn make_voter(&self, raft_id: u64) -> Result<(), MembersError> {
        let leadership = self.may_change().await?;
        let membership = self.membership();
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        if voters.contains(&raft_id) {
            return Ok(());
        }
        let not_yet = |why: String| Err(MembersError::NotYet { raft_id, why });
        if membership.get_node(&raft_id).is_none() {
            return not_yet("it is no learner".into());
        }
        if !self.answers(raft_id) {
            return not_yet("it does not answer".into());
        }
        let lacks = self.lacks(raft_id);
        if lacks.is_none_or(|lacks| lacks > CLOSE) {
            return not_yet(lacks.map_or("it has no entry yet".into(), |lacks| format!("it lacks {lacks} entries")));
        }
        voters.insert(raft_id);
        self.keeps_quorum(&voters)?;
        self.change(leadership, ChangeMembers::AddVoterIds(BTreeSet::from([raft_id])), true).await
    }

    /// Takes the member `raft_id`, voter or learner, out.
    ///
    /// # Errors
    /// [`MembersError`]; [`MembersError::Leads`] for this member itself.
    pub async fn remove(&self, raft_id: u64) -> Result<(), MembersError> {
        let leadership = self.may_change().await?;
        if raft_id == self.inner.raft_id {
            return Err(MembersError::Leads);
        }
        let membership = self.membership();
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        if voters.remove(&raft_id) {
            self.keeps_quorum(&voters)?;
            return self.change(leadership, ChangeMembers::RemoveVoters(BTreeSet::from([raft_id])), false).await;
        }
        if membership.get_node(&raft_id).is_none() {
            return Ok(());
        }
        self.change(leadership, ChangeMembers::RemoveNodes(BTreeSet::from([raft_id])), false).await
    }

    /// The newest membership, committed or not.
    pub(super) fn membership(&self) -> Membership<u64, Member> {
        self.inner.raft.server_metrics().borrow().membership_config.membership().clone()
    }

    /// Did the member follow this one a moment ago?
    pub(super) fn answers(&self, raft_id: u64) -> bool {
        self.inner.contacts.latest(raft_id).is_some_and(|at| at.elapsed() < LEASE)
    }

    /// How many entries the member lacks, as far as this leader knows; `None` when nothing is known.
    pub(super) fn lacks(&self, raft_id: u64) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let has = metrics.replication.as_ref()?.get(&raft_id)?.as_ref()?;
        Some(metrics.last_log_index.unwrap_or(0).saturating_sub(has.index))
    }

    /// This member leads, and no change of the membership is half-way.
    async fn may_change(&self) -> Result<Leadership, MembersError> {
        if self.is_shut_down() {
            return Err(MembersError::ShutDown);
        }
        let Some(leadership) = *self.inner.leadership.borrow() else {
            return Err(MembersError::NotLeader { leader: self.leader().borrow().clone() });
        };
        let joint = self.membership().get_joint_config().len() > 1;
        if joint || !is_settled(&self.inner.raft).await {
            return Err(MembersError::InProgress);
        }
        Ok(leadership)
    }

    /// Refuses voters most of which do not answer: such a change could never be committed, nor anything after it.
    fn keeps_quorum(&self, voters: &BTreeSet<u64>) -> Result<(), MembersError> {
        let now = Instant::now();
        let said = self.inner.contacts.quorum(std::slice::from_ref(voters), self.inner.raft_id, now);
        if said.is_some_and(|at| now - at < LEASE) {
            return Ok(());
        }
        let silent = voters.iter().copied().filter(|id| *id != self.inner.raft_id && !self.answers(*id)).collect();
        Err(MembersError::NoQuorum { voters: voters.len(), silent })
    }

    async fn change(
        &self,
        leadership: Leadership,
        changes: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), MembersError> {
        let permit = self.inner.changing.clone().try_acquire_owned().map_err(|_| MembersError::InProgress)?;
        let raft = self.inner.raft.clone();
        let (done, outcome) = oneshot::channel();
        // A caller that gives up leaves the change to this task: half-way is where it must not stay.
        self.spawn(async move {
            let changed = timeout(PROPOSE, raft.change_membership(changes, retain)).await;
            drop(permit);
            // The caller may have gone.
            let _ = done.send(changed);
        });
        let changed = self.while_leading(leadership, CHANGE, REGAIN, outcome).await.ok_or(MembersError::Timeout)?;
        match changed {
            Err(_) => Err(MembersError::ShutDown),
            Ok(Err(_)) => Err(MembersError::Timeout),
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(RaftError::Fatal(_)))) => Err(MembersError::ShutDown),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))))) => Err(MembersError::Timeout),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))))) => match error {
                ChangeMembershipError::InProgress(_) => Err(MembersError::InProgress),
                // Both were ruled out above, on a membership that nobody else changes meanwhile.
                ChangeMembershipError::EmptyMembership(_) => Err(MembersError::Leads),
                ChangeMembershipError::LearnerNotFound(missing) => {
                    Err(MembersError::NotYet { raft_id: missing.node_id, why: "it is no learner".into() })
                }
            },
        }
    }
}
