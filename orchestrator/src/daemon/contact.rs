//! Whether this node hears of its cluster, and since when it does not. By monotonic time: a clock that is set cuts nobody off.

use orchestrator_core::model::{Millis, Settings};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

pub(super) struct Contact {
    last: Mutex<Last>,
    cut_off: watch::Sender<Option<Instant>>,
}

struct Last {
    heard: Instant,
    heartbeat: Millis,
    down_after: Millis,
}

impl Contact {
    /// As if a manager had been heard just now: a node that starts gets the time that any silence gets.
    pub(super) fn new() -> Arc<Self> {
        let Settings { heartbeat, down_after, .. } = Settings::default();
        let last = Last { heard: Instant::now(), heartbeat, down_after };
        Arc::new(Self { last: Mutex::new(last), cut_off: watch::Sender::new(None) })
    }

    /// A leader was heard.
    pub(super) fn heard(&self) {
        self.lock().heard = Instant::now();
        self.cut_off.send_if_modified(|since| since.take().is_some());
    }

    /// What the cluster's settings say.
    pub(super) fn set(&self, heartbeat: Millis, down_after: Millis) {
        let mut last = self.lock();
        (last.heartbeat, last.down_after) = (heartbeat, down_after);
    }

    /// Time between two signs of life.
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.lock().heartbeat.0.max(1))
    }

    /// Silence after which a node is down, and cut off.
    pub(super) fn down_after(&self) -> Duration {
        Duration::from_millis(self.lock().down_after.0)
    }

    /// Since when nothing was heard, once that is long enough to count.
    pub(super) fn cut_off(&self) -> watch::Receiver<Option<Instant>> {
        self.cut_off.subscribe()
    }

    /// Watches the time; never ends.
    pub(super) async fn watch(&self) {
        loop {
            let (left, since) = {
                let last = self.lock();
                let limit = Duration::from_millis(last.down_after.0);
                (limit.saturating_sub(last.heard.elapsed()), last.heard)
            };
            if left.is_zero() {
                let new = self.cut_off.send_if_modified(|cut_off| {
                    let new = cut_off.is_none();
                    *cut_off = Some(since);
                    new
                });
                if new {
                    tracing::warn!("cut off from all managers; what runs here goes on");
                }
            }
            tokio::time::sleep(left.max(Duration::from_millis(500))).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
