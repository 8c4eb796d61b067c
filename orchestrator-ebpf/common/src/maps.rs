//! Keys and values of the maps, `repr(C)` and without padding: the kernel compares keys byte by byte.
//!
//! Byte order: addresses and ports lie as they do in a packet (network order, so a `u16` port read on a
//! little-endian machine is swapped: use [`port_to_wire`] and [`port_from_wire`]). Everything else is in the
//! machine's own order. A change of any layout or size here needs a new [`SCHEMA`], which names the directory the maps
//! are pinned in: a program must never meet a map of another layout.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Version of the layouts in this file; part of the pin path.
pub const SCHEMA: u32 = 1;

/// Places of one Maglev table (2 KiB); all nodes must agree on it. `orchestrator_core::forwarding` says why this many.
pub const MAGLEV_SLOTS: u32 = 1021;
/// Table entries packed into one `u64`: array elements are rounded up to 8 bytes, so anything less wastes memory.
pub const SLOTS_PER_WORD: u32 = 4;
/// Words of one table in the `MAGLEV` array: 1021 / 4, rounded up (2 KiB per table).
pub const MAGLEV_WORDS: u32 = MAGLEV_SLOTS.div_ceil(SLOTS_PER_WORD);

/// Tables in the `MAGLEV` array: one per service and family, and as many again to build a new one beside the old.
pub const MAX_TABLES: u32 = 512;
/// Services (a published port counts once per family it is reachable by).
pub const MAX_SERVICES: u32 = 256;
/// Backend slots: 40 bytes each, 320 KiB.
pub const MAX_BACKENDS: u32 = 8192;
/// Addresses of the node.
pub const MAX_LOCAL_ADDRESSES: u32 = 256;
/// Connection table entries (two per flow): about 112 bytes each, 7 MiB.
pub const MAX_FLOWS: u32 = 65_536;
/// Flows whose client has not answered yet; a flood fills this table and leaves [`MAX_FLOWS`] alone.
pub const MAX_EMBRYONIC: u32 = 8192;
/// Original destinations of local sockets.
pub const MAX_SOCKETS: u32 = 16_384;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// [`ServiceKey::family`] of IPv4.
pub const FAMILY_V4: u8 = 4;
/// [`ServiceKey::family`] of IPv6.
pub const FAMILY_V6: u8 = 6;

/// A port as it lies in a packet.
#[inline(always)]
pub const fn port_to_wire(port: u16) -> u16 {
    port.to_be()
}

/// A port in the machine's order.
#[inline(always)]
pub const fn port_from_wire(port: u16) -> u16 {
    u16::from_be(port)
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2): one layout, one code path.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The 16 bytes in network order, as four words as they lie in memory.
    pub words: [u32; 4],
}

impl Address {
    /// `::`, which in a [`ServiceKey`] means "any address of the node".
    pub const ANY: Self = Self { words: [0; 4] };

    /// From the four bytes of an IPv4 address as they lie in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, 0xffff_u32.to_be(), word] }
    }

    /// From the bytes of an IPv6 header.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The IPv4 address as it lies in memory.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0xffff_u32.to_be()
    }

    /// Whether this is `::`.
    #[inline(always)]
    pub const fn is_any(&self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] == 0
    }

    /// Whether this is 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.words[3].to_be() >> 24 == 127
        } else {
            self.words[0] | self.words[1] | self.words[2] == 0 && self.words[3] == 1_u32.to_be()
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Self { words }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return Self::V4(Ipv4Addr::from(address.v4_word().to_ne_bytes()));
        }
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(address.words) {
            *chunk = word.to_ne_bytes();
        }
        Self::V6(Ipv6Addr::from(bytes))
    }
}

/// Key of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The one address the port is published on, or [`Address::ANY`].
    pub address: Address,
    /// The published port, network order.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
}

/// Value of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The cluster-wide number of the published port; index of its counters.
    pub number: u16,
    /// Which table of `MAGLEV` to choose from.
    pub table: u16,
    /// How many backends that table holds; 0: nobody can take new flows.
    pub backends: u16,
    /// Not used; zero.
    pub reserved: u16,
}

/// [`Backend::state`]: no such backend.
pub const BACKEND_ABSENT: u8 = 0;
/// [`Backend::state`]: takes new flows.
pub const BACKEND_ACTIVE: u8 = 1;
/// [`Backend::state`]: keeps the flows it has.
pub const BACKEND_DRAINING: u8 = 2;

/// Element of `BACKENDS`, indexed by the cluster-wide backend slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 address, mapped, or [`Address::ANY`] where it has none.
    pub v4: Address,
    /// IPv6 address, or [`Address::ANY`] where it has none.
    pub v6: Address,
    /// Interface index of the container's veth on this node; 0: the backend is not on this node.
    pub ifindex: u32,
    /// Port inside the container, network order.
    pub port: u16,
    /// [`BACKEND_ABSENT`], [`BACKEND_ACTIVE`] or [`BACKEND_DRAINING`].
    pub state: u8,
    /// Not used; zero.
    pub reserved: u8,
}

/// [`FlowKey::direction`] of packets from the client.
pub const FROM_CLIENT: u8 = 0;
/// [`FlowKey::direction`] of packets from the container.
pub const FROM_BACKEND: u8 = 1;

/// Key of `FLOWS` and `EMBRYONIC`. A flow has two entries: one the client's packets find (`own` is the published
/// address), one the container's packets find (`own` is the container's address).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The client. Where a container has reached itself, its own address would mean nothing as a sender: it sees the
    /// published address there, and so does the half of the flow its packets find.
    pub peer: Address,
    /// Our side.
    pub own: Address,
    /// The client's port, network order.
    pub peer_port: u16,
    /// Our port, network order.
    pub own_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// [`FROM_CLIENT`] or [`FROM_BACKEND`].
    pub direction: u8,
    /// Not used; zero.
    pub reserved: u16,
}

impl FlowKey {
    /// The key of the other half of the flow: `own` becomes what this half rewrites it to.
    #[inline(always)]
    pub fn other_half(&self, address: Address, port: u16) -> Self {
        Self {
            peer: if address == self.peer { self.own } else { self.peer },
            own: address,
            own_port: port,
            direction: FROM_CLIENT + FROM_BACKEND - self.direction,
            ..*self
        }
    }
}

/// [`Flow::flags`]: the client is a container on this node, to be reached through its veth.
pub const FLOW_CLIENT_IS_CONTAINER: u8 = 1;

/// Value of `FLOWS` and `EMBRYONIC`: what `own` of the key is rewritten to, in both directions alike.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The address written in place of the key's `own`.
    pub address: Address,
    /// The port written in place of the key's `own_port`, network order.
    pub port: u16,
    /// The backend's slot.
    pub slot: u16,
    /// From the backend: the interface the client's packets came in by, and replies leave by. From the client: 0.
    pub ifindex: u32,
    /// Seconds of the dataplane's clock when a packet of this direction last passed; 0: never.
    pub last_seen: u32,
    /// Number of the service.
    pub service: u16,
    /// What has been seen in this direction: bits of [`crate::conntrack`].
    pub seen: u8,
    /// Bits `FLOW_*`.
    pub flags: u8,
}

/// Key of `SOCKETS`: a local socket and the backend it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketKey {
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port, network order.
    pub port: u16,
    /// Not used; zero.
    pub reserved: [u16; 3],
}

/// Value of `SOCKETS`: the destination the program asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOriginal {
    /// The address given to `connect` or `sendto`.
    pub address: Address,
    /// The port given, network order.
    pub port: u16,
    /// Not used; zero.
    pub reserved: u16,
}

/// The one element of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie of the node's network namespace: the socket programs act in no other.
    pub netns_cookie: u64,
    /// Seconds added to the monotonic clock, so that tests can move time.
    pub clock_offset: u32,
    /// Not used; zero.
    pub reserved: u32,
}

/// Element of `SERVICE_COUNTERS`, one per service number and CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Flows begun.
    pub new_flows: u64,
    /// Packets from clients to containers.
    pub packets_in: u64,
    /// Their bytes, link header included.
    pub bytes_in: u64,
    /// Packets from containers to clients.
    pub packets_out: u64,
    /// Their bytes, link header included.
    pub bytes_out: u64,
    /// Packets for which no backend was ready.
    pub no_backend: u64,
}

/// Why a packet went the way it did; index of `REASONS`. Order is append-only within a schema.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Passed: not IP.
    NotIp = 0,
    /// Passed: ends before its headers do.
    Short,
    /// Passed: header lengths contradict each other.
    Malformed,
    /// Passed: a fragment.
    Fragment,
    /// Passed: more IPv6 extension headers than are read.
    ExtensionHeaders,
    /// Passed: neither TCP, UDP nor an ICMP error.
    Protocol,
    /// Passed: not to an address and port published here.
    NotService,
    /// Passed: carries a VLAN tag; the VLAN's own interface is where it is handled.
    Vlan,
    /// Passed to the kernel, which refuses it: no backend is ready.
    NoBackend,
    /// Passed: the backend is on another node.
    Remote,
    /// Passed: a socket of the node owns this connection.
    HostSocket,
    /// Delivered to a container.
    Delivered,
    /// Reply sent to the client.
    Replied,
    /// An ICMP error was translated and sent on.
    IcmpTranslated,
    /// Dropped: the container would see two connections as one.
    TupleCollision,
    /// Dropped: the packet could not be rewritten.
    RewriteFailed,
    /// XDP looked at a packet for a backend on this node and left it to tc.
    XdpLocal,
}

impl Reason {
    /// Every reason, in index order.
    pub const ALL: [Self; 17] = [
        Self::NotIp,
        Self::Short,
        Self::Malformed,
        Self::Fragment,
        Self::ExtensionHeaders,
        Self::Protocol,
        Self::NotService,
        Self::Vlan,
        Self::NoBackend,
        Self::Remote,
        Self::HostSocket,
        Self::Delivered,
        Self::Replied,
        Self::IcmpTranslated,
        Self::TupleCollision,
        Self::RewriteFailed,
        Self::XdpLocal,
    ];
    /// Elements of `REASONS`.
    pub const COUNT: u32 = 32;
}

#[cfg(feature = "user")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($type:ty),*) => { $(
            // SAFETY: `repr(C)` of integers only, without padding (asserted in the tests below).
            unsafe impl aya::Pod for $type {}
        )* };
    }
    pod!(Address, ServiceKey, Service, Backend, FlowKey, Flow, SocketKey, SocketOriginal, Config, ServiceCounters);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Address>(), 16);
        assert_eq!(size_of::<ServiceKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<Service>(), 4 * 2);
        assert_eq!(size_of::<Backend>(), 16 + 16 + 4 + 2 + 1 + 1);
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2 + 1 + 1 + 2);
        assert_eq!(size_of::<Flow>(), 16 + 2 + 2 + 4 + 4 + 2 + 1 + 1);
        assert_eq!(size_of::<SocketKey>(), 8 + 16 + 2 + 6);
        assert_eq!(size_of::<SocketOriginal>(), 16 + 2 + 2);
        assert_eq!(size_of::<Config>(), 8 + 4 + 4);
        assert_eq!(size_of::<ServiceCounters>(), 6 * 8);
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.99.0.1", "127.0.0.1", "fd99::1", "::1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
        assert!(Address::from("127.9.9.9".parse::<IpAddr>().unwrap()).is_loopback());
        assert!(Address::from("::1".parse::<IpAddr>().unwrap()).is_loopback());
        assert!(!Address::from("10.127.0.1".parse::<IpAddr>().unwrap()).is_loopback());
        assert!(!Address::from("fd99::1".parse::<IpAddr>().unwrap()).is_loopback());
    }

    #[test]
    fn reasons_are_numbered_without_gaps() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        assert!(Reason::ALL.len() <= Reason::COUNT as usize);
    }
}
