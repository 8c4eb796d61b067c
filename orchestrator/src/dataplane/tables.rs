//! The forwarding table in the maps: reading it back, and carrying out steps.
//!
//! In: [`Table`]s and the maps. Out: the table the maps hold. A service's Maglev table is built in a free place of the
//! `MAGLEV` map and then named by the service's entry in one write, so packets meet the old table or the new one and
//! nothing between. A place freed by one round of steps is used again at the earliest by the next.

use super::{DataplaneError, kernel::Elements};
use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use orchestrator_core::{
    forwarding::{self, Backend, BackendState, Family, MAGLEV_SLOTS, NO_BACKEND, ServiceKey, Step, Table},
    model::Protocol,
};
use orchestrator_ebpf_common::{
    hash,
    maps::{self, Address, MAGLEV_WORDS, SLOTS_PER_WORD, ServiceCounters, port_from_wire, port_to_wire},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

const _: () = assert!(MAGLEV_SLOTS == maps::MAGLEV_SLOTS as usize, "core and the programs agree on the table size");

/// The maps of the forwarding table.
pub(super) struct Tables {
    pub(super) services: HashMap<MapData, maps::ServiceKey, maps::Service>,
    pub(super) backends: Elements<maps::Backend>,
    pub(super) maglev: Elements<u64>,
    pub(super) local: HashMap<MapData, Address, u32>,
    pub(super) counters: PerCpuArray<MapData, ServiceCounters>,
    pub(super) cpus: usize,
}

impl Tables {
    /// The table the maps hold. A service whose Maglev table is not what its backends give is left out, as if it were
    /// absent: applying writes it anew.
    pub(super) fn observe(&self) -> Result<Table, DataplaneError> {
        let mut table = Table::default();
        for entry in self.services.iter() {
            let (key, service) = entry?;
            let places = self.read_maglev(service.table)?;
            let slots: BTreeSet<u16> = places.iter().copied().filter(|slot| *slot != NO_BACKEND).collect();
            if usize::from(service.backends) == slots.len() && places == forwarding::maglev(&slots) {
                table.services.insert(service_key(&key), slots);
            }
        }
        for (slot, backend) in (0..).zip(self.all_backends()?) {
            if backend.state != maps::BACKEND_ABSENT {
                table.backends.insert(slot, from_map(&backend));
            }
        }
        Ok(table)
    }

    /// Every element of `BACKENDS`, absent ones too.
    pub(super) fn all_backends(&self) -> Result<Vec<maps::Backend>, DataplaneError> {
        self.backends.read(0, self.backends.len()).map_err(failed("read the backends"))
    }

    /// Makes the maps hold the table.
    pub(super) fn apply(&mut self, desired: &Table) -> Result<(), DataplaneError> {
        let current = self.observe()?;
        let steps = forwarding::diff(&current, desired);
        let mut used = BTreeSet::new();
        let mut numbers = BTreeMap::new();
        for entry in self.services.iter() {
            let (key, service) = entry?;
            used.insert(service.table);
            numbers.insert(key, service.number);
        }
        for step in steps {
            match step {
                Step::SetBackend { slot, backend } => self.set_backend(slot, to_map(&backend))?,
                Step::RemoveBackend { slot } => self.set_backend(slot, maps::Backend::default())?,
                Step::SetService { key, slots } => self.set_service(&key, &slots, &mut used, &mut numbers)?,
                Step::RemoveService { key } => {
                    numbers.remove(&map_key(&key));
                    ignore_missing(self.services.remove(&map_key(&key)))?;
                }
            }
        }
        // Services that could not be read back and are not wanted either.
        let wanted: BTreeSet<_> = desired.services.keys().map(map_key).collect();
        let present: Vec<maps::ServiceKey> = self.services.keys().collect::<Result<_, _>>()?;
        for key in present.iter().filter(|key| !wanted.contains(key)) {
            ignore_missing(self.services.remove(key))?;
        }
        Ok(())
    }

    /// Makes the programs know exactly these addresses as the node's own.
    pub(super) fn set_local_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DataplaneError> {
        let wanted: BTreeSet<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        let present: BTreeSet<Address> = self.local.keys().collect::<Result<_, _>>()?;
        for address in wanted.difference(&present) {
            self.local.insert(address, 0, 0)?;
        }
        for address in present.difference(&wanted) {
            ignore_missing(self.local.remove(address))?;
        }
        Ok(())
    }

    /// The services by their number.
    pub(super) fn numbers(&self) -> Result<BTreeMap<u16, ServiceKey>, DataplaneError> {
        self.services
            .iter()
            .map(|entry| entry.map(|(key, service)| (service.number, service_key(&key))).map_err(Into::into))
            .collect()
    }

    fn set_backend(&mut self, slot: u16, backend: maps::Backend) -> Result<(), DataplaneError> {
        if u32::from(slot) >= self.backends.len() {
            return Err(DataplaneError::Full { what: "backends", limit: self.backends.len() });
        }
        self.backends.write(u32::from(slot), &[backend]).map_err(failed("write a backend"))
    }

    fn set_service(
        &mut self,
        key: &ServiceKey,
        slots: &BTreeSet<u16>,
        used: &mut BTreeSet<u16>,
        numbers: &mut BTreeMap<maps::ServiceKey, u16>,
    ) -> Result<(), DataplaneError> {
        let tables = self.maglev.len() / MAGLEV_WORDS;
        let table = (0..tables as u16)
            .find(|table| !used.contains(table))
            .ok_or(DataplaneError::Full { what: "Maglev tables", limit: tables })?;
        used.insert(table);
        let number = match numbers.get(&map_key(key)) {
            Some(number) => *number,
            None => {
                let limit = self.counters.len();
                let number = (0..limit as u16)
                    .find(|number| !numbers.values().any(|taken| taken == number))
                    .ok_or(DataplaneError::Full { what: "services", limit })?;
                let zero = PerCpuValues::try_from(vec![ServiceCounters::default(); self.cpus])
                    .map_err(failed("count the processors"))?;
                self.counters.set(u32::from(number), zero, 0)?;
                numbers.insert(map_key(key), number);
                number
            }
        };
        self.write_maglev(table, &forwarding::maglev(slots))?;
        let service = maps::Service { number, table, backends: slots.len() as u16, reserved: 0 };
        Ok(self.services.insert(map_key(key), service, 0)?)
    }

    fn read_maglev(&self, table: u16) -> Result<Vec<u16>, DataplaneError> {
        let first = u32::from(table) * MAGLEV_WORDS;
        let words = self.maglev.read(first, MAGLEV_WORDS).map_err(failed("read a Maglev table"))?;
        let unpack = |packed: u64| (0..SLOTS_PER_WORD).map(move |place| (packed >> (16 * place)) as u16);
        Ok(words.into_iter().flat_map(unpack).take(MAGLEV_SLOTS).collect())
    }

    fn write_maglev(&mut self, table: u16, places: &[u16]) -> Result<(), DataplaneError> {
        let mut words = vec![0_u64; MAGLEV_WORDS as usize];
        for (hash, slot) in (0_u32..).zip(places) {
            // A hash below the table's length is its own place.
            let (word, shift) = hash::place(hash);
            words[word as usize] |= u64::from(*slot) << shift;
        }
        self.maglev.write(u32::from(table) * MAGLEV_WORDS, &words).map_err(failed("write a Maglev table"))
    }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> DataplaneError {
    move |source| DataplaneError::Kernel { what: what.to_owned(), source }
}

/// What is already gone needs no removing.
pub(super) fn ignore_missing(result: Result<(), aya::maps::MapError>) -> Result<(), DataplaneError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

fn map_key(key: &ServiceKey) -> maps::ServiceKey {
    maps::ServiceKey {
        address: key.address.map_or(Address::ANY, Address::from),
        port: port_to_wire(key.port),
        protocol: match key.protocol {
            Protocol::Tcp => maps::TCP,
            Protocol::Udp => maps::UDP,
        },
        family: match key.family {
            Family::V4 => maps::FAMILY_V4,
            Family::V6 => maps::FAMILY_V6,
        },
    }
}

fn service_key(key: &maps::ServiceKey) -> ServiceKey {
    ServiceKey {
        protocol: if key.protocol == maps::TCP { Protocol::Tcp } else { Protocol::Udp },
        port: port_from_wire(key.port),
        family: if key.family == maps::FAMILY_V4 { Family::V4 } else { Family::V6 },
        address: (!key.address.is_any()).then(|| key.address.into()),
    }
}

fn to_map(backend: &Backend) -> maps::Backend {
    maps::Backend {
        v4: backend.v4.map_or(Address::ANY, |v4| IpAddr::V4(v4).into()),
        v6: backend.v6.map_or(Address::ANY, |v6| IpAddr::V6(v6).into()),
        ifindex: backend.ifindex,
        port: port_to_wire(backend.port),
        state: match backend.state {
            BackendState::Active => maps::BACKEND_ACTIVE,
            BackendState::Draining => maps::BACKEND_DRAINING,
        },
        reserved: 0,
    }
}

fn from_map(backend: &maps::Backend) -> Backend {
    Backend {
        v4: match backend.v4.into() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        },
        v6: match backend.v6.into() {
            IpAddr::V6(v6) if !backend.v6.is_any() => Some(v6),
            _ => None,
        },
        port: port_from_wire(backend.port),
        ifindex: backend.ifindex,
        state: if backend.state == maps::BACKEND_DRAINING { BackendState::Draining } else { BackendState::Active },
    }
}
