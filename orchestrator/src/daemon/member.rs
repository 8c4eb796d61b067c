//! This node's membership of a cluster: what there is of it, what runs while it lasts, and how it goes on after a restart.
//! It begins in `found` or `join` and ends in `leave`.

use super::{
    Base, Daemon, Identity, Manager,
    link::{self, Link},
    manager, role,
};
use crate::{
    agent::{Agent, Ledger},
    api::node::InitRequest,
    pki::{Credentials, NodeKey},
    store::{Health, Store, StoreError},
    transport::{Announcement, Source},
};
use anyhow::Context;
use orchestrator_core::{
    assignment::Assignment,
    model::{ClusterId, NodeId, Role},
};
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

/// What a new member may take until it is in session with the leader, before the command that made it one returns anyway.
pub(super) const SETTLES: Duration = Duration::from_secs(10);

/// Docker's words for a second membership.
pub(super) const ALREADY: &str =
    "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";

/// What exists while this node is a member of a cluster.
pub struct Member {
    /// The cluster.
    pub(super) cluster: ClusterId,
    /// This node.
    pub(super) node: NodeId,
    pub(super) credentials: watch::Sender<Credentials>,
    /// Its other half while it is a manager.
    pub(super) manager: watch::Sender<Option<Arc<Manager>>>,
    pub(super) link: link::Handle,
    identity: Mutex<Identity>,
    /// Held by whoever opens or closes the store.
    pub(super) storing: tokio::sync::Mutex<()>,
    pub(super) assignments: watch::Sender<Option<Arc<Assignment>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Member {
    pub(super) fn identity(&self) -> Identity {
        self.lock().clone()
    }

    /// Keeps another number among the voters, on disk and here.
    pub(super) fn keep_number(&self, raft_id: Option<u64>, state_dir: &Path) -> anyhow::Result<()> {
        let new = Identity { raft_id, ..self.identity() };
        new.save(state_dir)?;
        *self.lock() = new;
        Ok(())
    }

    /// The number of a store that was damaged.
    pub(super) fn lost_store(&self) -> Option<u64> {
        self.lock().lost_raft_id
    }

    /// Remembers that the store with this number was damaged.
    pub(super) fn lose_store(&self, raft_id: u64, state_dir: &Path) -> anyhow::Result<()> {
        let new = Identity { raft_id: None, lost_raft_id: Some(raft_id), ..self.identity() };
        new.save(state_dir)?;
        *self.lock() = new;
        Ok(())
    }

    /// Whether the last assignment names the node as a manager; `None` if there was none yet.
    pub(super) fn names_manager(&self, node: NodeId) -> Option<bool> {
        let assignment = self.assignments.borrow();
        assignment.as_ref().map(|assignment| assignment.membership.managers.contains_key(&node))
    }

    /// Lets others find this node while it is a manager.
    pub(super) fn announce(&self, base: &Base) {
        let (cluster, node, port) = (self.cluster, self.node, base.description.borrow().port);
        let announcement = Announcement { cluster, node, role: Role::Manager, port };
        base.finder.announce(self.manager.borrow().is_some().then_some(&announcement));
    }

    /// Returns when the store has failed for good; never for a worker.
    pub(super) async fn store_failed(&self) -> String {
        let mut managers = self.manager.subscribe();
        loop {
            let Some(manager) = managers.borrow_and_update().clone() else {
                let _alive = managers.changed().await;
                continue;
            };
            let mut health = manager.store.health();
            loop {
                match &*health.borrow_and_update() {
                    Health::Writable => {}
                    Health::ReadOnly { reason } => tracing::warn!(reason = &**reason, "the store is read-only"),
                    Health::Failed { reason } => return reason.to_string(),
                }
                tokio::select! {
                    changed = health.changed() => if changed.is_err() { break },
                    _ = managers.changed() => break,
                }
            }
            if managers.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, &manager)) {
                // It was stopped on purpose, and is about to be replaced.
                let _alive = managers.changed().await;
            }
        }
    }

    /// Ends everything that runs for the membership; containers go on.
    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        let manager = self.manager.send_replace(None);
        if let Some(manager) = manager {
            manager.stop().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Goes on as the member that this node was when it ended.
    pub(super) async fn resume(&self, mut identity: Identity) -> anyhow::Result<()> {
        let state_dir = &self.config.state_dir;
        let mut credentials = Credentials::load(state_dir)
            .context("reading this node's certificate")?
            .context("this node is a member by node.json, but its key and certificate are gone")?;
        let subject = credentials.subject();
        anyhow::ensure!(
            (subject.node, subject.cluster) == (identity.node, identity.cluster),
            "node.json and the certificate in {} are of different nodes or clusters",
            state_dir.display()
        );
        // The other managers are reached from the first moment on.
        let last = Ledger::open(state_dir)?.load()?;
        self.learn(&identity, last.as_ref());
        self.base.endpoint.set_credentials(Some(credentials.clone()));
        let mut started = None;
        if let Some(raft_id) = identity.raft_id {
            match self.base.start_manager(raft_id, identity.node).await {
                Ok(manager) => started = Some(manager),
                Err(error @ StoreError::Corrupt { .. }) if knows_others(&identity, last.as_ref()) => {
                    tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the store is set aside");
                    Store::quarantine(&manager::dir(state_dir, raft_id))?;
                    identity = Identity { raft_id: None, lost_raft_id: Some(raft_id), ..identity };
                    identity.save(state_dir)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(manager) = &started
            && identity.managers.is_empty()
        {
            credentials = self.found(&identity, credentials, manager, &InitRequest::default()).await?;
        }
        self.take_up(identity, credentials, started)
    }

    /// The key of a node that is about to become a member, after what an earlier membership left is gone: one that ended half-way
    /// in a crash. A key that got a certificate before a crash is used again, since the cluster knows its node by now.
    pub(super) fn fresh_key(&self) -> anyhow::Result<NodeKey> {
        let state_dir = &self.config.state_dir;
        Ledger::open(state_dir)?.remove()?;
        manager::remove_stores(state_dir, None)?;
        match Credentials::load(state_dir) {
            Ok(Some(credentials)) => Ok(credentials.key().clone()),
            Ok(None) => Ok(NodeKey::load_or_create(state_dir)?),
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "an old certificate is given up");
                Credentials::remove(state_dir)?;
                Ok(NodeKey::load_or_create(state_dir)?)
            }
        }
    }

    /// Takes back a membership that could not be taken up, so that the command may be repeated.
    pub(super) fn unmake(&self) {
        let state_dir = &self.config.state_dir;
        self.base.endpoint.set_credentials(None);
        if let Err(error) = Identity::remove(state_dir) {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "a membership is left half made");
        }
    }

    /// Takes in where the managers are.
    pub(super) fn learn(&self, identity: &Identity, last: Option<&Assignment>) {
        let joined = identity.managers.iter().filter_map(|known| known.split_once('@'));
        let joined = joined.filter_map(|(node, address)| Some((node.parse().ok()?, address.parse().ok()?)));
        let named = last.into_iter().flat_map(|last| &last.membership.managers);
        let named = named.filter_map(|(node, address)| Some((*node, address.parse().ok()?)));
        for (node, address) in joined.chain(named) {
            self.base.endpoint.book().learn(node, address, Source::Assigned);
        }
    }

    /// Starts everything that runs for a membership.
    pub(super) fn take_up(
        &self,
        identity: Identity,
        credentials: Credentials,
        manager: Option<Arc<Manager>>,
    ) -> anyhow::Result<()> {
        let base = &self.base;
        let ledger = Ledger::open(&self.config.state_dir)?;
        if let Some(address) = identity.advertise {
            base.description.send_modify(|description| description.address = address.to_string());
        }
        base.time.raise(credentials.subject().not_before);
        base.endpoint.set_credentials(Some(credentials.clone()));
        let (node, cluster) = (identity.node, identity.cluster);
        let ca = credentials.ca().to_vec();
        let credentials = watch::Sender::new(credentials);
        let manager = watch::Sender::new(manager);
        // The last assignment says where managers are, before any of them is reached.
        let own = |last: &Assignment| last.node == node && last.membership.ca == ca;
        let last = ledger.load().ok().flatten().filter(own).map(Arc::new);
        if last.is_none() {
            // What is left of another membership must not be taken for this one's.
            ledger.remove()?;
        }
        let named = identity.managers.iter().filter_map(|known| known.split_once('@')?.0.parse().ok()).collect();
        let parts = link::Parts {
            node,
            cluster,
            base: base.clone(),
            credentials: credentials.clone(),
            manager: manager.subscribe(),
            named,
            last,
        };
        let (link, handle, wire, assignments) = Link::new(parts);
        let agent = Agent::new(node, self.drivers.clone(), ledger, base.agent_view.clone());
        let lost = identity.lost_raft_id;
        let member = Arc::new(Member {
            cluster,
            node,
            credentials,
            manager,
            link: handle,
            identity: Mutex::new(identity),
            storing: tokio::sync::Mutex::default(),
            assignments,
            tasks: Mutex::default(),
        });
        member.link.lost.send_replace(lost);
        {
            let mut tasks = member.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn(link.run());
            tasks.spawn(agent.run(wire));
            tasks.spawn(role::follow(base.clone(), member.clone()));
            tasks.spawn(super::local::events::tell(base.agent_view.subscribe(), self.events.clone()));
        }
        tracing::info!(%cluster, %node, "member of a cluster");
        self.member.send_replace(Some(member));
        Ok(())
    }
}

/// Whether there are managers besides this node.
fn knows_others(identity: &Identity, last: Option<&Assignment>) -> bool {
    let named = last.into_iter().flat_map(|last| last.membership.managers.keys());
    !identity.managers.is_empty() || named.into_iter().any(|node| *node != identity.node)
}
