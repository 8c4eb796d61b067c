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
use orchestrator_core::{state::State, wire};

use super::{
    error::StoreError,
    handle::{Store, StoreConfig},
    log::record::{Position, Record, Vote},
    raft::{self, Member, Members},
    recover::{LOCK_FILE, Recovered, io_error, lock_folder, recover},
    snapshot::Snapshot,
};

/// Damaged stores kept aside: the one that is being looked into, and the one before it.
const KEEP_DAMAGED: usize = 2;
/// Numbers that are passed over when a member goes on alone: more than the others can have given to managers meanwhile.
const NUMBERS: u64 = 1000;
/// Terms that are passed over then: more than the others can have had elections meanwhile, so that nodes which hear of both
/// clusters take this one for the newer.
const TERMS: u64 = 1 << 16;
/// Bytes of entries that are written and synced at once.
const WRITE_BYTES: usize = 512 * 1024;

impl Store {
    /// Makes this node the only member of its cluster, under a new raft id, and opens its store. For a cluster that has lost most
    /// of its managers for good: everything in this member's log is kept and takes effect, including what had not been
    /// committed; what only the others had is lost. Others that were only out of reach know the old number, and no request to
    /// that is answered any more.
    ///
    /// `config` names the present store, which is left as it is; the new one is a copy in the folder that `place` names for its
    /// raft id. [`Store::members`] says which that is. A call that was interrupted may be repeated. Where this member is the only one
    /// already, its store is opened unchanged.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Locked`] while the store is open, [`StoreError::Empty`] where there is no cluster.
    pub async fn force_alone(
        config: StoreConfig,
        place: impl FnOnce(u64) -> PathBuf + Send + 'static,
    ) -> Result<Store, StoreError> {
        let (dir, raft_id, node) = (config.dir.clone(), config.raft_id, config.node.clone());
        let alone = tokio::task::spawn_blocking(move || write_alone(dir, raft_id, node, place)).await;
        let (dir, raft_id) = alone.unwrap_or_else(|error| Err(io_error(&config.dir, error)))?;
        Store::open(StoreConfig { dir, raft_id, ..config }).await
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

/// Writes the store of the only member; returns its folder and its number.
fn write_alone(
    dir: PathBuf,
    raft_id: u64,
    node: String,
    place: impl FnOnce(u64) -> PathBuf,
) -> Result<(PathBuf, u64), StoreError> {
    // Without the lock file there never was a store, and none is to be made.
    if !dir.join(LOCK_FILE).exists() {
        return Err(StoreError::Empty { dir });
    }
    let Recovered { lock: _lock, image, newest, .. } = recover(&dir, raft_id)?;
    let moment = newest.as_ref().map(|snapshot| snapshot.moment.clone()).unwrap_or_default();
    let pointers = *image.pointers();
    let Some(last) = pointers.last.max(moment.last) else { return Err(StoreError::Empty { dir }) };

    let mut membership = moment.members;
    let mut state = match &newest {
        Some(snapshot) => wire::decode(&snapshot.state).map_err(|error| io_error(&dir, error))?,
        None => State::default(),
    };
    let mut records = Vec::from_iter(moment.last.map(Record::Purged));
    for (at, bytes) in image.range(moment.last.map_or(0, |last| last.index + 1), u64::MAX) {
        match raft::decode_entry(*at, bytes).map_err(|error| io_error(&dir, error))?.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(change) => drop(state.apply(at.index, &change)),
            EntryPayload::Membership(newer) => membership = (&newer).into(),
        }
        records.push(Record::Entry(*at, bytes.clone()));
    }
    if membership == Members::only(raft_id, Member { node: node.clone() }) {
        return Ok((dir, raft_id));
    }
    let given = state.cluster.as_ref().map_or(0, |cluster| cluster.next_raft_id);
    let new_id = given.max(raft_id).max(membership.greatest()) + NUMBERS;
    // As if this member had just been elected, and had written its first entry.
    let term = last.term.max(pointers.vote.map_or(0, |vote| vote.term)) + TERMS;
    let alone = Members::only(new_id, Member { node });
    let payload =
        raft::encode_payload(EntryPayload::Membership(alone.into())).map_err(|error| io_error(&dir, error))?;
    records.push(Record::Entry(Position { term, node: new_id, index: last.index + 1 }, payload.into()));
    records.push(Record::Vote(Vote { term, node: new_id, committed: false }));

    let new_dir = place(new_id);
    write_store(&new_dir, new_id, newest.as_ref(), &records)?;
    Ok((new_dir, new_id))
}

/// Writes a store that begins with a snapshot; what an interrupted call left in its folder is replaced.
fn write_store(dir: &Path, raft_id: u64, first: Option<&Snapshot>, records: &[Record]) -> Result<(), StoreError> {
    if dir.join(LOCK_FILE).exists() {
        let _lock = lock_folder(dir)?;
        fs::remove_dir_all(dir).map_err(|error| io_error(dir, error))?;
    }
    let Recovered { lock: _lock, mut log, files, .. } = recover(dir, raft_id)?;
    if let Some(snapshot) = first {
        files.write(snapshot, true).map_err(|error| io_error(dir, error))?;
    }
    let mut rest = records;
    while !rest.is_empty() {
        let sizes = rest.iter().scan(0, |sum, record| {
            *sum += if let Record::Entry(_, bytes) = record { bytes.len() } else { 0 };
            Some(*sum)
        });
        let (some, others) = rest.split_at(sizes.take_while(|sum| *sum <= WRITE_BYTES).count().max(1));
        log.append(some).map_err(|error| io_error(dir, error))?;
        rest = others;
    }
    let parent = dir.parent().unwrap_or(dir);
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| io_error(dir, error))
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
