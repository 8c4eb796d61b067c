//! Reading headers: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers, TCP, UDP, and
//! the packet quoted by an ICMP error.
//!
//! In: bytes through [`Bytes`] (the kernel's load helpers, or a slice in tests). Out: a [`Packet`], or the
//! [`Reason`] for leaving the packet to the kernel. Nothing is read outside the packet and no length field is
//! believed before it is checked.

use crate::maps::{Address, FAMILY_V4, FAMILY_V6, ICMP, ICMPV6, Reason, TCP, UDP};

/// Tags read: a customer tag within a service tag (IEEE 802.1ad).
const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers read; what has more is left to the kernel.
const MAX_EXTENSION_HEADERS: usize = 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LENGTH: u32 = 14;
/// Where an ICMP error's quoted packet begins within the ICMP message (RFC 792, RFC 4443).
const ICMP_QUOTE: u32 = 8;

/// A packet's bytes.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` where the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

/// The addresses and ports of a packet, and where they lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// Offset of the IP header.
    pub network: u32,
    /// Offset of the TCP, UDP or ICMP header.
    pub transport: u32,
    /// Sender's port, network order; 0 for ICMP.
    pub source_port: u16,
    /// Receiver's port, network order; 0 for ICMP.
    pub destination_port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// [`TCP`], [`UDP`], or [`ICMP`] or [`ICMPV6`], which are errors only.
    pub protocol: u8,
    /// The TCP flag byte; 0 otherwise.
    pub tcp_flags: u8,
    /// Tags before the IP header.
    pub vlan_tags: u8,
}

impl Packet {
    /// Whether this is an ICMP error, whose quoted packet [`quoted`] reads.
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        self.protocol == ICMP || self.protocol == ICMPV6
    }
}

/// Reads a frame that begins with an Ethernet header.
///
/// # Errors
/// The reason for leaving the packet alone.
#[inline(always)]
pub fn parse_ethernet<B: Bytes + ?Sized>(bytes: &B) -> Result<Packet, Reason> {
    let mut ethertype = u16::from_be_bytes(bytes.load(12).ok_or(Reason::Short)?);
    let mut network = ETHERNET_LENGTH;
    let mut vlan_tags = 0;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
            ethertype = u16::from_be_bytes(bytes.load(network + 2).ok_or(Reason::Short)?);
            network += 4;
            vlan_tags += 1;
        }
    }
    let family = match ethertype {
        ETHERTYPE_IPV4 => FAMILY_V4,
        ETHERTYPE_IPV6 => FAMILY_V6,
        _ => return Err(Reason::NotIp),
    };
    let mut packet = parse_ip(bytes, network, family)?;
    packet.vlan_tags = vlan_tags;
    Ok(packet)
}

/// Reads a packet that begins with its IP header, as devices without a link layer deliver it.
///
/// # Errors
/// The reason for leaving the packet alone.
#[inline(always)]
pub fn parse_raw<B: Bytes + ?Sized>(bytes: &B) -> Result<Packet, Reason> {
    let [first] = bytes.load(0).ok_or(Reason::Short)?;
    match first >> 4 {
        4 => parse_ip(bytes, 0, FAMILY_V4),
        6 => parse_ip(bytes, 0, FAMILY_V6),
        _ => Err(Reason::NotIp),
    }
}

/// The packet quoted by an ICMP error: one of ours, seen by somebody on its way.
///
/// # Errors
/// The reason for leaving the error alone.
#[inline(always)]
pub fn quoted<B: Bytes + ?Sized>(bytes: &B, error: &Packet) -> Result<Packet, Reason> {
    let network = error.transport + ICMP_QUOTE;
    let mut inner = if error.family == FAMILY_V4 { ipv4(bytes, network)? } else { ipv6(bytes, network)? };
    // At least eight bytes of the transport header are quoted (RFC 792): the ports, and not TCP's flags.
    ports(bytes, &mut inner)?;
    Ok(inner)
}

#[inline(always)]
fn parse_ip<B: Bytes + ?Sized>(bytes: &B, network: u32, family: u8) -> Result<Packet, Reason> {
    let mut packet = if family == FAMILY_V4 { ipv4(bytes, network)? } else { ipv6(bytes, network)? };
    match packet.protocol {
        TCP => {
            ports(bytes, &mut packet)?;
            [packet.tcp_flags] = bytes.load(packet.transport + 13).ok_or(Reason::Short)?;
        }
        UDP => ports(bytes, &mut packet)?,
        ICMP | ICMPV6 => {
            let [kind] = bytes.load(packet.transport).ok_or(Reason::Short)?;
            if !is_icmp_error(packet.protocol, kind) {
                return Err(Reason::Protocol);
            }
        }
        _ => return Err(Reason::Protocol),
    }
    Ok(packet)
}

/// Errors that quote a packet: unreachable, time exceeded, parameter problem (RFC 792; RFC 4443 types below 128,
/// of which 1 to 4 are assigned). Redirects are for the node alone.
#[inline(always)]
const fn is_icmp_error(protocol: u8, kind: u8) -> bool {
    if protocol == ICMP { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

#[inline(always)]
fn ports<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), Reason> {
    if packet.protocol != TCP && packet.protocol != UDP {
        return Err(Reason::Protocol);
    }
    let [a, b, c, d] = bytes.load(packet.transport).ok_or(Reason::Short)?;
    packet.source_port = u16::from_ne_bytes([a, b]);
    packet.destination_port = u16::from_ne_bytes([c, d]);
    Ok(())
}

/// The IPv4 header (RFC 791).
#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B, network: u32) -> Result<Packet, Reason> {
    let header: [u8; 20] = bytes.load(network).ok_or(Reason::Short)?;
    let length = u32::from(header[0] & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || length < 20 || total < length {
        return Err(Reason::Malformed);
    }
    // More-fragments flag or a fragment offset.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    Ok(Packet {
        source: Address::from_v4_word(word(&header, 12)),
        destination: Address::from_v4_word(word(&header, 16)),
        network,
        transport: network + length,
        source_port: 0,
        destination_port: 0,
        family: FAMILY_V4,
        protocol: if header[9] == ICMPV6 { 0 } else { header[9] },
        tcp_flags: 0,
        vlan_tags: 0,
    })
}

/// The IPv6 header and its extension headers (RFC 8200 §4).
#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B, network: u32) -> Result<Packet, Reason> {
    let header: [u8; 40] = bytes.load(network).ok_or(Reason::Short)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let mut next = header[6];
    let mut transport = network + 40;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            // Hop-by-hop, routing, destination options: length in units of 8 bytes, the first not counted.
            0 | 43 | 60 => {
                let [following, length] = bytes.load(transport).ok_or(Reason::Short)?;
                next = following;
                transport += (u32::from(length) + 1) * 8;
            }
            44 => return Err(Reason::Fragment),
            _ => break,
        }
    }
    if matches!(next, 0 | 43 | 60) {
        return Err(Reason::ExtensionHeaders);
    }
    if next == 44 {
        return Err(Reason::Fragment);
    }
    Ok(Packet {
        source: Address::from_v6_words([word(&header, 8), word(&header, 12), word(&header, 16), word(&header, 20)]),
        destination: Address::from_v6_words([
            word(&header, 24),
            word(&header, 28),
            word(&header, 32),
            word(&header, 36),
        ]),
        network,
        transport,
        source_port: 0,
        destination_port: 0,
        family: FAMILY_V6,
        protocol: if next == ICMP { 0 } else { next },
        tcp_flags: 0,
        vlan_tags: 0,
    })
}

/// Four bytes as they lie in memory. `at` is a constant within the header everywhere above.
#[inline(always)]
fn word<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// A UDP frame from 10.0.0.1:4000 to 10.0.0.2:8080 behind these bytes of Ethernet header.
    fn frame(ethernet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend(ethernet);
        bytes.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x0f, 0xa0, 0x1f, 0x90, 0, 8, 0, 0]);
        bytes
    }

    #[test]
    fn up_to_two_vlan_tags_are_read() {
        for (tags, ethernet) in
            [(0, &[8, 0][..]), (1, &[0x81, 0, 0, 7, 8, 0]), (2, &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 8, 0])]
        {
            let packet = parse_ethernet(&frame(ethernet)[..]).unwrap();
            assert_eq!(packet.vlan_tags, tags);
            assert_eq!(packet.network, 14 + 4 * u32::from(tags));
            assert_eq!(packet.destination, Address::from(core::net::IpAddr::from([10, 0, 0, 2])));
            assert_eq!((packet.source_port, packet.destination_port), (4000_u16.to_be(), 8080_u16.to_be()));
        }
        let three = [0x81, 0, 0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9, 8, 0];
        assert_eq!(parse_ethernet(&frame(&three)[..]), Err(Reason::NotIp));
    }

    #[test]
    fn a_packet_without_link_header_says_its_family_itself() {
        let bytes = frame(&[8, 0]);
        let packet = parse_raw(&bytes[14..]).unwrap();
        assert_eq!((packet.family, packet.network, packet.transport), (FAMILY_V4, 0, 20));
        assert_eq!(parse_raw(&[0x10; 40][..]), Err(Reason::NotIp));
        assert_eq!(parse_raw(&[][..]), Err(Reason::Short));
    }

    proptest! {
        #[test]
        fn no_bytes_are_read_outside_the_packet(mut bytes in prop::collection::vec(any::<u8>(), 0..160), kind in 0..4_usize) {
            if let (Some(ethertype), Some(place)) = ([[8, 0], [0x86, 0xdd], [0x81, 0]].get(kind), bytes.get_mut(12..14)) {
                place.copy_from_slice(ethertype);
            }
            for packet in [parse_ethernet(&bytes[..]), parse_raw(&bytes[..])].into_iter().flatten() {
                // What was read lies within: the slice would have answered `None` otherwise.
                prop_assert!((packet.transport as usize) < bytes.len());
                if packet.is_icmp() {
                    let _ = quoted(&bytes[..], &packet);
                } else {
                    prop_assert!((packet.transport as usize) + 4 <= bytes.len());
                }
            }
        }
    }
}
