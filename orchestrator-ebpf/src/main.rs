//! The dataplane's eBPF programs: entry points only.
//!
//! - `edged_uplink`, `edged_uplink_raw` (tc ingress of an uplink with and without Ethernet header): a packet to a published
//!   port goes to a container of this node.
//! - `edged_container` (tc ingress of a container's host-side veth): replies go back to the client, and a container's own
//!   packets to a published port go to a container.
//! - `edged_xdp` (native XDP of an uplink): the same choice before the stack sees the packet.
//! - `connect4` … `bind6` (root of the cgroup-v2 tree): sockets of the node itself.
//!
//! Loaded, attached and pinned by `orchestrator::dataplane`; the maps' layout is in `orchestrator-ebpf-common`.
#![no_std]
#![no_main]

mod flows;
mod maps;
mod socket;
mod tc;
mod xdp;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};

#[classifier]
pub fn edged_uplink(ctx: TcContext) -> i32 {
    tc::uplink::<true>(&ctx)
}

#[classifier]
pub fn edged_uplink_raw(ctx: TcContext) -> i32 {
    tc::uplink::<false>(&ctx)
}

#[classifier]
pub fn edged_container(ctx: TcContext) -> i32 {
    tc::container(&ctx)
}

#[xdp(frags)]
pub fn edged_xdp(ctx: XdpContext) -> u32 {
    xdp::uplink(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::redirect_v4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::redirect_v6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::redirect_v4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::redirect_v6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::restore_v4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::restore_v6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::restore_v4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::restore_v6(&ctx)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    socket::protect_v4(&ctx)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    socket::protect_v6(&ctx)
}

// Some helpers (`bpf_skb_load_bytes` among others) are offered to GPL-compatible programs only; the kernel knows
// "Dual MIT/GPL" and no other dual licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
