//! The one thread that writes the log.
//!
//! In: requests, each some records and what to do when they are durable. Out: completions in the order of the requests, and
//! [`Health`]. Caller: the raft adapter. Requests that wait together are made durable by one sync.
//!
//! A failed write or sync ends the log for good (a later sync that succeeds would prove nothing about the pages of the failed
//! one): every request from then on fails, and the process has to open the store anew. A spare segment that cannot be made is
//! no such failure: there is room in the present one, so the thread says [`Health::ReadOnly`] and tries again.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::watch;

use super::{Log, record::Record};

/// Requests under way at most. Raft waits for each append, so more than a few never queue and a send never blocks.
const QUEUE: usize = 64;
/// How often a spare segment is tried again on a full disk.
const RETRY_SPARE: Duration = Duration::from_secs(2);

/// Can the store take changes?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Writable,
    /// Not at present: the disk has no room for a spare log segment. Ends by itself when there is room.
    ReadOnly {
        /// What the kernel said.
        reason: Arc<str>,
    },
    /// Never again in this process: a write or sync failed.
    Failed {
        /// What the kernel said.
        reason: Arc<str>,
    },
}

/// Called on the writer's thread when a request's records are durable, or never will be.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Request {
    records: Vec<Record>,
    done: Done,
}

/// Handle of the thread. Dropping it lets the thread finish what was requested, and waits for that.
#[derive(Debug)]
pub(crate) struct Writer {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
    room: Arc<AtomicU64>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("records", &self.records.len()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts the thread. It reports to `health`, holds `lock`, and stops when the handle is dropped.
    ///
    /// # Errors
    /// The kernel refused another thread.
    pub(crate) fn spawn(log: Log, health: watch::Sender<Health>, lock: impl Send + 'static) -> io::Result<Writer> {
        let (requests, queue) = sync_channel(QUEUE);
        let room = Arc::new(AtomicU64::new(log.room()));
        let reported = room.clone();
        let thread = std::thread::Builder::new().name("raft-log".into()).spawn(move || {
            run(log, &queue, &health, &reported);
            drop(lock);
        })?;
        Ok(Writer { requests: Some(requests), thread: Some(thread), room })
    }

    /// Bytes that the present segment still takes; all there is while the disk is full.
    pub(crate) fn room(&self) -> Arc<AtomicU64> {
        self.room.clone()
    }

    /// Asks for `records` to be made durable; `done` hears of it.
    pub(crate) fn submit(&self, records: Vec<Record>, done: Done) {
        let requests = self.requests.as_ref().expect("the queue is open until drop");
        if let Err(error) = requests.send(Request { records, done }) {
            (error.0.done)(Err(io::Error::other("the log's writer has stopped")));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

fn run(mut log: Log, queue: &Receiver<Request>, health: &watch::Sender<Health>, room: &AtomicU64) {
    loop {
        room.store(log.room(), Ordering::Relaxed);
        tidy(&mut log, health);
        let first = if log.has_spare() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(RETRY_SPARE)
        };
        let mut batch = match first {
            Ok(request) => vec![request],
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        batch.extend(queue.try_iter());
        let records: Vec<Record> = batch.iter_mut().flat_map(|request| std::mem::take(&mut request.records)).collect();
        let result = log.append(&records);
        if let Err(error) = &result {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the raft log cannot be written; the store has to be reopened"
            );
            health.send_replace(Health::Failed { reason: error.to_string().into() });
        }
        for request in batch {
            (request.done)(copy(&result));
        }
        if let Err(error) = result {
            return refuse(queue, &error);
        }
    }
}

/// Answers everything with the error that ended the log.
fn refuse(queue: &Receiver<Request>, error: &io::Error) {
    for request in queue {
        (request.done)(Err(io::Error::new(error.kind(), error.to_string())));
    }
}

fn tidy(log: &mut Log, health: &watch::Sender<Health>) {
    let now = match log.tidy() {
        Ok(()) => Health::Writable,
        // A leftover old segment costs room and nothing else; the next append tries again.
        Err(_) if log.has_spare() => Health::Writable,
        Err(error) => Health::ReadOnly { reason: error.to_string().into() },
    };
    health.send_if_modified(|health| {
        let changed = *health != now;
        if changed {
            match &now {
                Health::ReadOnly { reason } => {
                    tracing::warn!(%reason, "no room for a log segment: the store is read-only")
                }
                _ => tracing::info!("the store is writable again"),
            }
            *health = now;
        }
        changed
    });
}

fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}
