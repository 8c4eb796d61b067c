//! Keeps raft's membership as the state wants it: one change at a time, decided by [`orchestrator_core::members`].

use super::View;
use crate::store::Store;
use orchestrator_core::members::{Step, next_step};
use std::time::Duration;
use tokio::sync::watch;

/// Pauses after a change that could not be made, growing: a manager that was just added answers within milliseconds, one
/// whose disk is full does not for a long time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What was changed shows in the membership after this time at the latest.
const SHOWS: Duration = Duration::from_millis(500);

/// Runs while this node leads.
pub(super) async fn keep(store: Store, mut view: watch::Receiver<View>) {
    let mut states = store.watch();
    let mut members = store.watch_members();
    let mut pause = PAUSE.0;
    loop {
        let state = states.borrow_and_update().clone();
        let known = members.borrow_and_update().clone();
        let live = view.borrow_and_update().live.clone();
        if let Some(step) = next_step(&state, &live, &known) {
            tracing::debug!(?step, "changing the membership of raft");
            let done = match step {
                Step::AddLearner { raft_id, node } => {
                    store.add_learner(raft_id, node.to_string()).await.map_err(anyhow::Error::from)
                }
                Step::MakeVoter(raft_id) => store.make_voter(raft_id).await.map_err(Into::into),
                Step::Remove(raft_id) => store.remove(raft_id).await.map_err(Into::into),
                Step::HandOver => store.hand_over().await.map_err(Into::into),
            };
            match done {
                Ok(()) => {
                    pause = PAUSE.0;
                    let _late = tokio::time::timeout(SHOWS, members.changed()).await;
                }
                Err(error) => {
                    tracing::debug!(?step, error = format!("{error:#}"), "the membership is not changed yet");
                    if pause == PAUSE.1 {
                        tracing::warn!(?step, error = format!("{error:#}"), "the membership of raft cannot be changed");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
            continue;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = members.changed() => if changed.is_err() { return },
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}
