//! Reading the log of a container: across rotated files, from a point in time or from the end, and following it until the
//! container has ended. Comes in: files that its shim writes ([`super::log_format`]); goes out: a stream of entries. Called
//! by whoever shows logs; needs no shim.

use super::{
    Runtime, RuntimeError,
    error::At,
    files,
    log_format::{LogLine, Stream, decode},
    shim::{log_numbers, log_path},
};
use orchestrator_core::model::TaskId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

/// Entries that wait for a slow reader. One is at most what the shim reads at once, so 256 KiB.
const CHANNEL_ENTRIES: usize = 64;
/// Reading and cutting lines needs little.
const READER_STACK: usize = 256 << 10;
/// How long a follower sleeps at most before it looks whether its reader or the container is gone.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Which part of a log is wanted.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Not before this, in nanoseconds since the epoch.
    pub since_nanos: Option<u64>,
    /// Not after this, in nanoseconds since the epoch.
    pub until_nanos: Option<u64>,
    /// Only the last so many lines of what is there; following is not limited by it.
    pub tail: Option<u64>,
    /// Whether to wait for more until the container has ended.
    pub follow: bool,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self { stdout: true, stderr: true, since_nanos: None, until_nanos: None, tail: None, follow: false }
    }
}

impl LogQuery {
    fn wants(&self, line: &LogLine) -> bool {
        let stream = match line.stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        stream
            && self.since_nanos.is_none_or(|t| line.unix_nanos >= t)
            && self.until_nanos.is_none_or(|t| line.unix_nanos <= t)
    }

    fn is_over_at(&self, line: &LogLine) -> bool {
        self.until_nanos.is_some_and(|t| line.unix_nanos > t)
    }
}

/// The entries of a log, oldest first. Ends when all is read or, followed, when the container has ended or is deleted.
#[derive(Debug)]
pub struct Logs {
    entries: mpsc::Receiver<Result<LogLine, RuntimeError>>,
}

impl Logs {
    /// The next entry. Cancel-safe because it only receives from a channel.
    pub async fn next(&mut self) -> Option<Result<LogLine, RuntimeError>> {
        self.entries.recv().await
    }
}

impl Runtime {
    /// Reads the log of a container, also of one that is deleted but not forgotten.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if nothing is known of the task.
    pub async fn logs(&self, task: TaskId, query: LogQuery) -> Result<Logs, RuntimeError> {
        let places = self.places(task);
        if !places.state.exists() && !places.run.exists() {
            return Err(RuntimeError::NotFound(task.to_string()));
        }
        let (sender, entries) = mpsc::channel(CHANNEL_ENTRIES);
        // A follower lives as long as its client: on a thread of its own it keeps nobody from blocking work.
        let reader = std::thread::Builder::new().name("logs".into()).stack_size(READER_STACK);
        let read = move || {
            let reader = Reader { dir: places.logs(), run: places.run, query, sender };
            if let Err(error) = reader.run() {
                let _ = reader.sender.blocking_send(Err(error));
            }
        };
        reader.spawn(read).at("start a thread to read", "the log")?;
        Ok(Logs { entries })
    }
}

struct Reader {
    dir: PathBuf,
    run: PathBuf,
    query: LogQuery,
    sender: mpsc::Sender<Result<LogLine, RuntimeError>>,
}

impl Reader {
    fn run(&self) -> Result<(), RuntimeError> {
        let watch = if self.query.follow { Some(self.watch()?) } else { None };
        let Some(mut position) = self.begin()? else { return Ok(()) };
        loop {
            // Asked before reading: what was written until then is read below.
            let ended =
                !self.run.exists() || self.run.join(files::EXIT).exists() || files::live_shim(&self.run).is_none();
            while let Some(line) = position.next(&self.dir)? {
                if self.query.is_over_at(&line) {
                    return Ok(());
                }
                if self.query.wants(&line) && self.sender.blocking_send(Ok(line)).is_err() {
                    return Ok(());
                }
            }
            match &watch {
                Some(watch) if !ended && !self.sender.is_closed() => wait(watch),
                _ => return Ok(()),
            }
        }
    }

    /// Where to begin: at the oldest entry, or where the last `tail` lines begin, whose entries are sent at once.
    fn begin(&self) -> Result<Option<Position>, RuntimeError> {
        let mut position = Position::default();
        let Some(tail) = self.query.tail else { return Ok(Some(position)) };
        let limit = usize::try_from(tail).unwrap_or(usize::MAX);
        let mut last: VecDeque<LogLine> = VecDeque::new();
        let mut lines = 0;
        while let Some(line) = position.next(&self.dir)? {
            if self.query.is_over_at(&line) {
                break;
            }
            if !self.query.wants(&line) {
                continue;
            }
            lines += usize::from(line.bytes.ends_with(b"\n"));
            last.push_back(line);
            // The last line may be unfinished; it counts as one.
            let open = usize::from(last.back().is_some_and(|l| !l.bytes.ends_with(b"\n")));
            while lines + open > limit && !last.is_empty() {
                lines -= usize::from(last.pop_front().is_none_or(|l| l.bytes.ends_with(b"\n")));
            }
        }
        for line in last {
            if self.sender.blocking_send(Ok(line)).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(position))
    }

    /// Tells of writes to the log and of the files by which the shim says that the container has ended.
    fn watch(&self) -> Result<OwnedFd, RuntimeError> {
        std::fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let watch =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).at("watch", &self.dir)?;
        inotify::add_watch(&watch, &self.dir, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)
            .at("watch", &self.dir)?;
        // Gone already: then there is nothing to wait for either.
        let _ = inotify::add_watch(&watch, &self.run, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE_SELF);
        Ok(watch)
    }
}

fn wait(watch: &OwnedFd) {
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&LOOK_AGAIN));
    let mut events = [0; 4096];
    while rustix::io::read(watch, &mut events).is_ok_and(|n| n > 0) {}
}

/// A place in the numbered files of a log.
#[derive(Default)]
struct Position {
    /// Number of the file that is read; 0 before the first.
    number: u64,
    file: Option<BufReader<File>>,
}

impl Position {
    /// The next entry that is written completely.
    fn next(&mut self, dir: &Path) -> Result<Option<LogLine>, RuntimeError> {
        loop {
            if let Some(line) = self.next_in_file().at("read", log_path(dir, self.number))? {
                return Ok(Some(line));
            }
            // The shim begins a file after it has written the one before to its end, so that one is read to its end by now,
            // if it is read once more after the new one was seen.
            let Some(next) = log_numbers(dir).into_iter().find(|n| *n > self.number) else { return Ok(None) };
            if let Some(line) = self.next_in_file().at("read", log_path(dir, self.number))? {
                return Ok(Some(line));
            }
            match File::open(log_path(dir, next)) {
                Ok(file) => self.file = Some(BufReader::new(file)),
                // Rotated away just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.file = None,
                Err(error) => return Err(error).at("open", log_path(dir, next)),
            }
            self.number = next;
        }
    }

    fn next_in_file(&mut self) -> io::Result<Option<LogLine>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        loop {
            let mut entry = Vec::new();
            let length = file.read_until(b'\n', &mut entry)?;
            if length == 0 {
                return Ok(None);
            }
            if entry.last() != Some(&b'\n') {
                // Still being written.
                file.seek(SeekFrom::Current(-i64::try_from(length).map_err(io::Error::other)?))?;
                return Ok(None);
            }
            // What a power cut has torn is skipped.
            if let Some(line) = decode(&entry) {
                return Ok(Some(line));
            }
        }
    }
}
