//! Snapshot files: the whole state at one log position, written beside the old one and swapped in by name.
//!
//! In: a state and its position. Out: a durable file, and on start the newest one that checks. Callers: `machine` and the
//! handle when it opens a store. Two files are kept, and the log back to the older one, so that one damaged snapshot costs
//! nothing but the time to read more log.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    disk::Disk,
    frame,
    log::record::Position,
    meter::{Meter, Purpose},
    raft::{self, Members},
    recover::FolderLock,
};

const PREFIX: &str = "snapshot-";
/// A snapshot being written has this name until it is whole.
const NEW: &str = "new-snapshot";
/// Files kept.
const KEEP: usize = 2;

/// Which moment of the cluster a snapshot shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Moment {
    /// The last entry contained.
    pub last: Option<Position>,
    /// The entry the membership comes from.
    pub members_at: Option<Position>,
    /// The membership.
    pub members: Members,
}

/// A snapshot in memory: its moment and the encoded state.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// What it shows.
    pub moment: Moment,
    /// The state's bytes.
    pub state: Vec<u8>,
}

/// The snapshots in a store's folder.
#[derive(Debug)]
pub(super) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    meter: Arc<Meter>,
    /// Held for as long as a snapshot may be written.
    _lock: Option<Arc<FolderLock>>,
}

/// What was found on start.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest snapshot that checks.
    pub newest: Option<Snapshot>,
    /// Index of the one before it.
    pub previous: Option<u64>,
    /// Names of newer files that do not check.
    pub damaged: Vec<String>,
}

impl SnapshotFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, meter: Arc<Meter>, lock: Option<Arc<FolderLock>>) -> Self {
        SnapshotFiles { disk, meter, _lock: lock }
    }

    /// Looks for the newest snapshot that checks, and changes nothing.
    pub(super) fn find(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for name in self.names()?.into_iter().rev() {
            if found.newest.is_some() {
                found.previous = parse_name(&name);
                break;
            }
            match open(&self.disk.read(&name)?) {
                Some(snapshot) => found.newest = Some(snapshot),
                None => found.damaged.push(name),
            }
        }
        Ok(found)
    }

    /// Reads the newest file.
    pub(super) fn newest(&self) -> io::Result<Option<Snapshot>> {
        let Some(name) = self.names()?.pop() else { return Ok(None) };
        let snapshot = open(&self.disk.read(&name)?);
        snapshot.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is damaged")))
    }

    /// Makes `snapshot` durable, then removes older ones: all with `only`, else all but one, whose index is returned.
    pub(super) fn write(&self, snapshot: &Snapshot, only: bool) -> io::Result<Option<u64>> {
        let mut payload = postcard::to_allocvec(&snapshot.moment).map_err(io::Error::other)?;
        payload.extend_from_slice(&snapshot.state);
        let bytes = frame::snapshot_file(&payload);
        let name = file_name(snapshot.moment.last.map_or(0, |last| last.index));
        let written = self.disk.create(NEW, 0).and_then(|file| {
            file.write_at(0, &bytes)?;
            file.sync()?;
            self.meter.written(Purpose::Snapshot, 0, bytes.len());
            self.disk.rename(NEW, &name)?;
            self.disk.sync_names()
        });
        if let Err(error) = written {
            // On a full disk the half-written file is what there is to give back.
            let _ = self.disk.remove(NEW);
            return Err(error);
        }
        let mut names = self.names()?;
        let keep = if only { 1 } else { KEEP };
        let surplus = names.len().saturating_sub(keep);
        for name in names.drain(..surplus) {
            self.disk.remove(&name)?;
        }
        Ok(names.iter().rev().nth(1).and_then(|name| parse_name(name)))
    }

    /// Removes files, for instance damaged ones that an older snapshot makes up for.
    pub(super) fn remove(&self, names: &[String]) -> io::Result<()> {
        names.iter().try_for_each(|name| self.disk.remove(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.disk.list()?;
        names.retain(|name| parse_name(name).is_some());
        Ok(names)
    }
}

fn open(bytes: &[u8]) -> Option<Snapshot> {
    let payload = frame::open_snapshot_file(bytes)?;
    let (moment, state) = postcard::take_from_bytes(payload).ok()?;
    Some(Snapshot { moment, state: state.to_vec() })
}

fn file_name(index: u64) -> String {
    format!("{PREFIX}{index:016x}")
}

fn parse_name(name: &str) -> Option<u64> {
    let index = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (file_name(index) == name).then_some(index)
}

impl Snapshot {
    /// As openraft wants it.
    pub(super) fn into_raft(self) -> openraft::Snapshot<raft::TypeConfig> {
        openraft::Snapshot { meta: self.moment.meta(), snapshot: Box::new(self.state) }
    }
}

impl Moment {
    /// As openraft wants it.
    pub(super) fn meta(&self) -> openraft::SnapshotMeta<u64, raft::Member> {
        openraft::SnapshotMeta {
            last_log_id: self.last.map(raft::log_id),
            last_membership: raft::stored(self.members_at, self.members.clone()),
            snapshot_id: self.last.map_or_else(String::new, |last| format!("{}-{}", last.term, last.index)),
        }
    }

    /// From openraft.
    pub(super) fn from_meta(meta: &openraft::SnapshotMeta<u64, raft::Member>) -> Self {
        Moment {
            last: meta.last_log_id.as_ref().map(raft::position),
            members_at: meta.last_membership.log_id().as_ref().map(raft::position),
            members: meta.last_membership.membership().into(),
        }
    }
}
