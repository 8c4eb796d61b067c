//! The replicated side of the daemon for the API: state, proposals, membership.

use super::{Daemon, Identity, Member};
use crate::{
    api::node::{Cluster, Failure, InitRequest, ManagerPeer, Membership, ProposeError, Reasons},
    clock, store,
};
use async_trait::async_trait;
use orchestrator_core::{
    intent,
    model::{Availability, Ca, Live, Node, NodeId, Role, Secret, Secret16, Settings, Tokens},
    plan::Subject,
    state::{Applied, Entry, State},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

#[async_trait]
impl Cluster for Daemon {
    fn state(&self) -> Arc<State> {
        self.member().map_or_else(Arc::default, |member| member.store.state())
    }

    async fn read(&self) -> Result<Arc<State>, Failure> {
        let member = self.member().ok_or(ProposeError::NoCluster)?;
        member.store.read().await.map_err(|error| Failure::Unavailable(format!("{:#}", anyhow::Error::from(error))))
    }

    fn live(&self) -> Arc<Live> {
        self.leader_view.borrow().live.clone()
    }

    async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError> {
        let member = self.member().ok_or(ProposeError::NoCluster)?;
        member.store.propose(entry).await.map_err(|error| match error {
            store::ProposeError::NotLeader { leader } => {
                ProposeError::NotLeader { leader: leader.map(|leader| leader.to_string()) }
            }
            other => ProposeError::Unavailable(format!("{:#}", anyhow::Error::from(other))),
        })
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn reasons(&self) -> Arc<Reasons> {
        let mut reasons = Reasons::default();
        for (subject, why) in &self.leader_view.borrow().plan.reasons {
            let lines = match subject {
                Subject::Task(task) => reasons.tasks.entry(*task).or_default(),
                Subject::Service(service) => reasons.services.entry(*service).or_default(),
            };
            lines.push(why.to_string());
        }
        Arc::new(reasons)
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, Failure> {
        self.initialize(request).await
    }

    fn membership(&self) -> Membership {
        let Some(member) = self.member() else { return Membership::default() };
        let Identity { cluster, node, .. } = member.identity;
        let address = self.description.address.clone();
        let state = member.store.state();
        let leads = member.store.leadership().borrow().is_some();
        Membership {
            cluster: Some(cluster),
            node: Some(node),
            role: Some(state.nodes.get(&node).map_or(Role::Manager, |known| known.role)),
            leader: leads.then_some(node),
            managers: BTreeMap::from([(
                node,
                ManagerPeer { address: format!("{address}:{}", super::CONTROL_PORT), reachable: Some(true) },
            )]),
            address,
            error: None,
        }
    }
}

impl Daemon {
    /// Makes this node the first of a new cluster. Repeating it after a crash half-way goes on where it stopped.
    pub(super) async fn initialize(&self, request: InitRequest) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        if self.member().is_some() {
            return Err(Failure::Unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
                    .into(),
            ));
        }
        let internal = |what: &str| {
            let what = what.to_owned();
            move |cause: anyhow::Error| Failure::Internal { what, cause: cause.into() }
        };
        let kept =
            Identity::load(&self.config.state_dir).map_err(|e| internal("reading the node's identity")(e.into()))?;
        let identity = kept.unwrap_or_else(Identity::first);
        identity.save(&self.config.state_dir).map_err(|e| internal("keeping the node's identity")(e.into()))?;
        let member = self.open_member(identity).await.map_err(internal("opening the store"))?;
        self.found(&member, request).await.map_err(internal("initialising the cluster"))?;
        self.take_up(member).map_err(internal("taking up the membership"))?;
        Ok(identity.node)
    }

    /// Commits the first entry, unless that was done before.
    pub(super) async fn found(&self, member: &Member, request: InitRequest) -> anyhow::Result<()> {
        if member.store.is_initialized() && member.store.read().await.is_ok_and(|state| state.cluster.is_some()) {
            return Ok(());
        }
        let now = clock::now();
        let node = Node {
            id: member.identity.node,
            hostname: self.hostname.clone(),
            role: Role::Manager,
            raft_id: None,
            availability: request.availability.unwrap_or(Availability::Active),
            labels: BTreeMap::new(),
            description: self.description.clone(),
            created_at: now,
        };
        // Nobody can join yet: there is no authority, and no token is shown.
        let ca = Ca { certificate: Vec::new(), key: Secret(Vec::new()) };
        let secret = || Secret16(super::identity::random().to_be_bytes());
        let tokens = Tokens { worker: secret(), manager: secret() };
        let settings = Settings::default();
        let first = intent::init_cluster(&State::default(), member.identity.cluster, node, ca, tokens, settings, now)?;
        match member.store.initialize(first).await {
            Ok(_) | Err(store::InitializeError::AlreadyInitialized) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
