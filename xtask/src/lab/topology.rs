//! Names, addresses and files of the lab: fixed, so that tests, benchmarks and people agree.
//!
//! ```text
//!   n1 10.99.0.1   n2 10.99.0.2  …   client 10.99.0.254
//!      fd99::1        fd99::2              fd99::fe
//!        │ eth0         │ eth0               │ eth0
//!     ───┴──────────────┴────────────────────┴───  bridge br0 in the namespace `switch`
//! ```

use anyhow::{Context, Result, bail};
use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The addresses .1 to .200 are nodes' first ones; the rest of the /24 is left for the client, the switch and what tests add.
pub(crate) const MAX_NODES: u8 = 200;

/// One of the lab's network namespaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    /// The bridge that everything hangs on; it has no address.
    Switch,
    /// Where requests come from; it also plays the world outside: it is every node's default route and forwards nothing.
    Client,
    /// A machine of the cluster, from 1.
    Node(u8),
}

impl Place {
    /// The last octet of its addresses.
    fn number(self) -> u8 {
        match self {
            Self::Switch => 253,
            Self::Client => 254,
            Self::Node(number) => number,
        }
    }

    pub(crate) fn address4(self) -> String {
        format!("10.99.0.{}", self.number())
    }

    pub(crate) fn address6(self) -> String {
        address6(self.number())
    }

    /// A fixed, locally administered Ethernet address.
    pub(crate) fn mac(self) -> String {
        format!("02:00:0a:63:00:{:02x}", self.number())
    }
}

/// The IPv6 address that goes with the last number of an IPv4 address.
pub(crate) fn address6(number: u8) -> String {
    format!("fd99::{number:x}")
}

/// Refuses an address that no node of a lab can have.
pub(crate) fn check_address(address: Ipv4Addr) -> Result<()> {
    match address.octets() {
        [10, 99, 0, 1..=252] => Ok(()),
        _ => bail!("{address} is no address of a lab's node: use 10.99.0.1 to 10.99.0.252"),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => f.write_str("switch"),
            Self::Client => f.write_str("client"),
            Self::Node(number) => write!(f, "n{number}"),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "switch" => Ok(Self::Switch),
            "client" => Ok(Self::Client),
            _ => node(name).map(Self::Node),
        }
    }
}

/// Reads a node's name, `n1` to `n200`.
pub(crate) fn node(name: &str) -> Result<u8> {
    let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
    match number {
        Some(number @ 1..=MAX_NODES) => Ok(number),
        _ => bail!("there is no place `{name}` in a lab: use n1 to n{MAX_NODES}, client or switch"),
    }
}

/// The folder of the lab, `target/lab`, and what lies where in it.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What the lab is made of; see `super::Lab`.
    pub(crate) fn description(&self) -> PathBuf {
        self.0.join("lab.json")
    }

    /// The mount below which all namespaces are held.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.0.join("ns")
    }

    /// The file that holds one namespace; `kind` is `net`, `mnt` or `uts`.
    pub(crate) fn namespace(&self, place: Place, kind: &str) -> PathBuf {
        self.namespaces().join(place.to_string()).join(kind)
    }

    /// A node's files.
    pub(crate) fn node(&self, number: u8) -> NodeFolder {
        NodeFolder(self.0.join(Place::Node(number).to_string()))
    }
}

/// A node's folder, `target/lab/n1`.
pub(crate) struct NodeFolder(PathBuf);

impl NodeFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("edged.toml")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("docker.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("edged.log")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.0.join("edged.pid")
    }

    /// The last lines of the daemon's log, for an error message.
    pub(crate) fn log_tail(&self) -> Result<String> {
        const LINES: usize = 15;
        let path = self.log();
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_people_and_tests_know() {
        let shown = |place: Place| format!("{place} {} {} {}", place.address4(), place.address6(), place.mac());
        assert_eq!(shown(Place::Node(12)), "n12 10.99.0.12 fd99::c 02:00:0a:63:00:0c");
        assert_eq!(shown(Place::Client), "client 10.99.0.254 fd99::fe 02:00:0a:63:00:fe");
    }

    #[test]
    fn a_node_may_have_what_is_not_reserved_in_the_labs_network() {
        for fits in ["10.99.0.1", "10.99.0.102", "10.99.0.252"] {
            check_address(fits.parse().unwrap()).unwrap();
        }
        for wrong in ["10.99.0.0", "10.99.0.253", "10.99.0.255", "10.99.1.1", "192.168.0.1"] {
            assert!(check_address(wrong.parse().unwrap()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_is_read_by_its_name_and_nothing_else() {
        for place in [Place::Switch, Place::Client, Place::Node(1), Place::Node(200)] {
            assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        }
        for wrong in ["n0", "n201", "n", "1", "Client", ""] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
