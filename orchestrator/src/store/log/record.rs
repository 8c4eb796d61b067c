//! What the log says, one record at a time, and the image of the log that those records add up to.
//!
//! In: records in the order they were written. Out: the entries and pointers that hold after them. Callers: `log` when it
//! recovers a folder, and the raft adapter, which keeps the live image. Nothing here touches a file.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

/// Where an entry stands in the replicated log, and which leader put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The leader's term.
    pub term: u64,
    /// The leader's raft id.
    pub node: u64,
    /// Number of the entry; consecutive.
    pub index: u64,
}

/// What this member promised in the newest election it took part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vote {
    /// Term of the election.
    pub term: u64,
    /// Raft id of the candidate.
    pub node: u64,
    /// The candidate is known to have won.
    pub committed: bool,
}

/// The log's facts besides its entries. Every segment opens with a copy, so that a segment needs no older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointers {
    /// The newest vote.
    pub vote: Option<Vote>,
    /// A lower bound of what is committed.
    pub committed: Option<Position>,
    /// The last entry a snapshot replaced; entries up to here may be gone.
    pub purged: Option<Position>,
    /// The last entry, or `purged` when there is none behind it.
    pub last: Option<Position>,
}

/// First record of every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentStart {
    /// Raft id of the member whose log this is.
    pub owner: u64,
    /// Size of this segment's file in bytes.
    pub size: u32,
    /// Offset behind the last record of the segment before, 0 for the first one ever.
    pub previous_end: u32,
    /// What held when the segment was begun.
    pub pointers: Pointers,
}

/// One fact, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A segment begins.
    Start(SegmentStart),
    /// An entry behind the last one.
    Entry(Position, Arc<[u8]>),
    /// A newer vote.
    Vote(Vote),
    /// More entries are known to be committed.
    Committed(Position),
    /// Entries up to here are in a durable snapshot.
    Purged(Position),
    /// Entries behind this one (all, with `None`) were never committed and are dropped.
    Truncated(Option<Position>),
}

impl Record {
    /// The record's number on disk and its payload.
    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Record::Start(start) => (1, encode(start)),
            Record::Entry(at, bytes) => {
                let mut payload = encode(at);
                payload.extend_from_slice(bytes);
                (2, payload)
            }
            Record::Vote(vote) => (3, encode(vote)),
            Record::Committed(at) => (4, encode(at)),
            Record::Purged(at) => (5, encode(at)),
            Record::Truncated(last) => (6, encode(last)),
        }
    }

    /// Reads what [`Record::encode`] wrote; `None` when it is not that.
    pub(crate) fn decode(kind: u8, payload: &[u8]) -> Option<Record> {
        match kind {
            1 => decode(payload).map(Record::Start),
            2 => {
                let (at, bytes) = postcard::take_from_bytes(payload).ok()?;
                Some(Record::Entry(at, bytes.into()))
            }
            3 => decode(payload).map(Record::Vote),
            4 => decode(payload).map(Record::Committed),
            5 => decode(payload).map(Record::Purged),
            6 => decode(payload).map(Record::Truncated),
            _ => None,
        }
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain numbers always encode")
}

fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(payload).ok()?;
    rest.is_empty().then_some(value)
}

/// A record does not follow from those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfOrder;

/// The log as the records so far describe it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pointers: Pointers,
    entries: VecDeque<(Position, Arc<[u8]>)>,
}

impl Image {
    /// The facts besides the entries.
    pub(crate) fn pointers(&self) -> &Pointers {
        &self.pointers
    }

    /// The entries whose index lies in `from..to`, oldest first.
    pub(crate) fn range(&self, from: u64, to: u64) -> impl Iterator<Item = &(Position, Arc<[u8]>)> {
        let first = self.entries.front().map_or(0, |(at, _)| at.index);
        let skip = from.saturating_sub(first) as usize;
        self.entries.iter().skip(skip).take_while(move |(at, _)| at.index < to)
    }

    /// Bytes of the entries behind `index` (all of them with `None`).
    pub(crate) fn bytes_behind(&self, index: Option<u64>) -> u64 {
        self.range(index.map_or(0, |index| index + 1), u64::MAX).map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Takes in the next record.
    ///
    /// # Errors
    /// [`OutOfOrder`] when an entry would leave a hole or a segment starts from something else than where the last one ended.
    pub(crate) fn note(&mut self, record: &Record) -> Result<(), OutOfOrder> {
        match record {
            Record::Start(start) => {
                if self.pointers == Pointers::default() {
                    self.pointers = start.pointers;
                } else if self.pointers != start.pointers {
                    return Err(OutOfOrder);
                }
            }
            Record::Entry(at, bytes) => {
                // An empty log may begin anywhere: its past can be a snapshot.
                if self.pointers.last.is_some_and(|last| at.index != last.index + 1) {
                    return Err(OutOfOrder);
                }
                self.entries.push_back((*at, bytes.clone()));
            }
            // A snapshot that is ahead of the whole log replaces all of it, whatever the indices.
            Record::Purged(at) if self.pointers.last < Some(*at) => self.entries.clear(),
            Record::Purged(at) => {
                let kept = self.entries.partition_point(|(entry, _)| entry.index <= at.index);
                self.entries.drain(..kept);
            }
            Record::Truncated(last) => {
                let kept = self.entries.partition_point(|(entry, _)| Some(entry.index) <= last.map(|last| last.index));
                self.entries.truncate(kept);
                // With nothing left, the new last entry is older than what this image knows.
                if self.entries.back().is_some_and(|(at, _)| Some(*at) != *last) {
                    return Err(OutOfOrder);
                }
            }
            Record::Vote(_) | Record::Committed(_) => {}
        }
        self.pointers.note(record);
        Ok(())
    }
}

impl Pointers {
    /// Takes in the next record.
    pub(crate) fn note(&mut self, record: &Record) {
        match record {
            Record::Start(_) => {}
            Record::Entry(at, _) => self.last = Some(*at),
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(at) => self.committed = Some(*at),
            Record::Purged(at) => {
                self.purged = self.purged.max(Some(*at));
                self.last = self.last.max(Some(*at));
            }
            Record::Truncated(last) => self.last = *last,
        }
    }
}
