//! Subnets of the node-local network and the addresses in them.
//!
//! An address is a function of the subnet and an index: 1 is the gateway, the planner hands out the others. A MAC is a
//! function of the IPv4 address, so it stays the same however often an interface is made anew.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The index of the gateway, which is the bridge.
pub(super) const GATEWAY_INDEX: u16 = 1;

/// Why a subnet or an index in it is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `address/prefix`.
    #[error("invalid subnet {0:?}: expected an address, a slash and a prefix length")]
    Syntax(String),
    /// The prefix length leaves no room or is not supported.
    #[error("invalid subnet {subnet}: the prefix length must be {expected}")]
    Prefix {
        /// The subnet as given.
        subnet: String,
        /// The lengths that are accepted.
        expected: &'static str,
    },
    /// Bits are set behind the prefix.
    #[error("invalid subnet {subnet}: the address has bits set behind the prefix, {network} is meant")]
    HostBits {
        /// The subnet as given.
        subnet: String,
        /// The network address.
        network: IpAddr,
    },
    /// The index does not name a container address in the subnet.
    #[error("index {index} is not a container address in {subnet} (2 to {last})")]
    Index {
        /// The index.
        index: u16,
        /// The subnet.
        subnet: Subnet4,
        /// The last usable index.
        last: u16,
    },
}

/// An IPv4 subnet of /16 to /29.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet4 {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet4 {
    /// A subnet that collides seldom: outside the ranges that home routers, Docker (172.17/16 and up), podman
    /// (10.88/16), k3s (10.42/16, 10.43/16), flannel (10.244/16) and AWS (172.31/16) hand out.
    pub const DEFAULT: Subnet4 = Subnet4 { network: Ipv4Addr::new(10, 231, 0, 0), prefix: 16 };

    /// A subnet from its network address and prefix length.
    ///
    /// # Errors
    /// When the prefix is not 16 to 29 (an index has 16 bits, and four addresses are the least that is of use), or host
    /// bits are set.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        let subnet = || format!("{network}/{prefix}");
        if !(16..=29).contains(&prefix) {
            return Err(SubnetError::Prefix { subnet: subnet(), expected: "16 to 29" });
        }
        let masked = Ipv4Addr::from_bits(network.to_bits() & mask4(prefix));
        if masked != network {
            return Err(SubnetError::HostBits { subnet: subnet(), network: masked.into() });
        }
        Ok(Subnet4 { network, prefix })
    }

    /// The network address.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The gateway, which is the bridge's address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.at(GATEWAY_INDEX)
    }

    /// The last index a container may have; the one behind it is the broadcast address.
    pub fn last_index(&self) -> u16 {
        ((1_u32 << (32 - self.prefix)) - 2) as u16
    }

    /// The address of a container.
    ///
    /// # Errors
    /// When the index is 0, the gateway, the broadcast address or outside the subnet.
    pub fn container(&self, index: u16) -> Result<Ipv4Addr, SubnetError> {
        if index <= GATEWAY_INDEX || index > self.last_index() {
            return Err(SubnetError::Index { index, subnet: *self, last: self.last_index() });
        }
        Ok(self.at(index))
    }

    /// Whether the address lies in the subnet.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask4(self.prefix) == self.network.to_bits()
    }

    pub(super) fn mask(&self) -> [u8; 4] {
        mask4(self.prefix).to_be_bytes()
    }

    fn at(&self, index: u16) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | u32::from(index))
    }
}

/// An IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet6 {
    network: Ipv6Addr,
}

impl Subnet6 {
    /// A unique local /64 (RFC 4193 §3.2: the 40-bit global id was drawn at random). It never leaves a node.
    pub const DEFAULT: Subnet6 = Subnet6 { network: Ipv6Addr::new(0xfdb7, 0x2e1a, 0x94c3, 0, 0, 0, 0, 0) };

    /// The prefix length, the only one supported (RFC 4291 §2.5.1).
    pub const PREFIX: u8 = 64;

    /// A subnet from its network address.
    ///
    /// # Errors
    /// When one of the lower 64 bits is set.
    pub fn new(network: Ipv6Addr) -> Result<Self, SubnetError> {
        let masked = Ipv6Addr::from_bits(network.to_bits() >> 64 << 64);
        if masked != network {
            return Err(SubnetError::HostBits { subnet: format!("{network}/64"), network: masked.into() });
        }
        Ok(Subnet6 { network })
    }

    /// The network address.
    pub fn network(&self) -> Ipv6Addr {
        self.network
    }

    /// The gateway, which is the bridge's address.
    pub fn gateway(&self) -> Ipv6Addr {
        self.at(GATEWAY_INDEX)
    }

    /// Whether the address lies in the subnet.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() >> 64 == self.network.to_bits() >> 64
    }

    pub(super) fn at(&self, index: u16) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network.to_bits() | u128::from(index))
    }
}

/// The MAC of the interface that has `address`: locally administered and unicast (IEEE 802-2014 §8.4), the address in
/// its last four octets.
pub(super) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xed, a, b, c, d]
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX << (32 - prefix)
}

impl fmt::Display for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, Self::PREFIX)
    }
}

impl FromStr for Subnet4 {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (network, prefix) = split(text)?;
        Subnet4::new(network, prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (network, prefix) = split(text)?;
        if prefix != Self::PREFIX {
            return Err(SubnetError::Prefix { subnet: text.to_owned(), expected: "64" });
        }
        Subnet6::new(network)
    }
}

fn split<A: FromStr>(text: &str) -> Result<(A, u8), SubnetError> {
    let syntax = || SubnetError::Syntax(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
    Ok((address.parse().map_err(|_| syntax())?, prefix.parse().map_err(|_| syntax())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_become_addresses() {
        let subnet: Subnet4 = "10.9.0.0/16".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 9, 0, 1));
        assert_eq!(subnet.container(2).unwrap(), Ipv4Addr::new(10, 9, 0, 2));
        assert_eq!(subnet.container(65_534).unwrap(), Ipv4Addr::new(10, 9, 255, 254));
        assert_eq!(Subnet6::DEFAULT.at(258).to_string(), "fdb7:2e1a:94c3::102");
    }

    #[test]
    fn network_gateway_and_broadcast_are_not_container_addresses() {
        let subnet: Subnet4 = "192.168.7.0/24".parse().unwrap();
        for index in [0, 1, 255, 256, u16::MAX] {
            assert_eq!(subnet.container(index), Err(SubnetError::Index { index, subnet, last: 254 }));
        }
    }

    #[test]
    fn bad_subnets_are_refused_with_what_is_wrong() {
        let message = |text: &str| text.parse::<Subnet4>().unwrap_err().to_string();
        assert_eq!(
            message("10.0.0.0"),
            "invalid subnet \"10.0.0.0\": expected an address, a slash and a prefix length"
        );
        assert_eq!(message("10.0.0.0/8"), "invalid subnet 10.0.0.0/8: the prefix length must be 16 to 29");
        assert_eq!(
            message("10.0.0.1/24"),
            "invalid subnet 10.0.0.1/24: the address has bits set behind the prefix, 10.0.0.0 is meant"
        );
        assert!("fd00::1/64".parse::<Subnet6>().is_err());
        assert!("fd00::/48".parse::<Subnet6>().is_err());
    }

    #[test]
    fn the_mac_is_local_unicast_and_follows_the_address() {
        let mac = mac_of(Ipv4Addr::new(10, 231, 1, 2));
        assert_eq!(mac, [0x02, 0xed, 10, 231, 1, 2]);
    }
}
