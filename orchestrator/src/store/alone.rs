//! What is done to the folder of a store that is not open: going on alone after the other managers were lost, and setting a
//! damaged store aside.
//!
//! In: a folder. Out: a store whose only member is this one; or the folder under another name. Callers: the daemon, for
//! `--force-new-cluster`, and when opening a store says that it is damaged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use openraft::EntryPayload;

use super::{
    error::StoreError,
    handle::{Store, StoreConfig},
    log::record::{Position, Record, Vote},
    raft::{self, Member, Members},
    recover::{Recovered, io_error, lock_folder, recover},
};

/// Damaged stores kept aside: the one that is being looked into, and the one before it.
const KEEP_DAMAGED: usize = 2;

impl Store {
    /// Makes this member the only one of its cluster, and opens the store. For a cluster that has lost most of its managers for
    /// good: everything in this member's log is kept and takes effect, including what had not been committed; what only the others had
    /// is lost. The others must never come back as members of this cluster: they have to join anew.
    ///
    /// A call that was interrupted may be repeated.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Locked`] while the store is open, [`StoreError::Empty`] where there is no cluster.
    pub async fn force_alone(config: StoreConfig) -> Result<Store, StoreError> {
        let (dir, raft_id, node) = (config.dir.clone(), config.raft_id, config.node.clone());
        let alone = tokio::task::spawn_blocking(move || write_alone(&dir, raft_id, node)).await;
        alone.unwrap_or_else(|error| Err(io_error(&config.dir, error)))?;
        Store::open(config).await
    }

    /// Sets the folder of a damaged store aside: it is renamed to `<dir>.damaged-<n>`, which is returned. The newest
    /// two are kept.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while the store is open; [`StoreError::Io`] when the kernel refuses, for instance as there is no
    /// such folder.
    pub fn quarantine(dir: &Path) -> Result<PathBuf, StoreError> {
        let _lock = lock_folder(dir)?;
        set_aside(dir).map_err(|error| io_error(dir, error))
    }
}

fn write_alone(dir: &Path, raft_id: u64, node: String) -> Result<(), StoreError> {
    // Without the lock file there never was a store, and none is to be made.
    if !dir.join(super::recover::LOCK_FILE).exists() {
        return Err(StoreError::Empty { dir: dir.into() });
    }
    let Recovered { lock, mut log, image, newest, .. } = recover(dir, raft_id)?;
    let moment = newest.map(|snapshot| snapshot.moment).unwrap_or_default();
    let pointers = *image.pointers();
    let Some(last) = pointers.last.max(moment.last) else { return Err(StoreError::Empty { dir: dir.into() }) };

    let mut membership = moment.members;
    for (at, bytes) in image.range(0, u64::MAX) {
        let entry = raft::decode_entry(*at, bytes).map_err(|error| io_error(dir, error))?;
        if let EntryPayload::Membership(newer) = entry.payload {
            membership = (&newer).into();
        }
    }
    let alone = Members::only(raft_id, Member { node });
    if membership == alone {
        return Ok(());
    }
    // As if this member had just been elected, and had written its first entry: a term of its own, after all that it knows.
    let term = last.term.max(pointers.vote.map_or(0, |vote| vote.term)) + 1;
    let at = Position { term, node: raft_id, index: last.index + 1 };
    let payload = raft::encode_payload(EntryPayload::Membership(alone.into())).map_err(|error| io_error(dir, error))?;
    let vote = Vote { term, node: raft_id, committed: false };
    let written = log.append(&[Record::Vote(vote), Record::Entry(at, payload.into())]);
    drop(lock);
    written.map_err(|error| io_error(dir, error))
}

fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the folder has no name that can be changed"));
    };
    let prefix = format!("{name}.damaged-");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?.file_name();
        numbers.extend(entry.to_str().and_then(|entry| entry.strip_prefix(&prefix)?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let aside = |number: u64| parent.join(format!("{prefix}{number}"));
    let new = aside(numbers.last().map_or(1, |last| last + 1));
    fs::rename(dir, &new)?;
    fs::File::open(parent)?.sync_all()?;
    // Removed last, so that a failure leaves too many rather than too few.
    let surplus = (numbers.len() + 1).saturating_sub(KEEP_DAMAGED);
    for number in &numbers[..surplus] {
        fs::remove_dir_all(aside(*number))?;
    }
    Ok(new)
}
