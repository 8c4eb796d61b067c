//! When this member, as a leader, was last accepted by each of the others.
//!
//! In: every answer to an append that took this member for the leader, with the moment the append was *sent*. Out: since when
//! a quorum has not confirmed the leadership, and who answers at present. Callers: `network` notes, `leadership`, `members` and
//! `handover` ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

/// The latest confirmation by each member.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    seen: Mutex<BTreeMap<u64, Instant>>,
    noted: watch::Sender<()>,
}

impl Contacts {
    /// `member` accepted an append that was sent at `sent`.
    pub(super) fn note(&self, member: u64, sent: Instant) {
        let mut seen = self.lock();
        let latest = seen.entry(member).or_insert(sent);
        *latest = sent.max(*latest);
        drop(seen);
        self.noted.send_replace(());
    }

    /// When `member` was last known to follow.
    pub(super) fn latest(&self, member: u64) -> Option<Instant> {
        self.lock().get(&member).copied()
    }

    /// The latest moment at which a majority of each of `configs` is known to have followed `own`; `None` when there was none.
    /// A member that needs nobody else has its own word, `now`.
    pub(super) fn quorum(&self, configs: &[BTreeSet<u64>], own: u64, now: Instant) -> Option<Instant> {
        let seen = self.lock();
        let majority = |voters: &BTreeSet<u64>| {
            let said = |id: &u64| if *id == own { Some(now) } else { seen.get(id).copied() };
            let mut moments: Vec<Option<Instant>> = voters.iter().map(said).collect();
            moments.sort_unstable_by(|a, b| b.cmp(a));
            moments.get(voters.len() / 2).copied().flatten()
        };
        // `None` sorts before every moment.
        configs.iter().map(majority).min().flatten()
    }

    /// Changes with every confirmation by anyone.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.noted.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // Single insertions: a panic elsewhere leaves the map whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quorum_is_as_recent_as_the_oldest_confirmation_it_needs() {
        let contacts = Contacts::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let now = at(1000);
        let quorum = |configs: &[&[u64]]| {
            let configs: Vec<BTreeSet<u64>> = configs.iter().map(|voters| voters.iter().copied().collect()).collect();
            contacts.quorum(&configs, 1, now)
        };
        assert_eq!(quorum(&[&[1]]), Some(now));
        assert_eq!(quorum(&[&[1, 2, 3]]), None);
        contacts.note(2, at(100));
        contacts.note(2, at(50));
        assert_eq!(quorum(&[&[1, 2, 3]]), Some(at(100)));
        assert_eq!(quorum(&[&[1, 2]]), Some(at(100)));
        contacts.note(3, at(300));
        assert_eq!(quorum(&[&[1, 2, 3]]), Some(at(300)));
        assert_eq!(quorum(&[&[1, 2, 3, 4, 5]]), Some(at(100)));
        assert_eq!(quorum(&[&[1, 2, 3], &[1, 4, 5]]), None, "both halves of a joint membership count");
        assert_eq!(quorum(&[&[2, 3]]), Some(at(100)), "a leader that is no voter has no word");
    }
}
