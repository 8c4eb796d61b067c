//! What the leader does next: [`plan`] compares what users want with what is, and answers with one log entry, the reasons
//! for what it could not do, and when to look again. Called by the leader whenever the state or its live knowledge changed,
//! and at `wake_at`.
//!
//! It is a flat list of passes over one working copy of the state. Each pass brings its own aspect in order and relies on
//! those before it; none looks at how the copy came about, so planning again after the entry was applied changes nothing.
//!
//! ```text
//! record     what nodes reported as ended, and tasks whose node is gone      → Task.outcome
//! vanished   tasks that were to leave no trace, and have (again before ports)→ deletes
//! evict      tasks on nodes that are down, drained or no longer allowed      → Task.desired, new tasks
//! failures   updates that failed too often                                   → Service.current, .update
//! slots      too few or too many slots, removed services                     → new tasks, Task.desired
//! rollout    tasks of old versions                                           → new tasks, Task.desired, Service.update
//! restart    slots whose task ended                                          → new tasks
//! ports      published ports that the cluster chooses                        → Service.ports
//! place      tasks without a node                                            → Task.placed
//! history    what nobody needs any more                                      → deletes
//! ```
//!
//! Slots: a slot of a service is wanted as long as one of its tasks has [`Desired::Run`](crate::model::Desired::Run), ended or not. The newest such task
//! stands for the slot; a second one that has not ended is the old half of a start-first update.

mod address;
mod constraint;
mod outcomes;
mod place;
mod reap;
mod reason;
mod restart;
mod rollout;
mod slots;
mod work;

pub use reason::{NodeRefusal, Subject, Why};

use crate::{
    model::{Live, UnixMillis},
    state::{Entry, State},
};
use alloc::collections::BTreeMap;
use work::Work;

/// What the leader does next. Once the entry is applied the state has changed, and the leader plans again: that plan has no
/// entry, all reasons, and the time to wake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes; `None` if all is as it should be.
    pub entry: Option<Entry>,
    /// Why things are not as they should be, and not in the entry either.
    pub reasons: BTreeMap<Subject, Why>,
    /// When time alone makes another plan: the end of a delay.
    pub wake_at: Option<UnixMillis>,
}

/// Plans from `state` and what is known of the nodes at `now`.
#[must_use]
pub fn plan(state: &State, live: &Live, now: UnixMillis) -> Plan {
    if state.cluster.is_none() {
        return Plan::default();
    }
    let mut work = Work::new(state, live, now);
    outcomes::record(&mut work);
    reap::vanished(&mut work);
    outcomes::evict(&mut work);
    rollout::judge_failures(&mut work);
    slots::fit(&mut work);
    rollout::advance(&mut work);
    restart::replace_ended(&mut work);
    reap::vanished(&mut work);
    address::choose_ports(&mut work);
    place::place(&mut work);
    reap::history(&mut work);
    work.finish()
}
