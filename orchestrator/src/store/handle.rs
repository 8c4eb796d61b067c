//! [`Store`]: the replicated state as the rest of the daemon sees it.
//!
//! In: entries to propose. Out: their outcomes, the newest state, and who leads. Callers: `leader` and `api` propose and read,
//! `agent` watches, `transport` carries [`Store::answer`].

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use openraft::{
    Config, Raft, ServerState, SnapshotPolicy,
    error::{CheckIsLeaderError, ClientWriteError, InitializeError as RaftInitializeError, RaftError},
};
use orchestrator_core::{
    members::Members,
    state::{Applied, Entry, State},
    wire,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    contacts::Contacts,
    elections::{self, Silence, Voter},
    error::{InitializeError, ProposeError, ReadError, StoreError, fatal_error},
    handover,
    leadership::{self, Leadership, Reports, Sources},
    log::{
        Recovery, SEGMENT_BYTES,
        writer::{Health, Writer},
    },
    log_store::LogStore,
    machine::Machine,
    members::members,
    meter::{Meter, Written},
    network::{Links, Network, NoPeers, Peers},
    parts::Assembly,
    raft::{Member, TypeConfig},
    recover::{Recovered, io_error, recover},
};

/// A leader says that it is there this often. Timings suit SD cards and Wi-Fi, where a sync or a packet may take 100s of ms.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(250);
/// openraft's timer is off (see `elections`). What is left of this is how long a voter may take to answer a candidate, which is
/// one sync of its disk, and for how long it refuses everyone but the leader it last heard of: [`ELECTION_MAX`].
const ELECTION_MIN: Duration = Duration::from_millis(900);
/// See [`ELECTION_MIN`].
pub(super) const ELECTION_MAX: Duration = Duration::from_millis(1000);
/// A read that no quorum confirms by then fails: twice the time in which a leader without one stops leading.
const READ: Duration = Duration::from_secs(2);
/// A proposal that is not committed by then meets a quorum that is too slow; one that is lost shows within [`ELECTION_MAX`].
pub(super) const PROPOSE: Duration = Duration::from_secs(10);
/// A leader without a quorum waits this long for it to come back before it gives up what was proposed: members whose disk takes
/// seconds for a large entry answer nothing meanwhile.
pub(super) const REGAIN: Duration = Duration::from_secs(2);
/// The largest proposal: twice what a plan that places 20,000 tasks at once takes.
pub(super) const MAX_ENTRY_BYTES: usize = 8 << 20;
/// A proposal above this may need a log segment of its own, so there must be room on the disk for it.
const LARGE_ENTRY_BYTES: usize = SEGMENT_BYTES as usize / 4;

/// Where a store lies and who it speaks for.
#[derive(Clone)]
pub struct StoreConfig {
    /// The store's own folder; created where there is none.
    pub dir: PathBuf,
    /// This member's raft id: unique for ever, new for every join.
    pub raft_id: u64,
    /// This node's id as text.
    pub node: String,
    /// The way to the other members.
    pub peers: Arc<dyn Peers>,
}

impl StoreConfig {
    /// A store in `dir` for the member `raft_id` on `node`, without a way to others.
    pub fn new(dir: impl Into<PathBuf>, raft_id: u64, node: impl Into<String>) -> Self {
        StoreConfig { dir: dir.into(), raft_id, node: node.into(), peers: Arc::new(NoPeers) }
    }
}

/// Figures about a store.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Bytes written to flash since start, by purpose.
    pub written: Written,
    /// Bytes of torn, never acknowledged writes that were cut when the store was opened.
    pub cut_bytes: u64,
    /// Damaged snapshots that an older one made up for when the store was opened.
    pub damaged_snapshots: usize,
    /// Can it take changes?
    pub health: Health,
    /// Index of the last entry in the log.
    pub last_index: Option<u64>,
    /// Index of the newest snapshot.
    pub snapshot_index: Option<u64>,
    /// The raft term.
    pub term: u64,
}

/// The replicated state. Clones are handles of the same store; the last one dropped stops it, [`Store::shutdown`] does so in
/// order.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) raft: Raft<TypeConfig>,
    pub(super) raft_id: u64,
    node: String,
    dir: PathBuf,
    pub(super) links: Arc<Links>,
    pub(super) contacts: Arc<Contacts>,
    pub(super) assembly: Assembly,
    pub(super) silence: Arc<Silence>,
    state: watch::Receiver<Arc<State>>,
    pub(super) leadership: watch::Receiver<Option<Leadership>>,
    leader: watch::Receiver<Option<Member>>,
    members: watch::Receiver<Members>,
    /// Another member is to lead: nothing is proposed here any more.
    pub(super) handing_over: watch::Sender<bool>,
    /// Held by whoever changes the membership or hands over.
    pub(super) changing: Arc<Semaphore>,
    pub(super) health: watch::Sender<Health>,
    /// Bytes that the log's present segment still takes.
    pub(super) segment_room: Arc<AtomicU64>,
    meter: Arc<Meter>,
    recovery: Recovery,
    damaged_snapshots: usize,
    tasks: Mutex<JoinSet<()>>,
    /// Ends when nothing can write to the folder any more.
    closed: watch::Receiver<()>,
}

impl Store {
    /// Opens the store in a folder, or creates an empty one there.
    ///
    /// What was acknowledged is there again when [`Store::leadership`] says so (a node that is the only voter leads within
    /// milliseconds), or when the leader has been heard of.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(config: StoreConfig) -> Result<Store, StoreError> {
        let (dir, raft_id) = (config.dir.clone(), config.raft_id);
        let recovered = tokio::task::spawn_blocking(move || recover(&dir, raft_id)).await;
        let recovered = recovered.unwrap_or_else(|error| Err(io_error(&config.dir, error)))?;
        let Recovered { lock, closed, meter, log, image, recovery, files, newest, previous, damaged } = recovered;

        let behind = newest.as_ref().and_then(|snapshot| snapshot.moment.last).map(|last| last.index);
        let appended = Arc::new(AtomicU64::new(image.bytes_behind(behind)));
        let machine = Machine::new(files, newest, appended.clone()).map_err(|error| io_error(&config.dir, error))?;
        let health = watch::Sender::new(Health::Writable);
        let writer = Writer::spawn(log, health.clone(), lock).map_err(|error| io_error(&config.dir, error))?;
        let segment_room = writer.room();
        let log_store = LogStore::new(image, writer, appended);
        let contacts = Arc::new(Contacts::default());
        let links = Arc::new(Links::new(raft_id, config.peers, contacts.clone()));
        let network = Network(links.clone());
        let raft = Raft::new(raft_id, Arc::new(raft_config()), network, log_store, machine.clone()).await;
        let raft = raft.map_err(|source| StoreError::Raft { dir: config.dir.clone(), source: Box::new(source) })?;

        // The only voter need not wait for anybody: it elects itself, if it does not lead already by its last vote.
        let alone = raft.with_raft_state(move |state| {
            let voters: Vec<u64> = state.membership_state.effective().voter_ids().collect();
            voters == [raft_id] && state.server_state != ServerState::Leader
        });
        if alone.await.unwrap_or(false) {
            // Fails only when raft has stopped, which the tasks below report.
            let _ = raft.trigger().elect().await;
        }

        let state = machine.watch();
        let reports = Reports {
            leadership: watch::Sender::new(None),
            leader: watch::Sender::new(None),
            members: watch::Sender::new(members(&raft.server_metrics().borrow(), raft_id)),
            health: health.clone(),
        };
        let (leadership, leader) = (reports.leadership.subscribe(), reports.leader.subscribe());
        let members = reports.members.subscribe();
        let handing_over = watch::Sender::new(false);
        let changing = Arc::new(Semaphore::new(1));
        let sources =
            Sources { raft: raft.clone(), raft_id, contacts: contacts.clone(), handing_over: handing_over.subscribe() };
        let silence = Arc::new(Silence::begin(raft_id));
        let voter = Voter {
            raft: raft.clone(),
            raft_id,
            links: links.clone(),
            silence: silence.clone(),
            health: health.subscribe(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(leadership::watch(sources, reports));
        tasks.spawn(elections::run(voter));
        tasks.spawn(leadership::finish_changes(raft.clone(), leadership.clone(), changing.clone()));
        tasks.spawn(machine.snapshot_task(raft.clone(), previous));
        let inner = Inner {
            raft,
            raft_id,
            node: config.node,
            dir: config.dir,
            links,
            contacts,
            assembly: Assembly::default(),
            silence,
            state,
            leadership,
            leader,
            members,
            handing_over,
            changing,
            health,
            segment_room,
            meter,
            recovery,
            damaged_snapshots: damaged,
            tasks: Mutex::new(tasks),
            closed,
        };
        let store = Store { inner: Arc::new(inner) };
        store.spawn(handover::when_read_only(Arc::downgrade(&store.inner)));
        Ok(store)
    }

    /// Founds a cluster whose only voter is this member, and commits its first entry. After a crash in the middle the call
    /// may be repeated.
    ///
    /// # Errors
    /// [`InitializeError`].
    pub async fn initialize(&self, first: Entry) -> Result<Applied, InitializeError> {
        let members = BTreeMap::from([(self.inner.raft_id, Member { node: self.inner.node.clone() })]);
        // Asked first, as openraft logs an error when it has to refuse. A store that was founded before may lack its first entry.
        if self.is_initialized() {
            if !self.alone() {
                return Err(InitializeError::AlreadyInitialized);
            }
        } else {
            match self.inner.raft.initialize(members).await {
                Ok(()) => {}
                Err(RaftError::APIError(RaftInitializeError::NotAllowed(_))) if self.alone() => {}
                Err(RaftError::APIError(_)) => return Err(InitializeError::AlreadyInitialized),
                Err(RaftError::Fatal(fatal)) => return Err(InitializeError::Propose(fatal_error(&fatal))),
            }
        }
        let mut leadership = self.leadership();
        // An error of either kind shows again in the proposal, with its reason.
        let _ = timeout(PROPOSE, leadership.wait_for(Option::is_some)).await;
        if self.state().cluster.is_some() {
            return Err(InitializeError::AlreadyInitialized);
        }
        self.propose(first).await.map_err(InitializeError::Propose)
    }

    /// Was a cluster founded or joined with this store?
    pub fn is_initialized(&self) -> bool {
        self.inner.raft.server_metrics().borrow().membership_config.log_id().is_some()
    }

    /// Commits an entry, if this node leads. The outcome is in [`Store::state`] when this returns.
    ///
    /// Dropping the future does not take the proposal back.
    ///
    /// # Errors
    /// [`ProposeError`]; see there which of them leave it open whether the entry is committed.
    pub async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError> {
        let health = self.inner.health.borrow().clone();
        if let Health::Failed { reason } = health {
            return Err(ProposeError::Failed { reason });
        }
        if self.is_shut_down() {
            return Err(ProposeError::ShutDown);
        }
        let Some(leadership) = *self.inner.leadership.borrow() else {
            return Err(ProposeError::NotLeader { leader: self.inner.leader.borrow().clone() });
        };
        if let Health::ReadOnly { reason } = health {
            return Err(ProposeError::ReadOnly { reason });
        }
        let bytes =
            wire::encode(&entry).map_err(|error| ProposeError::Failed { reason: error.to_string().into() })?.len();
        if bytes > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        if bytes > LARGE_ENTRY_BYTES && self.room() < 2 * bytes as u64 {
            return Err(ProposeError::ReadOnly { reason: format!("no room for a change of {bytes} bytes").into() });
        }
        let written = self.inner.raft.client_write(entry);
        match self.while_leading(leadership, PROPOSE, REGAIN, written).await.ok_or(ProposeError::Timeout)? {
            Ok(response) => Ok(response.data.expect("a change has an outcome")),
            // It was in the log already when another leader took over: that one may have it, too.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(ProposeError::Timeout),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ProposeError::Failed { reason: error.to_string().into() })
            }
            Err(RaftError::Fatal(fatal)) => Err(fatal_error(&fatal)),
        }
    }

    /// What `work` returns, unless it takes longer than `limit`, or the leadership is lost and not there again after `grace`.
    pub(super) async fn while_leading<T>(
        &self,
        leadership: Leadership,
        limit: Duration,
        grace: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut now = self.leadership();
        let lost = async {
            // A store that is being shut down answers `work`.
            while now.wait_for(|now| *now != Some(leadership)).await.is_ok() {
                if timeout(grace, now.wait_for(|now| *now == Some(leadership))).await.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            done = timeout(limit, work) => done.ok(),
            () = lost => None,
        }
    }

    /// The newest state this node has applied; another may be ahead.
    pub fn state(&self) -> Arc<State> {
        self.inner.state.borrow().clone()
    }

    /// The state with everything that was acknowledged to anyone before this call, if this node leads.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self) -> Result<Arc<State>, ReadError> {
        if self.is_shut_down() {
            return Err(ReadError::ShutDown);
        }
        let not_leader = || ReadError::NotLeader { leader: self.inner.leader.borrow().clone() };
        let Some(leadership) = *self.inner.leadership.borrow() else { return Err(not_leader()) };
        let confirmed = async {
            loop {
                match self.inner.raft.ensure_linearizable().await {
                    // A member that is slow for a moment answers the next time.
                    Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => sleep(HEARTBEAT / 4).await,
                    other => return other,
                }
            }
        };
        match self.while_leading(leadership, READ, Duration::ZERO, confirmed).await.ok_or(ReadError::NoQuorum)? {
            Ok(_) => Ok(self.state()),
            Err(RaftError::APIError(_)) => Err(not_leader()),
            Err(RaftError::Fatal(_)) => Err(ReadError::ShutDown),
        }
    }

    /// The newest applied state and those that follow; intermediate ones may be skipped.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.clone()
    }

    /// Does this node lead? Ends while no quorum follows, and may come back in the same term.
    pub fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.inner.leadership.clone()
    }

    /// Who leads, as far as this node knows: the last leader it heard of, until it takes part in an election or, leading itself,
    /// loses its quorum.
    pub fn leader(&self) -> watch::Receiver<Option<Member>> {
        self.inner.leader.clone()
    }

    /// Who keeps the log, as far as this node knows.
    pub fn members(&self) -> Members {
        self.inner.members.borrow().clone()
    }

    /// The members and their changes.
    pub fn watch_members(&self) -> watch::Receiver<Members> {
        self.inner.members.clone()
    }

    /// Can the store take changes? After [`Health::Failed`] the process has to end and open the store anew.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    /// Figures.
    pub fn metrics(&self) -> Metrics {
        let raft = self.inner.raft.metrics().borrow().clone();
        Metrics {
            written: self.inner.meter.read(),
            cut_bytes: self.inner.recovery.cut_bytes,
            damaged_snapshots: self.inner.damaged_snapshots,
            health: self.inner.health.borrow().clone(),
            last_index: raft.last_log_index,
            snapshot_index: raft.snapshot.map(|snapshot| snapshot.index),
            term: raft.current_term,
        }
    }

    /// Stops the store: what was requested is finished, threads and tasks end, the folder is free for another process.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(error = &error as &dyn std::error::Error, "raft did not stop in order");
        }
        tasks.shutdown().await;
        // A snapshot that is just being written is finished first. Nothing is ever sent; the error is the end.
        let _ = self.inner.closed.clone().changed().await;
    }

    /// Runs `task` until the store is shut down.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Has whatever watches raft ended?
    pub(super) fn is_shut_down(&self) -> bool {
        self.inner.leadership.has_changed().is_err()
    }

    /// Bytes free on the disk.
    pub(super) fn room(&self) -> u64 {
        rustix::fs::statvfs(&self.inner.dir).map_or(0, |disk| disk.f_bavail * disk.f_frsize)
    }

    fn alone(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        metrics.borrow().membership_config.voter_ids().eq([self.inner.raft_id])
    }
}

fn raft_config() -> Config {
    Config {
        cluster_name: "edged".into(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION_MIN.as_millis() as u64,
        election_timeout_max: ELECTION_MAX.as_millis() as u64,
        // `elections` says when.
        enable_elect: false,
        // The machine says when, and how far the log may go.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}
