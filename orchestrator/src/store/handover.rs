//! Letting another member lead, on purpose and quickly.
//!
//! In: a leader that is about to go, or that has no room on its disk. Out: another leader, or why there is none. Callers: the
//! daemon before it shuts down or is demoted, and [`when_read_only`] by itself.
//!
//! openraft 0.9 has no transfer of leadership. What happens instead:
//! 1. The leader proposes nothing more, and waits until the best of the others has its whole log.
//! 2. It asks that one to stand for election ([`Message::Elect`](super::network::Message)).
//! 3. The candidate asks for votes *with the leader's consent*. Ordinarily a voter refuses every candidate for a while after it
//!    last heard of its leader; with consent it first takes note of the newer vote, which ends that bond, and then judges the
//!    request like any other: by the candidate's log and its own promises. So an election by consent is as safe as any.
//!
//! If nobody wins, the old leader leads on when it is followed still, or whoever elects next does.

use std::{sync::Weak, time::Duration};

use openraft::{
    Snapshot, SnapshotMeta,
    raft::{VoteRequest, VoteResponse},
};
use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    error::HandOverError,
    handle::{HEARTBEAT, Inner, Store},
    log::{record::Position, writer::Health},
    network::{Message, Target},
    raft,
};

/// How long handing over may take in all. It usually takes as long as a few syncs do.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long the candidate may take to catch up, and then to win.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How often a leader that cannot write looks for another one.
const RETRY_READ_ONLY: Duration = Duration::from_secs(10);

/// Ends the refusal of proposals.
struct HandingOver<'a>(&'a watch::Sender<bool>);

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Store {
    /// Lets another voter lead, if this member does. Nothing can be proposed here meanwhile.
    ///
    /// # Errors
    /// [`HandOverError`]; this member then leads on, if it is followed still.
    pub async fn hand_over(&self) -> Result<(), HandOverError> {
        let deadline = Instant::now() + HAND_OVER;
        let Ok(permit) = timeout_at(deadline, self.inner.changing.acquire()).await else {
            return Err(HandOverError::NoCandidate { why: "the membership is just being changed".into() });
        };
        let _permit = permit.map_err(|_| HandOverError::ShutDown)?;
        let Some(term) = self.leading_term() else { return Ok(()) };
        self.inner.handing_over.send_replace(true);
        let _handing_over = HandingOver(&self.inner.handing_over);

        let mut why = "there is no other voter that answers".to_string();
        let mut refused = Vec::new();
        while Instant::now() < deadline {
            if self.leading_term() != Some(term) {
                return self.follow(deadline).await;
            }
            let Some(target) = self.best_other(&refused) else { break };
            match self.hand_to(&target, term).await {
                Ok(()) => return Ok(()),
                Err(reason) => {
                    why = format!("node {}: {reason}", target.member);
                    refused.push(target.id);
                }
            }
        }
        Err(HandOverError::NoCandidate { why })
    }

    /// The voter that answers, was not refused before and lacks the least.
    fn best_other(&self, refused: &[u64]) -> Option<Target> {
        let membership = self.membership();
        let others = membership.voter_ids().filter(|id| *id != self.inner.raft_id && !refused.contains(id));
        let able = others.filter(|id| self.answers(*id));
        let best = able.filter_map(|id| Some((self.lacks(id)?, id))).min()?.1;
        Some(Target { id: best, member: membership.get_node(&best)?.clone() })
    }

    async fn hand_to(&self, target: &Target, term: u64) -> Result<(), String> {
        let deadline = Instant::now() + ATTEMPT;
        let mut metrics = self.inner.raft.metrics();
        let caught_up = metrics.wait_for(|now| {
            let has = now.replication.as_ref().and_then(|all| all.get(&target.id)).and_then(Option::as_ref);
            has.map(|at| at.index) >= now.last_log_index
        });
        let last = match timeout_at(deadline, caught_up).await {
            Ok(Ok(_)) => self.inner.raft.data_metrics().borrow().last_log.as_ref().map(raft::position),
            Ok(Err(_)) => return Err("the store is shut down".into()),
            Err(_) => return Err("it lacks a part of the log".into()),
        };
        let message = Message::Elect { term, last };
        let asked = timeout_at(deadline, self.inner.links.call::<()>(target, &message)).await;
        asked.map_err(|_| "it does not answer".to_string())?.map_err(|error| error.to_string())?;
        self.follow(deadline).await.map_err(|_| "it was not elected".into())
    }

    /// Waits for another leader.
    async fn follow(&self, deadline: Instant) -> Result<(), HandOverError> {
        let mut metrics = self.inner.raft.server_metrics();
        let own = self.inner.raft_id;
        let followed = metrics.wait_for(|now| now.current_leader.is_some_and(|leader| leader != own));
        match timeout_at(deadline, followed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(HandOverError::ShutDown),
            Err(_) => Err(HandOverError::NoCandidate { why: "nobody was elected in time".into() }),
        }
    }

    /// The term in which this member leads by its vote, followed or not.
    fn leading_term(&self) -> Option<u64> {
        let metrics = self.inner.raft.server_metrics();
        let vote = metrics.borrow().vote;
        (vote.committed && vote.leader_id.node_id == self.inner.raft_id).then_some(vote.leader_id.term)
    }

    /// The leader of `term`, whose log reaches to `last`, wants this member to lead.
    pub(super) async fn elect(&self, term: u64, last: Option<Position>) -> Result<(), String> {
        if *self.inner.health.borrow() != Health::Writable {
            return Err("its store takes no changes".into());
        }
        let mut log = self.inner.raft.data_metrics();
        let complete = log.wait_for(|now| now.last_log.as_ref().map(raft::position) >= last);
        if timeout(HEARTBEAT, complete).await.is_err() {
            return Err("it lacks a part of the log".into());
        }
        let vote = self.inner.raft.server_metrics().borrow().vote;
        if vote.leader_id.term != term || !vote.committed {
            return Err(format!("it knows of an election after term {term}"));
        }
        self.inner.links.set_consent(term + 1);
        self.inner.raft.trigger().elect().await.map_err(|error| error.to_string())
    }

    /// A candidate that the leader itself put up asks for a vote.
    pub(super) async fn vote_with_consent(&self, request: VoteRequest<u64>) -> Result<VoteResponse<u64>, String> {
        // An empty snapshot is older than whatever is here, so of this message only the vote is taken in: this member then
        // belongs to no leader any more, and has granted nothing yet. A vote older than its own changes nothing.
        let nothing = Snapshot { meta: SnapshotMeta::default(), snapshot: Box::default() };
        self.inner.raft.install_full_snapshot(request.vote, nothing).await.map_err(|error| error.to_string())?;
        self.inner.raft.vote(request).await.map_err(|error| error.to_string())
    }
}

/// Hands over whenever this member leads with a disk that is full. Runs until the store is shut down.
pub(super) async fn when_read_only(store: Weak<Inner>) {
    let Some((mut health, mut leadership)) =
        store.upgrade().map(|inner| (inner.health.subscribe(), inner.leadership.clone()))
    else {
        return;
    };
    loop {
        let read_only = matches!(*health.borrow_and_update(), Health::ReadOnly { .. });
        let leads = leadership.borrow_and_update().is_some();
        if !read_only || !leads {
            select! {
                // Cancel-safe: both only say that something is to be looked at.
                changed = health.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let Some(inner) = store.upgrade() else { return };
        let store = Store { inner };
        if store.members().voters.len() > 1 {
            match store.hand_over().await {
                Ok(()) => tracing::info!("another manager leads, as the disk here is full"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the disk is full, and no other manager can lead");
                }
            }
        }
        drop(store);
        sleep(RETRY_READ_ONLY).await;
    }
}
