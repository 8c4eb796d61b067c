//! Conditions on the nodes that a task may run on.

use super::Invalid;
use alloc::{format, string::String};
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// A condition on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// `node.id`, `node.hostname`, `node.ip`, `node.role`, `node.platform.os`, `node.platform.arch`, `node.labels.KEY` or
    /// `engine.labels.KEY`.
    pub key: String,
    /// Whether the values must be equal (`==`) or differ (`!=`).
    pub equal: bool,
    /// The value.
    pub value: String,
}

impl Constraint {
    /// Reads `node.labels.zone==a` or `node.role != manager`.
    ///
    /// # Errors
    /// No `==` or `!=`, or a key that no node can have.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refuse = |why| Err(Invalid::new("constraint", why));
        let (key, equal, value) = match (text.split_once("!="), text.split_once("==")) {
            (Some((key, value)), None) => (key, false, value),
            (None, Some((key, value))) => (key, true, value),
            _ => return refuse(format!("{text:?} must be KEY==VALUE or KEY!=VALUE")),
        };
        let (key, value) = (key.trim(), value.trim());
        const KEYS: [&str; 6] =
            ["node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"];
        let label = ["node.labels.", "engine.labels."]
            .iter()
            .any(|prefix| key.strip_prefix(prefix).is_some_and(|label| !label.is_empty()));
        if !KEYS.contains(&key) && !label {
            return refuse(format!(
                "unknown key {key:?}; use one of {} or node.labels.KEY, engine.labels.KEY",
                KEYS.join(", ")
            ));
        }
        if value.is_empty() {
            return refuse(format!("{text:?} has no value"));
        }
        if key == "node.ip" && parse_network(value).is_none() {
            return refuse(format!("{value:?} is neither an address nor a network such as 10.0.0.0/24"));
        }
        Ok(Self { key: key.into(), equal, value: value.into() })
    }
}

/// Whether an address is the one in `wanted`, or in the network there (`10.0.0.0/24`).
pub(crate) fn address_matches(wanted: &str, address: &str) -> bool {
    let (Some((network, prefix)), Ok(address)) = (parse_network(wanted), address.parse::<IpAddr>()) else {
        return false;
    };
    let same_bits = |a: u128, b: u128, width: u32| {
        let rest = width - prefix;
        // A shift by all bits is no shift at all in Rust.
        rest >= 128 || a >> rest == b >> rest
    };
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same_bits(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same_bits(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// An address, with the length of the prefix that counts.
fn parse_network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(width), |prefix| prefix.parse().ok())?;
    (prefix <= width).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_match_themselves_and_their_networks() {
        for (wanted, address, matches) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.0/8", "10.255.0.2", true),
            ("10.0.0.0/8", "11.0.0.2", false),
            ("0.0.0.0/0", "192.168.1.1", true),
            ("fd99::/64", "fd99::5", true),
            ("fd99::/64", "fd99:0:0:1::5", false),
            ("::/0", "fd99::5", true),
            ("::/0", "10.0.0.1", false),
            ("10.0.0.0/8", "", false),
        ] {
            assert_eq!(address_matches(wanted, address), matches, "{wanted} {address}");
        }
    }

    #[test]
    fn constraints_that_no_node_can_have_are_refused() {
        for (text, why) in [
            ("node.ip==10.0.0.0/33", "neither an address nor a network"),
            ("node.ip==pi", "neither an address nor a network"),
            ("node.labels.==x", "unknown key"),
            ("node.name==x", "unknown key"),
            ("node.role=manager", "must be KEY==VALUE or KEY!=VALUE"),
            ("node.role==", "has no value"),
        ] {
            let refused = Constraint::parse(text).expect_err(text);
            assert!(refused.why.contains(why), "{text}: {}", refused.why);
        }
        let parsed = Constraint::parse(" node.ip != 10.0.0.0/24 ").expect("a network");
        assert_eq!((parsed.key.as_str(), parsed.equal, parsed.value.as_str()), ("node.ip", false, "10.0.0.0/24"));
    }
}
