//! This node's membership of a cluster: how it begins, what runs while it lasts, how it ends.

use super::{
    Base, Daemon, Identity, Manager,
    join::{self, Application, JoinError},
    link::{self, Link, Standing},
    manager, role,
};
use crate::{
    agent::{Agent, Ledger},
    api::node::{Failure, InitRequest, JoinRequest},
    clock,
    pki::{Authority, Credentials, NodeKey, Token, new_secret},
    store::{self, Health, Store, StoreError},
    transport::{Announcement, Source},
};
use anyhow::Context;
use orchestrator_core::{
    assignment::{AssignedTask, Assignment},
    intent,
    model::{Availability, Cluster, ClusterId, Desired, Node, NodeDescription, NodeId, Role, Settings, Tokens},
    state::{Applied, State},
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};

/// First and longest pause of a node that joins by its configuration; in between it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What a new member may take until it is in session with the leader, before the command that made it one returns anyway.
const SETTLES: Duration = Duration::from_secs(10);
/// What the cluster may take to take note of a node that leaves.
const TELL: Duration = Duration::from_secs(3);
/// What the cluster may take to let go of a manager that leaves.
const LET_GO: Duration = Duration::from_secs(10);
/// What the containers of a node that leaves may take to end: most have ten seconds of grace.
const LAST_CONTAINERS: Duration = Duration::from_secs(60);

/// Docker's words for a second membership.
const ALREADY: &str =
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
    assignments: watch::Sender<Option<Arc<Assignment>>>,
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

    /// Takes in where the managers are.
    fn learn(&self, identity: &Identity, last: Option<&Assignment>) {
        let joined = identity.managers.iter().filter_map(|known| known.split_once('@'));
        let joined = joined.filter_map(|(node, address)| Some((node.parse().ok()?, address.parse().ok()?)));
        let named = last.into_iter().flat_map(|last| &last.membership.managers);
        let named = named.filter_map(|(node, address)| Some((*node, address.parse().ok()?)));
        for (node, address) in joined.chain(named) {
            self.base.endpoint.book().learn(node, address, Source::Assigned);
        }
    }

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
            let key = NodeKey::load_or_create(state_dir)?;
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
            let credentials = self.found(&identity, credentials, &manager, &request).await?;
            self.take_up(identity, credentials, Some(manager))?;
            anyhow::Ok(node)
        };
        let made = made.await;
        self.pending.send_replace(None);
        made.map_err(|cause| Failure::Internal { what: "initialising the cluster".into(), cause: cause.into() })
    }

    /// Commits the first entry, unless that was done before. Returns the credentials that go with it: what signs them is made
    /// here and kept nowhere else before.
    async fn found(
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
        ca: &orchestrator_core::model::Ca,
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

    /// Makes this node a member of the cluster of a token.
    pub(super) async fn join_cluster(&self, request: JoinRequest) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        if self.member().is_some() {
            return Err(Failure::Unavailable(ALREADY.into()));
        }
        let token: Token =
            request.token.trim().parse().map_err(|error| Failure::Invalid(format!("invalid join token: {error}")))?;
        let advertise = self.own_addresses(request.advertise_addr.as_deref(), request.listen_addr.as_deref())?;
        let internal =
            |cause: anyhow::Error| Failure::Internal { what: "joining the cluster".into(), cause: cause.into() };
        let state_dir = &self.config.state_dir;
        let key = NodeKey::load_or_create(state_dir).map_err(|error| internal(error.into()))?;
        self.pending.send_replace(Some("joining a cluster".into()));
        let mut description = self.base.description.borrow().clone();
        if let Some(address) = advertise {
            description.address = address.to_string();
        }
        let application = Application {
            token: &token,
            key: &key,
            addresses: &request.addresses,
            hostname: &self.hostname,
            description,
            availability: request.availability.unwrap_or(Availability::Active),
        };
        let answer = join::join(&self.base.endpoint, &self.base.finder, &self.base.time, &application).await;
        self.pending.send_replace(None);
        let welcome = match answer {
            Ok(welcome) => welcome,
            Err(JoinError::Refused(why)) => return Err(Failure::Denied(why)),
            Err(error @ JoinError::NotYet(_)) => return Err(Failure::Unavailable(error.to_string())),
        };
        let joined = async {
            let node = key.node_id();
            let credentials = Credentials::new(key, welcome.certificate, welcome.ca)?;
            let subject = credentials.subject();
            anyhow::ensure!(
                (subject.node, subject.cluster) == (node, welcome.cluster),
                "the manager's certificate for this node is for another one"
            );
            credentials.save(state_dir)?;
            let identity = Identity {
                cluster: welcome.cluster,
                node,
                raft_id: welcome.raft_id,
                lost_raft_id: None,
                advertise,
                managers: welcome.managers.iter().map(|(node, address)| format!("{node}@{address}")).collect(),
            };
            identity.save(state_dir)?;
            self.learn(&identity, None);
            self.base.endpoint.set_credentials(Some(credentials.clone()));
            let manager = match identity.raft_id {
                Some(raft_id) => Some(self.base.start_manager(raft_id, node).await?),
                None => None,
            };
            self.take_up(identity, credentials, manager)?;
            anyhow::Ok(node)
        };
        let node = joined.await.map_err(internal)?;
        self.settled().await;
        Ok(node)
    }

    /// Returns when this node is in session with the leader, or that takes too long.
    async fn settled(&self) {
        let Some(member) = self.member() else { return };
        let mut standing = member.link.standing.clone();
        let _late = timeout(SETTLES, standing.wait_for(|standing| matches!(standing, Standing::Attached(_)))).await;
    }

    /// The address that the user wants others to use. The endpoint listens already: another address to listen on is for the
    /// configuration.
    fn own_addresses(&self, advertise: Option<&str>, listen: Option<&str>) -> Result<Option<IpAddr>, Failure> {
        let port = self.base.description.borrow().port;
        let split = |what: &str, text: &str| -> Result<(String, Option<u16>), Failure> {
            let (host, asked) = match text.parse::<std::net::SocketAddr>() {
                Ok(address) => (address.ip().to_string(), Some(address.port())),
                Err(_) => match text.rsplit_once(':') {
                    Some((host, port)) if !host.contains(':') && port.parse::<u16>().is_ok() => {
                        (host.to_owned(), port.parse().ok())
                    }
                    _ => (text.trim_matches(['[', ']']).to_owned(), None),
                },
            };
            match asked {
                Some(asked) if asked != port && asked != 0 => Err(Failure::Invalid(format!(
                    "invalid {what} address {text}: this node listens on port {port}; listen-addr in edged.toml changes it"
                ))),
                _ => Ok((host, asked)),
            }
        };
        if let Some(listen) = listen {
            split("listen", listen)?;
        }
        let Some(text) = advertise.filter(|text| !text.is_empty()) else { return Ok(None) };
        let (host, _) = split("advertise", text)?;
        let address = host.parse::<IpAddr>();
        let address = address.map_err(|_| {
            Failure::Invalid(format!("invalid advertise address {text}: an IP address with or without port is needed"))
        })?;
        if address.is_unspecified() {
            return Err(Failure::Invalid(format!(
                "invalid advertise address {text}: it must be one that others can reach"
            )));
        }
        Ok(Some(address))
    }

    /// Starts everything that runs for a membership.
    fn take_up(
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
        let credentials = watch::Sender::new(credentials);
        let manager = watch::Sender::new(manager);
        // The last assignment says where managers are, before any of them is reached.
        let last = ledger.load().ok().flatten().filter(|last| last.node == node).map(Arc::new);
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
        let empty = |view: &crate::agent::View| {
            view.assignment.as_ref().is_none_or(|assignment| assignment.tasks.values().all(ends))
                && view.observed.tasks.is_empty()
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
            Identity::remove(state_dir)?;
            Credentials::remove(state_dir)?;
            Ledger::open(state_dir)?.remove()?;
            manager::remove_stores(state_dir, None)?;
            Ok(())
        };
        forget()
            .map_err(|cause| Failure::Internal { what: "forgetting the membership".into(), cause: cause.into() })?;
        tracing::info!("this node has left its cluster");
        Ok(())
    }

    /// Goes on alone after the majority of the managers was lost.
    pub(super) async fn force_new_cluster(&self) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        let Some(member) = self.member() else {
            return Err(Failure::Unavailable("This node is not part of a swarm: there is nothing to make new".into()));
        };
        let Some(manager) = member.manager.send_replace(None) else {
            return Err(Failure::Unavailable(
                "This node is a worker: only a manager has what a cluster is made of".into(),
            ));
        };
        let forced = async {
            let raft_id = manager.raft_id;
            manager.stop().await;
            let config = manager::config(&self.config.state_dir, raft_id, member.node, &self.base.endpoint);
            Store::force_alone(config).await?.shutdown().await;
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
            match self.base.start_manager(manager.raft_id, member.node).await {
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

/// Whether there are managers besides this node.
fn knows_others(identity: &Identity, last: Option<&Assignment>) -> bool {
    let named = last.into_iter().flat_map(|last| last.membership.managers.keys());
    !identity.managers.is_empty() || named.into_iter().any(|node| *node != identity.node)
}

async fn founded(store: &Store) -> bool {
    let mut leadership = store.leadership();
    let _late = timeout(SETTLES, leadership.wait_for(Option::is_some)).await;
    store.state().cluster.is_some()
}

/// Joins as `edged.toml` says, for as long as it takes.
pub(super) async fn join_as_configured(daemon: Arc<Daemon>, token: Token) {
    let mut pause = PAUSE.0;
    loop {
        let request = JoinRequest {
            token: token.to_string(),
            addresses: daemon.config.join_addresses.clone(),
            ..JoinRequest::default()
        };
        match daemon.join_cluster(request).await {
            Ok(node) => {
                tracing::info!(%node, "joined as configured");
                return;
            }
            Err(_) if daemon.member().is_some() => return,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "not joined yet; trying again in {} s", pause.as_secs());
                daemon.pending.send_replace(Some(format!("joining the configured cluster: {error}")));
            }
        }
        tokio::time::sleep(pause.mul_f64(0.75 + link::draw() / 2.0)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}
