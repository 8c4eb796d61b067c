//! Making a lab: the network, then the daemons; the first one makes the cluster, the others join it side by side.

use super::{
    Lab, Up,
    claim::Claim,
    daemon::{self, Entry},
    namespace,
    remove::remove,
    topology::{Folder, Place},
    wiring,
};
use crate::paths;
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

/// The longest that a test waits for another checkout's lab to go away.
const OTHERS_TEST: Duration = Duration::from_secs(120);

/// Makes a lab; what a failure leaves is taken down again.
pub(crate) fn up(folder: &Folder, options: &Up) -> Result<()> {
    // A person wants to know at once; a test waits for the test of another checkout to end.
    let patience = if options.for_test { OTHERS_TEST } else { Duration::ZERO };
    let mut claim = Claim::take(folder.path(), patience)?;
    if let Some(lab) = Lab::load(folder)? {
        if !(options.for_test && lab.for_test) {
            bail!("a lab is up in {}: use it, or end it by `cargo xtask lab down`", folder.path().display());
        }
        remove(folder, &mut claim)?;
    }
    claim.mark()?;
    let made = build_up(folder, options);
    if made.is_err()
        && let Err(second) = remove(folder, &mut claim)
    {
        eprintln!("while taking the unfinished lab down: {second:#}");
    }
    made
}

fn build_up(folder: &Folder, options: &Up) -> Result<()> {
    let managers = options.managers.unwrap_or(options.nodes.min(3));
    if managers == 0 || managers > options.nodes {
        bail!("--managers {managers} does not fit --nodes {}", options.nodes);
    }
    let binaries = options.binaries.clone().unwrap_or_else(paths::release);
    let binaries = std::path::absolute(&binaries)?;
    let mut lab = Lab {
        nodes: options.nodes,
        managers,
        bare: options.bare,
        empty: options.empty,
        for_test: options.for_test,
        binaries,
        namespaces: BTreeSet::new(),
        readdressed: BTreeMap::new(),
    };
    fs::create_dir_all(folder.path()).with_context(|| format!("create {}", folder.path().display()))?;
    lab.save(folder)?;
    make_network(folder, &mut lab)?;
    if !lab.empty {
        start_daemons(folder, &lab)?;
    }
    Ok(())
}

fn make_network(folder: &Folder, lab: &mut Lab) -> Result<()> {
    let resolv = folder.path().join("resolv.conf");
    fs::write(&resolv, format!("nameserver {}\n", Place::Client.address4())).context("write resolv.conf")?;
    namespace::prepare(folder)?;
    let places: Vec<Place> = lab.places().collect();
    for place in places {
        namespace::create(folder, place, &resolv)?;
        lab.namespaces.extend(namespace::marks(folder, place)?);
        lab.save(folder)?;
        match place {
            Place::Switch => wiring::switch(folder)?,
            _ => wiring::plug(folder, place)?,
        }
    }
    Ok(())
}

fn start_daemons(folder: &Folder, lab: &Lab) -> Result<()> {
    let all: Vec<u8> = (1..=lab.nodes).collect();
    if lab.bare {
        for &number in &all {
            daemon::configure(folder, number, &Entry::Wait)?;
        }
        return daemon::start_all(folder, &all, &lab.binaries, None);
    }
    daemon::configure(folder, 1, &Entry::Init)?;
    daemon::start(folder, 1, &lab.binaries, None)?;
    daemon::ready(folder, 1)?;
    let later = &all[1..];
    if !later.is_empty() {
        let (manager, worker) = daemon::tokens(folder)?;
        for &number in later {
            let token = if number <= lab.managers { &manager } else { &worker };
            daemon::configure(folder, number, &Entry::Join(token.clone()))?;
        }
        daemon::start_all(folder, later, &lab.binaries, None)?;
    }
    daemon::ready(folder, lab.nodes)
}
