//! openraft's state machine over [`State`] in memory.
//!
//! In: committed entries, in order; snapshots from the leader. Out: the newest state to everyone who watches, outcomes to
//! proposers, snapshot files. Callers: openraft's worker task; the handle reads what it publishes.
//!
//! Snapshots are written by [`Machine::snapshot_task`] and only then reported to openraft, whose own builder would take a full
//! disk for the end of the world.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
    storage::RaftStateMachine,
};
use orchestrator_core::{
    state::{Applied, State},
    wire::{self, WireError},
};
use tokio::sync::{Notify, watch};

use super::{
    raft::{self, Member, TypeConfig},
    snapshot::{Moment, Snapshot, SnapshotFiles},
};

type Fault = StorageError<u64>;

/// Log written since the last snapshot that makes a new one worth its bytes: 1 MiB is about 4,000 changes, replayed in well
/// under a second.
const MIN_LOG_BYTES: u64 = 1024 * 1024;
/// A large state is written again only after this many times its size in log, so snapshots cost at most half of what the log
/// does.
const LOG_PER_SNAPSHOT: u64 = 2;
/// After a snapshot that could not be written, this much more log must come before the next try.
const RETRY_LOG_BYTES: u64 = 64 * 1024;

/// The state machine. Clones share everything.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: SnapshotFiles,
    state: watch::Sender<Arc<State>>,
    view: Mutex<View>,
    /// Written and waiting to be reported to openraft.
    prepared: Mutex<Option<Snapshot>>,
    /// Bytes of log appended since start, and the count at which the next snapshot is due.
    appended: Arc<AtomicU64>,
    due: AtomicU64,
    wanted: Notify,
}

/// A state and the moment it belongs to.
#[derive(Clone, Debug, Default)]
struct View {
    state: Arc<State>,
    moment: Moment,
}

impl Machine {
    /// Starts from a snapshot, or empty. `appended` is shared with the log and already counts the log behind the snapshot.
    ///
    /// # Errors
    /// The snapshot's state cannot be decoded.
    pub(super) fn new(
        files: SnapshotFiles,
        newest: Option<Snapshot>,
        appended: Arc<AtomicU64>,
    ) -> Result<Self, WireError> {
        let snapshot_bytes = newest.as_ref().map_or(0, |snapshot| snapshot.state.len());
        let view = match newest {
            Some(snapshot) => View { state: Arc::new(wire::decode(&snapshot.state)?), moment: snapshot.moment },
            None => View::default(),
        };
        let state = watch::Sender::new(view.state.clone());
        let shared = Shared {
            files,
            state,
            view: Mutex::new(view),
            prepared: Mutex::new(None),
            appended,
            due: AtomicU64::new(log_between(snapshot_bytes)),
            wanted: Notify::new(),
        };
        Ok(Machine { shared: Arc::new(shared) })
    }

    /// The newest applied state, and those that follow.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.shared.state.subscribe()
    }

    /// Writes a snapshot whenever one is due, and lets openraft drop the log before the one before it. Runs until it is aborted.
    pub(super) async fn snapshot_task(self, raft: openraft::Raft<TypeConfig>, mut previous: Option<u64>) {
        loop {
            self.shared.wanted.notified().await;
            let appended = self.shared.appended.load(Ordering::Relaxed);
            if appended < self.shared.due.load(Ordering::Relaxed) {
                continue;
            }
            match self.write_snapshot().await {
                Ok((snapshot, second_newest)) => {
                    let until_next = log_between(snapshot.state.len());
                    self.shared.due.store(appended + until_next, Ordering::Relaxed);
                    *lock(&self.shared.prepared) = Some(snapshot);
                    // Both fail only when raft has stopped, and then this task is about to be aborted.
                    let _ = raft.trigger().snapshot().await;
                    if let Some(upto) = previous {
                        let _ = raft.trigger().purge_log(upto).await;
                    }
                    previous = second_newest;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot write a snapshot; the log is kept instead"
                    );
                    self.shared.due.store(appended + RETRY_LOG_BYTES, Ordering::Relaxed);
                }
            }
        }
    }

    /// Writes the present state to disk.
    async fn write_snapshot(&self) -> Result<(Snapshot, Option<u64>), Fault> {
        let shared = self.shared.clone();
        let View { state, moment } = lock(&shared.view).clone();
        let written = tokio::task::spawn_blocking(move || {
            let state = wire::encode(&*state).map_err(std::io::Error::other)?;
            let snapshot = Snapshot { moment, state };
            let second_newest = shared.files.write(&snapshot, false)?;
            Ok::<_, std::io::Error>((snapshot, second_newest))
        });
        let written = written.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|error| StorageIOError::write_snapshot(None, &error).into())
    }

    fn publish(&self, view: View) {
        let state = view.state.clone();
        *lock(&self.shared.view) = view;
        self.shared.state.send_replace(state);
    }
}

/// Bytes of log that go by before a state of `snapshot_bytes` is written again.
fn log_between(snapshot_bytes: usize) -> u64 {
    MIN_LOG_BYTES.max(LOG_PER_SNAPSHOT * snapshot_bytes as u64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values behind these locks are replaced whole, so a panic elsewhere leaves no half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<openraft::LogId<u64>>, StoredMembership<u64, Member>), Fault> {
        let meta = lock(&self.shared.view).moment.meta();
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<Applied>>, Fault>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let View { state, mut moment } = lock(&self.shared.view).clone();
        let mut state = (*state).clone();
        let mut outcomes = Vec::new();
        for entry in entries {
            let at = raft::position(&entry.log_id);
            moment.last = Some(at);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(change) => Some(state.apply(at.index, &change)),
                EntryPayload::Membership(membership) => {
                    moment.members_at = Some(at);
                    moment.members = (&membership).into();
                    None
                }
            });
        }
        self.publish(View { state: Arc::new(state), moment });
        if self.shared.appended.load(Ordering::Relaxed) >= self.shared.due.load(Ordering::Relaxed) {
            self.shared.wanted.notify_one();
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, Fault> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Member>,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), Fault> {
        let snapshot = Snapshot { moment: Moment::from_meta(meta), state: *snapshot };
        let state = wire::decode(&snapshot.state)
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        let view = View { state: Arc::new(state), moment: snapshot.moment.clone() };
        let shared = self.shared.clone();
        let written = tokio::task::spawn_blocking(move || shared.files.write(&snapshot, true));
        let written = written.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        self.publish(view);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::Snapshot<TypeConfig>>, Fault> {
        let shared = self.shared.clone();
        let newest = tokio::task::spawn_blocking(move || shared.files.newest()).await;
        let newest = newest.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let newest = newest.map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(newest.map(Snapshot::into_raft))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<openraft::Snapshot<TypeConfig>, Fault> {
        let prepared = lock(&self.shared.prepared).take();
        let snapshot = match prepared {
            Some(snapshot) => snapshot,
            None => self.write_snapshot().await?.0,
        };
        Ok(snapshot.into_raft())
    }
}
