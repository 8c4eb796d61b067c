//! The node-local network: a bridge with gateway addresses and masquerade, and one veth pair per task.
//!
//! In: a [`NetworkConfig`] and [`Attachment`]s. Out: kernel objects, and [`Observed`] read back from them. Called by the
//! agent, whose loop is: observe, compare, attach or detach.
//!
//! What belongs to whom is written on the kernel's objects: the host's end of a pair carries the node, the task and its
//! addresses in its alias (`IFLA_IFALIAS`), and the namespace's mount point is named after the task. So a daemon that was
//! killed and started anew, or upgraded, finds everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use sha2::{Digest, Sha256};
use tokio::{fs::File, sync::watch};

use super::{
    NetworkError, Result, Subnet4, Subnet6,
    dns::{self, ResolverConfig},
    doctor::{self, Fact},
    link::{Kind, Link, Netlink, VethPair, without_link_local},
    masquerade, netns,
    subnet::mac_of,
    sysctl,
    uplink::{self, Uplinks},
};

/// The name of a task in the network; it is a file name and part of an alias.
pub type TaskKey = String;

/// The interface of a container in the node-local network.
const INNER_NAME: &str = "eth0";
/// `IFNAMSIZ - 1`.
const MAX_INTERFACE_NAME: usize = 15;
/// Keeps the alias, which also holds the node's key and two addresses, below its 256 bytes (`IFALIASZ`).
const MAX_KEY: usize = 64;
/// The kernel's link watch reports less urgent changes once a second (net/core/link_watch.c).
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
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
    config: NetworkConfig,
    netlink: Netlink,
    changes: uplink::Watch,
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
        let mut change = LinkMessageBuilder::<LinkUnspec>::new().up();
        let as_wanted = host.up
            && host.mtu == bridge.mtu
            && host.bridge == Some(bridge.index)
            && host.alias.as_deref() == Some(alias.as_str());
        if !as_wanted {
            change = change.mtu(bridge.mtu).controller(bridge.index).alias(alias);
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

    fn is_container_address(&self, address: IpAddr) -> bool {
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
struct Alias {
    task: TaskKey,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

impl Alias {
    fn to_text(&self, node_key: &str) -> String {
        let v6 = self.v6.map(|v6| v6.to_string()).unwrap_or_default();
        format!("edged/{node_key}/{}/{}/{v6}", self.task, self.v4)
    }

    /// `None` when the link belongs to somebody else.
    fn parse(node_key: &str, text: &str) -> Option<Self> {
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
fn host_name(task: &str) -> String {
    format!("ve{}", hex::encode(&Sha256::digest(task)[..6]))
}

fn is_host_name(name: &str) -> bool {
    name.strip_prefix("ve")
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

fn check_key(what: &'static str, key: &str) -> Result<()> {
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

    #[test]
    fn keys_that_would_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", ".hidden", "a b", "a\0b", &"k".repeat(65)] {
            assert!(check_key("task key", bad).is_err(), "{bad:?}");
        }
        assert!(check_key("task key", "web.1_a-B").is_ok());
    }
}
