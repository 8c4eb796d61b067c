//! When this member stands for election.
//!
//! In: when it last heard of a leader, and what the other voters say to the question whether they would elect it. Out: openraft
//! is told to elect. Caller: the handle spawns [`run`] once per store; its `answer` notes leaders and answers the question.
//!
//! openraft's own timer is off. It elects whenever a leader is silent for *this* member: after a restart, a stall of the disk
//! or a cut cable, and each time the higher term unseats a leader that everybody else follows. Asking first (pre-vote; Ongaro,
//! "Consensus: Bridging Theory and Practice", 9.6) costs one round trip and avoids that. It decides only when to elect; who
//! wins is up to raft.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use openraft::{Raft, ServerState};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    handle::HEARTBEAT,
    leadership::LEASE,
    log::writer::Health,
    network::{Links, Message, Target},
    raft::{self, TypeConfig},
};

/// A leader that was silent for [`LEASE`] gets this much longer, and a random part of [`SPREAD`] so that not all voters stand at
/// once: 1.5-2 s in all, 4 heartbeats at least, as a sync of an SD card or bad Wi-Fi may well take one second.
const PATIENCE: Duration = Duration::from_millis(500);
/// See [`PATIENCE`].
const SPREAD: Duration = Duration::from_millis(500);
/// After an election this long is waited for its outcome, and a random part of [`SPREAD`], before the next one.
const OUTCOME: Duration = Duration::from_millis(400);

/// Since when this member has not heard of a leader.
#[derive(Debug)]
pub(super) struct Silence(Mutex<Instant>);

impl Silence {
    /// It begins now: whoever has just started first listens.
    pub(super) fn begin() -> Self {
        Silence(Mutex::new(Instant::now()))
    }

    /// A leader was heard of.
    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn since(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it lasted so long that a new leader may be elected?
    pub(super) fn is_long(&self) -> bool {
        self.since().elapsed() >= LEASE
    }
}

/// What the task needs.
pub(super) struct Voter {
    pub(super) raft: Raft<TypeConfig>,
    pub(super) raft_id: u64,
    pub(super) links: Arc<Links>,
    pub(super) silence: Arc<Silence>,
    pub(super) health: watch::Receiver<Health>,
}

/// Stands for election whenever there is no leader. Runs until raft stops.
pub(super) async fn run(voter: Voter) {
    let mut metrics = voter.raft.server_metrics();
    loop {
        let may_stand = {
            let now = metrics.borrow_and_update();
            now.state != ServerState::Leader
                && now.membership_config.membership().voter_ids().any(|id| id == voter.raft_id)
        };
        if !may_stand {
            if metrics.changed().await.is_err() {
                return;
            }
            voter.silence.end();
            continue;
        }
        let due = voter.silence.since() + LEASE + PATIENCE + random(SPREAD);
        if due > Instant::now() {
            sleep_until(due).await;
        } else if voter.would_win().await {
            tracing::info!("no leader is heard of: standing for election");
            // Fails only when raft has stopped.
            let _ = voter.raft.trigger().elect().await;
            sleep(OUTCOME + random(SPREAD)).await;
        } else {
            sleep(HEARTBEAT + random(HEARTBEAT)).await;
        }
        if metrics.has_changed().is_err() {
            return;
        }
    }
}

impl Voter {
    /// Would enough of the others elect this member now?
    async fn would_win(&self) -> bool {
        let membership = self.raft.server_metrics().borrow().membership_config.membership().clone();
        let last = self.raft.data_metrics().borrow().last_log.as_ref().map(raft::position);
        let writable = *self.health.borrow() == Health::Writable;
        let question = Message::WouldElect { last, writable };
        let ask = |target: Target| {
            let question = &question;
            async move {
                let answer = timeout(HEARTBEAT, self.links.call::<bool>(&target, question)).await;
                (target.id, matches!(answer, Ok(Ok(true))))
            }
        };
        let others = membership.voter_ids().filter(|id| *id != self.raft_id);
        let mut answers: FuturesUnordered<_> =
            others.filter_map(|id| Some(ask(Target { id, member: membership.get_node(&id)?.clone() }))).collect();
        let mut supporters = BTreeSet::from([self.raft_id]);
        let enough = |supporters: &BTreeSet<u64>| {
            let majority = |voters: &BTreeSet<u64>| voters.intersection(supporters).count() > voters.len() / 2;
            membership.get_joint_config().iter().all(majority)
        };
        while !enough(&supporters) {
            match answers.next().await {
                Some((id, true)) => drop(supporters.insert(id)),
                Some((_, false)) => {}
                None => return false,
            }
        }
        true
    }
}

/// A random part of `most`.
fn random(most: Duration) -> Duration {
    // The standard library seeds every hasher from the kernel.
    let number = RandomState::new().hash_one(0);
    most.mul_f64((number >> 11) as f64 / (1_u64 << 53) as f64)
}
