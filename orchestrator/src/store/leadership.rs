//! Who leads, and whether this member may act as the leader.
//!
//! In: openraft's view of vote and membership, the confirmations of [`Contacts`], a wish to hand over. Out: three watched
//! values: [`Leadership`], the known leader, [`Members`]. Caller: the handle spawns [`watch`] once per store.
//!
//! openraft 0.9 never lets a leader step down by itself. So this member counts as leading only while a quorum has followed it
//! within [`LEASE`]; no other can have been elected in that time, as voters refuse candidates for as long after they last heard
//! of their leader. Without a quorum the leadership ends here, and comes back in the same term if the quorum does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use openraft::{ChangeMembers, Raft, ServerState, error::Fatal, metrics::RaftServerMetrics};
use orchestrator_core::members::Members;
use tokio::{
    select,
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    contacts::Contacts,
    handle::{ELECTION_MAX, HEARTBEAT},
    log::writer::Health,
    members,
    raft::{Member, TypeConfig},
};

/// For how long a confirmation by a quorum lets this member lead: as long as voters refuse other candidates.
pub(super) const LEASE: Duration = ELECTION_MAX;
/// How long the second half of a membership change may take.
const CHANGE: Duration = Duration::from_secs(5);

/// This node leads, and its state contains everything that was committed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The raft term; grows with every change of leader.
    pub term: u64,
}

/// What the task reports.
pub(super) struct Reports {
    pub(super) leadership: watch::Sender<Option<Leadership>>,
    pub(super) leader: watch::Sender<Option<Member>>,
    pub(super) members: watch::Sender<Members>,
    pub(super) health: watch::Sender<Health>,
}

/// What the task looks at.
pub(super) struct Sources {
    pub(super) raft: Raft<TypeConfig>,
    pub(super) raft_id: u64,
    pub(super) contacts: Arc<Contacts>,
    pub(super) handing_over: watch::Receiver<bool>,
}

type Metrics = RaftServerMetrics<u64, Member>;

/// Reports until raft stops.
pub(super) async fn watch(mut from: Sources, to: Reports) {
    let mut metrics = from.raft.server_metrics();
    let mut contacts = from.contacts.watch();
    loop {
        contacts.mark_unchanged();
        let seen = metrics.borrow_and_update().clone();
        let until = match from.look(&seen, &to).await {
            Look::Following | Look::Alone => None,
            Look::Leading(until) => Some(until),
            Look::Unconfirmed => {
                select! {
                    // Cancel-safe: each of them only says that something is to be looked at.
                    changed = metrics.changed() => if changed.is_err() { break },
                    changed = from.handing_over.changed() => if changed.is_err() { break },
                    _ = contacts.changed() => {}
                }
                continue;
            }
        };
        select! {
            // Cancel-safe, as above.
            changed = metrics.changed() => if changed.is_err() { break },
            changed = from.handing_over.changed() => if changed.is_err() { break },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
        }
    }
    to.lead(None);
    to.name(None);
    if let Err(fatal) = &from.raft.metrics().borrow().running_state
        && !matches!(fatal, Fatal::Stopped)
    {
        to.health.send_if_modified(|health| {
            let first = !matches!(health, Health::Failed { .. });
            if first {
                *health = Health::Failed { reason: fatal.to_string().into() };
            }
            first
        });
    }
}

/// What this member finds itself to be.
enum Look {
    /// Not the leader, or not for long.
    Following,
    /// The leader, with nobody to ask.
    Alone,
    /// The leader at least until then.
    Leading(Instant),
    /// The leader by its vote, which no quorum confirms.
    Unconfirmed,
}

impl Sources {
    async fn look(&self, seen: &Metrics, to: &Reports) -> Look {
        to.count(members::members(seen, self.raft_id));
        let membership = seen.membership_config.membership();
        let vote = seen.vote;
        let leads = seen.state == ServerState::Leader && vote.committed && vote.leader_id.node_id == self.raft_id;
        if !leads || *self.handing_over.borrow() {
            to.lead(None);
            let leader = seen.current_leader.filter(|id| *id != self.raft_id);
            to.name(leader.and_then(|id| membership.get_node(&id).cloned()));
            return Look::Following;
        }

        let configs = membership.get_joint_config();
        let now = Instant::now();
        let confirmed_until = self.contacts.quorum(configs, self.raft_id, now).map(|said| said + LEASE);
        let Some(until) = confirmed_until.filter(|until| *until > now) else {
            to.lead(None);
            to.name(None);
            return Look::Unconfirmed;
        };
        let leadership = Leadership { term: vote.leader_id.term };
        if *to.leadership.borrow() != Some(leadership) {
            // A new leader may still be applying what its predecessors committed.
            let Ok(Ok(_)) = timeout(LEASE, self.raft.ensure_linearizable()).await else { return Look::Unconfirmed };
            to.lead(Some(leadership));
            to.name(membership.get_node(&self.raft_id).cloned());
        }
        let alone = configs.iter().all(|voters| voters.iter().eq([&self.raft_id]));
        if alone { Look::Alone } else { Look::Leading(until) }
    }
}

impl Reports {
    fn lead(&self, leadership: Option<Leadership>) {
        replace(&self.leadership, leadership);
    }

    fn name(&self, leader: Option<Member>) {
        replace(&self.leader, leader);
    }

    fn count(&self, members: Members) {
        replace(&self.members, members);
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<T>, new: T) {
    sender.send_if_modified(|known| {
        let changed = *known != new;
        *known = new;
        changed
    });
}

/// Brings membership changes to their end that a leader left half-way: with both memberships in force, the newer one alone is
/// put in force. Voters that it drops stay learners until someone removes them. Runs until raft stops.
pub(super) async fn finish_changes(
    raft: Raft<TypeConfig>,
    mut leadership: watch::Receiver<Option<Leadership>>,
    changing: Arc<Semaphore>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let joint = metrics.borrow_and_update().membership_config.membership().get_joint_config().len() > 1;
        let leads = leadership.borrow_and_update().is_some();
        if joint && leads {
            // Whoever holds the permit is about to finish it.
            if let Ok(_permit) = changing.try_acquire()
                && is_settled(&raft).await
            {
                let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
                // What failed is tried again, as the membership is still the old one.
                let _ = timeout(CHANGE, raft.change_membership(nobody, true)).await;
            }
            sleep(HEARTBEAT).await;
            if metrics.has_changed().is_err() {
                return;
            }
            continue;
        }
        select! {
            // Cancel-safe: both only say that something is to be looked at.
            changed = metrics.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// Is the newest membership committed? Only then can it be changed.
pub(super) async fn is_settled(raft: &Raft<TypeConfig>) -> bool {
    let settled = raft.with_raft_state(|state| {
        let members = &state.membership_state;
        members.committed().log_id() == members.effective().log_id()
    });
    settled.await.unwrap_or(false)
}
