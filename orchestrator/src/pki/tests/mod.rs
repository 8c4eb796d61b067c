//! A cluster's identities, made and judged without a network: clocks are values, and handshakes run in memory.

mod handshake;

use super::*;
use orchestrator_core::model::{ClusterId, Millis, Role};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub(super) const CLUSTER: ClusterId = ClusterId(77);
/// 2027-01-01 00:00:00 UTC.
pub(super) const START: UnixMillis = UnixMillis(1_798_761_600_000);
pub(super) const HOUR: Millis = Millis::from_secs(3600);
pub(super) const DAY: Millis = Millis::from_secs(86_400);

/// A cluster with a clock that tests move.
pub(super) struct Cluster {
    pub(super) ca: Ca,
    pub(super) authority: Authority,
    pub(super) id: ClusterId,
}

impl Cluster {
    pub(super) fn new(id: ClusterId) -> Self {
        let ca = Authority::create(id, START).unwrap();
        Self { authority: Authority::open(&ca).unwrap(), ca, id }
    }

    pub(super) fn node(&self, role: Role) -> Credentials {
        self.node_at(role, START, DEFAULT_VALIDITY)
    }

    pub(super) fn node_at(&self, role: Role, now: UnixMillis, validity: Millis) -> Credentials {
        let key = NodeKey::generate();
        let certificate = self.authority.issue(&key.csr(), self.id, role, now, validity).unwrap();
        Credentials::new(key, certificate, self.ca.certificate.clone()).unwrap()
    }
}

/// A clock that tests move.
#[derive(Clone)]
pub(super) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(super) fn at(now: UnixMillis) -> Self {
        Self(Arc::new(AtomicU64::new(now.0)))
    }

    pub(super) fn set(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    pub(super) fn last_seen(&self, state_dir: &Path) -> LastSeen {
        let clock = Arc::clone(&self.0);
        LastSeen::with_clock(state_dir, move || UnixMillis(clock.load(Ordering::SeqCst))).unwrap()
    }
}

/// The time that a node with a right clock has, which remembers nothing.
pub(super) fn time(now: UnixMillis) -> Arc<LastSeen> {
    let nowhere = tempfile::tempdir().unwrap();
    Arc::new(Clock::at(now).last_seen(nowhere.path()))
}
