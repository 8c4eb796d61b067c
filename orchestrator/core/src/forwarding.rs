//! What the forwarding tables of a node should hold, and the order in which to get there.
//!
//! In: published ports and the backends behind them ([`Table::publish`]), and the table the node has now. Out: the
//! Maglev table of a set of backends ([`maglev`]) and [`Step`]s that never leave a service pointing at nothing
//! ([`diff`]). Called by the agent (which builds the desired table) and the dataplane (which reads the current one
//! and carries the steps out).

use crate::model::Protocol;
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Slots of a Maglev table: a prime about 100 times the backends of an ordinary service (Eisenbud et al., "Maglev",
/// NSDI 2016, §5.3). One backend of three less moves 0.6 % of the others' places, one of ten 2.5 %; that touches only
/// flows of which the connection table knows nothing.
pub const MAGLEV_SLOTS: usize = 1021;

/// The highest number of a backend: the forwarding table of each node has a place for every number, 48 bytes each, and
/// 400 KB is what a board with 1 GB can spare.
pub const LAST_BACKEND: u16 = 8191;

/// Seed of the permutations. The same on every node for ever: a flow that arrives at another node, or at a node that
/// has forgotten it, must find the same backend.
const MAGLEV_SEED: u64 = 0x6564_6765_645f_6d31;

/// Place of a table that has no backend.
pub const NO_BACKEND: u16 = u16::MAX;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Where a published port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The published port.
    pub port: u16,
    /// IP version; a port published on both has two entries.
    pub family: Family,
    /// The one address it is published on; `None`: every address of the node.
    pub address: Option<IpAddr>,
}

/// What a backend may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// New flows and old ones.
    Active,
    /// Old flows only.
    Draining,
}

/// A task's port behind a published port. Its number, the key in [`Table::backends`], is cluster-wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The container's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The port inside the container.
    pub port: u16,
    /// Interface index of the host side of the container's veth; 0: the container is on another node.
    pub ifindex: u32,
    /// Whether it takes new flows.
    pub state: BackendState,
}

impl Backend {
    /// Whether it has an address of the family.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.is_some(),
            Family::V6 => self.v6.is_some(),
        }
    }
}

/// The forwarding tables of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Published ports and the numbers of the backends that take their new flows.
    pub services: BTreeMap<ServiceKey, BTreeSet<u16>>,
    /// Backends by number, draining ones included.
    pub backends: BTreeMap<u16, Backend>,
}

impl Table {
    /// Adds a published port with everything behind it.
    ///
    /// `address` restricts it to one address of the node. Without, it is reached by each family for which at least one
    /// backend has an address, and by both while there is no backend at all.
    pub fn publish(
        &mut self,
        protocol: Protocol,
        port: u16,
        address: Option<IpAddr>,
        backends: impl IntoIterator<Item = (u16, Backend)>,
    ) {
        let backends: BTreeMap<u16, Backend> = backends.into_iter().collect();
        for family in [Family::V4, Family::V6] {
            let reachable = match address {
                Some(address) => Family::of(address) == family,
                None => backends.is_empty() || backends.values().any(|backend| backend.has(family)),
            };
            if reachable {
                let takes_new = |backend: &Backend| backend.state == BackendState::Active && backend.has(family);
                let slots = backends.iter().filter(|(_, backend)| takes_new(backend)).map(|(slot, _)| *slot);
                self.services.insert(ServiceKey { protocol, port, family, address }, slots.collect());
            }
        }
        self.backends.extend(backends);
    }

    /// Numbers of the backends to which new flows may go.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<u16> {
        self.services.values().flatten().copied().collect()
    }
}

/// One change of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a backend.
    SetBackend {
        /// Its number.
        slot: u16,
        /// Its new value.
        backend: Backend,
    },
    /// Let a service choose among these backends, all of which exist.
    SetService {
        /// Which service.
        key: ServiceKey,
        /// Its backends; may be empty.
        slots: BTreeSet<u16>,
    },
    /// Remove a service.
    RemoveService {
        /// Which service.
        key: ServiceKey,
    },
    /// Remove a backend, which no service names any longer.
    RemoveBackend {
        /// Its number.
        slot: u16,
    },
}

/// The steps from one table to another: backends before the services that name them, and the reverse for removal, so
/// that after every single step each service names only backends that exist.
#[must_use]
pub fn diff(current: &Table, desired: &Table) -> Vec<Step> {
    let mut steps = Vec::new();
    for (slot, backend) in &desired.backends {
        if current.backends.get(slot) != Some(backend) {
            steps.push(Step::SetBackend { slot: *slot, backend: *backend });
        }
    }
    for (key, slots) in &desired.services {
        if current.services.get(key) != Some(slots) {
            steps.push(Step::SetService { key: *key, slots: slots.clone() });
        }
    }
    for key in current.services.keys().filter(|key| !desired.services.contains_key(key)) {
        steps.push(Step::RemoveService { key: *key });
    }
    for slot in current.backends.keys().filter(|slot| !desired.backends.contains_key(slot)) {
        steps.push(Step::RemoveBackend { slot: *slot });
    }
    steps
}

/// The Maglev table of a set of backends: each place holds the number of the backend whose flows hash there.
///
/// Every backend has its own permutation of the places, by a hash of its number; in turns, in order of their numbers,
/// each takes the first free place of its permutation (NSDI 2016, §3.4). Backends' shares differ by at most one place.
#[must_use]
pub fn maglev(slots: &BTreeSet<u16>) -> Vec<u16> {
    const PLACES: u64 = MAGLEV_SLOTS as u64;
    let mut table = vec![NO_BACKEND; MAGLEV_SLOTS];
    let mut turns: Vec<(u16, u64, u64)> = slots
        .iter()
        .map(|slot| {
            let first = scramble(u64::from(*slot) ^ MAGLEV_SEED);
            let second = scramble(first);
            (*slot, first % PLACES, second % (PLACES - 1) + 1)
        })
        .collect();
    let mut free = if turns.is_empty() { 0 } else { MAGLEV_SLOTS };
    while free > 0 {
        for (slot, place, step) in &mut turns {
            if free == 0 {
                break;
            }
            // The number of places is prime, so every step size visits them all.
            while table[*place as usize] != NO_BACKEND {
                *place = (*place + *step) % PLACES;
            }
            table[*place as usize] = *slot;
            free -= 1;
        }
    }
    table
}

/// SplitMix64's output function (Steele, Lea, Flood, OOPSLA 2014): every input bit reaches every output bit.
const fn scramble(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend(last: u8, state: BackendState) -> Backend {
        Backend { v4: Some(Ipv4Addr::new(172, 30, 0, last)), v6: None, port: 80, ifindex: u32::from(last), state }
    }

    fn apply(table: &mut Table, step: Step) {
        match step {
            Step::SetBackend { slot, backend } => drop(table.backends.insert(slot, backend)),
            Step::SetService { key, slots } => drop(table.services.insert(key, slots)),
            Step::RemoveService { key } => drop(table.services.remove(&key)),
            Step::RemoveBackend { slot } => drop(table.backends.remove(&slot)),
        }
    }

    #[test]
    fn a_port_is_published_where_its_backends_can_be_reached() {
        let mut table = Table::default();
        table.publish(Protocol::Tcp, 8080, None, [(1, backend(2, BackendState::Active))]);
        table.publish(Protocol::Udp, 53, None, []);
        let found: Vec<_> = table.services.keys().map(|key| (key.port, key.family)).collect();
        assert_eq!(found, [(8080, Family::V4), (53, Family::V4), (53, Family::V6)]);
    }

    #[test]
    fn a_draining_backend_stays_and_gets_no_new_flows() {
        let mut table = Table::default();
        let backends = [(1, backend(2, BackendState::Active)), (2, backend(3, BackendState::Draining))];
        table.publish(Protocol::Tcp, 8080, None, backends);
        assert_eq!(table.serving(), BTreeSet::from([1]));
        assert!(table.backends.contains_key(&2));
    }

    #[test]
    fn shares_differ_by_at_most_one_place() {
        let slots: BTreeSet<u16> = (1..=7).collect();
        let table = maglev(&slots);
        let share = |slot: &u16| table.iter().filter(|place| *place == slot).count();
        let shares: BTreeSet<usize> = slots.iter().map(share).collect();
        assert_eq!(shares, BTreeSet::from([MAGLEV_SLOTS / 7, MAGLEV_SLOTS / 7 + 1]));
    }

    #[test]
    fn no_backends_no_places() {
        assert!(maglev(&BTreeSet::new()).iter().all(|place| *place == NO_BACKEND));
    }

    /// Places whose backend is still there and which changed hands nevertheless.
    fn moved(before: &[u16], after: &[u16], removed: u16) -> usize {
        before.iter().zip(after).filter(|(old, new)| **old != removed && old != new).count()
    }

    /// Places of the others that change hands when one backend of `count` goes, in thousandths, on average.
    fn moved_permille(count: u16) -> usize {
        let (mut total, mut rounds) = (0, 0);
        for first in (0..2000_u16).step_by(40) {
            let slots: BTreeSet<u16> = (first..first + count).collect();
            let before = maglev(&slots);
            for removed in &slots {
                let mut fewer = slots.clone();
                fewer.remove(removed);
                total += moved(&before, &maglev(&fewer), *removed);
                rounds += 1;
            }
        }
        total * 1000 / (rounds * MAGLEV_SLOTS)
    }

    #[test]
    fn removing_a_backend_leaves_nearly_all_others_in_place() {
        assert!(moved_permille(3) <= 10, "{} of 1000", moved_permille(3));
        assert!(moved_permille(10) <= 30, "{} of 1000", moved_permille(10));
    }

    proptest! {
        #[test]
        fn after_every_step_services_name_only_backends_that_exist(
            before in tables(), after in tables()
        ) {
            let mut table = before.clone();
            for step in diff(&before, &after) {
                apply(&mut table, step);
                for slot in table.serving() {
                    prop_assert!(table.backends.contains_key(&slot));
                }
            }
            prop_assert_eq!(&table, &after);
            prop_assert!(diff(&table, &after).is_empty());
        }

        #[test]
        fn every_backend_has_places(slots in prop::collection::btree_set(0..9000_u16, 1..40)) {
            let table = maglev(&slots);
            let found: BTreeSet<u16> = table.into_iter().collect();
            prop_assert_eq!(found, slots);
        }
    }

    fn tables() -> impl Strategy<Value = Table> {
        let backends = prop::collection::btree_map(0..12_u16, (1..250_u8, any::<bool>()), 0..6);
        prop::collection::btree_map(1..5_u16, backends, 0..4).prop_map(|ports| {
            let mut table = Table::default();
            for (port, backends) in ports {
                let backends = backends.into_iter().map(|(slot, (last, active))| {
                    let state = if active { BackendState::Active } else { BackendState::Draining };
                    // A number stands for one task's port: it never appears behind two published ports.
                    (slot + port * 100, backend(last, state))
                });
                table.publish(Protocol::Tcp, port, None, backends);
            }
            table
        })
    }
}
