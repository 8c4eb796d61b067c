//! The replicated side of the daemon for the API: state, proposals, membership.

use super::{Daemon, link::Standing, manager};
use crate::{
    api::node::{Cluster, Failure, InitRequest, JoinRequest, ManagerPeer, Membership, ProposeError, Reasons},
    store::{self, ReadError},
};
use async_trait::async_trait;
use orchestrator_core::{
    model::{Live, NodeId, Role},
    plan::Subject,
    state::{Applied, Entry, State},
};
use std::sync::Arc;
use tokio::sync::watch;

#[async_trait]
impl Cluster for Daemon {
    fn state(&self) -> Arc<State> {
        self.manager().map_or_else(Arc::default, |manager| manager.store.state())
    }

    async fn read(&self) -> Result<Arc<State>, Failure> {
        let manager = self.manager().ok_or(ProposeError::NoCluster)?;
        manager.store.read().await.map_err(|error| match error {
            ReadError::NotLeader { .. } => Failure::NotLeader(error.to_string()),
            other => Failure::Unavailable(format!("{:#}", anyhow::Error::from(other))),
        })
    }

    fn live(&self) -> Arc<Live> {
        self.base.leader_view.borrow().live.clone()
    }

    async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError> {
        let manager = self.manager().ok_or(ProposeError::NoCluster)?;
        manager.store.propose(entry).await.map_err(|error| match error {
            store::ProposeError::NotLeader { leader } => {
                ProposeError::NotLeader { leader: leader.map(|leader| leader.to_string()) }
            }
            other => ProposeError::Unavailable(format!("{:#}", anyhow::Error::from(other))),
        })
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.base.revision.subscribe()
    }

    fn reasons(&self) -> Arc<Reasons> {
        let mut reasons = Reasons::default();
        for (subject, why) in &self.base.leader_view.borrow().plan.reasons {
            let lines = match subject {
                Subject::Task(task) => reasons.tasks.entry(*task).or_default(),
                Subject::Service(service) => reasons.services.entry(*service).or_default(),
            };
            lines.push(why.to_string());
        }
        Arc::new(reasons)
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, Failure> {
        if request.force_new_cluster && self.member().is_some() {
            return self.carry_through(|me| async move { me.force_new_cluster().await }).await;
        }
        self.carry_through(|me| async move { me.initialize(request).await }).await
    }

    async fn join(&self, request: JoinRequest) -> Result<NodeId, Failure> {
        self.carry_through(|me| async move { me.join_cluster(request).await }).await
    }

    async fn leave(&self, force: bool) -> Result<(), Failure> {
        self.carry_through(move |me| async move { me.leave_cluster(force).await }).await
    }

    fn membership(&self) -> Membership {
        let pending = self.pending.borrow().clone();
        let address = self.base.description.borrow().address.clone();
        let Some(member) = self.member() else {
            // A cluster that is made or joined by command answers with its error; one that is joined by configuration tells here.
            let error = pending.clone().filter(|text| text.contains(": "));
            return Membership { joining: pending.is_some(), address, error, ..Membership::default() };
        };
        let manager = member.manager.borrow().clone();
        let role = if manager.is_some() { Role::Manager } else { Role::Worker };
        let leader = manager.as_ref().and_then(|manager| match *manager.store.leadership().borrow() {
            Some(_) => Some(member.node),
            None => manager.leader().filter(|leader| *leader != member.node),
        });
        let standing = member.link.standing.borrow().clone();
        let error = match &standing {
            Standing::Attached(_) => None,
            Standing::Searching(why) => Some(format!("no manager is reached: {why}")),
            Standing::Removed => Some(
                "this node was removed from its cluster: run `edgectl cluster leave --force` here, then join again"
                    .into(),
            ),
        };
        let live = self.base.leader_view.borrow().live.clone();
        let state = manager.as_ref().map(|manager| manager.store.state()).unwrap_or_default();
        let managers = state.nodes.values().filter(|node| node.role == Role::Manager);
        let voters = manager.as_ref().map(|manager| manager.store.members().voters).unwrap_or_default();
        let managers = managers.filter_map(|node| {
            let address = manager::address(&state, node.id)?.to_string();
            let votes = node.raft_id.is_some_and(|raft_id| voters.contains(&raft_id));
            let reachable = match (leader == Some(node.id), live.nodes.get(&node.id)) {
                (true, _) => Some(true),
                // Until it votes, the cluster stands no failure more than before.
                (false, Some(known)) => (votes || !known.ready).then_some(known.ready),
                // Only the leader hears of the others.
                (false, None) => (leader == Some(member.node)).then_some(false),
            };
            Some((node.id, ManagerPeer { address, reachable }))
        });
        Membership {
            cluster: Some(member.cluster),
            node: Some(member.node),
            role: Some(role),
            leader,
            managers: managers.collect(),
            address,
            error,
            joining: false,
        }
    }
}
