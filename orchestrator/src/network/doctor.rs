//! Facts about the kernel that the node's network needs, each with what to do when it is missing.
//!
//! In: the kernel of the machine. Out: [`Fact`]s, data for whoever prints them. Called through `Network::doctor`.

use netlink_packet_route::link::InfoKind;

use super::{NetworkError, Result, error::full, link::Netlink, masquerade, netns, sysctl};

/// One thing the network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What it is, for example `bridge links`.
    pub name: &'static str,
    /// Whether it is there, and what was found.
    pub state: State,
}

/// Whether a fact holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Good,
    /// It is not needed for everything; the node works without.
    Degraded {
        /// What was found.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// Containers get no network without it.
    Missing {
        /// What was found.
        found: String,
        /// What to do.
        remedy: String,
    },
}

/// The facts of the calling thread's network namespace. Blocks, but not for long; changes nothing that stays.
pub(super) fn kernel_facts(bridge: &str) -> Vec<Fact> {
    vec![nat(), ipv6(), foreign_firewall(bridge)]
}

/// Whether the containers' subnet is free on this node.
pub(super) fn subnet_fact(checked: Result<()>) -> Fact {
    let state = match checked {
        Ok(()) => State::Good,
        Err(NetworkError::Taken { what, holder }) => State::Missing {
            found: format!("{what} is in use by {holder}"),
            remedy: "choose another container subnet in the node's configuration".to_owned(),
        },
        Err(error) => State::Missing { found: full(&error), remedy: "run edged as root with CAP_NET_ADMIN".to_owned() },
    };
    Fact { name: "container subnet", state }
}

/// Asks by making a link of each kind in a namespace of its own, which ends with the connection to it; the kernel loads
/// the module, if it is one.
pub(super) async fn link_facts() -> Vec<Fact> {
    let runtime = tokio::runtime::Handle::current();
    let namespace = netns::run_in_new(move || {
        let _runtime = runtime.enter();
        Netlink::open()
    })
    .await;
    let netlink = match namespace {
        Ok(netlink) => netlink,
        Err(error) => {
            let state = State::Missing {
                found: full(&error),
                remedy: "run edged as root with CAP_SYS_ADMIN, on a kernel with CONFIG_NET_NS".to_owned(),
            };
            return vec![Fact { name: "network namespaces", state }];
        }
    };
    vec![
        Fact { name: "network namespaces", state: State::Good },
        link_fact(&netlink, "veth links", InfoKind::Veth, "CONFIG_VETH", true).await,
        link_fact(&netlink, "bridge links", InfoKind::Bridge, "CONFIG_BRIDGE", true).await,
        link_fact(&netlink, "vxlan links", InfoKind::Vxlan, "CONFIG_VXLAN", false).await,
    ]
}

async fn link_fact(netlink: &Netlink, name: &'static str, kind: InfoKind, option: &str, needed: bool) -> Fact {
    let state = if netlink.knows_kind(kind.clone()).await {
        State::Good
    } else {
        let found = format!("the kernel knows no link of kind {kind}");
        let remedy = format!("run `modprobe {kind}`, or use a kernel with {option}");
        if needed { State::Missing { found, remedy } } else { State::Degraded { found, remedy } }
    };
    Fact { name, state }
}

fn nat() -> Fact {
    let state = match masquerade::probe() {
        Ok(()) => State::Good,
        Err(error) => State::Missing {
            found: format!("a NAT chain cannot be made: {error}"),
            remedy: "run `modprobe -a nf_tables nft_chain_nat nft_masq`, or use a kernel with CONFIG_NF_TABLES_INET, \
                     CONFIG_NFT_NAT and CONFIG_NFT_MASQ"
                .to_owned(),
        },
    };
    Fact { name: "nf_tables NAT", state }
}

fn ipv6() -> Fact {
    let state = if sysctl::has_ipv6() {
        State::Good
    } else {
        State::Degraded {
            found: "the kernel has no IPv6; containers get IPv4 addresses only".to_owned(),
            remedy: "remove `ipv6.disable=1` from the kernel command line, or use a kernel with CONFIG_IPV6".to_owned(),
        }
    };
    Fact { name: "IPv6", state }
}

/// A firewall of others that drops what is forwarded also drops the containers' way out, and with `br_netfilter` what
/// containers send each other: every chain has a veto.
fn foreign_firewall(bridge: &str) -> Fact {
    let chains = masquerade::dropping_forward_chains().unwrap_or_default();
    let state = if chains.is_empty() {
        State::Good
    } else {
        let chain = &chains[0];
        State::Degraded {
            found: format!("forwarded packets are dropped by default in: {}", chains.join(", ")),
            remedy: format!(
                "let the containers' packets through, for example `nft insert rule {chain} iifname {bridge} accept` \
                 and `nft insert rule {chain} oifname {bridge} ct state established,related accept`"
            ),
        }
    };
    Fact { name: "forwarding allowed by other firewalls", state }
}
