//! Sockets of the node itself: 127.0.0.1, ::1 and every own address reach a published port.
//!
//! A container is chosen once, when the socket connects (or, unconnected, by the socket's identity for each
//! datagram), so nothing is rewritten per packet. What the program asked for is kept in `SOCKETS` and shown by
//! `getpeername` and as the sender of datagrams. Several nodes may share one kernel and one cgroup tree: each node's
//! programs act only in the network namespace whose cookie is in `CONFIG`.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use orchestrator_ebpf_common::{
    hash,
    maps::{Address, FAMILY_V4, FAMILY_V6, SocketKey, SocketOriginal, TCP, UDP},
};

use crate::{
    flows,
    maps::{CONFIG, SOCKETS, is_local, service},
};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails.
const REFUSE: i32 = 0;
/// `EADDRINUSE` (errno.h, the same on every architecture Linux supports but MIPS and SPARC).
const EADDRINUSE: i32 = 98;

#[inline(always)]
pub fn redirect_v4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = choose(ctx, address_v4(ctx)) {
        write_v4(ctx, &address, port);
    }
    ALLOW
}

#[inline(always)]
pub fn redirect_v6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = choose(ctx, address_v6(ctx)) {
        write_v6(ctx, &address, port);
    }
    ALLOW
}

#[inline(always)]
pub fn restore_v4(ctx: &SockAddrContext) -> i32 {
    if let Some(original) = original(ctx, address_v4(ctx)) {
        write_v4(ctx, &original.address, original.port);
    }
    ALLOW
}

#[inline(always)]
pub fn restore_v6(ctx: &SockAddrContext) -> i32 {
    if let Some(original) = original(ctx, address_v6(ctx)) {
        write_v6(ctx, &original.address, original.port);
    }
    ALLOW
}

#[inline(always)]
pub fn protect_v4(ctx: &SockAddrContext) -> i32 {
    protect(ctx, address_v4(ctx))
}

#[inline(always)]
pub fn protect_v6(ctx: &SockAddrContext) -> i32 {
    protect(ctx, address_v6(ctx))
}

/// The container for a destination that is a published port of this node.
#[inline(always)]
fn choose(ctx: &SockAddrContext, asked: Address) -> Option<(Address, u16)> {
    let (port, protocol) = (port(ctx), protocol(ctx)?);
    if !in_node_namespace(ctx) {
        return None;
    }
    // Connecting to the unspecified address means this host (RFC 1122 §3.2.1.3).
    let asked = if is_unspecified(&asked) { loopback(&asked) } else { asked };
    if !(asked.is_loopback() || is_local(&asked)) {
        return None;
    }
    let service = service(&asked, port, protocol, family(&asked))?;
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let (_, backend) = flows::backend(&service, hash::socket(cookie))?;
    let address = if asked.is_v4() { backend.v4 } else { backend.v6 };
    if address.is_any() || backend.ifindex == 0 {
        return None;
    }
    let key = SocketKey { cookie, address, port: backend.port, reserved: [0; 3] };
    let _ = SOCKETS.insert(&key, &SocketOriginal { address: asked, port, reserved: 0 }, 0);
    Some((address, backend.port))
}

/// What this socket asked for when it got the backend it now names.
#[inline(always)]
fn original(ctx: &SockAddrContext, address: Address) -> Option<SocketOriginal> {
    if !in_node_namespace(ctx) {
        return None;
    }
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let key = SocketKey { cookie, address, port: port(ctx), reserved: [0; 3] };
    // SAFETY: the value is copied at once.
    unsafe { SOCKETS.get(&key) }.copied()
}

/// Refuses a published port to the node's own programs: they would never receive a packet.
#[inline(always)]
fn protect(ctx: &SockAddrContext, address: Address) -> i32 {
    let Some(protocol) = protocol(ctx) else { return ALLOW };
    let port = port(ctx);
    if port == 0 || !in_node_namespace(ctx) {
        return ALLOW;
    }
    // `::` accepts IPv4 as well, unless told otherwise: either family's service is in the way.
    let taken = service(&address, port, protocol, family(&address)).is_some()
        || address.is_any() && service(&Address::ANY, port, protocol, FAMILY_V4).is_some();
    if !taken {
        return ALLOW;
    }
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    REFUSE
}

#[inline(always)]
fn in_node_namespace(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    CONFIG.get(0).is_some_and(|config| config.netns_cookie == cookie)
}

#[inline(always)]
fn is_unspecified(address: &Address) -> bool {
    address.is_any() || address.is_v4() && address.v4_word() == 0
}

#[inline(always)]
fn family(address: &Address) -> u8 {
    if address.is_v4() { FAMILY_V4 } else { FAMILY_V6 }
}

/// The loopback address of an address's family.
#[inline(always)]
fn loopback(address: &Address) -> Address {
    if address.is_v4() {
        Address::from_v4_word(0x7f00_0001_u32.to_be())
    } else {
        Address::from_v6_words([0, 0, 0, 1_u32.to_be()])
    }
}

#[inline(always)]
fn fields(ctx: &SockAddrContext) -> *mut bpf_sock_addr {
    ctx.sock_addr
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the context is valid for the run of the program.
    let protocol = unsafe { (*fields(ctx)).protocol };
    (protocol == u32::from(TCP) || protocol == u32::from(UDP)).then_some(protocol as u8)
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid for the run of the program.
    unsafe { (*fields(ctx)).user_port as u16 }
}

#[inline(always)]
fn address_v4(ctx: &SockAddrContext) -> Address {
    // SAFETY: the context is valid for the run of the program.
    Address::from_v4_word(unsafe { (*fields(ctx)).user_ip4 })
}

#[inline(always)]
fn address_v6(ctx: &SockAddrContext) -> Address {
    // SAFETY: the context is valid for the run of the program. Word by word: the kernel rewrites each access.
    let words = unsafe {
        let first = &raw const (*fields(ctx)).user_ip6;
        let first = first.cast::<u32>();
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    };
    Address::from_v6_words(words)
}

#[inline(always)]
fn write_v4(ctx: &SockAddrContext, address: &Address, port: u16) {
    // SAFETY: the context is valid for the run of the program.
    unsafe {
        (*fields(ctx)).user_ip4 = address.v4_word();
        (*fields(ctx)).user_port = u32::from(port);
    }
}

#[inline(always)]
fn write_v6(ctx: &SockAddrContext, address: &Address, port: u16) {
    // SAFETY: as in `address_v6`.
    unsafe {
        let first = &raw mut (*fields(ctx)).user_ip6;
        let first = first.cast::<u32>();
        first.write_volatile(address.words[0]);
        first.add(1).write_volatile(address.words[1]);
        first.add(2).write_volatile(address.words[2]);
        first.add(3).write_volatile(address.words[3]);
        (*fields(ctx)).user_port = u32::from(port);
    }
}
