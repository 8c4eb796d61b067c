//! A node's `edged`: its configuration, its start, its end, and whether it answers.
//!
//! Comes in: a node whose namespaces exist. Goes out: a daemon whose pid is on file, so that any later verb finds it.

use super::{
    namespace::inside,
    topology::{Folder, NodeFolder, Place},
    wiring::UPLINK,
};
use crate::{
    http,
    process::{output, shown},
};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

/// A daemon answers within two seconds on a small board; this is what a loaded machine gets.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// A first node elects itself; a later one joins and waits for its first assignment.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What a daemon may take to end after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// What `edged reset` may take: every container gets its grace period.
const RESET_WITHIN: Duration = Duration::from_secs(60);
/// Debian's libfaketime for programs with threads; ld.so(8) fills in the folder of the architecture.
const CLOCK: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";
/// How often a predicate is asked.
const POLL: Duration = Duration::from_millis(20);

/// The environment variable by which processes of a lab are told from others.
pub(super) const MARK: &str = "EDGED_LAB";

/// The name that makes a node's cgroups and pins its own on a kernel that several nodes share.
pub(super) fn key(number: u8) -> String {
    format!("lab-{}", Place::Node(number))
}

/// How a node gets into the cluster.
pub(super) enum Entry {
    /// It is the first one and makes the cluster.
    Init,
    /// It joins with a token, through the first node.
    Join(String),
    /// It waits to be told, as after a fresh install.
    Wait,
}

/// Writes a node's configuration file.
pub(super) fn configure(folder: &Folder, number: u8, entry: &Entry) -> Result<()> {
    let node = folder.node(number);
    fs::create_dir_all(node.state()).with_context(|| format!("create {}", node.state().display()))?;
    let text = configuration(&node, number, entry);
    fs::write(node.config(), text).with_context(|| format!("write {}", node.config().display()))
}

fn configuration(node: &NodeFolder, number: u8, entry: &Entry) -> String {
    let place = Place::Node(number);
    let entry = match entry {
        Entry::Init => "init = true\n".to_owned(),
        Entry::Join(token) => {
            format!("join-token = {token:?}\njoin-addresses = [\"{}:2377\"]\n", Place::Node(1).address4())
        }
        Entry::Wait => String::new(),
    };
    format!(
        "state-dir = {:?}\nrun-dir = \"/run/edged/{place}\"\nsocket = {:?}\nhostname = \"{place}\"\nnode-key = {:?}\n\
         uplinks = [\"{UPLINK}\"]\ninsecure-registries = [\"{}:5000\", \"127.0.0.1:5000\"]\n{entry}",
        node.state(),
        node.socket(),
        key(number),
        Place::Client.address4(),
    )
}

/// Starts a node's daemon and waits until it answers on its socket.
pub(super) fn start(folder: &Folder, number: u8, binaries: &Path, clock: Option<&str>) -> Result<()> {
    if running(&folder.node(number)).is_some() {
        return Ok(());
    }
    let node = folder.node(number);
    let log = File::options()
        .create(true)
        .append(true)
        .open(node.log())
        .with_context(|| format!("open {}", node.log().display()))?;
    let program = binaries.join("edged");
    let mut words = vec![program.clone().into_os_string(), "--config".into(), node.config().into_os_string()];
    if let Some(clock) = clock {
        // The time of day only: what runs by monotonic time goes on as it is.
        let lies =
            [format!("LD_PRELOAD={CLOCK}"), format!("FAKETIME={clock}"), "FAKETIME_DONT_FAKE_MONOTONIC=1".into()];
        words.splice(0..0, ["env".into()].into_iter().chain(lies.map(Into::into)));
    }
    let mut edged = inside(folder, Place::Node(number), words.remove(0), words);
    edged.env(MARK, folder.path()).current_dir("/");
    edged.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A group of its own: Ctrl-C in a terminal is for the verb, not for the daemon.
    edged.process_group(0);
    let child = edged.spawn().with_context(|| format!("start `{}`", shown(&edged)))?;
    let process = Process::of(child.id()).with_context(|| format!("{} ended at once", program.display()))?;
    fs::write(node.pid(), process.to_string()).with_context(|| format!("write {}", node.pid().display()))?;
    answers(&node, &process).with_context(|| {
        let tail = node.log_tail().unwrap_or_default();
        format!("edged of n{number} does not come up; the end of {}:\n{tail}", node.log().display())
    })
}

/// Starts several nodes' daemons side by side and waits until all answer.
pub(super) fn start_all(folder: &Folder, numbers: &[u8], binaries: &Path, clock: Option<&str>) -> Result<()> {
    scope(|scope| {
        let starts: Vec<_> =
            numbers.iter().map(|number| scope.spawn(|| start(folder, *number, binaries, clock))).collect();
        let mut ends = starts.into_iter().map(|start| start.join().expect("starting a daemon does not panic"));
        ends.try_for_each(|end| end)
    })
}

fn answers(node: &NodeFolder, process: &Process) -> Result<()> {
    let socket = node.socket();
    wait(ANSWERS_WITHIN, || {
        if !process.lives() {
            bail!("the process has ended");
        }
        match http::get(&socket, "/_ping") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(Pending(format!("GET /_ping answers {}", answer.status)).into()),
            Err(error) => Err(Pending(format!("{error:#}")).into()),
        }
    })
}

/// Waits until the first `count` nodes are ready, as the cluster's first node sees them.
pub(super) fn ready(folder: &Folder, count: u8) -> Result<()> {
    let socket = folder.node(1).socket();
    let want: Vec<String> = (1..=count).map(|number| Place::Node(number).to_string()).collect();
    wait(READY_WITHIN, || {
        let answer = http::get(&socket, "/nodes").map_err(|error| Pending(format!("{error:#}")))?;
        if answer.status != 200 {
            return Err(Pending(format!("GET /nodes answers {}: {}", answer.status, answer.body.trim())).into());
        }
        let ready = ready_nodes(&answer.body)?;
        match want.iter().find(|name| !ready.contains(name)) {
            None => Ok(()),
            Some(name) => Err(Pending(format!("{name} is not ready; ready: {ready:?}")).into()),
        }
    })
    .with_context(|| format!("the cluster of {count} does not get ready; see {}", folder.node(1).log().display()))
}

fn ready_nodes(body: &str) -> Result<Vec<String>> {
    let nodes: serde_json::Value = serde_json::from_str(body).context("GET /nodes answers no JSON")?;
    let nodes = nodes.as_array().context("GET /nodes answers no list")?.iter();
    // A manager that does not vote yet is no help when another one dies.
    let votes = |node: &serde_json::Value| {
        node["ManagerStatus"].is_null() || node["ManagerStatus"]["Reachability"] == "reachable"
    };
    let ready = nodes.filter(|node| node["Status"]["State"] == "ready" && votes(node));
    Ok(ready.filter_map(|node| node["Description"]["Hostname"].as_str()).map(str::to_owned).collect())
}

/// The tokens that let further nodes in: as manager and as worker.
pub(super) fn tokens(folder: &Folder) -> Result<(String, String)> {
    let answer = http::get(&folder.node(1).socket(), "/swarm")?;
    if answer.status != 200 {
        bail!("GET /swarm answers {}: {}", answer.status, answer.body.trim());
    }
    let cluster: serde_json::Value = serde_json::from_str(&answer.body).context("GET /swarm answers no JSON")?;
    let token = |role: &str| cluster["JoinTokens"][role].as_str().map(str::to_owned);
    token("Manager").zip(token("Worker")).context("GET /swarm names no join tokens")
}

/// Ends daemons with SIGTERM, and with SIGKILL where that is not heard.
pub(super) fn stop(folder: &Folder, numbers: &[u8]) -> Result<()> {
    end(folder, numbers, &[Signal::TERM, Signal::KILL])
}

/// Ends daemons with SIGKILL, all at once.
pub(super) fn kill(folder: &Folder, numbers: &[u8]) -> Result<()> {
    end(folder, numbers, &[Signal::KILL])
}

fn end(folder: &Folder, numbers: &[u8], signals: &[Signal]) -> Result<()> {
    let processes = || numbers.iter().filter_map(|number| running(&folder.node(*number)));
    for signal in signals {
        let asked: Vec<Process> = processes().collect();
        asked.iter().try_for_each(|process| process.signal(*signal))?;
        let ended = wait(ENDS_WITHIN, || match asked.iter().find(|process| process.lives()) {
            Some(process) => Err(Pending(format!("pid {} runs", process.pid)).into()),
            None => Ok(()),
        });
        if let Err(error) = ended {
            eprintln!("edged does not end by {signal:?}: {error:#}");
        }
    }
    if let Some(process) = processes().next() {
        bail!("edged (pid {}) cannot be ended", process.pid);
    }
    numbers.iter().try_for_each(|number| remove_file(&folder.node(*number).pid()))
}

/// Has the daemon remove everything it made on its node.
pub(super) fn reset(folder: &Folder, number: u8, binaries: &Path) -> Result<()> {
    let config = folder.node(number).config();
    let arguments = ["reset".as_ref(), "--config".as_ref(), config.as_os_str()];
    let limit = format!("{}s", RESET_WITHIN.as_secs());
    let edged = binaries.join("edged");
    let words = ["--kill-after=5s".as_ref(), limit.as_ref(), edged.as_os_str()];
    let mut reset = inside(folder, Place::Node(number), "timeout", words.into_iter().chain(arguments));
    output(reset.current_dir("/")).map(drop)
}

/// A node's daemon, where it runs.
pub(super) fn running(node: &NodeFolder) -> Option<Process> {
    let process: Process = Process::parse(&fs::read_to_string(node.pid()).ok()?)?;
    process.lives().then_some(process)
}

/// A process by its pid and start time, which together never mean another one until the next boot.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    started: u64,
}

impl Process {
    /// A process that runs; zombies do not.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: start_time(&stat)? })
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    pub(super) fn lives(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a pid is a positive number")?;
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal:?} to pid {}", self.pid)),
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

/// Reads field 22 of proc_pid_stat(5), none for a zombie; the name in field 2 may contain anything, so fields are
/// counted from its closing bracket.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// What a predicate still waits for; any other error ends the wait.
#[derive(Debug)]
pub(super) struct Pending(pub(super) String);

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Pending {}

/// Asks a predicate until it holds; after the deadline the last answer becomes the error.
pub(super) fn wait(within: Duration, mut predicate: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        match predicate() {
            Err(error) if error.is::<Pending>() && Instant::now() < deadline => sleep(POLL),
            Err(error) if error.is::<Pending>() => {
                return Err(error.context(format!("waited {} s", within.as_secs())));
            }
            other => return other,
        }
    }
}

fn remove_file(path: &PathBuf) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_configuration_has_every_key_the_daemon_reads() {
        let folder = Folder::new("/lab".into());
        assert_eq!(
            configuration(&folder.node(1), 1, &Entry::Init),
            "state-dir = \"/lab/n1/state\"\nrun-dir = \"/run/edged/n1\"\nsocket = \"/lab/n1/docker.sock\"\nhostname = \"n1\"\n\
             node-key = \"lab-n1\"\nuplinks = [\"eth0\"]\n\
             insecure-registries = [\"10.99.0.254:5000\", \"127.0.0.1:5000\"]\ninit = true\n"
        );
        let joining = configuration(&folder.node(2), 2, &Entry::Join("EDGE-1-a-b".to_owned()));
        assert!(joining.ends_with("join-token = \"EDGE-1-a-b\"\njoin-addresses = [\"10.99.0.1:2377\"]\n"), "{joining}");
    }

    #[test]
    fn the_start_time_is_found_behind_a_name_with_brackets_and_blanks() {
        let after = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(start_time(&format!("7 (a) b (c)) {after}")), Some(4242));
        assert_eq!(start_time("7 (dead) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"), None);
    }

    #[test]
    fn this_process_lives_and_a_later_one_with_its_pid_would_not_be_it() {
        let this = Process::of(std::process::id()).unwrap();
        assert!(this.lives());
        assert_eq!(Process::parse(&this.to_string()).as_ref(), Some(&this));
        assert!(!Process { started: this.started + 1, ..this }.lives());
    }

    #[test]
    fn only_nodes_that_are_ready_count_and_managers_only_once_they_vote() {
        let node = |name: &str, state: &str, manager: &str| {
            let manager =
                if manager.is_empty() { "null".into() } else { format!("{{\"Reachability\":\"{manager}\"}}") };
            format!(
                "{{\"Description\":{{\"Hostname\":\"{name}\"}},\"Status\":{{\"State\":\"{state}\"}},\"ManagerStatus\":{manager}}}"
            )
        };
        let nodes = [
            node("n1", "ready", "reachable"),
            node("n2", "ready", "unknown"),
            node("n3", "ready", ""),
            node("n4", "down", ""),
        ];
        assert_eq!(ready_nodes(&format!("[{}]", nodes.join(","))).unwrap(), ["n1", "n3"]);
    }
}
