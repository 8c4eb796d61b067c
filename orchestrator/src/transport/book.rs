//! The address book: where nodes may be found. Hearsay from assignments, from connections and from multicast; the
//! certificate decides who is really there.

use super::limits;
use orchestrator_core::model::NodeId;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// How an address became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the cluster's state or from configuration.
    Assigned,
    /// The node itself came from there, with its certificate.
    Seen,
    /// Announced by multicast, by whomever.
    Found,
}

/// Addresses by node, newest first. Clones share one book.
#[derive(Clone, Debug, Default)]
pub struct AddressBook(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    book: Mutex<Book>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Book {
    nodes: BTreeMap<NodeId, Page>,
    /// Counts everything that is written, so that later is larger.
    clock: u64,
}

#[derive(Debug, Default)]
struct Page {
    entries: Vec<Entry>,
    /// Counts what was not known before.
    news: u64,
}

#[derive(Debug)]
struct Entry {
    addr: SocketAddr,
    source: Source,
    learned: u64,
    /// When a connection was last made there.
    worked: u64,
    /// When one last could not be made.
    failed: u64,
}

impl AddressBook {
    /// Notes that `node` may be at `addr`; returns whether that is news. Addresses beyond what is kept push out the oldest
    /// of the least trusted; multicast cannot push out any others.
    pub fn learn(&self, node: NodeId, addr: SocketAddr, source: Source) -> bool {
        let addr = canonical(addr);
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return false;
        }
        let mut book = self.lock();
        let found_only = |page: &Page| page.entries.iter().all(|entry| entry.source == Source::Found);
        if source == Source::Found
            && !book.nodes.contains_key(&node)
            && book.nodes.values().filter(|page| found_only(page)).count() >= limits::FOUND_NODES
        {
            return false;
        }
        book.clock += 1;
        let now = book.clock;
        let page = book.nodes.entry(node).or_default();
        let news = page.learn(addr, source, now);
        drop(book);
        if news {
            self.0.news.notify_waiters();
        }
        news
    }

    /// Where to look for `node`, most promising first: where it was last found, then what was learned last, then what last
    /// failed.
    #[must_use]
    pub fn candidates(&self, node: NodeId) -> Vec<SocketAddr> {
        let book = self.lock();
        let Some(page) = book.nodes.get(&node) else { return Vec::new() };
        let mut entries = page.entries.iter().collect::<Vec<_>>();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.promise()));
        entries.into_iter().map(|entry| entry.addr).collect()
    }

    /// Forgets a node that is no longer a member.
    pub fn forget(&self, node: NodeId) {
        self.lock().nodes.remove(&node);
    }

    /// Changes whenever something new is learned of `node`.
    pub(super) fn news(&self, node: NodeId) -> u64 {
        self.lock().nodes.get(&node).map_or(0, |page| page.news)
    }

    /// Waits for news of any node; counts from the call, not from the first poll.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.0.news.notified()
    }

    pub(super) fn worked(&self, node: NodeId, addr: SocketAddr) {
        self.mark(node, addr, |entry, now| entry.worked = now);
    }

    pub(super) fn failed(&self, node: NodeId, addr: SocketAddr) {
        self.mark(node, addr, |entry, now| entry.failed = now);
    }

    fn mark(&self, node: NodeId, addr: SocketAddr, mark: impl FnOnce(&mut Entry, u64)) {
        let mut book = self.lock();
        book.clock += 1;
        let now = book.clock;
        let page = book.nodes.get_mut(&node);
        let entry = page.and_then(|page| page.entries.iter_mut().find(|entry| entry.addr == canonical(addr)));
        if let Some(entry) = entry {
            mark(entry, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    fn learn(&mut self, addr: SocketAddr, source: Source, now: u64) -> bool {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.addr == addr) {
            entry.source = entry.source.better(source);
            if source == Source::Seen {
                entry.learned = now;
            }
            return false;
        }
        let full = match source {
            Source::Found => self.count(Source::Found) >= limits::FOUND_ADDRESSES,
            Source::Assigned | Source::Seen => false,
        };
        if full || self.entries.len() >= limits::ADDRESSES {
            let only_found = source == Source::Found;
            let victim =
                self.entries.iter().enumerate().filter(|(_, entry)| !only_found || entry.source == Source::Found);
            let victim = victim.min_by_key(|(_, entry)| (entry.source != Source::Found, entry.worked, entry.learned));
            let Some((victim, _)) = victim else { return false };
            self.entries.remove(victim);
        }
        self.entries.push(Entry { addr, source, learned: now, worked: 0, failed: 0 });
        self.news = now;
        true
    }

    fn count(&self, source: Source) -> usize {
        self.entries.iter().filter(|entry| entry.source == source).count()
    }
}

impl Entry {
    /// Larger is more promising.
    fn promise(&self) -> (bool, bool, u64) {
        let last = self.worked.max(self.learned);
        (self.failed < last, self.worked > self.failed, last)
    }
}

impl Source {
    fn better(self, other: Self) -> Self {
        if self == Self::Found { other } else { self }
    }
}

/// An IPv4 address as such, also where a dual-stack socket shows it mapped into IPv6.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match (addr, addr.ip().to_canonical()) {
        (SocketAddr::V6(v6), IpAddr::V6(ip)) => SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into(),
        (_, ip) => SocketAddr::new(ip, addr.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 2377))
    }

    fn book(addrs: &[u8]) -> AddressBook {
        let book = AddressBook::default();
        for last in addrs {
            assert!(book.learn(NODE, addr(*last), Source::Assigned));
        }
        book
    }

    #[test]
    fn the_newest_address_comes_first() {
        assert_eq!(book(&[1, 2, 3]).candidates(NODE), [addr(3), addr(2), addr(1)]);
    }

    #[test]
    fn where_a_node_was_found_comes_before_hearsay() {
        let book = book(&[1, 2]);
        book.worked(NODE, addr(1));
        book.learn(NODE, addr(3), Source::Found);
        assert_eq!(book.candidates(NODE), [addr(1), addr(3), addr(2)]);
    }

    #[test]
    fn what_failed_comes_last_until_the_node_is_seen_there() {
        let book = book(&[1, 2]);
        book.worked(NODE, addr(2));
        book.failed(NODE, addr(2));
        assert_eq!(book.candidates(NODE), [addr(1), addr(2)]);
        book.learn(NODE, addr(2), Source::Assigned);
        assert_eq!(book.candidates(NODE), [addr(1), addr(2)]);
        book.learn(NODE, addr(2), Source::Seen);
        assert_eq!(book.candidates(NODE), [addr(2), addr(1)]);
    }

    #[test]
    fn only_what_was_not_known_is_news() {
        let book = book(&[1]);
        let before = book.news(NODE);
        assert!(!book.learn(NODE, addr(1), Source::Found));
        assert_eq!(book.news(NODE), before);
        assert!(book.learn(NODE, addr(2), Source::Found));
        assert_ne!(book.news(NODE), before);
    }

    #[test]
    fn multicast_pushes_out_only_multicast() {
        let book = book(&[1, 2]);
        for last in 100..=255 {
            book.learn(NODE, addr(last), Source::Found);
        }
        let candidates = book.candidates(NODE);
        assert_eq!(candidates.len(), 2 + limits::FOUND_ADDRESSES);
        assert!(candidates.contains(&addr(1)) && candidates.contains(&addr(2)));
    }

    #[test]
    fn a_full_page_of_better_addresses_takes_no_multicast() {
        let book = book(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(!book.learn(NODE, addr(9), Source::Found));
        assert!(book.learn(NODE, addr(9), Source::Seen));
        assert_eq!(book.candidates(NODE).len(), limits::ADDRESSES);
        assert!(!book.candidates(NODE).contains(&addr(1)));
    }

    #[test]
    fn invented_nodes_take_bounded_space() {
        let book = AddressBook::default();
        for node in 0..1_000 {
            book.learn(NodeId(node), addr(1), Source::Found);
        }
        assert_eq!(book.lock().nodes.len(), limits::FOUND_NODES);
        assert!(book.learn(NodeId(1_001), addr(1), Source::Assigned));
    }

    #[test]
    fn mapped_addresses_are_shown_as_what_they_are() {
        let book = AddressBook::default();
        book.learn(NODE, "[::ffff:192.0.2.1]:2377".parse().unwrap(), Source::Seen);
        assert_eq!(book.candidates(NODE), [addr(1)]);
        assert!(!book.learn(NODE, "0.0.0.0:2377".parse().unwrap(), Source::Found));
    }
}
