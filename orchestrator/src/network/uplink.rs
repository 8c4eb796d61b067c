//! The ways out of the node and its addresses, and a watch that says when they may have changed.
//!
//! In: netlink dumps and notices. Out: [`Uplinks`], a counter that rises. Called through `Network` by the agent, which
//! hands interfaces and addresses to the dataplane.

use std::{collections::BTreeSet, net::IpAddr};

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::{NetworkError, Result, link::Netlink};

/// The ways out of the node, and where it can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Interfaces with a default route, best first. Where there is none: all that are up and have a global address.
    pub links: Vec<Uplink>,
    /// Addresses of all interfaces but loopback and the link-local ones, in interface order.
    pub addresses: Vec<NodeAddress>,
}

/// An interface that leads out of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The router, when there is one.
    pub gateway: Option<IpAddr>,
}

/// An address at which the node can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// Whether the interface is the node-local bridge, which only containers and the node itself reach.
    pub node_local: bool,
}

/// Reads uplinks and addresses from the kernel.
pub(super) async fn look(netlink: &Netlink, bridge: &str) -> Result<Uplinks> {
    let links = netlink.links().await?;
    let routes = netlink.default_routes().await?;
    let addresses: Vec<NodeAddress> = netlink
        .addresses()
        .await?
        .into_iter()
        .filter(|address| address.global)
        .filter_map(|address| {
            let link = links.get(&address.link).filter(|link| !link.loopback)?;
            Some(NodeAddress {
                interface: link.name.clone(),
                ifindex: link.index,
                address: address.address,
                prefix: address.prefix,
                node_local: link.name == bridge,
            })
        })
        .collect();

    let mut seen = BTreeSet::new();
    let mut uplinks = Vec::new();
    for route in routes {
        if let Some(link) = links.get(&route.link)
            && seen.insert(route.link)
        {
            uplinks.push(Uplink {
                interface: link.name.clone(),
                ifindex: link.index,
                mtu: link.mtu,
                gateway: route.gateway,
            });
        }
    }
    if uplinks.is_empty() {
        for address in addresses.iter().filter(|address| !address.node_local) {
            let Some(link) = links.get(&address.ifindex).filter(|link| link.up) else {
                continue;
            };
            if seen.insert(link.index) {
                uplinks.push(Uplink {
                    interface: link.name.clone(),
                    ifindex: link.index,
                    mtu: link.mtu,
                    gateway: None,
                });
            }
        }
    }
    Ok(Uplinks { links: uplinks, addresses })
}

/// A subscription to the kernel's notices about links, addresses and routes; it ends with its value.
pub(super) struct Watch {
    sender: watch::Sender<u64>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Watch {
    /// Subscribes in the calling thread's network namespace. Must be called within a tokio runtime.
    pub(super) fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut notices) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|error| NetworkError::io("subscribe to network changes", error))?;
        let (sender, _) = watch::channel(0);
        let counter = sender.clone();
        let count = tokio::spawn(async move {
            while notices.next().await.is_some() {
                counter.send_modify(|count| *count += 1);
            }
        });
        Ok(Watch { sender, tasks: [tokio::spawn(connection), count] })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.sender.subscribe()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
