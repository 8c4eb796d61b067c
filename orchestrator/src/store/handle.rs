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
    Config, Raft, ServerState, Snapshot as RaftSnapshot, SnapshotPolicy,
    error::{
        CheckIsLeaderError, ClientWriteError, Fatal, ForwardToLeader, InitializeError as RaftInitializeError, RaftError,
    },
};
use orchestrator_core::{
    state::{Applied, Entry, State},
    wire,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    error::{InitializeError, ProposeError, ReadError, StoreError, fatal_error},
    log::{
        Recovery, SEGMENT_BYTES,
        writer::{Health, Writer},
    },
    log_store::LogStore,
    machine::Machine,
    meter::{Meter, Written},
    network::{Message, Network, NoPeers, Peers},
    raft::{self, Member, TypeConfig},
    recover::{Recovered, io_error, recover},
};

/// A leader says that it is there this often. Timings suit SD cards and Wi-Fi, where a sync or a packet may take 100s of ms.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Followers that hear nothing for this long, plus a random part up to [`ELECTION_MAX`], elect: 6 heartbeats, so that losing
/// some changes nothing.
const ELECTION_MIN: Duration = Duration::from_millis(1500);
/// See [`ELECTION_MIN`].
const ELECTION_MAX: Duration = Duration::from_millis(3000);
/// A snapshot of a few MiB crosses bad Wi-Fi and an SD card in this time.
const INSTALL_SNAPSHOT: Duration = Duration::from_secs(30);
/// A proposal that is not committed by then has probably lost its quorum: three elections.
pub(super) const PROPOSE: Duration = Duration::from_secs(10);
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

/// This node leads, and its state contains everything that was committed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The raft term; grows with every change of leader.
    pub term: u64,
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
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft<TypeConfig>,
    raft_id: u64,
    node: String,
    dir: PathBuf,
    state: watch::Receiver<Arc<State>>,
    leadership: watch::Receiver<Option<Leadership>>,
    health: watch::Sender<Health>,
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
        let log_store = LogStore::new(image, writer, appended);
        let network = Network(config.peers.clone());
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
        let (leads, leadership) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_leadership(raft.clone(), raft_id, leads, health.clone()));
        tasks.spawn(machine.snapshot_task(raft.clone(), previous));
        let inner = Inner {
            raft,
            raft_id,
            node: config.node,
            dir: config.dir,
            state,
            leadership,
            health,
            meter,
            recovery,
            damaged_snapshots: damaged,
            tasks: Mutex::new(tasks),
            closed,
        };
        Ok(Store { inner: Arc::new(inner) })
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
        match &*self.inner.health.borrow() {
            Health::Writable => {}
            Health::ReadOnly { reason } => return Err(ProposeError::ReadOnly { reason: reason.clone() }),
            Health::Failed { reason } => return Err(ProposeError::Failed { reason: reason.clone() }),
        }
        let bytes =
            wire::encode(&entry).map_err(|error| ProposeError::Failed { reason: error.to_string().into() })?.len();
        if bytes > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        if bytes > LARGE_ENTRY_BYTES && self.room() < 2 * bytes as u64 {
            return Err(ProposeError::ReadOnly { reason: format!("no room for a change of {bytes} bytes").into() });
        }
        let written = timeout(PROPOSE, self.inner.raft.client_write(entry)).await.map_err(|_| ProposeError::Timeout)?;
        match written {
            Ok(response) => Ok(response.data.expect("a change has an outcome")),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_node, .. }))) => {
                Err(ProposeError::NotLeader { leader: leader_node })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ProposeError::Failed { reason: error.to_string().into() })
            }
            Err(RaftError::Fatal(fatal)) => Err(fatal_error(&fatal)),
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
        let linearizable =
            timeout(PROPOSE, self.inner.raft.ensure_linearizable()).await.map_err(|_| ReadError::NoQuorum)?;
        match linearizable {
            Ok(_) => Ok(self.state()),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(ForwardToLeader { leader_node, .. }))) => {
                Err(ReadError::NotLeader { leader: leader_node })
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::ShutDown),
        }
    }

    /// The newest applied state and those that follow; intermediate ones may be skipped.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.clone()
    }

    /// Does this node lead?
    pub fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.inner.leadership.clone()
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

    /// Answers a request that another member's [`Peers`] carried here.
    ///
    /// # Errors
    /// The request cannot be decoded: whoever sent it is no member.
    pub async fn answer(&self, request: &[u8]) -> Result<Vec<u8>, postcard::Error> {
        fn encode<T: serde::Serialize, E: ToString>(answer: Result<T, E>) -> Result<Vec<u8>, postcard::Error> {
            postcard::to_allocvec(&answer.map_err(|error| error.to_string()))
        }
        match raft::decode(request)? {
            Message::Append(rpc) => encode(self.inner.raft.append_entries(rpc).await),
            Message::Vote(rpc) => encode(self.inner.raft.vote(rpc).await),
            Message::Snapshot(vote, meta, state) => {
                let snapshot = RaftSnapshot { meta, snapshot: Box::new(state) };
                encode(self.inner.raft.install_full_snapshot(vote, snapshot).await)
            }
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

    /// For tests of what only more members show.
    #[cfg(test)]
    pub(super) fn raft(&self) -> &Raft<TypeConfig> {
        &self.inner.raft
    }

    /// Bytes free on the disk.
    fn room(&self) -> u64 {
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
        install_snapshot_timeout: INSTALL_SNAPSHOT.as_millis() as u64,
        // The machine says when, and how far the log may go.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}

/// Says that this node leads once its state is complete, and that it does not as soon as openraft knows.
async fn watch_leadership(
    raft: Raft<TypeConfig>,
    raft_id: u64,
    leads: watch::Sender<Option<Leadership>>,
    health: watch::Sender<Health>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let term = {
            let now = metrics.borrow_and_update();
            let leads = now.state == ServerState::Leader && now.vote.committed && now.vote.leader_id.node_id == raft_id;
            leads.then_some(now.vote.leader_id.term)
        };
        let known = *leads.borrow();
        match term {
            None => drop(leads.send_if_modified(|leads| leads.take().is_some())),
            Some(term) if known == Some(Leadership { term }) => {}
            // A new leader may still be applying what its predecessors committed.
            Some(term) => match raft.ensure_linearizable().await {
                Ok(_) => drop(leads.send_replace(Some(Leadership { term }))),
                Err(RaftError::APIError(_)) => {
                    tokio::time::sleep(HEARTBEAT).await;
                    if metrics.has_changed().is_ok() {
                        continue;
                    }
                }
                Err(RaftError::Fatal(_)) => {}
            },
        }
        if metrics.changed().await.is_err() {
            break;
        }
    }
    leads.send_replace(None);
    if let Err(fatal) = &raft.metrics().borrow().running_state
        && !matches!(fatal, Fatal::Stopped)
    {
        health.send_if_modified(|health| {
            let first = !matches!(health, Health::Failed { .. });
            if first {
                *health = Health::Failed { reason: fatal.to_string().into() };
            }
            first
        });
    }
}
