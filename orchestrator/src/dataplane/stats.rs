//! Counters of the dataplane, summed over the processors.

use super::{DataplaneError, tables::Tables};
use aya::maps::{MapData, PerCpuArray};
use orchestrator_core::model::Protocol;
use orchestrator_ebpf_common::maps::{Reason, ServiceCounters};
use std::collections::BTreeMap;

/// What the dataplane has counted since its maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets by what became of them; those that never happened are absent.
    pub reasons: BTreeMap<Reason, u64>,
    /// Per published port, both families together.
    pub services: BTreeMap<(Protocol, u16), ServiceCounters>,
}

pub(super) fn read(reasons: &PerCpuArray<MapData, u64>, tables: &Tables) -> Result<Stats, DataplaneError> {
    let mut stats = Stats::default();
    for reason in Reason::ALL {
        let total: u64 = reasons.get(&(reason as u32), 0)?.iter().sum();
        if total > 0 {
            stats.reasons.insert(reason, total);
        }
    }
    for (number, key) in tables.numbers()? {
        let sum = stats.services.entry((key.protocol, key.port)).or_default();
        for counters in tables.counters.get(&u32::from(number), 0)?.iter() {
            sum.new_flows += counters.new_flows;
            sum.packets_in += counters.packets_in;
            sum.bytes_in += counters.bytes_in;
            sum.packets_out += counters.packets_out;
            sum.bytes_out += counters.bytes_out;
            sum.no_backend += counters.no_backend;
        }
    }
    Ok(stats)
}
