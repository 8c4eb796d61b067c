//! Counts what the store writes to flash, by purpose, since the process started.
//!
//! In: one call per write, snapshot or removal. Out: [`Written`] for `edgectl system df --flash` and the benchmarks. Callers:
//! `log`, `snapshot`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kernel writes back whole pages, so a write costs the device every page it touches (4 KiB; also what a file system
/// block has, and less than a flash page).
const PAGE: u64 = 4096;

/// What bytes are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Entries and pointers of the raft log.
    Log,
    /// Votes, when they had to be written alone.
    Vote,
    /// Zeros that allocate a log segment.
    Reserve,
    /// Snapshots of the state.
    Snapshot,
}

/// Bytes written, by purpose, in whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Entries and pointers of the raft log.
    pub log: u64,
    /// Votes, when they had to be written alone.
    pub vote: u64,
    /// Zeros that allocate log segments.
    pub reserve: u64,
    /// Snapshots of the state.
    pub snapshot: u64,
    /// Writes of any purpose; each ended in a sync.
    pub writes: u64,
}

impl Written {
    /// Bytes for all purposes together.
    pub fn total(&self) -> u64 {
        self.log + self.vote + self.reserve + self.snapshot
    }
}

/// The counters behind [`Written`].
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: [AtomicU64; 4],
    writes: AtomicU64,
}

impl Meter {
    /// Notes a write of `len` bytes at `offset` of a file.
    pub(crate) fn written(&self, purpose: Purpose, offset: u64, len: usize) {
        let pages = (offset + len as u64).div_ceil(PAGE) - offset / PAGE;
        self.bytes[purpose as usize].fetch_add(pages * PAGE, Relaxed);
        self.writes.fetch_add(1, Relaxed);
    }

    /// The counters' present values.
    pub(crate) fn read(&self) -> Written {
        let bytes = |purpose: Purpose| self.bytes[purpose as usize].load(Relaxed);
        Written {
            log: bytes(Purpose::Log),
            vote: bytes(Purpose::Vote),
            reserve: bytes(Purpose::Reserve),
            snapshot: bytes(Purpose::Snapshot),
            writes: self.writes.load(Relaxed),
        }
    }
}
