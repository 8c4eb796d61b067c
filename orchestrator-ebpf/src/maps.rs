//! The maps, and the reads every program makes. Sizes are defaults: user space may set others when it loads.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use orchestrator_ebpf_common::maps::{
    Address, Backend, Config, Flow, FlowKey, MAGLEV_WORDS, MAX_BACKENDS, MAX_EMBRYONIC, MAX_FLOWS, MAX_LOCAL_ADDRESSES,
    MAX_SERVICES, MAX_SOCKETS, MAX_TABLES, Reason, Service, ServiceCounters, ServiceKey, SocketKey, SocketOriginal,
};
use orchestrator_ebpf_common::packet::Packet;

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static LOCAL: HashMap<Address, u32> = HashMap::with_max_entries(MAX_LOCAL_ADDRESSES, 0);
#[map]
pub static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(MAX_SERVICES, 0);
#[map]
pub static MAGLEV: Array<u64> = Array::with_max_entries(MAX_TABLES * MAGLEV_WORDS, 0);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(MAX_BACKENDS, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
pub static EMBRYONIC: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_EMBRYONIC, 0);
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketOriginal> = LruHashMap::with_max_entries(MAX_SOCKETS, 0);
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> = PerCpuArray::with_max_entries(MAX_SERVICES, 0);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Room for what a program run works on. It is not on the stack because that has 512 bytes, and because the verifier
/// forgets what it knows about values in a map: the ways through the parser meet again behind it, and are not followed
/// separately to the end of the program.
#[derive(Clone, Copy)]
pub struct Scratch {
    pub packet: Packet,
    pub quoted: Packet,
}

/// This processor's room. Programs of the network stack's receive path do not interrupt each other on one processor.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: one program run at a time uses the element, and takes it once.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Counts a packet under the reason for its fate.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: an element of this CPU's own array, which no other program run touches meanwhile.
        unsafe { *counter += 1 };
    }
}

/// Changes the counters of a service.
#[inline(always)]
pub fn count_service(number: u16, change: impl FnOnce(&mut ServiceCounters)) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(u32::from(number)) {
        // SAFETY: as in `count`.
        change(unsafe { &mut *counters });
    }
}

/// Seconds of the dataplane's clock; never 0, which means "never" in the tables.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper has no preconditions.
    let seconds = (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32;
    let offset = CONFIG.get(0).map_or(0, |config| config.clock_offset);
    seconds + offset + 1
}

/// Whether the address is one of the node's own.
#[inline(always)]
pub fn is_local(address: &Address) -> bool {
    // SAFETY: the value is not read.
    unsafe { LOCAL.get(address) }.is_some()
}

/// The service published on this address and port, or on this port of every address.
#[inline(always)]
pub fn service(address: &Address, port: u16, protocol: u8, family: u8) -> Option<Service> {
    let mut key = ServiceKey { address: *address, port, protocol, family };
    // SAFETY: values are copied at once; user space replaces elements as a whole.
    if let Some(service) = unsafe { SERVICES.get(&key) } {
        return Some(*service);
    }
    key.address = Address::ANY;
    // SAFETY: as above.
    unsafe { SERVICES.get(&key) }.copied()
}
