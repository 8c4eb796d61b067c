//! `cargo xtask lab`: a cluster on one machine, made of network namespaces and real `edged` processes.
//!
//! Comes in: a verb. Goes out: a running lab, a changed one, or none and the proof that nothing is left of it. Every
//! verb finds the lab by its folder, `target/lab`, so they may be called from any process in any order.
//! Called by people, by `demo` and `bench`, and by the tests' harness.

mod change;
mod claim;
mod daemon;
mod exec;
mod leftovers;
mod namespace;
mod remove;
mod status;
pub(crate) mod topology;
mod up;
mod wiring;

pub(crate) use exec::command_in;
pub(crate) use remove::down;
pub(crate) use up::up;

use crate::{paths, process::build_release, root, setup};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
};
use topology::{Folder, MAX_NODES, Place};

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Make the lab and wait until its nodes are ready
    Up(Up),
    /// Run a command on a node (n1, n2, ...), on the client or on the switch; its exit code is passed on
    Exec {
        /// Where: n1, n2, ..., client or switch
        place: Place,
        /// What, after `--`
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// End nodes' daemons with SIGKILL, all at once; their containers go on
    Kill {
        #[arg(value_parser = topology::node, required = true)]
        nodes: Vec<u8>,
    },
    /// End nodes' daemons with SIGTERM
    Stop {
        #[arg(value_parser = topology::node, required = true)]
        nodes: Vec<u8>,
    },
    /// Start nodes' daemons again and wait until they answer
    Start {
        #[arg(value_parser = topology::node, required = true)]
        nodes: Vec<u8>,
        /// By how much the daemons' clock is off, as libfaketime reads it: `+80d`, `-2h`
        #[arg(long, allow_hyphen_values = true)]
        clock: Option<String>,
    },
    /// Take a node's addresses away and give it others, as DHCP may do
    Readdress {
        #[arg(value_parser = topology::node)]
        node: u8,
        /// The new one, in 10.99.0.0/24; its last number is also that of the IPv6 address
        address: Ipv4Addr,
        /// End the daemon before and start it afterwards; otherwise it goes on and has to notice
        #[arg(long)]
        restart: bool,
    },
    /// Let no frame pass between a place and others
    Cut {
        place: Place,
        /// From which (default: from all)
        from: Vec<Place>,
    },
    /// Undo every cut
    Heal,
    /// Show nodes, daemons and cuts
    Status,
    /// End and remove everything, then check that nothing is left
    Down {
        /// Print nothing where nothing was up
        #[arg(long)]
        quiet: bool,
    },
}

#[derive(clap::Args, Clone)]
pub(crate) struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    pub(crate) nodes: u8,
    /// How many of them are managers (default: three, or all where there are fewer)
    #[arg(long)]
    pub(crate) managers: Option<u8>,
    /// Daemons run, but nobody has initialised or joined anything
    #[arg(long)]
    pub(crate) bare: bool,
    /// Namespaces and links only, no daemons
    #[arg(long, conflicts_with = "bare")]
    pub(crate) empty: bool,
    /// Take these binaries instead of building target/release
    #[arg(long, value_name = "FOLDER")]
    pub(crate) binaries: Option<PathBuf>,
    /// The lab is a test's: a later test may take it down
    #[arg(long, hide = true)]
    pub(crate) for_test: bool,
}

impl Up {
    /// A lab of so many nodes in one cluster.
    pub(crate) fn nodes(nodes: u8) -> Self {
        Self { nodes, managers: None, bare: false, empty: false, binaries: None, for_test: false }
    }
}

/// What a lab is made of, on file so that every verb knows.
#[derive(Serialize, Deserialize, Debug, Default)]
struct Lab {
    nodes: u8,
    managers: u8,
    bare: bool,
    empty: bool,
    for_test: bool,
    binaries: PathBuf,
    /// The kernel's names of all its namespaces, e.g. `net:[4026532000]`.
    namespaces: BTreeSet<String>,
    /// The IPv4 addresses of nodes that do not have their first one any more.
    #[serde(default)]
    readdressed: BTreeMap<u8, Ipv4Addr>,
}

impl Lab {
    fn load(folder: &Folder) -> Result<Option<Self>> {
        let path = folder.description();
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
            // A crash while it was written left nothing behind that needs it.
            Ok(text) => Ok(Some(serde_json::from_str(&text).unwrap_or_default())),
        }
    }

    fn save(&self, folder: &Folder) -> Result<()> {
        let path = folder.description();
        fs::write(&path, serde_json::to_string_pretty(self)?).with_context(|| format!("write {}", path.display()))
    }

    fn is_up(folder: &Folder) -> Result<Self> {
        Self::load(folder)?.context("no lab is up: `cargo xtask lab up`")
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        [Place::Switch, Place::Client].into_iter().chain((1..=self.nodes).map(Place::Node))
    }

    /// Refuses a node that the lab does not have.
    fn has(&self, place: Place) -> Result<()> {
        match place {
            Place::Node(node) if node > self.nodes => {
                bail!("the lab has no node {place}: its nodes are n1 to n{}", self.nodes)
            }
            _ => Ok(()),
        }
    }

    /// The addresses that a place has now.
    fn addresses(&self, place: Place) -> (String, String) {
        match place {
            Place::Node(node) if self.readdressed.contains_key(&node) => {
                let address = self.readdressed[&node];
                (address.to_string(), topology::address6(address.octets()[3]))
            }
            _ => (place.address4(), place.address6()),
        }
    }
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    let folder = Folder::new(paths::lab());
    if let Verb::Up(up) = &verb {
        setup::ensure()?;
        if up.binaries.is_none() && !up.empty {
            build_release()?;
        }
    }
    root::become_root("the lab")?;
    match verb {
        Verb::Up(options) => up(&folder, &options)?,
        Verb::Exec { place, command } => return exec::exec(&folder, place, &command),
        Verb::Kill { nodes } => change::kill(&folder, &nodes)?,
        Verb::Stop { nodes } => change::stop(&folder, &nodes)?,
        Verb::Start { nodes, clock } => change::start(&folder, &nodes, clock.as_deref())?,
        Verb::Readdress { node, address, restart } => change::readdress(&folder, node, address, restart)?,
        Verb::Cut { place, from } => change::cut(&folder, place, &from)?,
        Verb::Heal => change::heal(&folder)?,
        Verb::Status => status::show(&folder)?,
        Verb::Down { quiet } => down(&folder, quiet)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The process id of a node's daemon, where it runs.
pub(crate) fn pid(folder: &Folder, node: u8) -> Option<u32> {
    daemon::running(&folder.node(node)).map(|process| process.pid)
}

/// Every process of the lab.
pub(crate) fn pids(folder: &Folder) -> Result<Vec<u32>> {
    let processes = leftovers::processes(folder, &Lab::is_up(folder)?.namespaces)?;
    Ok(processes.into_iter().map(|process| process.pid).collect())
}
