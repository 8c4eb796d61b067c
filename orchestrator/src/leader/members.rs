//! Keeps raft's membership as the state wants it: one change at a time, decided by [`orchestrator_core::members`].

use super::View;
use crate::store::Store;
use orchestrator_core::members::{Step, next_step};
use std::time::Duration;
use tokio::sync::watch;

/// Pause after a change that failed: the other manager may need this long to open its store.
const RETRY: Duration = Duration::from_millis(500);

/// Runs while this node leads.
pub(super) async fn keep(store: Store, mut view: watch::Receiver<View>) {
    let mut states = store.watch();
    let mut members = store.watch_members();
    loop {
        let state = states.borrow_and_update().clone();
        let known = members.borrow_and_update().clone();
        let live = view.borrow_and_update().live.clone();
        if let Some(step) = next_step(&state, &live, &known) {
            tracing::info!(?step, "changing the membership of raft");
            let done = match step {
                Step::AddLearner { raft_id, node } => {
                    store.add_learner(raft_id, node.to_string()).await.map_err(anyhow::Error::from)
                }
                Step::MakeVoter(raft_id) => store.make_voter(raft_id).await.map_err(Into::into),
                Step::Remove(raft_id) => store.remove(raft_id).await.map_err(Into::into),
                Step::HandOver => store.hand_over().await.map_err(Into::into),
            };
            if let Err(error) = done {
                tracing::warn!(?step, error = format!("{error:#}"), "not yet");
                tokio::time::sleep(RETRY).await;
            }
            // What was changed shows a moment later.
            let _late = tokio::time::timeout(RETRY, members.changed()).await;
            continue;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = members.changed() => if changed.is_err() { return },
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}
