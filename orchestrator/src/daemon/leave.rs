//! The end of this node's membership.

use super::{Daemon, Identity, link, manager, member::Member};
use crate::{
    agent::{Ledger, View},
    api::node::Failure,
    pki::Credentials,
};
use orchestrator_core::{assignment::AssignedTask, model::Desired, node::has_rest};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// What the cluster may take to take note of a node that leaves.
const TELL: Duration = Duration::from_secs(3);
/// What the cluster may take to let go of a manager that leaves.
const LET_GO: Duration = Duration::from_secs(10);
/// What the containers of a node that leaves may take to end: most have ten seconds of grace.
const LAST_CONTAINERS: Duration = Duration::from_secs(60);

impl Daemon {
    /// Ends this node's membership.
    pub(super) async fn leave_cluster(&self, force: bool) -> Result<(), Failure> {
        let _one_at_a_time = self.joining.lock().await;
        let Some(member) = self.member() else {
            return Err(Failure::Unavailable("This node is not part of a swarm".into()));
        };
        self.pending.send_replace(Some("leaving the cluster".into()));
        let left = self.end_membership(&member, force).await;
        self.pending.send_replace(None);
        left
    }

    async fn end_membership(&self, member: &Arc<Member>, force: bool) -> Result<(), Failure> {
        let (told, heard) = oneshot::channel();
        let tell = async {
            member.link.leave.send(told).await.ok()?;
            heard.await.ok()
        };
        let told = timeout(TELL, tell).await.ok().flatten().is_some();
        if !told && !force {
            return Err(Failure::Unavailable(
                "the cluster cannot be told that this node leaves: no manager answers. With --force it leaves all the same."
                    .into(),
            ));
        }
        let mut manager = member.manager.subscribe();
        let others = manager.borrow().as_ref().is_some_and(|manager| manager.store.members().voters.len() > 1);
        if others && told {
            let let_go = timeout(LET_GO, manager.wait_for(Option::is_none)).await;
            if let_go.is_err() {
                tracing::warn!("the other managers have not let go of this one; it leaves all the same");
            }
        }
        // Containers end before their keeper does.
        member.link.leaves.store(true, Ordering::Relaxed);
        member.assignments.send_modify(|current| {
            *current = current.as_ref().map(|old| Arc::new(link::nothing(old)));
        });
        let mut views = self.base.agent_view.subscribe();
        let ends = |task: &AssignedTask| task.desired == Desired::Remove;
        // Where there was an assignment, the agent has to have looked at what became of it.
        let assigned = member.assignments.borrow().is_some();
        let empty = |view: &View| match &view.assignment {
            None => !assigned,
            Some(assignment) => assignment.tasks.values().all(ends) && !view.observed.tasks.values().any(has_rest),
        };
        if timeout(LAST_CONTAINERS, views.wait_for(empty)).await.is_err() {
            tracing::warn!("some containers have not ended; they are taken down by `edged reset`");
        }
        member.close().await;
        self.member.send_replace(None);
        self.base.finder.announce(None);
        self.base.endpoint.set_credentials(None);
        self.base.agent_view.send_replace(Default::default());
        self.base.revision.send_replace(0);
        let forget = || -> anyhow::Result<()> {
            let state_dir = &self.config.state_dir;
            // Whatever comes in between, the node is a member still or begins anew.
            Ledger::open(state_dir)?.remove()?;
            Identity::remove(state_dir)?;
            Credentials::remove(state_dir)?;
            manager::remove_stores(state_dir, None)?;
            Ok(())
        };
        forget()
            .map_err(|cause| Failure::Internal { what: "forgetting the membership".into(), cause: cause.into() })?;
        tracing::info!("this node has left its cluster");
        Ok(())
    }
}
