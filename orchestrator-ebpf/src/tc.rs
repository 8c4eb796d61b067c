//! tc ingress on uplinks and on containers' veths: rewrites, delivers, answers.
//!
//! Delivery is by `bpf_redirect_peer`: straight into the container's namespace on the same softirq, past the bridge,
//! netfilter and connection tracking of the node. Replies leave by `bpf_redirect_neigh` on the interface the client
//! came in by, so a reply whose source is one of our own addresses never enters the node's stack, which would drop
//! it as martian. A client that is itself a container is answered through its own veth.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_sock_tuple},
    helpers::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_change_head, bpf_skb_change_type, bpf_skb_load_bytes,
        bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use orchestrator_ebpf_common::{
    maps::{
        Address, BACKEND_ABSENT, FAMILY_V4, FLOW_CLIENT_IS_CONTAINER, FROM_BACKEND, FROM_CLIENT, Flow, FlowKey, Reason,
        TCP, UDP,
    },
    packet::{self, Bytes, ETHERNET_LENGTH, Packet},
};

use crate::{
    flows::{self, Ingress, Target},
    maps::{BACKENDS, Scratch, count, count_service, is_local, now, scratch},
};

/// Continue with the next program of the hook, and after the last with the stack.
const PASS: i32 = -1;
const DROP: i32 = 2;
/// `PACKET_HOST` (if_packet.h): the frame is for this machine.
const PACKET_HOST: u32 = 0;

/// Offset of the checksum in a TCP header and in a UDP header.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
/// Offset of the checksum in an ICMP or ICMPv6 message.
const ICMP_CHECKSUM: u32 = 2;
/// Flag of `bpf_l4_csum_replace` since Linux 6.16: the packet is IPv6.
const BPF_F_IPV6: u64 = 1 << 7;

/// The side of a packet to write on.
const SOURCE: bool = false;
const DESTINATION: bool = true;

struct Skb<'a> {
    ctx: &'a TcContext,
    is_container: bool,
}

impl Skb<'_> {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    #[inline(always)]
    fn store<const N: usize>(&self, offset: u32, bytes: [u8; N]) -> Result<(), Reason> {
        // SAFETY: the buffer is `N` bytes long; the kernel checks the offset.
        let result = unsafe { bpf_skb_store_bytes(self.raw(), offset, bytes.as_ptr().cast(), N as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::RewriteFailed) }
    }
}

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the buffer is `N` bytes long; the kernel checks the offset.
        let result =
            unsafe { bpf_skb_load_bytes(self.raw().cast_const().cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
        (result == 0).then_some(bytes)
    }
}

impl Ingress for Skb<'_> {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the run of the program.
        unsafe { (*self.raw()).ifindex }
    }

    #[inline(always)]
    fn is_container(&self) -> bool {
        self.is_container
    }

    #[inline(always)]
    fn has_host_socket(&self, packet: &Packet) -> bool {
        host_socket(self.raw().cast(), packet)
    }
}

/// An uplink's packet. `ETHERNET`: whether it begins with an Ethernet header.
#[inline(always)]
pub fn uplink<const ETHERNET: bool>(ctx: &TcContext) -> i32 {
    let skb = Skb { ctx, is_container: false };
    let Some(Scratch { packet, quoted }) = scratch() else { return PASS };
    if let Err(reason) = parse::<ETHERNET>(&skb, packet) {
        return leave(reason);
    }
    if packet.is_icmp() {
        return error_to_container::<ETHERNET>(&skb, packet, quoted);
    }
    forward::<ETHERNET>(&skb, packet)
}

/// A container's packet.
#[inline(always)]
pub fn container(ctx: &TcContext) -> i32 {
    let skb = Skb { ctx, is_container: true };
    let Some(Scratch { packet, quoted }) = scratch() else { return PASS };
    if let Err(reason) = parse::<true>(&skb, packet) {
        return leave(reason);
    }
    if packet.is_icmp() {
        return error_to_client(&skb, packet, quoted);
    }
    let Some(flow) = flows::find(&flows::backend_key(packet)) else {
        return forward::<true>(&skb, packet);
    };
    flows::touch(flow, packet, now());
    let bytes = u64::from(ctx.len());
    count_service(flow.service, |counters| {
        counters.packets_out += 1;
        counters.bytes_out += bytes;
    });
    if rewrite(&skb, packet, SOURCE, &flow.address, flow.port).is_err() {
        return discard(Reason::RewriteFailed);
    }
    // The answer of a container that reached itself goes to its own address.
    if flow.address == packet.destination
        && rewrite(&skb, packet, DESTINATION, &packet.source, packet.destination_port).is_err()
    {
        return discard(Reason::RewriteFailed);
    }
    count(Reason::Replied);
    to_client(&skb, flow)
}

/// An ICMP error about a reply, from the client or a router on the way to it: it quotes the reply as it left the node.
/// The container must see it quote what the container sent, or it would not know what to send smaller.
#[inline(never)]
fn error_to_container<const ETHERNET: bool>(skb: &Skb<'_>, error: &Packet, quoted: &mut Packet) -> i32 {
    if !is_local(&error.destination) {
        return leave(Reason::NotService);
    }
    if parse_quoted(skb, error, quoted).is_err() {
        return leave(Reason::Protocol);
    }
    // The quoted packet goes the other way: its receiver is the client.
    let key = FlowKey { direction: FROM_CLIENT, ..flows::backend_key(quoted) };
    let Some(flow) = flows::find(&key) else {
        return leave(Reason::NotService);
    };
    let Some(backend) = BACKENDS.get(u32::from(flow.slot)) else {
        return leave(Reason::NoBackend);
    };
    if backend.state == BACKEND_ABSENT || backend.ifindex == 0 {
        return leave(Reason::NoBackend);
    }
    if rewrite_error(skb, error, quoted, DESTINATION, flow).is_err()
        || !ETHERNET && add_ethernet_header(skb, error.family).is_err()
    {
        return discard(Reason::RewriteFailed);
    }
    count(Reason::IcmpTranslated);
    to_container(skb, backend.ifindex)
}

/// An ICMP error from a container about a client's packet: it must quote what the client sent.
#[inline(never)]
fn error_to_client(skb: &Skb<'_>, error: &Packet, quoted: &mut Packet) -> i32 {
    if parse_quoted(skb, error, quoted).is_err() {
        return leave(Reason::Protocol);
    }
    let key = FlowKey { direction: FROM_BACKEND, ..flows::client_key(quoted) };
    let Some(flow) = flows::find(&key) else {
        return leave(Reason::NotService);
    };
    if rewrite_error(skb, error, quoted, SOURCE, flow).is_err() {
        return discard(Reason::RewriteFailed);
    }
    count(Reason::IcmpTranslated);
    to_client(skb, flow)
}

/// Whether a socket in the network namespace of the interface has this packet's connection, or has its port.
#[inline(never)]
pub fn host_socket(ctx: *mut core::ffi::c_void, packet: &Packet) -> bool {
    // SAFETY: all-zero is a valid tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if packet.family == FAMILY_V4 {
        tuple.__bindgen_anon_1.ipv4.saddr = packet.source.v4_word();
        tuple.__bindgen_anon_1.ipv4.daddr = packet.destination.v4_word();
        tuple.__bindgen_anon_1.ipv4.sport = packet.source_port;
        tuple.__bindgen_anon_1.ipv4.dport = packet.destination_port;
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = packet.source.words;
        tuple.__bindgen_anon_1.ipv6.daddr = packet.destination.words;
        tuple.__bindgen_anon_1.ipv6.sport = packet.source_port;
        tuple.__bindgen_anon_1.ipv6.dport = packet.destination_port;
        36
    };
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: the tuple is at least `size` bytes long; a socket found is released.
    unsafe {
        let socket = if packet.protocol == TCP {
            bpf_skc_lookup_tcp(ctx.cast(), &mut tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(ctx.cast(), &mut tuple, size, netns, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

// A subprogram, as are the others marked so: a program and everything inlined into it share 512 bytes of stack. No more
// than five arguments fit into registers, and there is no other way to pass them.
#[inline(never)]
fn parse<const ETHERNET: bool>(skb: &Skb<'_>, packet: &mut Packet) -> Result<(), Reason> {
    if !ETHERNET {
        *packet = packet::parse_raw(skb)?;
        return Ok(());
    }
    // The driver or the stack has taken the outer tag off already; the VLAN's own interface sees the packet next.
    // SAFETY: the context is valid for the run of the program.
    if unsafe { (*skb.raw()).vlan_present } != 0 {
        return Err(Reason::Vlan);
    }
    *packet = packet::parse_ethernet(skb)?;
    if packet.vlan_tags != 0 { Err(Reason::Vlan) } else { Ok(()) }
}

#[inline(never)]
fn parse_quoted(skb: &Skb<'_>, error: &Packet, quoted: &mut Packet) -> Result<(), Reason> {
    *quoted = packet::quoted(skb, error)?;
    Ok(())
}

/// A client's packet, from wherever.
#[inline(always)]
fn forward<const ETHERNET: bool>(skb: &Skb<'_>, packet: &Packet) -> i32 {
    let mut target = Target::default();
    match flows::choose(skb, packet, &mut target) {
        Ok(()) => {}
        Err(Reason::NoBackend) => {
            count_service(target.service, |counters| counters.no_backend += 1);
            return leave(Reason::NoBackend);
        }
        Err(Reason::TupleCollision) => return discard(Reason::TupleCollision),
        Err(reason) => return leave(reason),
    }
    let bytes = u64::from(skb.ctx.len());
    count_service(target.service, |counters| {
        counters.packets_in += 1;
        counters.bytes_in += bytes;
    });
    if rewrite(skb, packet, DESTINATION, &target.address, target.port).is_err() {
        return discard(Reason::RewriteFailed);
    }
    // A container that reached itself: it would not take a packet from its own address.
    if target.address == packet.source && rewrite(skb, packet, SOURCE, &packet.destination, packet.source_port).is_err()
    {
        return discard(Reason::RewriteFailed);
    }
    if !ETHERNET && add_ethernet_header(skb, packet.family).is_err() {
        return discard(Reason::RewriteFailed);
    }
    count(Reason::Delivered);
    to_container(skb, target.ifindex)
}

/// Hands the packet to the far end of a veth.
#[inline(always)]
fn to_container(skb: &Skb<'_>, ifindex: u32) -> i32 {
    // A frame a container sent bears the MAC of the bridge or of another container; the type decided by that at
    // reception would make the receiving stack ignore it.
    // SAFETY: both helpers accept any value and check it.
    unsafe {
        bpf_skb_change_type(skb.raw(), PACKET_HOST);
        bpf_redirect_peer(ifindex, 0) as i32
    }
}

/// Puts an Ethernet header before a packet of a device that has none; the MAC addresses stay zero, which the
/// receiving end of a veth does not look at.
#[inline(always)]
fn add_ethernet_header(skb: &Skb<'_>, family: u8) -> Result<(), Reason> {
    // SAFETY: the helper checks the length.
    if unsafe { bpf_skb_change_head(skb.raw(), ETHERNET_LENGTH, 0) } != 0 {
        return Err(Reason::RewriteFailed);
    }
    let ethertype: [u8; 2] = if family == FAMILY_V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    skb.store(12, ethertype)
}

/// Sends a packet back by the way the client's packets came.
#[inline(always)]
fn to_client(skb: &Skb<'_>, flow: &Flow) -> i32 {
    if flow.flags & FLOW_CLIENT_IS_CONTAINER != 0 {
        return to_container(skb, flow.ifindex);
    }
    // SAFETY: no parameters are passed; the kernel looks the next hop up by the packet's addresses.
    (unsafe { bpf_redirect_neigh(flow.ifindex, core::ptr::null_mut(), 0, 0) }) as i32
}

/// Writes another address and port on one side of a packet, and keeps every checksum right, including the partial ones
/// of packets that were never on a wire.
#[inline(never)]
fn rewrite(skb: &Skb<'_>, packet: &Packet, side: bool, address: &Address, port: u16) -> Result<(), Reason> {
    // A UDP checksum of zero means "none" over IPv4 (RFC 768), and must neither be touched nor come out.
    let (checksum, mangled) = if packet.protocol == UDP {
        (packet.transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (packet.transport + TCP_CHECKSUM, 0)
    };
    set_address(skb, packet, side, address, checksum, mangled | u64::from(BPF_F_PSEUDO_HDR))?;
    set_port(skb, packet, side, port, checksum, mangled)
}

/// Writes another address on one side of an ICMP error, and on the other side of the packet it quotes, with the port.
/// The quoted packet's own transport checksum stays as it was: it is often cut off, and nobody verifies it.
#[inline(never)]
fn rewrite_error(skb: &Skb<'_>, error: &Packet, quoted: &Packet, side: bool, flow: &Flow) -> Result<(), Reason> {
    let checksum = error.transport + ICMP_CHECKSUM;
    // ICMP over IPv4 has no pseudo header, and a quoted IPv4 header whose own checksum is right adds nothing to the sum.
    let (outer, inner) = if error.family == FAMILY_V4 { (0, 0) } else { (checksum, checksum) };
    set_address(skb, error, side, &flow.address, outer, u64::from(BPF_F_PSEUDO_HDR))?;
    set_address(skb, quoted, !side, &flow.address, inner, 0)?;
    set_port(skb, quoted, !side, flow.port, checksum, 0)
}

/// Writes an address; `checksum` is the offset of the transport checksum that covers it, or 0.
#[inline(always)]
fn set_address(
    skb: &Skb<'_>,
    packet: &Packet,
    side: bool,
    address: &Address,
    checksum: u32,
    flags: u64,
) -> Result<(), Reason> {
    let old = if side == DESTINATION { &packet.destination } else { &packet.source };
    if packet.family == FAMILY_V4 {
        let (from, to) = (u64::from(old.v4_word()), u64::from(address.v4_word()));
        // SAFETY: the helpers check offsets.
        let mut result = unsafe { bpf_l3_csum_replace(skb.raw(), packet.network + 10, from, to, 4) };
        if checksum != 0 {
            // SAFETY: as above.
            result |= unsafe { bpf_l4_csum_replace(skb.raw(), checksum, from, to, flags | 4) };
        }
        if result != 0 {
            return Err(Reason::RewriteFailed);
        }
        let offset = packet.network + if side == DESTINATION { 16 } else { 12 };
        return skb.store(offset, address.v4_word().to_ne_bytes());
    }
    let (mut from, mut to) = (old.words, address.words);
    // SAFETY: both buffers are 16 bytes long; the helpers check the offset.
    let result = unsafe {
        let difference = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) as u64;
        // Kernels before 6.16 refuse the flag, without which a checksum the card has computed over the whole packet is
        // wrongly adjusted for IPv6.
        match bpf_l4_csum_replace(skb.raw(), checksum, 0, difference, flags | BPF_F_IPV6) {
            0 => 0,
            _ => bpf_l4_csum_replace(skb.raw(), checksum, 0, difference, flags),
        }
    };
    if result != 0 {
        return Err(Reason::RewriteFailed);
    }
    // SAFETY: four words are 16 bytes, and any bytes are valid.
    let bytes: [u8; 16] = unsafe { core::mem::transmute(address.words) };
    skb.store(packet.network + if side == DESTINATION { 24 } else { 8 }, bytes)
}

/// Writes a port; `checksum` is the offset of the transport checksum that covers it.
#[inline(always)]
fn set_port(skb: &Skb<'_>, packet: &Packet, side: bool, port: u16, checksum: u32, flags: u64) -> Result<(), Reason> {
    let old = if side == DESTINATION { packet.destination_port } else { packet.source_port };
    // SAFETY: the helper checks the offset.
    let result = unsafe { bpf_l4_csum_replace(skb.raw(), checksum, u64::from(old), u64::from(port), flags | 2) };
    if result != 0 {
        return Err(Reason::RewriteFailed);
    }
    skb.store(packet.transport + if side == DESTINATION { 2 } else { 0 }, port.to_ne_bytes())
}

#[inline(always)]
fn leave(reason: Reason) -> i32 {
    count(reason);
    PASS
}

#[inline(always)]
fn discard(reason: Reason) -> i32 {
    count(reason);
    DROP
}
