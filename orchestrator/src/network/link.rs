//! rtnetlink in the driver's words: links, addresses and routes of one network namespace.
//!
//! In: desired properties. Out: dumps as plain values, and changes that are made only where something differs.
//! A [`Netlink`] belongs to the namespace of the thread that opened it, wherever it is used from.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
        LinkInfo, LinkLayerType, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, sys::AsyncSocket};

use super::{NetworkError, Result, error::netlink_io};

/// The kernel answers within milliseconds; links are slow to go while many packets are in flight (`synchronize_net`).
const ANSWER: Duration = Duration::from_secs(3);

/// Room for answers. With the default of 208 KiB, dumps of some 60 links lost parts (counted in /proc/net/netlink), and who
/// waited for them waited for ever.
const RECEIVE_BUFFER: i32 = 1 << 20;

/// Tries of a dump, and the pause between two: a dump that nobody reads any more is over within milliseconds.
const DUMP_TRIES: u32 = 100;
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// A connection to the kernel; the task that drives it ends with it.
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    driver: tokio::task::JoinHandle<()>,
    /// Held from a request to its answer. Requests side by side gain nothing, as the kernel takes one at a time (rtnl
    /// mutex), and lose answers when the socket's buffer overflows; a second dump is refused with EBUSY (netlink(7)).
    turn: tokio::sync::Mutex<()>,
}

/// What a link dump says about one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Kind,
    pub up: bool,
    /// Packets pass: it is up and has a carrier, and the kernel has taken note of both.
    pub running: bool,
    pub loopback: bool,
    pub mtu: u32,
    pub mac: Vec<u8>,
    /// The index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// The index of the other end of a veth pair, in the other end's namespace.
    pub peer: Option<u32>,
    pub alias: Option<String>,
}

/// The kinds of links that the driver treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bridge,
    Veth,
    Other,
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    pub global: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub metric: u32,
}

/// A veth pair to be made: the host's end here, the other in another namespace.
pub(super) struct VethPair<'a> {
    pub host_name: &'a str,
    pub inner_name: &'a str,
    pub inner_netns: BorrowedFd<'a>,
    pub inner_mac: [u8; 6],
    pub mtu: u32,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace. Must be called within a tokio runtime.
    pub(super) fn open() -> Result<Self> {
        let failed = |error| NetworkError::io("open a netlink socket", error);
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER).map_err(failed)?;
        Ok(Netlink { handle, driver: tokio::spawn(connection), turn: tokio::sync::Mutex::default() })
    }

    /// Waits for this request's turn and for its answer. One that was lost is an error, not a wait for ever.
    async fn answered<T>(
        &self,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, rtnetlink::Error> {
        let _turn = self.turn.lock().await;
        tokio::time::timeout(ANSWER, request).await.unwrap_or(Err(rtnetlink::Error::RequestFailed))
    }

    /// Collects a dump that `ask` begins. One that was given up half-way keeps the socket busy for a moment, so EBUSY is
    /// asked again, and so is what was lost.
    async fn collect<T, S>(&self, ask: impl Fn(&rtnetlink::Handle) -> S) -> Result<Vec<T>, rtnetlink::Error>
    where
        S: futures_util::Stream<Item = Result<T, rtnetlink::Error>>,
    {
        let mut tries = 0;
        loop {
            match self.answered(ask(&self.handle).try_collect()).await {
                Err(error) if is(&error, libc::EBUSY) && tries < DUMP_TRIES => tries += 1,
                Err(rtnetlink::Error::RequestFailed) if tries < DUMP_TRIES => tries += DUMP_TRIES / 3,
                result => return result,
            }
            tokio::time::sleep(DUMP_PAUSE).await;
        }
    }

    /// All links by index.
    pub(super) async fn links(&self) -> Result<BTreeMap<u32, Link>> {
        let failed = |error| NetworkError::netlink("list links", error);
        let messages = self.collect(|handle| handle.link().get().execute()).await.map_err(failed)?;
        Ok(messages.iter().map(Link::of).map(|link| (link.index, link)).collect())
    }

    /// The link of that name.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>> {
        let found = {
            let mut answer = self.handle.link().get().match_name(name).execute();
            self.answered(answer.try_next()).await
        };
        match found {
            Ok(message) => Ok(message.as_ref().map(Link::of)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(NetworkError::netlink(format!("look up the link {name}"), error)),
        }
    }

    /// The link of that name, which was just made.
    pub(super) async fn existing_link(&self, name: &str) -> Result<Link> {
        let gone = || NetworkError::io(format!("look up the link {name}"), io::Error::from_raw_os_error(libc::ENODEV));
        self.link(name).await?.ok_or_else(gone)
    }

    /// Makes a bridge: no spanning tree, and no multicast snooping, which costs and serves nobody here.
    pub(super) async fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<()> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name)
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .address(mac.to_vec())
            .build();
        self.add_link(message, name, "bridge links", "load the module `bridge` or build CONFIG_BRIDGE").await
    }

    /// Makes a veth pair whose inner end is born in its namespace, under its final name.
    pub(super) async fn add_veth(&self, pair: &VethPair<'_>) -> Result<()> {
        let inner = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.inner_name)
            .address(pair.inner_mac.to_vec())
            .mtu(pair.mtu)
            .setns_by_fd(pair.inner_netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pair.host_name)
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)))
            .build();
        self.add_link(message, pair.host_name, "veth links", "load the module `veth` or build CONFIG_VETH").await
    }

    async fn add_link(
        &self,
        message: LinkMessage,
        name: &str,
        feature: &'static str,
        remedy: &'static str,
    ) -> Result<()> {
        match self.answered(self.handle.link().add(message).execute()).await {
            Err(error) if is(&error, libc::EOPNOTSUPP) => {
                Err(NetworkError::Unsupported { feature, remedy, source: netlink_io(&error) })
            }
            other => other.map_err(|error| NetworkError::netlink(format!("make the link {name}"), error)),
        }
    }

    /// Whether the kernel can make links of a kind; makes one with defaults, if they make sense for the kind.
    pub(super) async fn knows_kind(&self, kind: InfoKind) -> bool {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).build();
        !matches!(self.answered(self.handle.link().add(message).execute()).await, Err(error) if is(&error, libc::EOPNOTSUPP))
    }

    /// Applies `change` to a link.
    pub(super) async fn set_link(&self, link: &Link, change: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        let message = change.index(link.index).build();
        let failed = |error| NetworkError::netlink(format!("change the link {}", link.name), error);
        self.answered(self.handle.link().set(message).execute()).await.map_err(failed)
    }

    /// Deletes a link; being absent is no error. The other end of a veth pair goes with it.
    pub(super) async fn delete_link(&self, link: &Link) -> Result<()> {
        match self.answered(self.handle.link().del(link.index).execute()).await {
            Err(error) if is(&error, libc::ENODEV) => Ok(()),
            other => other.map_err(|error| NetworkError::netlink(format!("delete the link {}", link.name), error)),
        }
    }

    /// All addresses, in order.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>> {
        let failed = |error| NetworkError::netlink("list addresses", error);
        let messages = self.collect(|handle| handle.address().get().execute()).await.map_err(failed)?;
        let mut addresses: Vec<Address> = messages.iter().filter_map(Address::of).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Gives a link an address, usable at once (no duplicate address detection); having it already is no error.
    pub(super) async fn add_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(link.index, address, prefix);
        request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        match self.answered(request.execute()).await {
            Err(error) if is(&error, libc::EEXIST) => Ok(()),
            other => other.map_err(|error| {
                NetworkError::netlink(format!("give {} the address {address}/{prefix}", link.name), error)
            }),
        }
    }

    /// Takes an address from its link; being absent is no error.
    pub(super) async fn delete_address(&self, address: &Address) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = match address.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.index = address.link;
        message.header.prefix_len = address.prefix;
        message.attributes.push(AddressAttribute::Local(address.address));
        message.attributes.push(AddressAttribute::Address(address.address));
        match self.answered(self.handle.address().del(message).execute()).await {
            Err(error) if is(&error, libc::EADDRNOTAVAIL) => Ok(()),
            other => other.map_err(|error| {
                NetworkError::netlink(format!("delete the address {}/{}", address.address, address.prefix), error)
            }),
        }
    }

    /// The default routes of the main table, both families, best first.
    pub(super) async fn default_routes(&self) -> Result<Vec<DefaultRoute>> {
        let failed = |error| NetworkError::netlink("list routes", error);
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = Vec::new();
        for family in [v4, v6] {
            let messages = self.collect(|handle| handle.route().get(family.clone()).execute()).await.map_err(failed)?;
            routes.extend(messages.iter().flat_map(DefaultRoute::of));
        }
        routes.sort_by_key(|route| route.metric);
        Ok(routes)
    }

    /// Whether packets to the address are accepted, for which it needs a route of its own besides being given to a link
    /// (with IPv6 the kernel adds it later); no address is always.
    pub(super) async fn receives(&self, address: Option<IpAddr>) -> Result<bool> {
        let filter = match address {
            None => return Ok(true),
            Some(IpAddr::V4(_)) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Some(IpAddr::V6(_)) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let failed = |error| NetworkError::netlink("list routes", error);
        let routes = self.collect(|handle| handle.route().get(filter.clone()).execute()).await.map_err(failed)?;
        Ok(routes.iter().any(|route| {
            route.header.kind == RouteType::Local
                && route
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, RouteAttribute::Destination(to) if ip_of(to) == address))
        }))
    }

    /// Makes the default route of the gateway's family lead over it, replacing another of the same metric.
    pub(super) async fn set_default_route(&self, link: &Link, gateway: IpAddr) -> Result<()> {
        let message = match gateway {
            IpAddr::V4(gateway) => {
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(link.index).build()
            }
            IpAddr::V6(gateway) => {
                RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(link.index).build()
            }
        };
        let failed = |error| NetworkError::netlink(format!("route by default over {gateway}"), error);
        self.answered(self.handle.route().add(message).replace().execute()).await.map_err(failed)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The property "makes no link-local address of its own", for bridge ports, which need none.
pub(super) fn without_link_local(change: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    change.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]))
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Other,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message.header.flags.contains(LinkFlags::Running),
            loopback: message.header.link_layer_type == LinkLayerType::Loopback,
            mtu: 0,
            mac: Vec::new(),
            bridge: None,
            peer: None,
            alias: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Controller(index) => link.bridge = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(kind_of).unwrap_or(Kind::Other);
                }
                _ => {}
            }
        }
        link
    }
}

fn kind_of(info: &LinkInfo) -> Option<Kind> {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
        LinkInfo::Kind(_) => Some(Kind::Other),
        _ => None,
    }
}

impl Address {
    fn of(message: &AddressMessage) -> Option<Self> {
        // IFA_LOCAL is the address itself where there is one; IFA_ADDRESS may be a point-to-point link's far end.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })?;
        Some(Address {
            link: message.header.index,
            address,
            prefix: message.header.prefix_len,
            global: message.header.scope == AddressScope::Universe,
        })
    }
}

impl DefaultRoute {
    /// One per next hop.
    fn of(message: &RouteMessage) -> Vec<Self> {
        let mut route = DefaultRoute { link: 0, gateway: None, metric: 0 };
        let mut table = u32::from(message.header.table);
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.link = *index,
                RouteAttribute::Gateway(gateway) => route.gateway = ip_of(gateway),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::MultiPath(next) => hops.extend(next.iter().map(|hop| {
                    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(gateway) => ip_of(gateway),
                        _ => None,
                    });
                    (hop.interface_index, gateway)
                })),
                _ => {}
            }
        }
        let default = message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast;
        if !default || table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return Vec::new();
        }
        if hops.is_empty() {
            return vec![route];
        }
        hops.into_iter().map(|(link, gateway)| DefaultRoute { link, gateway, ..route }).collect()
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    netlink_io(error).raw_os_error() == Some(errno)
}
