//! Frames built and read field by field, with checksums by the plain definition: the reference the programs are held to.

use orchestrator_ebpf_common::checksum;
use std::net::IpAddr;

/// TCP flag bits.
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

const PAYLOAD: &[u8] = b"payload of an odd length.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) flags: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum L4 {
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
        checksum: bool,
    },
    /// Anything else; a checksum at offset 2 is filled in for ICMP and ICMPv6.
    Raw {
        protocol: u8,
        bytes: Vec<u8>,
    },
}

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) l4: L4,
    /// VLAN numbers.
    pub(super) tags: Vec<u16>,
    /// Instead of the one the addresses call for.
    pub(super) ethertype: Option<u16>,
    /// IPv4 options, a multiple of four bytes.
    pub(super) options: Vec<u8>,
    /// Protocol numbers of IPv6 extension headers of eight bytes each.
    pub(super) extensions: Vec<u8>,
}

impl Frame {
    fn new(source: &str, destination: &str, l4: L4) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            l4,
            tags: Vec::new(),
            ethertype: None,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    pub(super) fn tcp(source: &str, destination: &str, tcp: Tcp) -> Self {
        Self::new(source, destination, L4::Tcp(tcp))
    }

    pub(super) fn udp(from: &str, to: &str, source: u16, destination: u16) -> Self {
        Self::new(from, to, L4::Udp { source, destination, checksum: true })
    }

    /// An ICMP "too big" (IPv4: fragmentation needed) about a frame, to its sender.
    pub(super) fn error(from: &str, about: &[u8]) -> Self {
        let quoted = &about[14..];
        let v6 = quoted[0] >> 4 == 6;
        // IPv4 quotes the header and eight bytes (RFC 792), IPv6 as much as fits (RFC 4443 §3.2).
        let length = if v6 { quoted.len() } else { usize::from(quoted[0] & 15) * 4 + 8 };
        let (protocol, kind, code) = if v6 { (58, 2, 0) } else { (1, 3, 4) };
        let mut bytes = vec![kind, code, 0, 0, 0, 0, 0x05, 0x78];
        bytes.extend(&quoted[..length]);
        let to = Self::parse(about).source.to_string();
        let from: IpAddr = from.parse().unwrap();
        let from = if from.is_ipv6() == v6 { from.to_string() } else { to.clone() };
        Self::new(&from, &to, L4::Raw { protocol, bytes })
    }

    pub(super) fn with_destination_port(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp(tcp) => tcp.destination = port,
            L4::Udp { destination, .. } => *destination = port,
            L4::Raw { .. } => {}
        }
        self
    }

    pub(super) fn with_source_port(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp(tcp) => tcp.source = port,
            L4::Udp { source, .. } => *source = port,
            L4::Raw { .. } => {}
        }
        self
    }

    /// The frame on the wire.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (number, tag) in self.tags.iter().enumerate() {
            let outer = self.tags.len() > 1 && number == 0;
            out.extend((if outer { 0x88a8_u16 } else { 0x8100 }).to_be_bytes());
            out.extend(tag.to_be_bytes());
        }
        let natural = if self.source.is_ipv4() { 0x0800_u16 } else { 0x86dd };
        out.extend(self.ethertype.unwrap_or(natural).to_be_bytes());
        let l4 = self.l4_bytes();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = 5 + self.options.len() / 4;
                let total = (words * 4 + l4.len()) as u16;
                let mut header = vec![0x40 | words as u8, 0];
                header.extend(total.to_be_bytes());
                header.extend([0, 1, 0x40, 0, 64, self.protocol(), 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum::finish(checksum::add(0, &header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                out.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut next = self.extensions.clone();
                next.push(self.protocol());
                out.extend([0x60, 0, 0, 0]);
                out.extend(((l4.len() + 8 * self.extensions.len()) as u16).to_be_bytes());
                out.extend([next[0], 64]);
                out.extend(source.octets());
                out.extend(destination.octets());
                for following in &next[1..] {
                    out.extend([*following, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
            _ => panic!("one family per frame"),
        }
        out.extend(l4);
        out
    }

    fn protocol(&self) -> u8 {
        match &self.l4 {
            L4::Tcp(_) => 6,
            L4::Udp { .. } => 17,
            L4::Raw { protocol, .. } => *protocol,
        }
    }

    fn l4_bytes(&self) -> Vec<u8> {
        match &self.l4 {
            L4::Tcp(tcp) => {
                let mut bytes = Vec::new();
                bytes.extend(tcp.source.to_be_bytes());
                bytes.extend(tcp.destination.to_be_bytes());
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, tcp.flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(PAYLOAD);
                self.fill_checksum(bytes, 16, true)
            }
            L4::Udp { source, destination, checksum } => {
                let mut bytes = Vec::new();
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend((8 + PAYLOAD.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(PAYLOAD);
                if *checksum { self.fill_checksum(bytes, 6, true) } else { bytes }
            }
            L4::Raw { protocol: 1, bytes } => self.fill_checksum(bytes.clone(), 2, false),
            L4::Raw { protocol: 58, bytes } => self.fill_checksum(bytes.clone(), 2, true),
            L4::Raw { bytes, .. } => bytes.clone(),
        }
    }

    fn fill_checksum(&self, mut bytes: Vec<u8>, at: usize, pseudo_header: bool) -> Vec<u8> {
        let mut sum = 0;
        if pseudo_header {
            for address in [self.source, self.destination] {
                sum = match address {
                    IpAddr::V4(v4) => checksum::add(sum, &v4.octets()),
                    IpAddr::V6(v6) => checksum::add(sum, &v6.octets()),
                };
            }
            sum = checksum::add(sum, &[0, self.protocol()]);
            sum = checksum::add(sum, &(bytes.len() as u16).to_be_bytes());
        }
        let sum = checksum::finish(checksum::add(sum, &bytes));
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Addresses and transport of an untagged frame.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let ip = &bytes[14..];
        let (source, destination, protocol, header): (IpAddr, IpAddr, u8, usize) = if ip[0] >> 4 == 4 {
            let at = |offset| <[u8; 4]>::try_from(&ip[offset..offset + 4]).unwrap();
            (at(12).into(), at(16).into(), ip[9], usize::from(ip[0] & 15) * 4)
        } else {
            let at = |offset| <[u8; 16]>::try_from(&ip[offset..offset + 16]).unwrap();
            (at(8).into(), at(24).into(), ip[6], 40)
        };
        let l4 = L4::Raw { protocol, bytes: ip[header..].to_vec() };
        Self { source, destination, ..Self::new("::", "::", l4) }
    }
}

/// Whether the header and transport checksums of an IPv4 TCP frame add up.
pub(super) fn checksums_are_valid(bytes: &[u8]) -> bool {
    let ip = &bytes[14..];
    let header = usize::from(ip[0] & 15) * 4;
    let l4 = &ip[header..];
    let pseudo = checksum::add(checksum::add(0, &ip[12..20]), &[0, ip[9]]);
    let pseudo = checksum::add(pseudo, &(l4.len() as u16).to_be_bytes());
    checksum::finish(checksum::add(0, &ip[..header])) == 0 && checksum::finish(checksum::add(pseudo, l4)) == 0
}

/// Compares two ICMP errors but for the transport checksum within what they quote, which nobody verifies.
pub(super) fn assert_same_error(found: &[u8], expected: &[u8]) {
    let (mut found, mut expected) = (found.to_vec(), expected.to_vec());
    assert_eq!(found.len(), expected.len());
    let v6 = found[14] >> 4 == 6;
    let message = if v6 { 54 } else { 34 };
    // The sum over the message as it stands is right in each.
    for bytes in [&found, &expected] {
        let frame = Frame::parse(bytes);
        let L4::Raw { bytes: mut l4, protocol } = frame.l4.clone() else { unreachable!() };
        let own = [l4[2], l4[3]];
        l4[2..4].fill(0);
        let refilled = Frame { l4: L4::Raw { protocol, bytes: l4 }, ..frame }.l4_bytes();
        assert_eq!(own, refilled[2..4], "checksum of the ICMP message");
    }
    let inner = message + 8;
    let transport = inner + if v6 { 40 } else { 20 };
    let protocol = found[if v6 { inner + 6 } else { inner + 9 }];
    let at = transport + if protocol == 6 { 16 } else { 6 };
    for bytes in [&mut found, &mut expected] {
        bytes[message + 2..message + 4].fill(0);
        if let Some(field) = bytes.get_mut(at..at + 2) {
            field.fill(0);
        }
    }
    assert_eq!(found, expected);
}
