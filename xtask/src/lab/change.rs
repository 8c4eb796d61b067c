//! What happens to a running lab: daemons end and start, cables are cut, addresses change.

use super::{
    Lab,
    claim::Claim,
    daemon,
    topology::{self, Folder, Place},
    wiring,
};
use anyhow::{Result, bail};
use std::{net::Ipv4Addr, time::Duration};

pub(super) fn kill(folder: &Folder, nodes: &[u8]) -> Result<()> {
    with(folder, nodes)?;
    daemon::kill(folder, nodes)
}

pub(super) fn stop(folder: &Folder, nodes: &[u8]) -> Result<()> {
    with(folder, nodes)?;
    daemon::stop(folder, nodes)
}

pub(super) fn start(folder: &Folder, nodes: &[u8], clock: Option<&str>) -> Result<()> {
    let lab = with(folder, nodes)?;
    daemon::start_all(folder, nodes, &lab.binaries, clock)
}

/// The lab, if it has these nodes.
fn with(folder: &Folder, nodes: &[u8]) -> Result<Lab> {
    let lab = Lab::is_up(folder)?;
    nodes.iter().try_for_each(|node| lab.has(Place::Node(*node)))?;
    Ok(lab)
}

/// Cuts a place off from others, or from all where none is named.
pub(super) fn cut(folder: &Folder, place: Place, from: &[Place]) -> Result<()> {
    let lab = Lab::is_up(folder)?;
    let all: Vec<Place> = lab.places().filter(|other| ![place, Place::Switch].contains(other)).collect();
    let from = if from.is_empty() { &all } else { from };
    for &other in from {
        if place == other || [place, other].contains(&Place::Switch) {
            bail!("cut takes different places of n1, n2, ... and client");
        }
        lab.has(place)?;
        lab.has(other)?;
    }
    from.iter().try_for_each(|other| wiring::cut(folder, place, *other))
}

/// Undoes every cut.
pub(super) fn heal(folder: &Folder) -> Result<()> {
    Lab::is_up(folder)?;
    wiring::heal(folder)
}

/// Gives a node another IPv4 address, and the IPv6 address that goes with it.
pub(super) fn readdress(folder: &Folder, node: u8, address: Ipv4Addr, restart: bool) -> Result<()> {
    let _claim = Claim::take(folder.path(), Duration::ZERO)?;
    let mut lab = with(folder, &[node])?;
    let place = Place::Node(node);
    topology::check_address(address)?;
    if let Some(holder) = lab.places().find(|other| *other != place && lab.addresses(*other).0 == address.to_string()) {
        bail!("{address} is the address of {holder}");
    }
    if restart {
        daemon::stop(folder, &[node])?;
    }
    wiring::readdress(folder, place, address)?;
    lab.readdressed.insert(node, address);
    lab.save(folder)?;
    if restart { daemon::start(folder, node, &lab.binaries, None) } else { Ok(()) }
}
