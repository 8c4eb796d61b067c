//! Discovery by multicast DNS (RFC 6762, RFC 6763): every node says where it is and hears where others are. Supplies
//! addresses and no trust: anyone on the link may say anything, and the certificate decides.
//!
//! The library runs a thread of its own. It looks for changed addresses every few seconds and announces them.

use super::limits;
use mdns_sd::{IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use orchestrator_core::model::{ClusterId, NodeId, Role};
use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::{Mutex, PoisonError},
};
use tokio::sync::mpsc;

const SERVICE: &str = "_edged._udp.local.";

/// Beginnings of the names of interfaces that lead to containers of this node and not to other nodes: ours, and those of Docker,
/// podman, libvirt, LXC and the common Kubernetes networks.
const CONTAINER_LINKS: [&str; 12] =
    ["edge", "veth", "docker", "br-", "podman", "cni", "cali", "flannel", "kube", "virbr", "vnet", "lxc"];

/// Nodes heard of that wait to be looked at; more are dropped, and heard of again.
const QUEUE: usize = 64;

/// Hears and says where nodes are, until it is dropped.
pub struct Discovery {
    daemon: ServiceDaemon,
    interfaces: Vec<IfKind>,
    announced: Mutex<Option<Announcement>>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Its role: those who want to join look for managers.
    pub role: Role,
    /// The UDP port of its endpoint.
    pub port: u16,
}

/// What somebody says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Where it may be, link-local addresses last; never empty.
    pub addrs: Vec<SocketAddr>,
}

/// Discovery does not work; the cluster does without.
#[derive(Debug, thiserror::Error)]
#[error("discovery by multicast: {action}")]
pub struct DiscoveryError {
    action: &'static str,
    #[source]
    source: mdns_sd::Error,
}

impl Discovery {
    /// Starts on `interfaces`, given by name or by address; if there are none, on all that may lead to other nodes.
    ///
    /// # Errors
    /// The thread or its sockets could not be made. Interfaces that do not exist are no error: they may come.
    pub fn start(interfaces: &[String]) -> Result<Self, DiscoveryError> {
        let daemon = ServiceDaemon::new().map_err(failed("starting"))?;
        let interfaces = select(interfaces);
        daemon.disable_interface(IfKind::All).map_err(failed("choosing interfaces"))?;
        daemon.enable_interface(interfaces.clone()).map_err(failed("choosing interfaces"))?;
        Ok(Self { daemon, interfaces, announced: Mutex::default() })
    }

    /// Says where this node is, now, whenever its addresses change, and when somebody asks. Replaces what was said before;
    /// `None` takes it back.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn announce(&self, announcement: Option<&Announcement>) -> Result<(), DiscoveryError> {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        if announced.as_ref() == announcement {
            return Ok(());
        }
        if let Some(before) = announced.take() {
            let name = format!("{}.{SERVICE}", before.node);
            // The answer says that the goodbye was sent; nothing waits for that.
            self.daemon.unregister(&name).map(drop).map_err(failed("taking the announcement back"))?;
        }
        if let Some(announcement) = announcement {
            let info = announcement.info(self.interfaces.clone()).map_err(failed("announcing this node"))?;
            self.daemon.register(info).map_err(failed("announcing this node"))?;
        }
        *announced = announcement.cloned();
        Ok(())
    }

    /// Everything that is heard of nodes, this one included, from now on; again when something changes. Ends with the
    /// receiver or with `self`. One at a time.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn browse(&self) -> Result<mpsc::Receiver<Found>, DiscoveryError> {
        let events = self.daemon.browse(SERVICE).map_err(failed("listening"))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let daemon = self.daemon.clone();
        tokio::spawn(async move {
            forward(events, &sender).await;
            // Fails when the thread has ended, which ends this as well.
            let _ = daemon.stop_browse(SERVICE);
        });
        Ok(receiver)
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        // Says goodbye for what was announced. Fails when the thread has ended, which is what is wanted.
        let _ = self.daemon.shutdown();
    }
}

impl Announcement {
    fn info(&self, interfaces: Vec<IfKind>) -> Result<ServiceInfo, mdns_sd::Error> {
        let node = self.node.to_string();
        let role = role_text(self.role).to_owned();
        let text = [("cluster", self.cluster.to_string()), ("node", node.clone()), ("role", role)];
        let host = format!("edged-{node}.local.");
        let mut info = ServiceInfo::new(SERVICE, &node, &host, "", self.port, &text[..])?.enable_addr_auto();
        // Names follow from keys, so an honest conflict cannot be.
        info.set_requires_probe(false);
        info.set_interfaces(interfaces);
        Ok(info)
    }
}

async fn forward(events: Receiver<ServiceEvent>, to: &mpsc::Sender<Found>) {
    loop {
        let event = tokio::select! {
            event = events.recv_async() => event,
            () = to.closed() => return,
        };
        match event {
            Ok(ServiceEvent::ServiceResolved(service)) => match found(&service) {
                Some(found) => drop(to.try_send(found)),
                None => tracing::debug!(name = service.fullname, "an announcement makes no sense"),
            },
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn found(service: &ResolvedService) -> Option<Found> {
    let text = |key| service.get_property_val_str(key);
    let mut addrs = service.addresses.iter().map(|ip| addr(ip, service.port)).collect::<Vec<_>>();
    addrs.retain(|addr| !addr.ip().is_loopback() && !addr.ip().is_unspecified());
    addrs.sort_by_key(|addr| (is_link_local(addr.ip()), *addr));
    addrs.truncate(limits::FOUND_ADDRESSES);
    if addrs.is_empty() || service.port == 0 {
        return None;
    }
    let role = [Role::Manager, Role::Worker].into_iter().find(|role| Some(role_text(*role)) == text("role"))?;
    Some(Found { cluster: text("cluster")?.parse().ok()?, node: text("node")?.parse().ok()?, role, addrs })
}

fn addr(ip: &ScopedIp, port: u16) -> SocketAddr {
    match ip {
        ScopedIp::V6(v6) if is_link_local((*v6.addr()).into()) => {
            SocketAddrV6::new(*v6.addr(), port, 0, v6.scope_id().index).into()
        }
        other => SocketAddr::new(other.to_ip_addr(), port),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn role_text(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

fn select(interfaces: &[String]) -> Vec<IfKind> {
    if interfaces.is_empty() {
        return vec![IfKind::Predicate(IfPredicate::new(|link| !link.is_loopback() && leads_out(&link.name)))];
    }
    let kind = |text: &String| text.parse::<IpAddr>().map_or_else(|_| IfKind::Name(text.clone()), IfKind::Addr);
    interfaces.iter().map(kind).collect()
}

fn leads_out(name: &str) -> bool {
    let ours =
        name.strip_prefix("ve").is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit()));
    !ours && !CONTAINER_LINKS.iter().any(|link| name.starts_with(link))
}

fn failed(action: &'static str) -> impl Fn(mdns_sd::Error) -> DiscoveryError {
    move |source| DiscoveryError { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement() -> Announcement {
        Announcement { cluster: ClusterId(1), node: NodeId(2), role: Role::Manager, port: 2377 }
    }

    fn heard(ips: &str) -> ResolvedService {
        let mut service = announcement().info(vec![IfKind::All]).unwrap().as_resolved_service();
        service.addresses = ips.split(',').map(|ip| ScopedIp::from(ip.parse::<IpAddr>().unwrap())).collect();
        service
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let Announcement { cluster, node, role, port } = announcement();
        let addrs = ["192.0.2.1", "2001:db8::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).to_vec();
        assert_eq!(found(&heard("2001:db8::1,192.0.2.1,127.0.0.1")), Some(Found { cluster, node, role, addrs }));
    }

    #[test]
    fn nonsense_is_not_heard() {
        assert_eq!(found(&heard("127.0.0.1")), None);
        let mut service = heard("192.0.2.1");
        service.port = 0;
        assert_eq!(found(&service), None);
        let mut service = heard("192.0.2.1");
        service.txt_properties = mdns_sd::TxtProperties::new();
        assert_eq!(found(&service), None);
    }

    #[test]
    fn many_addresses_are_cut_and_link_local_ones_come_last() {
        let found = found(&heard("fe80::1,192.0.2.1,192.0.2.2,169.254.0.1,192.0.2.3")).unwrap();
        let ips = found.addrs.iter().map(|addr| addr.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(ips, ["192.0.2.1", "192.0.2.2", "192.0.2.3", "169.254.0.1"]);
    }

    #[test]
    fn links_to_containers_do_not_lead_out() {
        for name in ["eth0", "wlan0", "end0", "enp3s0", "bond0", "up0", "vexp0", "wg0"] {
            assert!(leads_out(name), "{name}");
        }
        for name in ["edge0", "ve0123456789ab", "veth12ab3c4", "docker0", "br-0123456789ab", "cni0", "virbr0"] {
            assert!(!leads_out(name), "{name}");
        }
    }
}
