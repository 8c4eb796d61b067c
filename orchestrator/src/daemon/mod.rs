//! The daemon: opens the drivers, becomes a member, and keeps store, leader, agent and API running until told to end.
//!
//! ```text
//!   config ─► drivers ─► identity ─► link ◄─ wire ─► agent ─► drivers
//!                            │         ▲
//!                            │         │ session, in this process or over QUIC
//!                            ▼         ▼
//!                          store ─► leader        api: state from the store, containers from the agent
//! ```
//! Ending it, or killing it, leaves containers and forwarding as they are: the next one adopts them.

mod certificates;
mod cluster;
mod contact;
mod discover;
mod found;
mod identity;
mod join;
mod leave;
mod let_in;
mod link;
mod local;
mod machine;
mod manager;
mod member;
mod remote;
mod reset;
mod role;
mod serve;

pub use identity::{Identity, IdentityError};
pub use manager::Manager;
pub use member::Member;
pub use reset::reset;

use crate::{
    agent::{self, Drivers},
    api::{
        self, App,
        node::{Event, Failure},
    },
    clock,
    config::Config,
    leader,
    pki::LastSeen,
    store::StoreError,
    transport::{Discovery, Endpoint, EndpointConfig},
};
use anyhow::Context;
use discover::Finder;
use machine::Machine;
use orchestrator_core::model::{NodeDescription, NodeId};
use rustix::io::Errno;
use serve::Gate;
use std::{
    fs::File,
    net::Ipv6Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// A link that comes up gets its addresses one after the other; they are read once this time has passed.
const SETTLE: Duration = Duration::from_millis(200);

/// Events kept for slow readers of the API.
const EVENTS: usize = 1024;

/// Time that requests have to end before they are cut off.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// The longest that a daemon which was killed may still hold its lock; on a busy board it has containers' worth of memory to
/// give back first.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// Lowest number that the lock's descriptor may have. The kernel closes those of an ending process in ascending order, so a high
/// one means that whoever gets this lock finds those of the stores free too.
const CLOSED_LAST: i32 = 500;

/// Time between two attempts at the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Everything that lives as long as the process.
pub struct Daemon {
    /// For what must go on though its caller goes away.
    me: Weak<Self>,
    config: Config,
    hostname: String,
    machine: Machine,
    drivers: Drivers,
    base: Base,
    member: watch::Sender<Option<Arc<Member>>>,
    joining: tokio::sync::Mutex<()>,
    /// What the node is about to become, and what stands in the way, for people.
    pending: watch::Sender<Option<String>>,
    events: broadcast::Sender<Event>,
    execs: local::Execs,
    tasks: Mutex<JoinSet<()>>,
}

/// What all parts of a membership work with.
#[derive(Clone)]
struct Base {
    state_dir: PathBuf,
    endpoint: Endpoint,
    time: Arc<LastSeen>,
    finder: Finder,
    description: watch::Sender<NodeDescription>,
    leader_view: watch::Sender<leader::View>,
    agent_view: watch::Sender<agent::View>,
    revision: watch::Sender<u64>,
}

impl Base {
    async fn start_manager(&self, raft_id: u64, node: NodeId) -> Result<Arc<Manager>, StoreError> {
        let (view, revision) = (self.leader_view.clone(), self.revision.clone());
        Manager::start(&self.state_dir, (raft_id, node), &self.endpoint, self.time.clone(), view, revision).await
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting, with the thing and the remedy.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _only_one = lock(&config.run_dir).await?;
    let (daemon, gate) = Daemon::open(config).await?;
    let socket = &daemon.config.socket;
    let listener = api::server::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    let ending = CancellationToken::new();
    let app = App::new(daemon.clone(), daemon.clone(), daemon.clone(), clock::now, ending.clone());
    gate.open(app.clone());
    // Who connects meanwhile waits for an answer; before, it would be told that this node belongs to no cluster.
    daemon.join_again().await?;
    daemon.spawn(addresses(daemon.clone()));
    let server = tokio::spawn(api::server::serve(listener, app));
    tracing::info!(socket = %daemon.config.socket.display(), "edged is up");
    let mut failed = None;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: ending; containers go on"),
        _ = interrupt.recv() => tracing::info!("SIGINT: ending; containers go on"),
        reason = daemon.store_failed() => failed = Some(reason),
    }
    ending.cancel();
    let served = tokio::time::timeout(LAST_REQUESTS, server).await;
    if served.is_err() {
        tracing::warn!("requests were cut off: they did not end in time");
    }
    daemon.close().await;
    match failed {
        // Nothing is known of what the disk kept: only a new process that reads it again may go on.
        Some(reason) => Err(anyhow::anyhow!("the store failed: {reason}; start edged again once the disk is mended")),
        None => Ok(()),
    }
}

/// Holds the run directory for this process: two daemons would fight over everything.
///
/// One that was killed holds it for a moment longer: until its last thread is gone, and until each process that it was about
/// to start has replaced its copy of the daemon, which closes the file (execve(2)).
async fn lock(run_dir: &Path) -> anyhow::Result<OwnedFd> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("making {}", run_dir.display()))?;
    let path = run_dir.join("edged.lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let file = rustix::io::fcntl_dupfd_cloexec(&file, CLOSED_LAST).context("numbering the daemon's lock")?;
    let deadline = Instant::now() + LAST_MOMENTS;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => tokio::time::sleep(LOCK_RETRY).await,
            Err(error) => {
                return Err(error).with_context(|| format!("another edged holds {}; stop it first", path.display()));
            }
        }
    }
}

impl Daemon {
    async fn open(config: Config) -> anyhow::Result<(Arc<Self>, Arc<Gate>)> {
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("making the state directory {}", config.state_dir.display()))?;
        let machine = Machine::read();
        let hostname = config.hostname.clone().unwrap_or_else(|| machine.hostname.clone());
        let drivers = Drivers::open(&config).await?;
        let time = Arc::new(LastSeen::open(&config.state_dir)?);
        let member = watch::Sender::new(None);
        let gate = Arc::new(Gate::new(member.subscribe(), time.clone()));
        let listen = config.listen_addr.unwrap_or((Ipv6Addr::UNSPECIFIED, join::PORT).into());
        let endpoint =
            Endpoint::bind(EndpointConfig { listen, time: time.clone(), admit: gate.clone(), handlers: gate.clone() })
                .with_context(|| {
                    format!("listening for other nodes on {listen} (UDP); listen-addr in edged.toml changes it")
                })?;
        let description = NodeDescription {
            platform: Some(machine.platform.clone()),
            nano_cpus: u64::from(machine.cpus) * 1_000_000_000,
            memory_bytes: machine.memory_bytes,
            version: env!("CARGO_PKG_VERSION").into(),
            labels: config.labels.clone(),
            address: drivers.address(config.advertise_addr).await,
            port: endpoint.local_addr().context("reading the port of the control endpoint")?.port(),
        };
        let discovery = if config.discovery { discovery(&config) } else { None };
        let base = Base {
            state_dir: config.state_dir.clone(),
            endpoint,
            time,
            finder: Finder::new(discovery),
            description: watch::Sender::new(description),
            leader_view: watch::Sender::default(),
            agent_view: watch::Sender::default(),
            revision: watch::Sender::new(0),
        };
        let daemon = |me: &Weak<Self>| Self {
            me: me.clone(),
            config,
            hostname,
            machine,
            drivers,
            base,
            member,
            joining: tokio::sync::Mutex::default(),
            pending: watch::Sender::new(None),
            events: broadcast::Sender::new(EVENTS),
            execs: local::Execs::default(),
            tasks: Mutex::default(),
        };
        Ok((Arc::new_cyclic(daemon), gate))
    }

    /// Takes up the membership that the state directory holds, or founds or joins a cluster if the configuration says so.
    async fn join_again(self: &Arc<Self>) -> anyhow::Result<()> {
        match Identity::load(&self.config.state_dir)? {
            Some(identity) => {
                let _one_at_a_time = self.joining.lock().await;
                self.resume(identity).await?;
            }
            None if self.config.init => {
                self.initialize(api::node::InitRequest::default()).await?;
            }
            None => match self.config.join_token {
                Some(token) => self.spawn(join::join_as_configured(self.clone(), token)),
                None => tracing::info!(
                    "this node belongs to no cluster; waiting for `edgectl cluster init` or `edgectl cluster join`"
                ),
            },
        }
        Ok(())
    }

    /// Carries a change of the membership through, even if whoever asked for it does not wait: half of one is worse than none.
    async fn carry_through<T: Send + 'static, F>(&self, change: impl FnOnce(Arc<Self>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let Some(me) = self.me.upgrade() else { return Err(Failure::Unavailable("edged ends".into())) };
        match tokio::spawn(change(me)).await {
            Ok(done) => done,
            Err(error) => Err(Failure::Internal { what: "changing the membership".into(), cause: error.into() }),
        }
    }

    /// Runs something for as long as the daemon.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Returns when the store of this node's membership has failed for good.
    async fn store_failed(&self) -> String {
        let mut members = self.member.subscribe();
        loop {
            let member = members.borrow_and_update().clone();
            let Some(member) = member else {
                // The sender lives as long as `self`.
                let _alive = members.changed().await;
                continue;
            };
            tokio::select! {
                reason = member.store_failed() => return reason,
                _ = members.changed() => {}
            }
        }
    }

    fn member(&self) -> Option<Arc<Member>> {
        self.member.borrow().clone()
    }

    /// This node's store, while it is a manager.
    fn manager(&self) -> Option<Arc<Manager>> {
        self.member()?.manager.borrow().clone()
    }

    /// Ends what runs here in order; containers go on.
    async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(member) = self.member.send_replace(None) {
            member.close().await;
        }
        self.base.finder.announce(None);
        self.base.endpoint.close("edged ends").await;
    }
}

/// Multicast DNS on the uplinks; without it nodes must be told where managers are.
fn discovery(config: &Config) -> Option<Discovery> {
    match Discovery::start(&config.uplinks) {
        Ok(discovery) => Some(discovery),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "managers cannot be found by multicast DNS, only by address");
            None
        }
    }
}

/// Keeps what the node says of its address true: with DHCP it may change at any time.
async fn addresses(daemon: Arc<Daemon>) {
    let mut links = daemon.drivers.network.changes();
    let mut members = daemon.member.subscribe();
    loop {
        links.mark_unchanged();
        let member = members.borrow_and_update().clone();
        let configured =
            member.as_ref().and_then(|member| member.identity().advertise).or(daemon.config.advertise_addr);
        let address = daemon.drivers.address(configured).await;
        daemon.base.description.send_if_modified(|description| {
            // Between two leases there is none: what others know is better than nothing.
            let new = !address.is_empty() && description.address != address;
            if new {
                tracing::info!(address, "others reach this node by this address now");
                description.address = address;
            }
            new
        });
        if let Some(member) = &member {
            member.announce(&daemon.base);
        }
        let role = member.as_ref().map(|member| member.manager.subscribe());
        let role_changes = async move {
            match role {
                Some(mut role) => drop(role.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = links.changed() => if ended.is_err() { return },
            ended = members.changed() => if ended.is_err() { return },
            () = role_changes => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}
