//! What a person sees of a lab.

use super::{
    Lab, daemon, namespace,
    topology::{Folder, Place},
    wiring,
};
use crate::paths;
use anyhow::Result;
use std::path::Path;

/// Prints places, daemons and cuts.
pub(super) fn show(folder: &Folder) -> Result<()> {
    let Some(lab) = Lab::load(folder)? else {
        println!("no lab is up");
        return Ok(());
    };
    println!("{:<7} {:<12} {:<8} {:<10} {:<8} LOG", "PLACE", "IPV4", "IPV6", "EDGED", "ANSWERS");
    for place in lab.places().filter(|place| *place != Place::Switch) {
        let (edged, answers, log) = match place {
            Place::Node(number) => node_status(folder, number),
            _ => ("-".to_owned(), "-", String::new()),
        };
        let place_name = if namespace::exists(folder, place) { place.to_string() } else { format!("{place} (gone)") };
        let (address4, address6) = lab.addresses(place);
        println!("{place_name:<7} {address4:<12} {address6:<8} {edged:<10} {answers:<8} {log}");
    }
    for (a, b) in wiring::cuts(folder)? {
        println!("cut: {a} {b}");
    }
    Ok(())
}

fn node_status(folder: &Folder, number: u8) -> (String, &'static str, String) {
    let node = folder.node(number);
    let edged = daemon::running(&node).map_or_else(|| "down".to_owned(), |process| format!("pid {}", process.pid));
    let answers = match crate::http::get(&node.socket(), "/_ping") {
        Ok(answer) if answer.status == 200 => "yes",
        _ => "no",
    };
    (edged, answers, shortened(&node.log()))
}

/// A path as one would type it from the repository's root.
fn shortened(path: &Path) -> String {
    path.strip_prefix(paths::root()).unwrap_or(path).display().to_string()
}
