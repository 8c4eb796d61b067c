//! The time that certificates are judged by: the system clock, but never earlier than what is known to be past.
//!
//! A Raspberry Pi 4 has no battery-backed clock and starts in 1970 or wherever its last shutdown was; to it every
//! certificate would be not yet valid. The floor is the latest of: when this program was made, what the state directory
//! remembers, and, while running, [`raise`](LastSeen::raise)d by the certificates the CA signed and the times that managers
//! tell. The system clock itself does not raise it: after a jump ten years ahead and back, all is as before.

use super::{credentials::replace, utc};
use crate::clock;
use orchestrator_core::model::{Millis, UnixMillis};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

const FILE: &str = "last-seen";
/// When this program was made: `SOURCE_DATE_EPOCH` of its build in seconds since the epoch
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), or else the date of this source. Never the time of the
/// build itself, so that one source gives one binary.
const BUILT: UnixMillis = UnixMillis(
    1000 * match option_env!("SOURCE_DATE_EPOCH") {
        Some(text) => seconds(text),
        // 2026-11-01
        None => 1_793_491_200,
    },
);
/// A clock that is behind the floor by more is taken for one that nobody has set since power-on; by less, for inexact.
const INEXACT: Millis = Millis::from_secs(86_400);
/// How far ahead of a set clock the floor may be raised: as much as certificates are back-dated. One manager whose clock
/// jumps ahead must not make all certificates look outdated to everyone for good.
const AHEAD: Millis = super::BACKDATE;
/// The file is written when the floor has risen by this much, so once a day: an idle node writes nothing.
const KEEP_EVERY: Millis = Millis::from_secs(86_400);

/// The system clock with a floor under it. One per process.
pub struct LastSeen {
    clock: Box<dyn Fn() -> UnixMillis + Send + Sync>,
    path: PathBuf,
    floor: AtomicU64,
    kept: Mutex<UnixMillis>,
}

/// What is remembered could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading the time last seen from {path}")]
pub struct LastSeenError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl LastSeen {
    /// Over the system clock, with what `state_dir` remembers.
    ///
    /// # Errors
    /// The file is there and cannot be read. A damaged one is logged and written anew.
    pub fn open(state_dir: &Path) -> Result<Self, LastSeenError> {
        Self::with_clock(state_dir, clock::now)
    }

    /// As [`open`](Self::open), over any clock.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn with_clock(
        state_dir: &Path,
        clock: impl Fn() -> UnixMillis + Send + Sync + 'static,
    ) -> Result<Self, LastSeenError> {
        let path = state_dir.join(FILE);
        let kept = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim_end().parse::<u64>().map_or_else(
                |_| {
                    tracing::warn!(path = %path.display(), "the time last seen is damaged and will be written anew");
                    UnixMillis::default()
                },
                |secs| UnixMillis(secs.saturating_mul(1000)),
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => UnixMillis::default(),
            Err(source) => return Err(LastSeenError { path, source }),
        };
        let floor = AtomicU64::new(kept.max(BUILT).0);
        Ok(Self { clock: Box::new(clock), path, floor, kept: Mutex::new(kept) })
    }

    /// The time by which certificates are judged and issued.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        (self.clock)().max(self.floor())
    }

    /// Whether the system clock is so far behind what is known to be past that nobody can have set it.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        (self.clock)() + INEXACT < self.floor()
    }

    /// It is `to` at least, says a certificate of our CA or a manager. Believed without limit by a node whose clock is
    /// unset, and up to an hour ahead of a clock that is set. Kept on disk when a day has passed since the last time, by a
    /// thread of its own: this never waits for the disk.
    pub fn raise(&self, to: UnixMillis) {
        let to = if self.is_unset() { to } else { to.min((self.clock)() + AHEAD) };
        if self.floor.fetch_max(to.0, Ordering::Relaxed) >= to.0 {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if to < *kept + KEEP_EVERY {
            return;
        }
        *kept = to;
        let path = self.path.clone();
        let keep = move || {
            if let Err(error) = replace(&path, format!("{}\n", to.0 / 1000).as_bytes()) {
                tracing::warn!(path = %path.display(), %error, "cannot keep the time last seen");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("last-seen".into()).spawn(keep) {
            tracing::warn!(%error, "cannot keep the time last seen");
        }
    }

    fn floor(&self) -> UnixMillis {
        UnixMillis(self.floor.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for LastSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LastSeen({} or later)", utc(self.floor()))
    }
}

/// Digits as a number; anything else fails the build.
const fn seconds(text: &str) -> u64 {
    match u64::from_str_radix(text, 10) {
        Ok(seconds) => seconds,
        Err(_) => panic!("SOURCE_DATE_EPOCH is not a number of seconds"),
    }
}
