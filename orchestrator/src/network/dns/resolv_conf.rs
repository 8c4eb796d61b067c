//! `resolv.conf(5)`: reading the host's, writing a container's.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::Path,
};

use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use super::PORT;

/// More are ignored by every resolver (`MAXNS` in resolv.h).
const MAX_SERVERS: usize = 3;
/// glibc had this limit until 2.26 and musl cuts at 255 bytes; more than this helps nobody.
const MAX_SEARCH: usize = 6;

/// What the host's `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers to ask, in order; at most 3.
    pub servers: Vec<SocketAddr>,
    /// Domains that are appended to short names, in order; at most 6.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads a file; one that cannot be read says nothing.
    pub async fn read(path: &Path) -> Self {
        tokio::fs::read_to_string(path).await.map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// What it says is kept line by line; lines that make no sense are skipped, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.clone().next()) {
                (Some("nameserver"), Some(address)) if conf.servers.len() < MAX_SERVERS => {
                    conf.servers.extend(parse_server(address));
                }
                // The last of these lines wins.
                (Some("search" | "domain"), Some(_)) => {
                    conf.search = words.filter(|domain| *domain != ".").take(MAX_SEARCH).map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        conf
    }
}

/// What a container's `resolv.conf` says: the node's resolver, and every name is first asked for as it is, so that a
/// service's name is never mistaken for one in a search domain.
pub fn container_resolv_conf(gateways: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    for gateway in gateways {
        let _ = writeln!(text, "nameserver {gateway}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text + "options ndots:0\n"
}

/// An address, or a link-local one with its interface: `fe80::1%eth0`.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = zone.parse().ok().or_else(|| interface_index(zone))?;
    Some(SocketAddrV6::new(address, PORT, 0, scope).into())
}

fn interface_index(name: &str) -> Option<u32> {
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    name_to_index(any, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domains_are_read() {
        let text = "# made by hand\nnameserver 127.0.0.53\n  nameserver 2001:db8::1 # second\nnameserver fe80::1%7\n\
            nameserver 192.0.2.1\nsearch old.example\noptions edns0\nsearch lan example.org ; last\n";
        assert_eq!(
            ResolvConf::parse(text),
            ResolvConf {
                servers: vec![
                    "127.0.0.53:53".parse().unwrap(),
                    "[2001:db8::1]:53".parse().unwrap(),
                    SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 7).into(),
                ],
                search: vec!["lan".to_owned(), "example.org".to_owned()],
            }
        );
    }

    #[test]
    fn nonsense_is_skipped() {
        let text = "nameserver\nnameserver here\nnameserver 1.2.3\nnameserver fe80::1%\0\nsearch\nfoo bar\n\u{7f}\n";
        assert_eq!(ResolvConf::parse(text), ResolvConf::default());
        assert_eq!(ResolvConf::parse("search ."), ResolvConf::default());
    }

    #[test]
    fn a_container_asks_the_node() {
        let gateways = ["10.231.0.1".parse().unwrap(), "fdb7::1".parse().unwrap()];
        assert_eq!(
            container_resolv_conf(&gateways, &["lan".to_owned()]),
            "nameserver 10.231.0.1\nnameserver fdb7::1\nsearch lan\noptions ndots:0\n"
        );
    }
}
