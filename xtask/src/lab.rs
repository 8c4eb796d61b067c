//! `cargo xtask lab`: a cluster on one machine, made of network namespaces and real `edged` processes.
//!
//! Comes in: a verb. Goes out: a running lab, a changed one, or none and the proof that nothing is left of it. Every
//! verb finds the lab by its folder, `target/lab`, so they may be called from any process in any order.
//! Called by people, by `demo` and `bench`, and by the tests' harness.

mod claim;
mod daemon;
mod leftovers;
mod namespace;
pub(crate) mod topology;
mod wiring;

use crate::{
    paths,
    process::{build_release, step},
    root, setup,
};
use anyhow::{Context, Result, bail};
use claim::Claim;
use daemon::Entry;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};
use topology::{Folder, MAX_NODES, Place};

/// The longest that a test waits for another checkout's lab to go away.
const OTHERS_TEST: Duration = Duration::from_secs(120);

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
    /// End a node's daemon with SIGKILL; its containers go on
    Kill {
        #[arg(value_parser = topology::node)]
        node: u8,
    },
    /// End a node's daemon with SIGTERM
    Stop {
        #[arg(value_parser = topology::node)]
        node: u8,
    },
    /// Start a node's daemon again and wait until it answers
    Start {
        #[arg(value_parser = topology::node)]
        node: u8,
    },
    /// Let no frame pass between two places
    Cut { a: Place, b: Place },
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
        Verb::Exec { place, command } => return exec(&folder, place, &command),
        Verb::Kill { node } => daemon::kill(&folder, member(&folder, node)?)?,
        Verb::Stop { node } => daemon::stop(&folder, member(&folder, node)?)?,
        Verb::Start { node } => start(&folder, node)?,
        Verb::Cut { a, b } => cut(&folder, a, b)?,
        Verb::Heal => {
            Lab::is_up(&folder)?;
            wiring::heal(&folder)?;
        }
        Verb::Status => status(&folder)?,
        Verb::Down { quiet } => down(&folder, quiet)?,
    }
    Ok(ExitCode::SUCCESS)
}

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
    let mut tokens: Option<(String, String)> = None;
    for number in 1..=lab.nodes {
        let entry = match (&tokens, number) {
            _ if lab.bare => Entry::Wait,
            (_, 1) => Entry::Init,
            (Some((manager, _)), _) if number <= lab.managers => Entry::Join(manager.clone()),
            (Some((_, worker)), _) => Entry::Join(worker.clone()),
            (None, _) => {
                unreachable!("the first node's tokens are fetched before the second is configured")
            }
        };
        daemon::configure(folder, number, &entry)?;
        daemon::start(folder, number, &lab.binaries)?;
        if number == 1 && !lab.bare {
            daemon::ready(folder, 1)?;
            if lab.nodes > 1 {
                let found = daemon::tokens(folder).with_context(|| {
                    format!("n1 lets no further node join, so {} nodes need --bare, or take --nodes 1", lab.nodes)
                })?;
                tokens = Some(found);
            }
        }
    }
    if lab.bare { Ok(()) } else { daemon::ready(folder, lab.nodes) }
}

fn start(folder: &Folder, node: u8) -> Result<()> {
    let node = member(folder, node)?;
    daemon::start(folder, node, &Lab::is_up(folder)?.binaries)
}

fn member(folder: &Folder, node: u8) -> Result<u8> {
    let lab = Lab::is_up(folder)?;
    if node > lab.nodes {
        bail!("the lab has no node n{node}: its nodes are n1 to n{}", lab.nodes);
    }
    Ok(node)
}

fn cut(folder: &Folder, a: Place, b: Place) -> Result<()> {
    if a == b || [a, b].contains(&Place::Switch) {
        bail!("cut takes two different places of n1, n2, ... and client");
    }
    for place in [a, b] {
        if let Place::Node(number) = place {
            member(folder, number)?;
        }
    }
    Lab::is_up(folder)?;
    wiring::cut(folder, a, b)
}

/// Replaces this process by the command.
fn exec(folder: &Folder, place: Place, words: &[OsString]) -> Result<ExitCode> {
    let lab = Lab::is_up(folder)?;
    if let Place::Node(number) = place {
        member(folder, number)?;
    }
    let mut command = environment(folder, &lab, place, words);
    namespace::enter(folder, place)?;
    let error = command.exec();
    // What shells answer: 127 for a command that is not there, 126 for one that cannot run.
    eprintln!("error: run {}: {error}", words[0].to_string_lossy());
    Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}

fn environment(folder: &Folder, lab: &Lab, place: Place, words: &[OsString]) -> Command {
    // The client has no daemon; it talks to the first node's.
    let number = if let Place::Node(number) = place { number } else { 1 };
    let host = format!("unix://{}", folder.node(number).socket().display());
    let mut path = lab.binaries.clone().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // A user's PATH on Debian lacks these, and on a node one looks at links and rules.
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("EDGE_HOST", &host).env("DOCKER_HOST", &host).env("PATH", path);
    command
}

/// A command that runs in a place with what `lab exec` would give it.
pub(crate) fn command_in(folder: &Folder, place: Place, words: &[&str]) -> Result<Command> {
    let lab = Lab::is_up(folder)?;
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let wanted = environment(folder, &lab, place, &words);
    let program = paths_in(&wanted, &words[0]);
    let mut command = namespace::inside(folder, place, program, &words[1..]);
    command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ok(command)
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

/// `nsenter` itself is found by this process' PATH, the program in it by the command's.
fn paths_in(command: &Command, program: &OsString) -> OsString {
    let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap_or_default();
    let found = std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.map_or_else(|| program.clone(), PathBuf::into_os_string)
}

fn status(folder: &Folder) -> Result<()> {
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
        println!("{place_name:<7} {:<12} {:<8} {edged:<10} {answers:<8} {log}", place.address4(), place.address6());
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

/// Takes the lab down and says what was checked.
pub(crate) fn down(folder: &Folder, quiet: bool) -> Result<()> {
    let mut claim = Claim::take(folder.path(), Duration::ZERO)?;
    let was_up = folder.path().exists();
    remove(folder, &mut claim)?;
    if was_up || !quiet {
        step("lab down; checked: no process, namespace, mount, cgroup, link, pinned map or file of it is left");
    }
    Ok(())
}

/// Removes everything, going on after errors; what went wrong and what is left becomes the error.
fn remove(folder: &Folder, claim: &mut Claim) -> Result<()> {
    let mut problems = Vec::new();
    let lab = Lab::load(folder)?.unwrap_or_default();
    for number in 1..=lab.nodes {
        take_node_down(folder, &lab, number, &mut problems);
    }
    let mut note = |result: Result<()>| problems.extend(result.err().map(|error| format!("{error:#}")));
    // Everything in the client and the switch, shells and servers started by `lab exec`, and what outlived its daemon.
    note(leftovers::processes(folder, &lab.namespaces).and_then(|processes| leftovers::kill(&processes)));
    for problem in leftovers::remove_cgroups() {
        note(Err(anyhow::Error::msg(problem)));
    }
    note(namespace::remove(folder));
    note(remove_folder(folder));
    match leftovers::all(folder, &lab.namespaces) {
        Ok(left) => problems.extend(left.into_iter().map(|what| format!("left: {what}"))),
        Err(error) => problems.push(format!("check what is left: {error:#}")),
    }
    if !folder.path().exists() {
        claim.unmark()?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the lab did not go without trouble:\n  {}", problems.join("\n  "))
}

/// Has a node's daemon end and remove what it made; whatever it forgot is a defect of the daemon and reported as such.
fn take_node_down(folder: &Folder, lab: &Lab, number: u8, problems: &mut Vec<String>) {
    let place = Place::Node(number);
    let mut note = |result: Result<()>| problems.extend(result.err().map(|error| format!("{place}: {error:#}")));
    note(daemon::stop(folder, number));
    if lab.empty || !namespace::exists(folder, place) || !folder.node(number).config().exists() {
        return;
    }
    if !lab.binaries.join("edged").exists() {
        return note(Err(anyhow::anyhow!(
            "{} is gone, so `edged reset` cannot run",
            lab.binaries.join("edged").display()
        )));
    }
    note(daemon::reset(folder, number, &lab.binaries));
    match leftovers::on_node(folder, number) {
        Ok(left) => problems.extend(left.into_iter().map(|what| format!("edged reset left on {what}"))),
        Err(error) => problems.push(format!("look what `edged reset` left on {place}: {error:#}")),
    }
    let mark = daemon::key(number);
    let cgroups = leftovers::cgroups()
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str().to_string_lossy().contains(&mark)));
    problems.extend(cgroups.map(|path| format!("edged reset left on {place}: cgroup {}", path.display())));
}

fn remove_folder(folder: &Folder) -> Result<()> {
    let mounts = namespace::mounts_below(folder.path())?;
    if !mounts.is_empty() {
        bail!("{} is kept because of mounts in it: {}", folder.path().display(), mounts.join(", "));
    }
    match fs::remove_dir_all(folder.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.path().display()))
        }
        _ => Ok(()),
    }
}
