//! openraft's log storage over the log on disk.
//!
//! In: openraft's appends, votes, truncations and purges. Out: records for the writer thread, and entries read back from the
//! in-memory image. Callers: openraft's core and replication tasks. Everything that is not yet in a snapshot is kept in memory
//! as encoded bytes (the snapshot policy bounds it to a few MiB), so reading never touches the disk.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::{
    ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    log::{
        record::{Image, Position, Record},
        writer::Writer,
    },
    raft::{self, TypeConfig},
};

type Fault = StorageError<u64>;

/// What openraft appends to.
#[derive(Debug)]
pub(crate) struct LogStore {
    image: LogReader,
    writer: Writer,
    /// The newest committed position, written along with the next append: it only saves work after a restart.
    committed: Option<Position>,
    appended: Arc<AtomicU64>,
}

/// What openraft reads entries from.
#[derive(Clone, Debug)]
pub(crate) struct LogReader(Arc<Mutex<Image>>);

impl LogStore {
    /// Takes the recovered log. `appended` counts the bytes of entries ever appended through this store.
    pub(crate) fn new(image: Image, writer: Writer, appended: Arc<AtomicU64>) -> Self {
        let committed = image.pointers().committed;
        LogStore { image: LogReader(Arc::new(Mutex::new(image))), writer, committed, appended }
    }

    /// Enters `records` into the image and hands them to the writer.
    fn submit(
        &mut self,
        mut records: Vec<Record>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> Result<(), Fault> {
        let mut image = self.image.lock();
        if self.committed > image.pointers().committed
            && let Some(committed) = self.committed
        {
            records.push(Record::Committed(committed));
        }
        for record in &records {
            image.note(record).map_err(|_| {
                let text = format!("{record:?} does not follow from {:?}", image.pointers());
                let hole = io::Error::new(io::ErrorKind::InvalidInput, text);
                StorageIOError::write_logs(&hole)
            })?;
        }
        drop(image);
        self.writer.submit(records, Box::new(done));
        Ok(())
    }

    async fn write(&mut self, record: Record, subject: ErrorSubject<u64>) -> Result<(), Fault> {
        let (done, durable) = oneshot::channel();
        self.submit(vec![record], move |result| {
            // Nobody waits when raft was shut down meanwhile.
            let _ = done.send(result);
        })?;
        let result = durable.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has stopped")));
        result.map_err(|error| Fault::from_io_error(subject, ErrorVerb::Write, error))
    }
}

impl LogReader {
    fn lock(&self) -> MutexGuard<'_, Image> {
        // Nothing that holds the lock can panic half-way through a change that matters: the image is rebuilt from disk.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, from: u64, to: u64) -> Result<Vec<openraft::Entry<TypeConfig>>, Fault> {
        let image = self.lock();
        image
            .range(from, to)
            .map(|(at, bytes)| {
                raft::decode_entry(*at, bytes)
                    .map_err(|error| StorageIOError::read_log_at_index(at.index, &error).into())
            })
            .collect()
    }
}

/// Entries sent to a member at once: what [`QUICK_BYTES`](super::network::QUICK_BYTES) has room for. A larger entry goes alone.
const BATCH_BYTES: usize = super::network::QUICK_BYTES * 3 / 4;

impl RaftLogReader<TypeConfig> for LogReader {
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<openraft::Entry<TypeConfig>>, Fault> {
        let fits = {
            let image = self.lock();
            let sizes = image.range(start, end).scan(0, |sum, (at, bytes)| {
                *sum += bytes.len();
                Some((at.index, *sum))
            });
            sizes.take_while(|(index, sum)| *index == start || *sum <= BATCH_BYTES).last()
        };
        self.read(start, fits.map_or(end, |(index, _)| index + 1))
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<openraft::Entry<TypeConfig>>, Fault> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<openraft::Entry<TypeConfig>>, Fault> {
        self.image.try_get_log_entries(range).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Fault> {
        let image = self.image.lock();
        let pointers = image.pointers();
        Ok(LogState {
            last_purged_log_id: pointers.purged.map(raft::log_id),
            last_log_id: pointers.last.map(raft::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.image.clone()
    }

    async fn save_vote(&mut self, vote: &openraft::Vote<u64>) -> Result<(), Fault> {
        self.write(Record::Vote(raft::vote(vote)), ErrorSubject::Vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<openraft::Vote<u64>>, Fault> {
        Ok(self.image.lock().pointers().vote.map(raft::raft_vote))
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Fault> {
        self.committed = committed.as_ref().map(raft::position);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Fault> {
        Ok(self.committed.map(raft::log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Fault>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let purged = self.image.lock().pointers().purged.map(|purged| purged.index);
        let mut records = Vec::new();
        // What a snapshot contains is not wanted again.
        for entry in entries.into_iter().filter(|entry| Some(entry.log_id.index) > purged) {
            let at = raft::position(&entry.log_id);
            let bytes = raft::encode_payload(entry.payload)
                .map_err(|error| StorageIOError::write_log_entry(entry.log_id, &error))?;
            self.appended.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            records.push(Record::Entry(at, bytes.into()));
        }
        self.submit(records, |result| callback.log_io_completed(result))
    }

    async fn truncate(&mut self, since: LogId<u64>) -> Result<(), Fault> {
        let last = {
            let image = self.image.lock();
            let before = since.index.checked_sub(1).and_then(|index| image.range(index, since.index).next());
            before.map(|(at, _)| *at).or(image.pointers().purged)
        };
        self.write(Record::Truncated(last), ErrorSubject::Logs).await
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), Fault> {
        self.write(Record::Purged(raft::position(&upto)), ErrorSubject::Logs).await
    }
}
