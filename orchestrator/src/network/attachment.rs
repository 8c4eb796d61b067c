//! A task's place in the node-local network: a namespace and a veth pair to the bridge.
//!
//! In: an [`Attachment`]. Out: kernel objects made so, [`Attached`]. The other half of the driver, which has the base and
//! observes. What is written here into names and aliases is what the driver reads back.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use sha2::{Digest, Sha256};
use tokio::fs::File;

use super::{
    Network, NetworkError, Result, Subnet6, TaskKey,
    driver::check_key,
    link::{Kind, Link, Netlink, VethPair, without_link_local},
    netns,
    subnet::mac_of,
    sysctl, uplink,
};

/// The interface of a container in the node-local network.
const INNER_NAME: &str = "eth0";
/// The kernel's link watch reports less urgent changes once a second (net/core/link_watch.c).
const SETTLED_WITHIN: Duration = Duration::from_secs(1);

/// A task's wish for a place in the node-local network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The task: up to 64 letters, digits, `-`, `_`, `.`, not beginning with a dot.
    pub task: TaskKey,
    /// The host part of its addresses; 1 is the gateway.
    pub index: u16,
}

/// A task's place in the node-local network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The namespace's mount point, to be joined by path.
    pub netns: PathBuf,
    /// The host's end of the veth pair, in the node's namespace.
    pub host_ifname: String,
    /// Its index.
    pub host_ifindex: u32,
    /// The container's address.
    pub v4: Ipv4Addr,
    /// The container's address, where the kernel has IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The MAC of the container's interface.
    pub mac: [u8; 6],
}

impl Network {
    /// Gives a task its namespace with `lo`, `eth0`, addresses and default routes; repairs what is not so.
    ///
    /// Needs the base. The container's interface takes frames from the first moment, before its process starts.
    ///
    /// # Errors
    /// When key or index are invalid, or the kernel refuses; what was made stays and is seen by
    /// [`Network::observe`] as partial.
    pub async fn attach(&self, attachment: &Attachment) -> Result<Attached> {
        let task = &attachment.task;
        check_key("task key", task)?;
        let v4 = self.config.subnet4.container(attachment.index)?;
        let v6 = sysctl::has_ipv6().then(|| self.config.subnet6.at(attachment.index));
        let mac = mac_of(v4);
        let netns_path = self.netns_dir().join(task);
        let host_name = host_name(task);
        let bridge = self.netlink.existing_link(&self.config.bridge).await?;

        netns::ensure(&netns_path).await?;
        let runtime = tokio::runtime::Handle::current();
        let (inner, inner_changes) = netns::run(&netns_path, move || {
            let _runtime = runtime.enter();
            container_defaults()?;
            Ok((Netlink::open()?, uplink::Watch::open()?))
        })
        .await?;

        let (host, eth0) = self.ensure_pair(&inner, &netns_path, &host_name, mac, bridge.mtu).await?;
        let alias = Alias { task: task.clone(), v4, v6 }.to_text(&self.config.node_key);
        let as_wanted = host.up
            && host.mtu == bridge.mtu
            && host.bridge == Some(bridge.index)
            && host.alias.as_deref() == Some(alias.as_str());
        if !as_wanted {
            let up = LinkMessageBuilder::<LinkUnspec>::new().up();
            let mut change = up.mtu(bridge.mtu).controller(bridge.index).alias(alias);
            if v6.is_some() {
                change = without_link_local(change);
            }
            self.netlink.set_link(&host, change).await?;
        }
        self.configure_inside(&inner, &eth0, mac, bridge.mtu, v4, v6).await?;
        settle(&self.netlink, &self.changes, &[&host.name, &bridge.name], None).await?;
        settle(&inner, &inner_changes, &[INNER_NAME], v6.map(IpAddr::from)).await?;
        Ok(Attached { netns: netns_path, host_ifname: host.name, host_ifindex: host.index, v4, v6, mac })
    }

    /// Takes a task out of the network: link and namespace. Being absent is no error. Processes that are still in the
    /// namespace keep it, without a link, until they end.
    ///
    /// # Errors
    /// All that went wrong; the rest was removed.
    pub async fn detach(&self, task: &str) -> Result<()> {
        let mut errors = Vec::new();
        // Observed::partial names a pair without a task by its interface name.
        let leftover = is_host_name(task).then(|| task.to_owned());
        for name in [Some(host_name(task)), leftover].into_iter().flatten() {
            match self.netlink.link(&name).await {
                Ok(Some(link)) if link.kind == Kind::Veth => {
                    errors.extend(self.netlink.delete_link(&link).await.err());
                }
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        match check_key("task key", task) {
            Ok(()) => errors.extend(netns::delete(&self.netns_dir().join(task)).await.err()),
            Err(error) => errors.push(error),
        }
        NetworkError::collect(errors)
    }

    /// The two ends of the task's pair, made anew unless they belong together.
    async fn ensure_pair(
        &self,
        inner: &Netlink,
        netns_path: &Path,
        host_name: &str,
        inner_mac: [u8; 6],
        mtu: u32,
    ) -> Result<(Link, Link)> {
        let host = self.netlink.link(host_name).await?;
        let eth0 = inner.link(INNER_NAME).await?;
        if let (Some(host), Some(eth0)) = (&host, &eth0)
            && host.kind == Kind::Veth
            && host.peer == Some(eth0.index)
            && eth0.peer == Some(host.index)
        {
            return Ok((host.clone(), eth0.clone()));
        }
        match host {
            Some(other) if other.kind != Kind::Veth => {
                return Err(NetworkError::Taken {
                    what: format!("the interface name {host_name}"),
                    holder: "an interface of another kind".to_owned(),
                });
            }
            Some(half) => self.netlink.delete_link(&half).await?,
            None => {}
        }
        if let Some(half) = inner.link(INNER_NAME).await? {
            inner.delete_link(&half).await?;
        }
        let file = File::open(netns_path).await.map_err(|error| NetworkError::path("open", netns_path, error))?;
        let pair = VethPair { host_name, inner_name: INNER_NAME, inner_netns: file.as_fd(), inner_mac, mtu };
        self.netlink.add_veth(&pair).await?;
        Ok((self.netlink.existing_link(host_name).await?, inner.existing_link(INNER_NAME).await?))
    }

    /// Makes the namespace's links, addresses and routes so.
    async fn configure_inside(
        &self,
        inner: &Netlink,
        eth0: &Link,
        mac: [u8; 6],
        mtu: u32,
        v4: Ipv4Addr,
        v6: Option<Ipv6Addr>,
    ) -> Result<()> {
        let up = || LinkMessageBuilder::<LinkUnspec>::new().up();
        let lo = inner.existing_link("lo").await?;
        if !lo.up {
            inner.set_link(&lo, up()).await?;
        }
        if !eth0.up || eth0.mtu != mtu || eth0.mac != mac {
            inner.set_link(eth0, up().mtu(mtu).address(mac.to_vec())).await?;
        }

        let mut wanted = vec![(IpAddr::from(v4), self.config.subnet4.prefix())];
        wanted.extend(v6.map(|v6| (IpAddr::from(v6), Subnet6::PREFIX)));
        let have = inner.addresses().await?;
        // An earlier index of the same task; addresses outside the subnets are the container's own affair.
        for old in have.iter().filter(|a| a.link == eth0.index && self.is_container_address(a.address)) {
            if !wanted.contains(&(old.address, old.prefix)) {
                inner.delete_address(old).await?;
            }
        }
        for (address, prefix) in wanted {
            if !have.iter().any(|a| a.link == eth0.index && a.address == address && a.prefix == prefix) {
                inner.add_address(eth0, address, prefix).await?;
            }
        }

        let mut gateways = vec![IpAddr::from(self.config.subnet4.gateway())];
        gateways.extend(v6.map(|_| IpAddr::from(self.config.subnet6.gateway())));
        let routes = inner.default_routes().await?;
        for gateway in gateways {
            if !routes.iter().any(|route| route.link == eth0.index && route.gateway == Some(gateway)) {
                inner.set_default_route(eth0, gateway).await?;
            }
        }
        Ok(())
    }
}

/// Waits for what the kernel does a few milliseconds after it was asked for: it takes note of carriers, without which a
/// bridge forwards nothing, and begins to accept packets to IPv6 addresses. A container that is quicker would lose its
/// first packets and a second with them. Whoever undoes things meanwhile does not hold this up for long.
async fn settle(netlink: &Netlink, changes: &uplink::Watch, running: &[&str], receives: Option<IpAddr>) -> Result<()> {
    let mut changes = changes.subscribe();
    let settled = async {
        loop {
            changes.mark_unchanged();
            let mut is_so = netlink.receives(receives).await?;
            for name in running {
                is_so &= netlink.existing_link(name).await?.running;
            }
            if is_so || changes.changed().await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(SETTLED_WITHIN, settled).await.unwrap_or(Ok(()))
}

/// What the alias of the host's end says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) task: TaskKey,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Alias {
    fn to_text(&self, node_key: &str) -> String {
        let v6 = self.v6.map(|v6| v6.to_string()).unwrap_or_default();
        format!("edged/{node_key}/{}/{}/{v6}", self.task, self.v4)
    }

    /// `None` when the link belongs to somebody else.
    pub(super) fn parse(node_key: &str, text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split('/').collect();
        let ["edged", node, task, v4, v6] = fields[..] else { return None };
        if node != node_key || check_key("task key", task).is_err() {
            return None;
        }
        let v6 = if v6.is_empty() { None } else { Some(v6.parse().ok()?) };
        Some(Alias { task: task.to_owned(), v4: v4.parse().ok()?, v6 })
    }
}

/// Settings of a container's namespace that hold before its first interface exists. The last two are Docker's
/// defaults: ports below 1024 and ICMP echo need no privilege.
fn container_defaults() -> Result<()> {
    sysctl::static_ipv6("all")?;
    sysctl::static_ipv6("default")?;
    sysctl::ensure("ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::ensure("ipv4/ping_group_range", "0\t2147483647")
}

/// The host's end of a task's pair: `ve` and 48 bits of the key's SHA-256.
pub(super) fn host_name(task: &str) -> String {
    format!("ve{}", hex::encode(&Sha256::digest(task)[..6]))
}

pub(super) fn is_host_name(name: &str) -> bool {
    name.strip_prefix("ve")
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::driver::{MAX_INTERFACE_NAME, MAX_KEY};

    #[test]
    fn an_alias_says_whose_link_it_is() {
        let alias = Alias {
            task: "web.1.abc".to_owned(),
            v4: Ipv4Addr::new(10, 231, 0, 2),
            v6: Some("fdb7:2e1a:94c3::2".parse().unwrap()),
        };
        let text = alias.to_text("n1");
        assert_eq!(text, "edged/n1/web.1.abc/10.231.0.2/fdb7:2e1a:94c3::2");
        assert_eq!(Alias::parse("n1", &text), Some(alias));
        assert_eq!(Alias::parse("n2", &text), None);
        assert_eq!(Alias::parse("n1", "edged/n1/../10.231.0.2/"), None);
        assert_eq!(Alias::parse("n1", "uplink to the attic"), None);
    }

    #[test]
    fn the_longest_alias_fits() {
        let key = "k".repeat(MAX_KEY);
        let v6 = Some(Ipv6Addr::from_bits(u128::MAX));
        let alias = Alias { task: key.clone(), v4: Ipv4Addr::BROADCAST, v6 }.to_text(&key);
        assert!(alias.len() < 256, "{}", alias.len());
    }

    #[test]
    fn host_names_are_stable_and_fit() {
        assert_eq!(host_name("web.1"), host_name("web.1"));
        assert_ne!(host_name("web.1"), host_name("web.2"));
        assert!(host_name("web.1").len() <= MAX_INTERFACE_NAME);
        assert!(is_host_name(&host_name("web.1")));
        assert!(!is_host_name("veth0"));
    }
}
