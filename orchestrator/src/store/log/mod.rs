//! The log on disk: preallocated segment files, appended to by one writer, one sync per append.
//!
//! In: [`Record`]s to make durable, in order. Out: the same records after any crash, as an [`Image`]. Caller: the writer
//! thread ([`writer`]), which is the only one that ever holds a [`Log`].
//!
//! ```text
//! log-…01  Start entry entry vote entry …        full, read-only
//! log-…02  Start entry entry ▓▓▓▓▓▓▓▓▓▓▓▓        being appended to
//! log-…03  ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓        the spare: allocated, all zeros
//! ```
//!
//! What holds at every moment, and what recovery therefore relies on:
//! 1. A write is synced before the next one begins; it lies within one segment.
//! 2. A segment is begun (`Start`) only when the one before is complete and durable, and says where that one ends.
//! 3. The spare is created only after the segment before it was begun durably; there is never more than one.
//! 4. Old segments are removed from the oldest on, each removal durable before the next, after a durable `Purged`.

pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod writer;

use std::{collections::VecDeque, io, sync::Arc};

use self::{
    record::{Image, Pointers, Record, SegmentStart},
    segment::Bad,
};
use super::{
    disk::{Disk, DiskFile},
    frame,
    meter::{Meter, Purpose},
};

/// Size of a segment file. Two exist at least, so 4 MiB are the least a manager takes on the card and what `cluster init`
/// writes once (0.4 s on a 10 MB/s card); one holds about 7,000 small entries. An entry that does not fit gets a larger one.
pub(crate) const SEGMENT_BYTES: u32 = 2 * 1024 * 1024;

/// A segment being created has this name until it is whole.
const NEW_SEGMENT: &str = "log-new";

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The kernel refused a file operation.
    #[error("cannot {what} {file}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something that had been durable is missing or broken; nothing was changed.
    #[error("{file} is damaged at byte {offset}: {why}")]
    Corrupt {
        /// The file's name.
        file: String,
        /// Offset of the first broken record.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A newer version of the program wrote this.
    #[error("{file} holds a record at byte {offset} that a newer version wrote")]
    Newer {
        /// The file's name.
        file: String,
        /// Offset of the record.
        offset: u64,
    },
    /// The log belongs to another member.
    #[error("the log belongs to raft member {found}, not to {expected}")]
    OtherOwner {
        /// Whose log it is.
        found: u64,
        /// Who tried to open it.
        expected: u64,
    },
}

/// What recovery had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// There was no log.
    pub created: bool,
    /// Bytes of torn writes that were cut; none had been acknowledged.
    pub cut_bytes: u64,
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    meter: Arc<Meter>,
    owner: u64,
    segment_bytes: u32,
    /// Begun segments, oldest first, with what their `Start` says; the last one is being appended to.
    segments: VecDeque<(u64, SegmentStart)>,
    active: Box<dyn DiskFile>,
    /// Where the next write begins.
    end: u32,
    spare: bool,
    pointers: Pointers,
}

impl Log {
    /// Opens the log in `disk`, or creates it where there is none and `may_create` says that there never was.
    ///
    /// # Errors
    /// [`LogError`]; a damaged or foreign log is left as it is.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        meter: Arc<Meter>,
        owner: u64,
        segment_bytes: u32,
        may_create: bool,
    ) -> Result<(Log, Image, Recovery), LogError> {
        let mut seqs = Vec::new();
        for name in disk.list().map_err(io_at("list", "the folder"))? {
            if name == NEW_SEGMENT {
                disk.remove(&name).map_err(io_at("remove", &name))?;
            }
            seqs.extend(segment::parse_name(&name));
        }
        // Makes names durable that a killed predecessor did not come to sync.
        disk.sync_names().map_err(io_at("sync", "the folder"))?;
        seqs.sort_unstable();

        let mut image = Image::default();
        let mut recovery = Recovery::default();
        let mut segments = VecDeque::new();
        let mut end = 0;
        let mut leftover = 0;
        let mut spare = None;
        for (n, &seq) in seqs.iter().enumerate() {
            let file = segment::file_name(seq);
            if n > 0 && seq != seqs[n - 1] + 1 {
                return Err(corrupt(&segment::file_name(seqs[n - 1] + 1), 0, "the file is missing"));
            }
            if spare.is_some() {
                let file = segment::file_name(seq - 1);
                return Err(corrupt(&file, 0, "the segment is empty, and a later one exists"));
            }
            let bytes = disk.read(&file).map_err(io_at("read", &file))?;
            let scan = segment::scan(&bytes, seq).map_err(|bad| match bad {
                Bad::Damaged(offset) => corrupt(&file, offset, "a durable record is broken"),
                Bad::Unknown(offset) => LogError::Newer { file: file.clone(), offset: offset as u64 },
            })?;
            let Some(start) = scan.start else {
                spare = Some((seq, bytes.len(), scan.leftover));
                continue;
            };
            if start.owner != owner {
                return Err(LogError::OtherOwner { found: start.owner, expected: owner });
            }
            if start.size as usize != bytes.len() {
                return Err(corrupt(&file, bytes.len(), "the file has another size than it was created with"));
            }
            if n > 0 && start.previous_end != end {
                let file = segment::file_name(seq - 1);
                return Err(corrupt(&file, end as usize, "the segment ends before its last record"));
            }
            let records = std::iter::once((0, Record::Start(start))).chain(scan.records);
            for (offset, record) in records {
                image
                    .note(&record)
                    .map_err(|_| corrupt(&file, offset, "the record does not follow from those before"))?;
            }
            end = scan.end as u32;
            leftover = scan.leftover;
            segments.push_back((seq, start));
        }
        if let Some((seq, start)) = segments.front() {
            let began_behind = start.pointers.last.map(|last| last.index);
            if began_behind > image.pointers().purged.map(|purged| purged.index) {
                return Err(corrupt(&segment::file_name(seq - 1), 0, "the file is missing"));
            }
        } else if !may_create {
            return Err(corrupt(&segment::file_name(1), 0, "there are snapshots, and no log"));
        }

        // All is checked; from here on the folder is changed.
        let mut log = match segments.back() {
            Some((seq, _)) => {
                let file = segment::file_name(*seq);
                let active = disk.open(&file).map_err(io_at("open", &file))?;
                if leftover > 0 {
                    // Left where it is, a torn record could later be taken for the continuation of the log.
                    active.write_at(u64::from(end), &vec![0; leftover]).map_err(io_at("clear the tail of", &file))?;
                    active.sync().map_err(io_at("sync", &file))?;
                    meter.written(Purpose::Log, u64::from(end), leftover);
                    recovery.cut_bytes += leftover as u64;
                }
                let pointers = *image.pointers();
                Log { disk, meter, owner, segment_bytes, segments, active, end, spare: false, pointers }
            }
            None => {
                // A first segment that was never begun is as good as none.
                let seq = spare.take().map_or(1, |(seq, ..)| seq);
                let file = segment::file_name(seq);
                let active = create_segment(&*disk, &meter, seq, segment_bytes).map_err(io_at("create", &file))?;
                let start = SegmentStart { owner, size: segment_bytes, previous_end: 0, pointers: Pointers::default() };
                image.note(&Record::Start(start)).expect("an empty image takes any start");
                let pointers = Pointers::default();
                let segments = VecDeque::from([(seq, start)]);
                let mut log =
                    Log { disk, meter, owner, segment_bytes, segments, active, end: 0, spare: false, pointers };
                let mut bytes = Vec::new();
                put(&mut bytes, seq, 0, &Record::Start(start));
                log.write(&bytes, Purpose::Log).map_err(io_at("begin", &file))?;
                log
            }
        };
        if let Some((seq, len, leftover)) = spare {
            log.spare = len == segment_bytes as usize && leftover == 0;
            if !log.spare {
                // Torn while it was being begun, or made for another segment size: a new one takes its place.
                recovery.cut_bytes += leftover as u64;
                let file = segment::file_name(seq);
                log.disk.remove(&file).map_err(io_at("remove", &file))?;
                log.disk.sync_names().map_err(io_at("sync", "the folder"))?;
            }
        }
        Ok((log, image, recovery))
    }

    /// Makes `records` durable, in order. When this returns an error the log must not be used any more: which of the records
    /// are on disk is unknown until it is opened anew.
    ///
    /// # Errors
    /// What the kernel said to a write or sync.
    pub(crate) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let pointers_only = records.iter().all(|record| matches!(record, Record::Vote(_) | Record::Committed(_)));
        let purpose = if pointers_only { Purpose::Vote } else { Purpose::Log };
        let mut bytes = Vec::new();
        for record in records {
            let (kind, payload) = record.encode();
            let size = frame::record_size(payload.len());
            if self.end as usize + bytes.len() + size > self.size() as usize {
                self.write(&bytes, purpose)?;
                bytes = self.begin_next(size)?;
            }
            frame::put_record(&mut bytes, self.seq(), self.end, kind, &payload);
            self.pointers.note(record);
        }
        self.write(&bytes, purpose)
    }

    /// Bytes that fit the present segment.
    pub(crate) fn room(&self) -> u64 {
        u64::from(self.size() - self.end)
    }

    /// Is there a spare segment to go on in when the present one is full?
    pub(crate) fn has_spare(&self) -> bool {
        self.spare
    }

    /// Brings the folder up to date after an append: a spare segment exists, purged segments do not.
    ///
    /// # Errors
    /// What the kernel said. The log stays usable, and the call may be repeated.
    pub(crate) fn tidy(&mut self) -> io::Result<()> {
        let purged = self.pointers.purged.map(|purged| purged.index);
        // The second segment begins behind an entry; when that one is purged, the first segment holds nothing else.
        while self.segments.get(1).is_some_and(|(_, next)| next.pointers.last.map(|last| last.index) <= purged) {
            self.disk.remove(&segment::file_name(self.segments[0].0))?;
            self.disk.sync_names()?;
            self.segments.pop_front();
        }
        if !self.spare {
            create_segment(&*self.disk, &self.meter, self.seq() + 1, self.segment_bytes)?;
            self.spare = true;
        }
        Ok(())
    }

    fn seq(&self) -> u64 {
        self.segments.back().expect("an open log has a segment").0
    }

    fn size(&self) -> u32 {
        self.segments.back().expect("an open log has a segment").1.size
    }

    fn write(&mut self, bytes: &[u8], purpose: Purpose) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.active.write_at(u64::from(self.end), bytes)?;
        self.active.sync()?;
        self.meter.written(purpose, u64::from(self.end), bytes.len());
        self.end += bytes.len() as u32;
        Ok(())
    }

    /// Goes over to the next segment, which has room for a record of `room` bytes; the returned bytes begin it and are still
    /// to be written.
    fn begin_next(&mut self, room: usize) -> io::Result<Vec<u8>> {
        let seq = self.seq() + 1;
        let mut size = self.segment_bytes;
        let mut bytes = Vec::new();
        loop {
            let start = SegmentStart { owner: self.owner, size, previous_end: self.end, pointers: self.pointers };
            bytes.clear();
            put(&mut bytes, seq, 0, &Record::Start(start));
            if bytes.len() + room <= size as usize {
                self.segments.push_back((seq, start));
                break;
            }
            size = (bytes.len() + room).next_multiple_of(4096) as u32;
        }
        self.active = if self.spare && size == self.segment_bytes {
            self.disk.open(&segment::file_name(seq))?
        } else {
            // A larger one takes the place of the spare.
            create_segment(&*self.disk, &self.meter, seq, size)?
        };
        self.spare = false;
        self.end = 0;
        Ok(bytes)
    }
}

fn put(out: &mut Vec<u8>, seq: u64, batch: u32, record: &Record) {
    let (kind, payload) = record.encode();
    frame::put_record(out, seq, batch, kind, &payload);
}

/// Creates segment `seq`; its name appears only when all of it is durable.
fn create_segment(disk: &dyn Disk, meter: &Meter, seq: u64, size: u32) -> io::Result<Box<dyn DiskFile>> {
    let name = segment::file_name(seq);
    let made = disk.create(NEW_SEGMENT, u64::from(size)).and_then(|file| {
        meter.written(Purpose::Reserve, 0, size as usize);
        disk.rename(NEW_SEGMENT, &name)?;
        disk.sync_names()?;
        Ok(file)
    });
    if made.is_err() {
        // On a full disk the half-made file is what there is to give back.
        let _ = disk.remove(NEW_SEGMENT);
    }
    made
}

fn io_at(what: &'static str, file: &str) -> impl FnOnce(io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Io { what, file, source }
}

fn corrupt(file: &str, offset: usize, why: &'static str) -> LogError {
    LogError::Corrupt { file: file.to_owned(), offset: offset as u64, why }
}
