//! A cluster that begins with this node: a new one, or what is left of one whose majority is gone for good.

use super::{
    Daemon, Identity, Manager, manager,
    member::{ALREADY, SETTLES},
};
use crate::{
    api::node::{Failure, InitRequest},
    clock,
    pki::{Authority, Credentials, NodeKey, new_secret},
    store::{self, Store},
};
use anyhow::Context;
use orchestrator_core::{
    intent,
    model::{Availability, Ca, Cluster, ClusterId, Node, NodeDescription, NodeId, Role, Settings, Tokens},
    state::{Applied, State},
};
use std::collections::BTreeMap;
use tokio::time::timeout;

impl Daemon {
    /// Makes this node the first of a new cluster. Repeating it after a crash half-way goes on where it stopped.
    pub(super) async fn initialize(&self, request: InitRequest) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        if self.member().is_some() {
            return Err(Failure::Unavailable(ALREADY.into()));
        }
        let advertise = self.own_addresses(request.advertise_addr.as_deref(), request.listen_addr.as_deref())?;
        self.pending.send_replace(Some("making a cluster".into()));
        let made = async {
            let state_dir = &self.config.state_dir;
            let key = self.fresh_key()?;
            let (cluster, node) = (ClusterId(super::identity::random()), key.node_id());
            let ca = Authority::create(cluster, self.base.time.now())?;
            let credentials = self.own_credentials(&key, cluster, &ca, &Settings::default())?;
            credentials.save(state_dir)?;
            let identity = Identity {
                cluster,
                node,
                raft_id: Some(Cluster::FIRST_RAFT_ID),
                lost_raft_id: None,
                advertise,
                managers: Vec::new(),
            };
            identity.save(state_dir)?;
            let manager = self.base.start_manager(Cluster::FIRST_RAFT_ID, node).await?;
            let credentials = match self.found(&identity, credentials, &manager, &request).await {
                Ok(credentials) => credentials,
                Err(error) => {
                    manager.stop().await;
                    return Err(error);
                }
            };
            self.take_up(identity, credentials, Some(manager))?;
            anyhow::Ok(node)
        };
        let made = made.await;
        self.pending.send_replace(None);
        if made.is_err() {
            self.unmake();
        }
        made.map_err(|cause| Failure::Internal { what: "initialising the cluster".into(), cause: cause.into() })
    }

    /// Commits the first entry, unless that was done before. Returns the credentials that go with it: what signs them is made
    /// here and kept nowhere else before.
    pub(super) async fn found(
        &self,
        identity: &Identity,
        credentials: Credentials,
        manager: &Manager,
        request: &InitRequest,
    ) -> anyhow::Result<Credentials> {
        let store = &manager.store;
        if store.is_initialized() && (store.members().voters.len() > 1 || founded(store).await) {
            return Ok(credentials);
        }
        let now = clock::now();
        let settings = request.settings.clone().over(Settings::default());
        let ca = Authority::create(identity.cluster, self.base.time.now())?;
        let credentials = self.own_credentials(credentials.key(), identity.cluster, &ca, &settings)?;
        credentials.save(&self.config.state_dir)?;
        let tokens = Tokens { worker: new_secret(), manager: new_secret() };
        let node = Node {
            id: identity.node,
            hostname: self.hostname.clone(),
            role: Role::Manager,
            raft_id: identity.raft_id,
            availability: request.availability.unwrap_or(Availability::Active),
            labels: BTreeMap::new(),
            description: self.description(identity),
            created_at: now,
        };
        let first = intent::init_cluster(&State::default(), identity.cluster, node, ca, tokens, settings, now)?;
        match store.initialize(first).await {
            Ok(_) | Err(store::InitializeError::AlreadyInitialized) => Ok(credentials),
            Err(error) => Err(error.into()),
        }
    }

    /// Credentials of the first node, from the authority that it has just made.
    fn own_credentials(
        &self,
        key: &NodeKey,
        cluster: ClusterId,
        ca: &Ca,
        settings: &Settings,
    ) -> anyhow::Result<Credentials> {
        let authority = Authority::open(ca)?;
        let now = self.base.time.now();
        let certificate = authority.issue(&key.csr(), cluster, Role::Manager, now, settings.cert_validity)?;
        Ok(Credentials::new(key.clone(), certificate, ca.certificate.clone())?)
    }

    fn description(&self, identity: &Identity) -> NodeDescription {
        let mut description = self.base.description.borrow().clone();
        if let Some(address) = identity.advertise {
            description.address = address.to_string();
        }
        description
    }

    /// Goes on alone after the majority of the managers was lost.
    pub(super) async fn force_new_cluster(&self) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        let Some(member) = self.member() else {
            return Err(Failure::Unavailable("This node is not part of a swarm: there is nothing to make new".into()));
        };
        let _nobody_else_opens_the_store = member.storing.lock().await;
        let Some(manager) = member.manager.send_replace(None) else {
            return Err(Failure::Unavailable(
                "This node is a worker: only a manager has what a cluster is made of".into(),
            ));
        };
        let forced = async {
            manager.stop().await;
            let state_dir = self.config.state_dir.clone();
            let config = manager::config(&state_dir, manager.raft_id, member.node, &self.base.endpoint);
            let alone = Store::force_alone(config, move |raft_id| manager::dir(&state_dir, raft_id)).await?;
            let raft_id = alone.members().own;
            alone.shutdown().await;
            // Until here a restart goes on with the old store, from here on with the new one; asked again, either becomes the
            // only manager.
            member.keep_number(Some(raft_id), &self.config.state_dir)?;
            manager::remove_stores(&self.config.state_dir, Some(raft_id))?;
            let started = self.base.start_manager(raft_id, member.node).await?;
            member.manager.send_replace(Some(started.clone()));
            timeout(SETTLES, started.store.leadership().wait_for(Option::is_some))
                .await
                .context("waiting for the lead")??;
            loop {
                let entry = intent::force_new_cluster(&started.store.state(), member.node, raft_id, clock::now())?;
                if let Applied::Done { .. } = started.store.propose(entry).await? {
                    return anyhow::Ok(());
                }
            }
        };
        let forced = forced.await;
        if member.manager.borrow().is_none() {
            // It could not be done: what was there goes on.
            let raft_id = member.identity().raft_id.unwrap_or(manager.raft_id);
            match self.base.start_manager(raft_id, member.node).await {
                Ok(started) => drop(member.manager.send_replace(Some(started))),
                Err(error) => {
                    tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the store stays closed")
                }
            }
        }
        forced.map_err(|cause| Failure::Internal {
            what: "making a new cluster of this manager".into(),
            cause: cause.into(),
        })?;
        Ok(member.node)
    }
}

async fn founded(store: &Store) -> bool {
    let mut leadership = store.leadership();
    let _late = timeout(SETTLES, leadership.wait_for(Option::is_some)).await;
    store.state().cluster.is_some()
}
