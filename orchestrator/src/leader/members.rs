//! Keeps raft's membership as the state wants it: one change at a time, decided by [`orchestrator_core::members`].

use super::View;
use crate::store::Store;
use anyhow::Context;
use orchestrator_core::members::{Step, next_step};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// Pauses after a change that could not be made, growing: a manager that was just added answers within milliseconds, one
/// whose disk is full does not for a long time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A step takes this long at most; raft goes on with a change that was begun, and the next round finds what became of it.
const STEP: Duration = Duration::from_secs(10);

/// A step that cannot be made for this long is worth a warning, and so is each further time of this length.
const WARN: Duration = Duration::from_secs(5);

/// What was changed shows in the membership after this time at the latest.
const SHOWS: Duration = Duration::from_millis(500);

/// Runs while this node leads.
pub(super) async fn keep(store: Store, mut view: watch::Receiver<View>) {
    let mut states = store.watch();
    let mut members = store.watch_members();
    let mut pause = PAUSE.0;
    // Since when steps fail, or when that was said last.
    let mut failing: Option<Instant> = None;
    loop {
        let state = states.borrow_and_update().clone();
        let known = members.borrow_and_update().clone();
        let live = view.borrow_and_update().live.clone();
        if let Some(step) = next_step(&state, &live, &known) {
            tracing::debug!(?step, "changing the membership of raft");
            let made = async {
                match step {
                    Step::AddLearner { raft_id, node } => store.add_learner(raft_id, node.to_string()).await?,
                    Step::MakeVoter(raft_id) => store.make_voter(raft_id).await?,
                    Step::Remove(raft_id) => store.remove(raft_id).await?,
                    Step::HandOver => store.hand_over().await?,
                }
                anyhow::Ok(())
            };
            let made = timeout(STEP, made).await.context("it takes too long").flatten();
            match made {
                Ok(()) => {
                    (pause, failing) = (PAUSE.0, None);
                    let _late = timeout(SHOWS, members.changed()).await;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(?step, error, "the membership is not changed yet");
                    if failing.get_or_insert_with(Instant::now).elapsed() >= WARN {
                        tracing::warn!(?step, error, "the membership of raft cannot be changed");
                        failing = Some(Instant::now());
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
            continue;
        }
        (pause, failing) = (PAUSE.0, None);
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = members.changed() => if changed.is_err() { return },
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}
