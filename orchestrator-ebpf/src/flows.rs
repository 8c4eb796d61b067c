//! The choice of a backend: local address → service → connection table → Maglev. The same for tc and XDP.
//!
//! In: a parsed packet and where it came from. Out: the backend it goes to, or the reason it is left alone.
//! A new flow waits in `EMBRYONIC` until its client has answered the backend's answer; only then does it take a
//! place in `FLOWS`. A flood of opening packets from forged addresses thus turns over the small table and evicts no
//! established flow; a flow evicted from it is chosen again by Maglev, with the same result.

use orchestrator_ebpf_common::{
    conntrack, hash,
    maps::{
        Address, BACKEND_ABSENT, Backend, FAMILY_V4, FLOW_CLIENT_IS_CONTAINER, FROM_BACKEND, FROM_CLIENT, Flow,
        FlowKey, MAGLEV_WORDS, Reason, Service,
    },
    packet::Packet,
};

use crate::maps::{BACKENDS, EMBRYONIC, FLOWS, MAGLEV, count_service, is_local, now, service};

/// Where a packet came in.
pub trait Ingress {
    /// The interface it came in by.
    fn ifindex(&self) -> u32;
    /// Whether that is a container's veth.
    fn is_container(&self) -> bool;
    /// Whether a socket of the node has this packet's connection.
    fn has_host_socket(&self, packet: &Packet) -> bool;
}

/// A backend of this node, and how the client's packet is rewritten to reach it.
#[derive(Default)]
pub struct Target {
    pub address: Address,
    pub port: u16,
    pub service: u16,
    pub ifindex: u32,
}

/// The key the client's packets find.
#[inline(always)]
pub fn client_key(packet: &Packet) -> FlowKey {
    FlowKey {
        peer: packet.source,
        own: packet.destination,
        peer_port: packet.source_port,
        own_port: packet.destination_port,
        protocol: packet.protocol,
        direction: FROM_CLIENT,
        reserved: 0,
    }
}

/// The key the container's packets find.
#[inline(always)]
pub fn backend_key(packet: &Packet) -> FlowKey {
    FlowKey {
        peer: packet.destination,
        own: packet.source,
        peer_port: packet.destination_port,
        own_port: packet.source_port,
        protocol: packet.protocol,
        direction: FROM_BACKEND,
        reserved: 0,
    }
}

/// The flow of a key, in either table.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    let flow = FLOWS.get_ptr_mut(key).or_else(|| EMBRYONIC.get_ptr_mut(key))?;
    // SAFETY: map memory stays valid for the run of the program. Other CPUs may write the same fields; each is
    // an integer written whole, and a lost update of `seen` or `last_seen` is repeated by the next packet.
    Some(unsafe { &mut *flow })
}

/// Notes a packet of this direction.
#[inline(always)]
pub fn touch(flow: &mut Flow, packet: &Packet, now: u32) {
    let seen = flow.seen | conntrack::seen(packet.protocol, packet.tcp_flags);
    // Most packets change nothing: the cache line stays shared between CPUs.
    if flow.seen != seen {
        flow.seen = seen;
    }
    if flow.last_seen != now {
        flow.last_seen = now;
    }
}

/// The backend for a client's packet. The number of the service is known even where there is none.
#[inline(never)]
pub fn choose<I: Ingress>(ingress: &I, packet: &Packet, target: &mut Target) -> Result<(), Reason> {
    if !is_local(&packet.destination) {
        return Err(Reason::NotService);
    }
    let Some(service) = service(&packet.destination, packet.destination_port, packet.protocol, packet.family) else {
        return Err(Reason::NotService);
    };
    let now = now();
    let key = client_key(packet);
    target.service = service.number;
    *target = match known(ingress, packet, &key, now) {
        Some(target) => target,
        None => begin(ingress, packet, &key, &service, now)?,
    };
    Ok(())
}

/// The backend a living flow already has.
#[inline(always)]
fn known<I: Ingress>(ingress: &I, packet: &Packet, key: &FlowKey, now: u32) -> Option<Target> {
    let (flow, embryonic) = match FLOWS.get_ptr_mut(key) {
        Some(flow) => (flow, false),
        None => (EMBRYONIC.get_ptr_mut(key)?, true),
    };
    // SAFETY: as in `find`.
    let flow = unsafe { &mut *flow };
    let backend = BACKENDS.get(u32::from(flow.slot))?;
    let address = if packet.family == FAMILY_V4 { backend.v4 } else { backend.v6 };
    let opening = conntrack::is_opening(packet.protocol, packet.tcp_flags);
    let reply = key.other_half(flow.address, flow.port);
    if backend.state == BACKEND_ABSENT || address != flow.address || backend.port != flow.port {
        forget(key, &reply);
        return None;
    }

    // Once a second, and whenever the flow may change hands, its other half is looked at as well.
    if embryonic || opening || flow.last_seen != now || flow.ifindex != ingress.ifindex() {
        let (answered, last_answer) = match find(&reply) {
            Some(half) => {
                half.ifindex = ingress.ifindex();
                (half.seen, half.last_seen)
            }
            None => {
                let _ = FLOWS.insert(&reply, &reply_flow(ingress, packet, flow.slot, flow.service), 0);
                (0, 0)
            }
        };
        let last_used = if last_answer > flow.last_seen { last_answer } else { flow.last_seen };
        let closed = conntrack::is_closed(packet.protocol, flow.seen, answered);
        let timeout = conntrack::timeout(packet.protocol, flow.seen, answered);
        if opening && closed || conntrack::is_expired(now, last_used, timeout) {
            forget(key, &reply);
            return None;
        }
        flow.ifindex = ingress.ifindex();
        touch(flow, packet, now);
        if embryonic && !opening && last_answer != 0 && !closed {
            promote(key, &reply);
        }
    } else {
        touch(flow, packet, now);
    }
    Some(Target { address: flow.address, port: flow.port, service: flow.service, ifindex: backend.ifindex })
}

/// Chooses a backend for a flow nobody knows, and remembers it.
#[inline(always)]
fn begin<I: Ingress>(
    ingress: &I,
    packet: &Packet,
    key: &FlowKey,
    service: &Service,
    now: u32,
) -> Result<Target, Reason> {
    // An opening TCP segment is for the service. Anything else may belong to a connection the node itself opened
    // from a port that happens to be published.
    if !conntrack::is_opening(packet.protocol, packet.tcp_flags) && ingress.has_host_socket(packet) {
        return Err(Reason::HostSocket);
    }
    let Some((slot, backend)) = backend(service, hash::flow(key)) else {
        return Err(Reason::NoBackend);
    };
    let address = if packet.family == FAMILY_V4 { backend.v4 } else { backend.v6 };
    if address.is_any() {
        return Err(Reason::NoBackend);
    }
    if backend.ifindex == 0 {
        return Err(Reason::Remote);
    }
    let reply = key.other_half(address, backend.port);
    if let Some(other) = find(&reply) {
        // Same client and port towards the same container, but through another published address or port: the
        // container could not tell the two apart, and replies would be sent from the wrong address.
        let differs = other.address != packet.destination || other.port != packet.destination_port;
        let timeout = conntrack::timeout(packet.protocol, conntrack::DATA, other.seen);
        if differs
            && other.seen & (conntrack::FIN | conntrack::RST) == 0
            && !conntrack::is_expired(now, other.last_seen, timeout)
        {
            return Err(Reason::TupleCollision);
        }
        forget(key, &reply);
    }
    let flow = Flow {
        address,
        port: backend.port,
        slot,
        ifindex: ingress.ifindex(),
        last_seen: now,
        service: service.number,
        seen: conntrack::seen(packet.protocol, packet.tcp_flags),
        flags: 0,
    };
    // A full table makes room by itself; what fails otherwise is tried again by the next packet.
    let _ = EMBRYONIC.insert(key, &flow, 0);
    let _ = EMBRYONIC.insert(&reply, &reply_flow(ingress, packet, slot, service.number), 0);
    count_service(service.number, |counters| counters.new_flows += 1);
    Ok(Target { address, port: backend.port, service: service.number, ifindex: backend.ifindex })
}

/// The backend at a hash's place in the service's table.
#[inline(always)]
pub fn backend(service: &Service, hash: u32) -> Option<(u16, &'static Backend)> {
    if service.backends == 0 {
        return None;
    }
    let (word, shift) = hash::place(hash);
    let slots = MAGLEV.get(u32::from(service.table) * MAGLEV_WORDS + word)?;
    let slot = (*slots >> shift) as u16;
    let backend = BACKENDS.get(u32::from(slot))?;
    (backend.state != BACKEND_ABSENT).then_some((slot, backend))
}

#[inline(always)]
fn reply_flow<I: Ingress>(ingress: &I, packet: &Packet, slot: u16, service: u16) -> Flow {
    Flow {
        address: packet.destination,
        port: packet.destination_port,
        slot,
        ifindex: ingress.ifindex(),
        last_seen: 0,
        service,
        seen: 0,
        flags: if ingress.is_container() { FLOW_CLIENT_IS_CONTAINER } else { 0 },
    }
}

/// Moves both halves of a flow to the table of established flows.
#[inline(always)]
fn promote(key: &FlowKey, reply: &FlowKey) {
    // SAFETY: the values are copied by the kernel at once.
    if let Some(flow) = unsafe { EMBRYONIC.get(key) } {
        let _ = FLOWS.insert(key, flow, 0);
    }
    // SAFETY: as above.
    if let Some(flow) = unsafe { EMBRYONIC.get(reply) } {
        let _ = FLOWS.insert(reply, flow, 0);
    }
    let _ = EMBRYONIC.remove(key);
    let _ = EMBRYONIC.remove(reply);
}

/// Forgets both halves of a flow.
#[inline(always)]
fn forget(key: &FlowKey, reply: &FlowKey) {
    let _ = FLOWS.remove(key);
    let _ = FLOWS.remove(reply);
    let _ = EMBRYONIC.remove(key);
    let _ = EMBRYONIC.remove(reply);
}
