//! Native XDP on an uplink: chooses before the stack allocates anything.
//!
//! A backend on this node is left to tc, which alone can deliver into a container without spoiling partial
//! checksums and segmentation offload; the choice it finds there is the one made here.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_load_bytes, programs::XdpContext};
use orchestrator_ebpf_common::{
    maps::Reason,
    packet::{self, Bytes, Packet},
};

use crate::{
    flows::{self, Target},
    maps::{Scratch, count, scratch},
};

struct Frame<'a>(&'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the buffer is `N` bytes long; the kernel checks the offset.
        let result = unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) };
        (result == 0).then_some(bytes)
    }
}

impl flows::Ingress for Frame<'_> {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn is_container(&self) -> bool {
        false
    }

    #[inline(always)]
    fn has_host_socket(&self, packet: &Packet) -> bool {
        crate::tc::host_socket(self.0.ctx.cast(), packet)
    }
}

/// See the module; every outcome is a pass for as long as all backends are on this node.
#[inline(always)]
pub fn uplink(ctx: &XdpContext) -> u32 {
    let frame = Frame(ctx);
    // What tc will count as well is not counted twice.
    let Some(Scratch { packet, .. }) = scratch() else { return xdp_action::XDP_PASS };
    if parse(&frame, packet).is_err() {
        return xdp_action::XDP_PASS;
    }
    // A tagged frame belongs to the VLAN's interface, and an error quotes a flow that tc knows how to find.
    if packet.vlan_tags == 0 && !packet.is_icmp() && flows::choose(&frame, packet, &mut Target::default()).is_ok() {
        count(Reason::XdpLocal);
    }
    xdp_action::XDP_PASS
}

#[inline(never)]
fn parse(frame: &Frame<'_>, packet: &mut Packet) -> Result<(), Reason> {
    *packet = packet::parse_ethernet(frame)?;
    Ok(())
}
