//! The daemon: opens the drivers, becomes a member, and keeps store, leader, agent and API running until told to end.
//!
//! ```text
//!   config ─► drivers ─► identity ─► store ─► leader ◄─ session ─► agent ─► drivers
//!                                      ▲                             │
//!                                      └────────── api ──────────────┘
//! ```
//! Ending it, or killing it, leaves containers and forwarding as they are: the next one adopts them.

mod cluster;
mod identity;
mod local;
mod machine;
mod reset;

pub use identity::{Identity, IdentityError};
pub use reset::reset;

use crate::{
    agent::{self, Agent, Drivers, Ledger},
    api::{
        self, App,
        node::{Event, InitRequest},
    },
    clock,
    config::Config,
    leader,
    store::{Health, Store, StoreConfig},
    transport::Sessions,
};
use anyhow::Context;
use machine::Machine;
use orchestrator_core::model::NodeDescription;
use rustix::io::Errno;
use std::{
    fs::File,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// UDP port of the control endpoint.
const CONTROL_PORT: u16 = 2377;

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
    config: Config,
    hostname: String,
    machine: Machine,
    description: NodeDescription,
    drivers: Drivers,
    member: watch::Sender<Option<Arc<Member>>>,
    joining: tokio::sync::Mutex<()>,
    leader_view: watch::Sender<leader::View>,
    agent_view: watch::Sender<agent::View>,
    revision: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    execs: local::Execs,
    tasks: Mutex<JoinSet<()>>,
}

/// What exists while this node is a member of a cluster.
pub struct Member {
    identity: Identity,
    store: Store,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting, with the thing and the remedy.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _only_one = lock(&config.run_dir).await?;
    let daemon = Arc::new(Daemon::open(config).await?);
    let socket = &daemon.config.socket;
    let listener = api::server::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    let ending = CancellationToken::new();
    let app = App::new(daemon.clone(), daemon.clone(), clock::now, ending.clone());
    // Who connects meanwhile waits for an answer; before, it would be told that this node belongs to no cluster.
    daemon.join_again().await?;
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
    async fn open(config: Config) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("making the state directory {}", config.state_dir.display()))?;
        let machine = Machine::read();
        let hostname = config.hostname.clone().unwrap_or_else(|| machine.hostname.clone());
        let drivers = Drivers::open(&config).await?;
        let description = NodeDescription {
            platform: Some(machine.platform.clone()),
            nano_cpus: u64::from(machine.cpus) * 1_000_000_000,
            memory_bytes: machine.memory_bytes,
            version: env!("CARGO_PKG_VERSION").into(),
            labels: config.labels.clone(),
            address: drivers.address(config.advertise_addr).await,
            port: CONTROL_PORT,
        };
        Ok(Self {
            config,
            hostname,
            machine,
            description,
            drivers,
            member: watch::Sender::new(None),
            joining: tokio::sync::Mutex::default(),
            leader_view: watch::Sender::default(),
            agent_view: watch::Sender::default(),
            revision: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            execs: local::Execs::default(),
            tasks: Mutex::default(),
        })
    }

    /// Takes up the membership that the state directory holds, or founds a cluster if the configuration says so.
    async fn join_again(&self) -> anyhow::Result<()> {
        match Identity::load(&self.config.state_dir)? {
            Some(identity) => {
                let _one_at_a_time = self.joining.lock().await;
                let member = self.open_member(identity).await?;
                self.found(&member, InitRequest::default()).await?;
                self.take_up(member)?;
            }
            None if self.config.init => {
                self.initialize(InitRequest::default()).await?;
            }
            None => tracing::info!("this node belongs to no cluster; waiting for `edgectl cluster init`"),
        }
        Ok(())
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
            let mut health = member.store.health();
            loop {
                match &*health.borrow_and_update() {
                    Health::Writable => {}
                    Health::ReadOnly { reason } => tracing::warn!(reason = &**reason, "the store is read-only"),
                    Health::Failed { reason } => return reason.to_string(),
                }
                if health.changed().await.is_err() {
                    return "it was stopped".into();
                }
            }
        }
    }

    fn member(&self) -> Option<Arc<Member>> {
        self.member.borrow().clone()
    }

    async fn open_member(&self, identity: Identity) -> anyhow::Result<Member> {
        let dir = self.config.state_dir.join("raft");
        let store = Store::open(StoreConfig::new(dir, identity.raft_id, identity.node.to_string())).await?;
        Ok(Member { identity, store })
    }

    /// Starts leader and agent of a member.
    fn take_up(&self, member: Member) -> anyhow::Result<()> {
        let (sessions, inbox) = Sessions::new();
        let ledger = Ledger::open(&self.config.state_dir)?;
        let session = sessions.open(member.identity.node);
        let agent = Agent::new(
            member.identity.node,
            self.description.clone(),
            self.drivers.clone(),
            ledger,
            self.agent_view.clone(),
        );
        let mut states = member.store.watch();
        let revision = self.revision.clone();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(leader::run(member.store.clone(), sessions, inbox, self.leader_view.clone()));
        tasks.spawn(agent.run(session));
        tasks.spawn(local::events::tell(self.agent_view.subscribe(), self.events.clone()));
        tasks.spawn(async move {
            while states.changed().await.is_ok() {
                revision.send_replace(states.borrow_and_update().revision);
            }
        });
        tracing::info!(cluster = %member.identity.cluster, node = %member.identity.node, "member of a cluster");
        self.member.send_replace(Some(Arc::new(member)));
        Ok(())
    }

    /// Ends what runs here in order; containers go on.
    async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(member) = self.member.send_replace(None) {
            member.store.shutdown().await;
        }
    }
}
