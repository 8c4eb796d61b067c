//! The switch and its cables: a bridge, a veth pair per place, and partitions as nftables rules on the bridge.
//!
//! Comes in: places whose namespaces exist. Goes out: places that reach each other, or two that do not.

use super::{
    namespace::on_network,
    topology::{self, Folder, Place},
};
use crate::process::{fed, output};
use anyhow::{Context, Result};
use std::net::Ipv4Addr;

/// The name of every place's uplink.
pub(super) const UPLINK: &str = "eth0";

/// Makes the bridge.
pub(super) fn switch(folder: &Folder) -> Result<()> {
    // Neither spanning tree nor multicast snooping: both would hold back the first packets for seconds.
    let bridge = "link add name br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n";
    ip(folder, Place::Switch, bridge)?;
    nft(folder, "add table bridge lab; add chain bridge lab cuts { type filter hook forward priority 0; }")?;
    Ok(())
}

/// Plugs a place into the switch and gives it its addresses.
pub(super) fn plug(folder: &Folder, place: Place) -> Result<()> {
    let peer = folder.namespace(place, "net");
    let (mac, peer) = (place.mac(), peer.display());
    ip(
        folder,
        Place::Switch,
        &format!(
            "link add name {place} type veth peer name {UPLINK} address {mac} netns {peer}\n\
             link set {place} master br0 up\n"
        ),
    )?;
    // A veth accepts frames that XDP sends from its peer only while its own NAPI runs; receive offload switches it on.
    output(&mut on_network(folder, Place::Switch, "ethtool", &["-K", &place.to_string(), "gro", "on"]))?;
    ip(folder, place, &format!("link set lo up\nlink set {UPLINK} up\n"))?;
    address(folder, place, &place.address4(), &place.address6())?;
    if place == Place::Client {
        // The client is the nodes' default route and the end of the world: nothing leaves the machine through it.
        let close = "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";
        output(&mut on_network(folder, place, "sh", &["-c", close]))?;
        return Ok(());
    }
    routes(folder, place)
}

fn address(folder: &Folder, place: Place, address4: &str, address6: &str) -> Result<()> {
    let add4 = format!("address add {address4}/24 brd + dev {UPLINK}");
    ip(folder, place, &format!("{add4}\naddress add {address6}/64 dev {UPLINK} nodad\n"))
}

fn routes(folder: &Folder, place: Place) -> Result<()> {
    let (gateway4, gateway6) = (Place::Client.address4(), Place::Client.address6());
    let replace4 = format!("route replace default via {gateway4}");
    ip(folder, place, &format!("{replace4}\nroute replace default via {gateway6} dev {UPLINK}\n"))
}

/// Takes a node's addresses away and gives it others, in the order in which a DHCP client does.
pub(super) fn readdress(folder: &Folder, place: Place, address4: Ipv4Addr) -> Result<()> {
    ip(folder, place, &format!("address flush dev {UPLINK} scope global\n"))?;
    address(folder, place, &address4.to_string(), &topology::address6(address4.octets()[3]))?;
    routes(folder, place)
}

/// Drops every frame between two places; doing it twice is doing it once.
pub(super) fn cut(folder: &Folder, a: Place, b: Place) -> Result<()> {
    if cuts(folder)?.contains(&(a.min(b), a.max(b))) {
        return Ok(());
    }
    let rule = |from: Place, to: Place| format!("add rule bridge lab cuts iifname \"{from}\" oifname \"{to}\" drop;");
    nft(folder, &format!("{} {}", rule(a, b), rule(b, a)))?;
    Ok(())
}

/// Undoes every cut.
pub(super) fn heal(folder: &Folder) -> Result<()> {
    nft(folder, "flush chain bridge lab cuts")?;
    Ok(())
}

/// The pairs that are cut off from each other, the lesser place first.
pub(super) fn cuts(folder: &Folder) -> Result<Vec<(Place, Place)>> {
    let rules = nft(folder, "list chain bridge lab cuts")?;
    Ok(rules.lines().filter_map(pair).filter(|(a, b)| a < b).collect())
}

fn pair(rule: &str) -> Option<(Place, Place)> {
    let mut names = rule.split('"').skip(1).step_by(2);
    let mut place = || names.next()?.parse().ok();
    Some((place()?, place()?))
}

fn ip(folder: &Folder, place: Place, commands: &str) -> Result<()> {
    fed(&mut on_network(folder, place, "ip", &["-batch", "-"]), commands)
        .with_context(|| format!("configure {place}:\n{commands}"))?;
    Ok(())
}

fn nft(folder: &Folder, commands: &str) -> Result<String> {
    output(&mut on_network(folder, Place::Switch, "nft", &[commands]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_read_back_from_its_rule() {
        assert_eq!(pair("\t\tiifname \"n2\" oifname \"client\" drop"), Some((Place::Node(2), Place::Client)));
        assert_eq!(pair("\t\ttype filter hook forward priority filter; policy accept;"), None);
    }
}
