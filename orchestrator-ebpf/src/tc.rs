//! tc ingress on uplinks and on containers' veths: rewrites, delivers, answers.
//!
//! Delivery is by `bpf_redirect_peer`: straight into the container's namespace on the same softirq, past the bridge,
//! netfilter and connection tracking of the node. Replies leave by `bpf_redirect_neigh` on the interface the client
//! came in by, so a reply whose source is one of our own addresses never enters the node's stack, which would drop
//! it as martian. A client that is itself a container is answered through its own veth.

use core::mem::size_of;

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
    maps::{Address, FAMILY_V4, FLOW_CLIENT_IS_CONTAINER, Reason, TCP, UDP},
    packet::{self, Bytes, ETHERNET_LENGTH, Packet},
};

use crate::{
    flows::{self, Ingress, Target},
    maps::{count, count_service, now},
};

/// Continue with the next program of the hook, and after the last with the stack.
const PASS: i32 = -1;
const DROP: i32 = 2;
/// `PACKET_HOST` (if_packet.h): the frame is for this machine.
const PACKET_HOST: u32 = 0;

/// Offset of the checksum in a TCP header and in a UDP header.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

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
    let mut packet = Packet::default();
    if let Err(reason) = parse::<ETHERNET>(&skb, &mut packet) {
        return leave(reason);
    }
    if packet.is_icmp() {
        return leave(Reason::Protocol);
    }
    forward::<ETHERNET>(&skb, &packet)
}

/// A container's packet.
#[inline(always)]
pub fn container(ctx: &TcContext) -> i32 {
    let skb = Skb { ctx, is_container: true };
    let mut packet = Packet::default();
    if let Err(reason) = parse::<true>(&skb, &mut packet) {
        return leave(reason);
    }
    if packet.is_icmp() {
        return leave(Reason::Protocol);
    }
    match flows::find(&flows::backend_key(&packet)) {
        Some(flow) => {
            flows::touch(flow, &packet, now());
            let (address, port) = (flow.address, flow.port);
            let (ifindex, flags, service) = (flow.ifindex, flow.flags, flow.service);
            let bytes = u64::from(ctx.len());
            count_service(service, |counters| {
                counters.packets_out += 1;
                counters.bytes_out += bytes;
            });
            if rewrite::<false>(&skb, &packet, &address, port).is_err() {
                return discard(Reason::RewriteFailed);
            }
            count(Reason::Replied);
            if flags & FLOW_CLIENT_IS_CONTAINER != 0 {
                return to_container(&skb, ifindex);
            }
            // SAFETY: no parameters are passed; the kernel looks the next hop up by the packet's addresses.
            (unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }) as i32
        }
        None => forward::<true>(&skb, &packet),
    }
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

// A subprogram, as are the others marked so: a program and everything inlined into it share 512 bytes of stack.
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

/// A client's packet, from wherever.
#[inline(always)]
fn forward<const ETHERNET: bool>(skb: &Skb<'_>, packet: &Packet) -> i32 {
    let mut target = Target::default();
    match flows::choose(skb, packet, &mut target) {
        Ok(()) => {}
        Err(reason @ (Reason::TupleCollision | Reason::Hairpin)) => return discard(reason),
        Err(reason) => return leave(reason),
    }
    let bytes = u64::from(skb.ctx.len());
    count_service(target.service, |counters| {
        counters.packets_in += 1;
        counters.bytes_in += bytes;
    });
    if rewrite::<true>(skb, packet, &target.address, target.port).is_err() {
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

/// Writes another destination (or source) address and port, and keeps every checksum right, including the partial
/// ones of packets that were never on a wire.
#[inline(never)]
fn rewrite<const DESTINATION: bool>(
    skb: &Skb<'_>,
    packet: &Packet,
    address: &Address,
    port: u16,
) -> Result<(), Reason> {
    let (old_address, old_port) = if DESTINATION {
        (&packet.destination, packet.destination_port)
    } else {
        (&packet.source, packet.source_port)
    };
    // A UDP checksum of zero means "none" over IPv4 (RFC 768), and must neither be touched nor come out.
    let (checksum, mangled) = if packet.protocol == UDP {
        (packet.transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (packet.transport + TCP_CHECKSUM, 0)
    };
    let pseudo = mangled | u64::from(BPF_F_PSEUDO_HDR);
    if packet.family == FAMILY_V4 {
        let (from, to) = (u64::from(old_address.v4_word()), u64::from(address.v4_word()));
        // SAFETY: the helpers check offsets.
        let result = unsafe {
            bpf_l4_csum_replace(skb.raw(), checksum, from, to, pseudo | 4)
                | bpf_l3_csum_replace(skb.raw(), packet.network + 10, from, to, 4)
        };
        if result != 0 {
            return Err(Reason::RewriteFailed);
        }
        skb.store(packet.network + if DESTINATION { 16 } else { 12 }, address.v4_word().to_ne_bytes())?;
    } else {
        let (mut from, mut to) = (old_address.words, address.words);
        // SAFETY: both buffers are 16 bytes long; the helper checks the offset.
        let result = unsafe {
            let difference = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            bpf_l4_csum_replace(skb.raw(), checksum, 0, difference as u64, pseudo)
        };
        if result != 0 {
            return Err(Reason::RewriteFailed);
        }
        let offset = packet.network + if DESTINATION { 24 } else { 8 };
        // SAFETY: four words are 16 bytes; any bytes are valid for `[u8; 16]`.
        let bytes: [u8; size_of::<Address>()] = unsafe { core::mem::transmute(address.words) };
        skb.store(offset, bytes)?;
    }
    // SAFETY: the helper checks the offset.
    let result =
        unsafe { bpf_l4_csum_replace(skb.raw(), checksum, u64::from(old_port), u64::from(port), mangled | 2) };
    if result != 0 {
        return Err(Reason::RewriteFailed);
    }
    skb.store(packet.transport + if DESTINATION { 2 } else { 0 }, port.to_ne_bytes())
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
