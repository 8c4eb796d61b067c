//! Makes of this node what its assignment says it is: a manager with a store, or a worker without one.
//!
//! In: accepted assignments. Out: the node's store opened or removed, and the certificate that fits. A store that is damaged is
//! set aside, and the leader asked for another number: under the old one this node may have promised what it no longer knows.

use super::{Base, Member, manager};
use crate::store::{Store, StoreError};
use orchestrator_core::{assignment::Membership, model::Role};
use std::{sync::Arc, time::Duration};

/// Pause before a store that could not be opened is tried again: the disk may have room then.
const RETRY: Duration = Duration::from_secs(5);

/// Runs as long as the membership.
pub(super) async fn follow(base: Base, member: Arc<Member>) {
    let mut views = base.agent_view.subscribe();
    let mut credentials = member.credentials.subscribe();
    loop {
        let membership = views.borrow_and_update().assignment.as_ref().map(|assignment| assignment.membership.clone());
        credentials.mark_unchanged();
        let mut again = Duration::MAX;
        if let Some(wanted) = membership
            && let Err(error) = become_as(&base, &member, &wanted).await
        {
            tracing::error!(error = format!("{error:#}"), "this node cannot be what the cluster wants it to be");
            again = RETRY;
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => {}
        }
    }
}

async fn become_as(base: &Base, member: &Member, wanted: &Membership) -> anyhow::Result<()> {
    // A manager that is let go votes until raft has let go of it.
    let role = if wanted.raft_id.is_some() { Role::Manager } else { wanted.role };
    member.link.role.send_if_modified(|told| told.replace(role) != Some(role));
    let _one_at_a_time = member.storing.lock().await;
    let running = member.manager.borrow().clone();
    let number = running.as_ref().map(|manager| manager.raft_id);
    if number == wanted.raft_id {
        return Ok(());
    }
    // Numbers grow only: this was said before the node went on alone under the number that it has now.
    if wanted.raft_id.is_some() && wanted.raft_id < member.identity().raft_id {
        return Ok(());
    }
    if let Some(running) = running {
        tracing::info!(raft_id = running.raft_id, "no longer a manager under this number");
        member.manager.send_replace(None);
        running.stop().await;
    }
    let Some(raft_id) = wanted.raft_id else {
        member.keep_number(None, &base.state_dir)?;
        manager::remove_stores(&base.state_dir, None)?;
        return Ok(());
    };
    // The other managers answer none but managers: the certificate comes first, and this is called again when it is there.
    if member.credentials.borrow().subject().role != Role::Manager {
        return Ok(());
    }
    if member.lost_store() == Some(raft_id) {
        member.link.lost.send_replace(Some(raft_id));
        return Ok(());
    }
    manager::remove_stores(&base.state_dir, Some(raft_id))?;
    member.keep_number(Some(raft_id), &base.state_dir)?;
    match base.start_manager(raft_id, member.node).await {
        Ok(started) => {
            tracing::info!(raft_id, "a manager now");
            member.manager.send_replace(Some(started));
            Ok(())
        }
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the store is set aside");
            Store::quarantine(&manager::dir(&base.state_dir, raft_id))?;
            member.lose_store(raft_id, &base.state_dir)?;
            member.link.lost.send_replace(Some(raft_id));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
