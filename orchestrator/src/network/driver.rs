//! The node-local network: a bridge with gateway addresses and masquerade, to which tasks are attached.
//!
//! In: a [`NetworkConfig`]. Out: kernel objects, and [`Observed`] read back from them. Called by the agent, whose loop is:
//! observe, compare, attach or detach (`attachment`).
//!
//! What belongs to whom is written on the kernel's objects: the host's end of a pair carries the node, the task and its
//! addresses in its alias (`IFLA_IFALIAS`), and the namespace's mount point is named after the task. So a daemon that was
//! killed and started anew, or upgraded, finds everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use tokio::sync::watch;

use super::{
    Attached, NetworkError, Result, Subnet4, Subnet6,
    attachment::{Alias, host_name, is_host_name},
    dns::{self, ResolverConfig},
    doctor::{self, Fact},
    link::{Kind, Link, Netlink},
    masquerade, netns,
    subnet::mac_of,
    sysctl,
    uplink::{self, Uplinks},
};

/// The name of a task in the network; it is a file name and part of an alias.
pub type TaskKey = String;

/// `IFNAMSIZ - 1`.
pub(super) const MAX_INTERFACE_NAME: usize = 15;
/// Keeps the alias, which also holds the node's key and two addresses, below its 256 bytes (`IFALIASZ`).
pub(super) const MAX_KEY: usize = 64;
/// Ethernet's, where no uplink says otherwise.
const DEFAULT_MTU: u32 = 1500;

/// What the node-local network of one node is made of.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Tells this node's objects from those of others: up to 64 letters, digits, `-`, `_`, `.`.
    pub node_key: String,
    /// The bridge's interface name.
    pub bridge: String,
    /// Container addresses.
    pub subnet4: Subnet4,
    /// Container addresses; unused on a kernel without IPv6.
    pub subnet6: Subnet6,
    /// Namespaces are mounted in `netns` below it.
    pub run_dir: PathBuf,
}

impl NetworkConfig {
    /// The interface name the bridge has by default.
    pub const DEFAULT_BRIDGE: &str = "edge0";

    /// The defaults for a node.
    pub fn new(node_key: impl Into<String>, run_dir: impl Into<PathBuf>) -> Self {
        NetworkConfig {
            node_key: node_key.into(),
            bridge: Self::DEFAULT_BRIDGE.to_owned(),
            subnet4: Subnet4::DEFAULT,
            subnet6: Subnet6::DEFAULT,
            run_dir: run_dir.into(),
        }
    }
}

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Namespace and link are there, the link is up and on the bridge.
    pub attached: BTreeMap<TaskKey, Attached>,
    /// Something is there, but not all of it: attach again or detach. A pair that was left without the name of its task
    /// goes by its interface name.
    pub partial: BTreeSet<TaskKey>,
}

/// The network of one node.
pub struct Network {
    pub(super) config: NetworkConfig,
    pub(super) netlink: Netlink,
    pub(super) changes: uplink::Watch,
}

impl Network {
    /// Connects to the kernel in the network namespace of the process. Changes nothing. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the configuration is invalid or netlink cannot be used.
    pub async fn open(config: NetworkConfig) -> Result<Self> {
        check_key("node key", &config.node_key)?;
        check_interface_name(&config.bridge)?;
        Ok(Network { config, netlink: Netlink::open()?, changes: uplink::Watch::open()? })
    }

    /// The addresses of the bridge, on which containers find their resolver.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let v6 = sysctl::has_ipv6().then(|| self.config.subnet6.gateway().into());
        [self.config.subnet4.gateway().into()].into_iter().chain(v6).collect()
    }

    /// What the node's resolver needs to serve the containers of this network.
    pub fn resolver_config(&self, resolv_conf: impl Into<PathBuf>) -> ResolverConfig {
        ResolverConfig {
            listen: self.gateways(),
            port: dns::PORT,
            subnet4: self.config.subnet4,
            subnet6: self.config.subnet6,
            resolv_conf: resolv_conf.into(),
        }
    }

    /// The folder in which namespaces are mounted.
    pub fn netns_dir(&self) -> PathBuf {
        self.config.run_dir.join("netns")
    }

    /// Makes the bridge, its addresses, forwarding and the masquerade so, repairing what was changed by hand.
    ///
    /// # Errors
    /// [`NetworkError::Unsupported`] when the kernel lacks a feature, [`NetworkError::Taken`] when the bridge's name or
    /// subnet belongs to somebody else.
    pub async fn ensure_base(&self) -> Result<()> {
        let v6 = sysctl::has_ipv6();
        let uplinks = self.uplinks().await?;
        self.check_subnet_is_free(&uplinks)?;
        // No packet is too big for the way out.
        let mtu = uplinks.links.iter().map(|link| link.mtu).min().unwrap_or(DEFAULT_MTU);
        let bridge = self.ensure_bridge(mtu).await?;

        let name = self.config.bridge.clone();
        let (subnet4, subnet6) = (self.config.subnet4, v6.then_some(self.config.subnet6));
        netns_of_process(move || {
            sysctl::static_ipv6(&name)?;
            sysctl::enable_forwarding()?;
            masquerade::ensure(&name, subnet4, subnet6)
        })
        .await?;

        let have = self.netlink.addresses().await?;
        let mut wanted = vec![(IpAddr::from(subnet4.gateway()), subnet4.prefix())];
        wanted.extend(subnet6.map(|subnet| (IpAddr::from(subnet.gateway()), Subnet6::PREFIX)));
        for (address, prefix) in wanted {
            if !have.iter().any(|a| a.link == bridge.index && a.address == address && a.prefix == prefix) {
                self.netlink.add_address(&bridge, address, prefix).await?;
            }
        }
        Ok(())
    }

    /// What the kernel has: one link dump and the mount table.
    ///
    /// # Errors
    /// When either cannot be read.
    pub async fn observe(&self) -> Result<Observed> {
        let links = self.netlink.links().await?;
        let mut namespaces = netns::list(&self.netns_dir()).await?;
        let bridge = links.values().find(|link| link.name == self.config.bridge).map(|link| link.index);

        let mut observed = Observed::default();
        for link in links.values().filter(|link| link.kind == Kind::Veth) {
            let alias = link.alias.as_deref().and_then(|alias| Alias::parse(&self.config.node_key, alias));
            let Some(Alias { task, v4, v6 }) = alias else {
                if link.alias.is_none() && is_host_name(&link.name) && link.bridge.is_none() {
                    observed.partial.insert(link.name.clone());
                }
                continue;
            };
            let mounted = namespaces.remove(&task).unwrap_or(false);
            if mounted && link.up && link.bridge.is_some() && link.bridge == bridge {
                let attached = Attached {
                    netns: self.netns_dir().join(&task),
                    host_ifname: link.name.clone(),
                    host_ifindex: link.index,
                    v4,
                    v6,
                    mac: mac_of(v4),
                };
                observed.attached.insert(task, attached);
            } else {
                observed.partial.insert(task);
            }
        }
        observed.partial.extend(namespaces.into_keys());
        // A pair that is not named yet belongs to the namespace that was made for it just before.
        let named: Vec<String> = observed.partial.iter().map(|task| host_name(task)).collect();
        observed.partial.retain(|key| !named.contains(key));
        Ok(observed)
    }

    /// Removes everything: all attachments, the bridge, the masquerade, the folder. Forwarding stays on, since others
    /// may rely on it by now.
    ///
    /// # Errors
    /// All that went wrong; the rest was removed.
    pub async fn remove_base(&self) -> Result<()> {
        let mut errors = Vec::new();
        match self.observe().await {
            Ok(Observed { attached, partial }) => {
                for task in attached.into_keys().chain(partial) {
                    errors.extend(self.detach(&task).await.err());
                }
            }
            Err(error) => errors.push(error),
        }
        match self.netlink.link(&self.config.bridge).await {
            Ok(Some(link)) if link.kind == Kind::Bridge => errors.extend(self.netlink.delete_link(&link).await.err()),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        errors.extend(netns_of_process(masquerade::remove).await.err());
        let folder = self.netns_dir();
        match tokio::fs::remove_dir(&folder).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                errors.push(NetworkError::path("remove", &folder, error));
            }
            _ => {}
        }
        NetworkError::collect(errors)
    }

    /// Interfaces that lead out of the node, and the node's addresses.
    ///
    /// # Errors
    /// When netlink fails.
    pub async fn uplinks(&self) -> Result<Uplinks> {
        uplink::look(&self.netlink, &self.config.bridge).await
    }

    /// Says "look again" whenever a link, an address or a route of the node changes; many changes may be one notice.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What the kernel has and lacks for this module, with a remedy for each that is missing.
    ///
    /// # Errors
    /// Only when the work cannot be carried out at all; what is missing is a fact.
    pub async fn doctor(&self) -> Result<Vec<Fact>> {
        let bridge = self.config.bridge.clone();
        let mut facts = doctor::link_facts().await;
        facts.extend(netns_of_process(move || Ok(doctor::kernel_facts(&bridge))).await?);
        let subnet = self.uplinks().await.and_then(|uplinks| self.check_subnet_is_free(&uplinks));
        facts.push(doctor::subnet_fact(subnet));
        Ok(facts)
    }

    /// A node with an address in the container subnets could not tell its network from theirs.
    fn check_subnet_is_free(&self, uplinks: &Uplinks) -> Result<()> {
        let clash = uplinks
            .addresses
            .iter()
            .find(|address| address.interface != self.config.bridge && self.is_container_address(address.address));
        match clash {
            Some(clash) => {
                let subnet = match clash.address {
                    IpAddr::V4(_) => self.config.subnet4.to_string(),
                    IpAddr::V6(_) => self.config.subnet6.to_string(),
                };
                Err(NetworkError::Taken {
                    what: format!("the container subnet {subnet}"),
                    holder: format!("the interface {} ({}/{})", clash.interface, clash.address, clash.prefix),
                })
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_container_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.config.subnet4.contains(v4),
            IpAddr::V6(v6) => self.config.subnet6.contains(v6),
        }
    }

    async fn ensure_bridge(&self, mtu: u32) -> Result<Link> {
        let name = &self.config.bridge;
        let mac = mac_of(self.config.subnet4.gateway());
        if self.netlink.link(name).await?.is_none() {
            self.netlink.add_bridge(name, mac).await?;
        }
        let bridge = self.netlink.existing_link(name).await?;
        if bridge.kind != Kind::Bridge {
            return Err(NetworkError::Taken {
                what: format!("the bridge name {name}"),
                holder: "an interface of another kind".to_owned(),
            });
        }
        if bridge.up && bridge.mtu == mtu && bridge.mac == mac {
            return Ok(bridge);
        }
        let change = LinkMessageBuilder::<LinkUnspec>::new().up().mtu(mtu).address(mac.to_vec());
        self.netlink.set_link(&bridge, change).await?;
        self.netlink.existing_link(name).await
    }
}

/// Keys are file names and parts of aliases.
pub(super) fn check_key(what: &'static str, key: &str) -> Result<()> {
    let invalid = |why| Err(NetworkError::Invalid { what, value: key.to_owned(), why });
    if key.is_empty() || key.len() > MAX_KEY {
        return invalid("it must have 1 to 64 characters");
    }
    if key.starts_with('.') || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return invalid("it may have letters, digits, `-`, `_` and `.`, and not begin with a dot");
    }
    Ok(())
}

/// What the kernel accepts (`dev_valid_name`).
fn check_interface_name(name: &str) -> Result<()> {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > MAX_INTERFACE_NAME || name == "." || name == ".." || name.bytes().any(bad) {
        let value = name.to_owned();
        return Err(NetworkError::Invalid {
            what: "interface name",
            value,
            why: "1 to 15 characters, no `/`, `:` or space",
        });
    }
    Ok(())
}

/// Runs short blocking work in the process's network namespace, off the async threads.
async fn netns_of_process<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| NetworkError::io("finish work on the network", std::io::Error::other(error)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", ".hidden", "a b", "a\0b", &"k".repeat(65)] {
            assert!(check_key("task key", bad).is_err(), "{bad:?}");
        }
        assert!(check_key("task key", "web.1_a-B").is_ok());
    }
}
