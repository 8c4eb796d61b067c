//! What a store's folder says when it is opened.
//!
//! In: a folder, and whose store it should be. Out: the newest snapshot that checks and the log that continues it, or why they
//! cannot be used, with nothing changed. Caller: the handle.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use rustix::fs::FlockOperation;
use tokio::sync::watch;

use super::{
    disk::{Disk, HostDisk},
    error::StoreError,
    log::{Log, LogError, Recovery, SEGMENT_BYTES, record::Image},
    meter::Meter,
    snapshot::{Snapshot, SnapshotFiles},
};

/// The file that is locked while a store is open.
pub(super) const LOCK_FILE: &str = "lock";

/// The lock on the store's folder, held by everything that may write there.
#[derive(Debug)]
pub(super) struct FolderLock {
    /// Closed, and so unlocked, before `_open` tells of it: fields are dropped in order.
    _file: fs::File,
    _open: watch::Sender<()>,
}

/// A folder's content.
pub(super) struct Recovered {
    pub(super) lock: Arc<FolderLock>,
    pub(super) closed: watch::Receiver<()>,
    pub(super) meter: Arc<Meter>,
    pub(super) log: Log,
    pub(super) image: Image,
    pub(super) recovery: Recovery,
    pub(super) files: SnapshotFiles,
    pub(super) newest: Option<Snapshot>,
    pub(super) previous: Option<u64>,
    pub(super) damaged: usize,
}

/// Reads a store's folder: the newest snapshot that checks, and a log that continues it without a hole.
pub(super) fn recover(dir: &Path, raft_id: u64) -> Result<Recovered, StoreError> {
    // The state holds secrets.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| io_error(dir, error))?;
    let file = lock_folder(dir)?;
    let (open, closed) = watch::channel(());
    let lock = Arc::new(FolderLock { _file: file, _open: open });
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(dir));
    let meter = Arc::new(Meter::default());
    let files = SnapshotFiles::new(disk.clone(), meter.clone(), Some(lock.clone()));
    let found = files.find().map_err(|error| io_error(dir, error))?;
    let may_create = found.newest.is_none() && found.damaged.is_empty();
    let (log, image, recovery) =
        Log::open(disk, meter.clone(), raft_id, SEGMENT_BYTES, may_create).map_err(|error| log_error(dir, error))?;

    let corrupt =
        |file: &str, why: &str| StoreError::Corrupt { dir: dir.into(), file: file.into(), offset: 0, why: why.into() };
    let reaches = found.newest.as_ref().and_then(|snapshot| snapshot.moment.last).map(|last| last.index);
    if image.pointers().purged.map(|purged| purged.index) > reaches {
        let file = found.damaged.first().map_or("snapshot", |name| name);
        return Err(corrupt(file, "the log begins behind the newest snapshot that can be read"));
    }
    if found.newest.is_none()
        && let Some(file) = found.damaged.first()
    {
        // The first snapshot ever, and the log is still whole: it is simply written again.
        tracing::warn!(%file, "a damaged snapshot is made up for by the log");
    }
    files.remove(&found.damaged).map_err(|error| io_error(dir, error))?;
    let damaged = found.damaged.len();
    Ok(Recovered {
        lock,
        closed,
        meter,
        log,
        image,
        recovery,
        files,
        newest: found.newest,
        previous: found.previous,
        damaged,
    })
}

/// Takes the lock on a store's folder, for as long as the file is open.
pub(super) fn lock_folder(dir: &Path) -> Result<fs::File, StoreError> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK_FILE));
    let file = file.map_err(|error| io_error(dir, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { dir: dir.into() }),
        Err(error) => Err(io_error(dir, io::Error::from(error))),
    }
}

pub(super) fn io_error(dir: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Io { dir: dir.into(), source: source.into() }
}

fn log_error(dir: &Path, error: LogError) -> StoreError {
    match error {
        LogError::Corrupt { file, offset, why } => {
            StoreError::Corrupt { dir: dir.into(), file, offset, why: why.into() }
        }
        LogError::Io { .. } => io_error(dir, error),
        LogError::Newer { .. } | LogError::OtherOwner { .. } => StoreError::Foreign { dir: dir.into(), source: error },
    }
}
