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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
/// After an election this long is waited for its outcome, and a random part of [`SPREAD`], before the next one, which would put
/// an end to it: voters may take as long as openraft waits for them (0.9 s), and then the first entry has to be written.
const OUTCOME: Duration = Duration::from_millis(1000);

/// A voter that would elect another one leaves it this long to do so before it stands itself: the votes of two that stand at the
/// same time would undo each other.
const YIELD: Duration = Duration::from_millis(500);

/// Since when this member has not heard of a leader, and what follows from that.
#[derive(Debug)]
pub(super) struct Silence {
    own: u64,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    since: Instant,
    /// It asks, or has asked successfully and stands.
    standing: bool,
    /// Another one is about to stand.
    yields_until: Instant,
}

impl Silence {
    /// It begins now: whoever has just started first listens.
    pub(super) fn begin(own: u64) -> Self {
        let now = Instant::now();
        Silence { own, now: Mutex::new(Now { since: now, standing: false, yields_until: now }) }
    }

    /// A leader was heard of, or voted for.
    pub(super) fn end(&self) {
        self.lock().since = Instant::now();
    }

    /// Lets `candidate` stand, unless a leader is there or this member is about to stand itself. Of two that ask each other, the
    /// one with the greater number stands.
    pub(super) fn lets_stand(&self, candidate: u64, leads: bool) -> bool {
        let mut now = self.lock();
        let silent = leads || now.since.elapsed() >= LEASE;
        let lets = silent && !(now.standing && self.own > candidate);
        if lets {
            now.yields_until = Instant::now() + YIELD;
        }
        lets
    }

    /// This member asks whether it may stand.
    fn ask(&self) {
        self.lock().standing = true;
    }

    /// It was told that it would win. Does that still hold?
    fn may_stand(&self) -> bool {
        let now = self.lock();
        now.since.elapsed() >= LEASE && Instant::now() >= now.yields_until
    }

    fn rest(&self) {
        self.lock().standing = false;
    }

    fn since(&self) -> Instant {
        self.lock().since
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Single assignments: a panic elsewhere leaves it whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
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
        let since = voter.silence.since();
        sleep_until(since + LEASE + PATIENCE + random(SPREAD)).await;
        if voter.silence.since() != since || metrics.borrow().state == ServerState::Leader {
            // A leader was heard of meanwhile, or this member is one.
            continue;
        }
        voter.silence.ask();
        if voter.would_win().await && voter.silence.may_stand() {
            tracing::info!("no leader is heard of: standing for election");
            // Fails only when raft has stopped.
            let _ = voter.raft.trigger().elect().await;
            sleep(OUTCOME + random(SPREAD)).await;
            voter.silence.rest();
        } else {
            voter.silence.rest();
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
        let question = Message::WouldElect { candidate: self.raft_id, last, writable };
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
