//! The connection table from user space: forgetting what is over.
//!
//! In: the `FLOWS` and `EMBRYONIC` maps. The programs themselves ignore what has expired; sweeping gives its memory
//! back before the kernel would evict by age.

use super::{DataplaneError, kernel, tables::ignore_missing};
use aya::maps::{HashMap, MapData};
use orchestrator_ebpf_common::{
    conntrack,
    maps::{FROM_CLIENT, Flow, FlowKey},
};
use std::os::fd::{AsFd, OwnedFd};

/// The connection table.
pub(super) struct Flows {
    pub(super) established: HashMap<MapData, FlowKey, Flow>,
    pub(super) embryonic: HashMap<MapData, FlowKey, Flow>,
    /// Both maps once more, for reading in batches, which aya does not offer.
    pub(super) descriptors: [OwnedFd; 2],
}

/// What a sweep did. Each flow has two entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed.
    pub removed: usize,
    /// Entries left.
    pub remaining: usize,
}

impl Flows {
    /// Forgets flows that have been idle for longer than their state allows, and those of absent backends.
    pub(super) fn sweep(&mut self, now: u32, is_backend: impl Fn(u16) -> bool) -> Result<Swept, DataplaneError> {
        self.remove_where(|flows, key, flow| {
            if !is_backend(flow.slot) {
                return true;
            }
            let other = flows.other_half(key, flow);
            let (other_seen, other_last) = other.map_or((0, 0), |other| (other.seen, other.last_seen));
            let (client, backend) =
                if key.direction == FROM_CLIENT { (flow.seen, other_seen) } else { (other_seen, flow.seen) };
            let last_seen = flow.last_seen.max(other_last);
            conntrack::is_expired(now, last_seen, conntrack::timeout(key.protocol, client, backend))
        })
    }

    /// Forgets the flows of one backend.
    pub(super) fn forget_backend(&mut self, slot: u16) -> Result<Swept, DataplaneError> {
        self.remove_where(|_, _, flow| flow.slot == slot)
    }

    /// Every entry.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&FlowKey, &Flow)) -> Result<(), DataplaneError> {
        for map in &self.descriptors {
            kernel::for_each_entry(map.as_fd(), &mut visit)
                .map_err(|source| DataplaneError::Kernel { what: "read the connection table".into(), source })?;
        }
        Ok(())
    }

    fn remove_where(&mut self, condemned: impl Fn(&Self, &FlowKey, &Flow) -> bool) -> Result<Swept, DataplaneError> {
        let (mut doomed, mut total) = (Vec::new(), 0);
        self.for_each(|key, flow| {
            total += 1;
            if condemned(self, key, flow) {
                doomed.push(*key);
            }
        })?;
        for key in &doomed {
            ignore_missing(self.established.remove(key))?;
            ignore_missing(self.embryonic.remove(key))?;
        }
        Ok(Swept { removed: doomed.len(), remaining: total - doomed.len() })
    }

    /// The entry of the other direction.
    fn other_half(&self, key: &FlowKey, flow: &Flow) -> Option<Flow> {
        let other = key.other_half(flow.address, flow.port);
        self.established.get(&other, 0).or_else(|_| self.embryonic.get(&other, 0)).ok()
    }
}
