//! A cluster's identities, made and judged without a network: clocks are values, and handshakes run in memory.

mod authority;
mod credentials;
mod handshake;
mod impostors;
mod last_seen;
mod renewal;
mod token;

use super::*;
use orchestrator_core::model::{Ca, ClusterId, Millis, Role};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const CLUSTER: ClusterId = ClusterId(77);
/// 2040-01-01 00:00:00 UTC: after any build of this program, and with a CA that outlives the two-digit years of UTCTime.
const START: UnixMillis = UnixMillis(2_208_988_800_000);
const HOUR: Millis = Millis::from_secs(3600);
const DAY: Millis = Millis::from_secs(86_400);

struct Cluster {
    ca: Ca,
    authority: Authority,
    id: ClusterId,
}

impl Cluster {
    fn new(id: ClusterId) -> Self {
        let ca = Authority::create(id, START).unwrap();
        Self { authority: Authority::open(&ca).unwrap(), ca, id }
    }

    /// A member with a certificate of today, for 90 days.
    fn node(&self, role: Role) -> Credentials {
        self.certify(NodeKey::generate(), role, START, DEFAULT_VALIDITY)
    }

    fn certify(&self, key: NodeKey, role: Role, now: UnixMillis, validity: Millis) -> Credentials {
        let certificate = self.authority.issue(&key.csr(), self.id, role, now, validity).unwrap();
        Credentials::new(key, certificate, self.ca.certificate.clone()).unwrap()
    }
}

/// A clock that tests move.
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn at(now: UnixMillis) -> Self {
        Self(Arc::new(AtomicU64::new(now.0)))
    }

    fn set(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    fn last_seen(&self, state_dir: &Path) -> LastSeen {
        let clock = Arc::clone(&self.0);
        LastSeen::with_clock(state_dir, move || UnixMillis(clock.load(Ordering::SeqCst))).unwrap()
    }
}

/// The time of a node whose clock says `now` and that remembers nothing.
fn time(now: UnixMillis) -> Arc<LastSeen> {
    let nowhere = tempfile::tempdir().unwrap();
    Arc::new(Clock::at(now).last_seen(nowhere.path()))
}

fn before(at: UnixMillis, length: Millis) -> UnixMillis {
    UnixMillis(at.0 - length.0)
}
