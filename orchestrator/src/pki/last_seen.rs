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
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    floor: AtomicU64,
    kept: Arc<Kept>,
}

/// The floor as the disk has it.
struct Kept {
    path: PathBuf,
    floor: AtomicU64,
    writing: AtomicBool,
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
        let kept = Kept { path, floor: AtomicU64::new(kept.0), writing: AtomicBool::new(false) };
        Ok(Self { clock: Box::new(clock), floor, kept: Arc::new(kept) })
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
        if let Some(floor) = self.risen(to) {
            let kept = Arc::clone(&self.kept);
            if let Err(error) = std::thread::Builder::new().name("last-seen".into()).spawn(move || kept.write(floor)) {
                tracing::warn!(%error, "cannot keep the time last seen");
            }
        }
    }

    /// Raises the floor; the new one if it is to be kept.
    fn risen(&self, to: UnixMillis) -> Option<UnixMillis> {
        let to = if self.is_unset() { to } else { to.min((self.clock)() + AHEAD) };
        if self.floor.fetch_max(to.0, Ordering::Relaxed) >= to.0 {
            return None;
        }
        let due = UnixMillis(self.kept.floor.load(Ordering::Relaxed)) + KEEP_EVERY;
        if to < due || self.kept.writing.swap(true, Ordering::Acquire) {
            return None;
        }
        // Kept or not: on a broken disk this is tried again in a day, not every second.
        self.kept.floor.store(to.0, Ordering::Relaxed);
        Some(to)
    }

    fn floor(&self) -> UnixMillis {
        UnixMillis(self.floor.load(Ordering::Relaxed))
    }
}

impl Kept {
    fn write(&self, floor: UnixMillis) {
        if let Err(error) = replace(&self.path, format!("{}\n", floor.0 / 1000).as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the time last seen");
        }
        self.writing.store(false, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(2_208_988_800_000);

    #[test]
    fn ten_idle_minutes_write_nothing_and_a_day_writes_once() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicU64::new(NOW.0));
        let ticking = Arc::clone(&clock);
        let seen = LastSeen::with_clock(dir.path(), move || UnixMillis(ticking.load(Ordering::Relaxed))).unwrap();
        let tell = |seconds: u64| {
            let told = UnixMillis(NOW.0 + seconds * 1000);
            clock.store(told.0, Ordering::Relaxed);
            seen.risen(told).inspect(|floor| seen.kept.write(*floor))
        };
        assert_eq!(tell(0), Some(NOW), "what was never kept is kept at once");
        assert!((1..=600).all(|second| tell(second).is_none()));
        let writes = (601..=86_400).filter_map(tell).collect::<Vec<_>>();
        assert_eq!(writes, [NOW + KEEP_EVERY]);
    }
}
