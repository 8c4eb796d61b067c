//! A lab for one test: made by `cargo xtask lab up`, taken down and checked at the end, whatever happens in between.

use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A running lab; dropping it takes it down.
pub struct Lab {
    down: bool,
}

/// A process in a cgroup of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The name of the node.
    pub node: String,
    /// Its id.
    pub pid: u32,
    /// Its words, with blanks in between.
    pub command: String,
}

/// How a command in the lab ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Lab {
    /// Why this machine cannot run a lab, if it cannot.
    pub fn unavailable() -> Option<String> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let user =
            status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
        if user != Some("0") {
            return Some("a lab needs root: run `cargo xtask test`, which asks for it".to_owned());
        }
        None
    }

    /// Makes a lab; `options` are those of `cargo xtask lab up`, e.g. `["--nodes", "1"]`. A lab that an earlier test
    /// left behind is taken down first. `EDGED_BINARIES=FOLDER` takes binaries from there instead of building them.
    ///
    /// # Errors
    /// When the lab does not come up; with the end of the daemon's log where it was to blame.
    pub fn up(options: &[&str]) -> Result<Self> {
        let binaries = std::env::var("EDGED_BINARIES").ok();
        let binaries = binaries.iter().flat_map(|folder| ["--binaries", folder]);
        let words = ["lab", "up", "--for-test"].iter().chain(options).copied().chain(binaries);
        xtask(words)?.success("lab up")?;
        Ok(Self { down: false })
    }

    /// Takes the lab down.
    ///
    /// # Errors
    /// When anything of it is left on the machine: the list.
    pub fn down(mut self) -> Result<()> {
        self.down = true;
        xtask(["lab", "down"])?.success("lab down").map(drop)
    }

    /// Runs a command in a place (`n1`, `client`) and returns how it ended.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn exec(&self, place: &str, command: &[&str]) -> Result<Output> {
        xtask(["lab", "exec", place, "--"].iter().chain(command))
    }

    /// Runs a command in a place and returns its standard output.
    ///
    /// # Errors
    /// When its exit code is not 0: with what it printed.
    pub fn ok(&self, place: &str, command: &[&str]) -> Result<String> {
        self.exec(place, command)?.success(&format!("{} on {place}", command.join(" ")))
    }

    /// Runs `edgectl` on a node and returns its standard output.
    ///
    /// # Errors
    /// When its exit code is not 0: with what it printed.
    pub fn edgectl(&self, node: &str, words: &[&str]) -> Result<String> {
        let command: Vec<&str> = ["edgectl"].iter().chain(words).copied().collect();
        self.ok(node, &command)
    }

    /// Loads an image of `cargo xtask images` on a node, making its archive where there is none yet.
    ///
    /// # Errors
    /// When the archive cannot be made or loaded.
    pub fn load(&self, node: &str, image: &str) -> Result<()> {
        xtask(["images", image])?.success(&format!("images {image}"))?;
        let archive = target().join("images").join(format!("{image}.tar"));
        self.edgectl(node, &["image", "load", "--input", &archive.to_string_lossy()]).map(drop)
    }

    /// The processes on this machine whose command line is exactly this, as a container of a node has it.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn processes(&self, node: &str, command: &[&str]) -> Result<Vec<u32>> {
        let line = command.join(" ");
        let ours = self.containers()?.into_iter().filter(|process| process.node == node && process.command == line);
        Ok(ours.map(|process| process.pid).collect())
    }

    /// Loads an image on several nodes, side by side.
    ///
    /// # Errors
    /// When the archive cannot be made or loaded.
    pub fn load_on(&self, nodes: &[&str], image: &str) -> Result<()> {
        let (first, others) = nodes.split_first().context("no node to load an image on")?;
        // The first one makes the archive.
        self.load(first, image)?;
        std::thread::scope(|scope| {
            let loads: Vec<_> = others.iter().map(|node| scope.spawn(|| self.load(node, image))).collect();
            loads.into_iter().try_for_each(|load| load.join().expect("loading an image does not panic"))
        })
    }

    /// Every process in a container of any node. They are found by the lab's mark in their cgroup's path, so that a shell
    /// with the same words is none of them.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn containers(&self) -> Result<Vec<Process>> {
        let mut all = self.of_nodes()?;
        all.retain(|process| process.command.split(' ').nth(1) != Some("shim"));
        Ok(all)
    }

    /// Every process in a cgroup of a node: its containers' and their shims.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn of_nodes(&self) -> Result<Vec<Process>> {
        let pids = std::fs::read_dir("/proc").context("read /proc")?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let process = |pid: u32| {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let node = cgroup.split("lab-").nth(1)?.split('/').next()?.trim().to_owned();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
            // A process that ends has no command line any more.
            (!command.is_empty()).then_some(Process { node, pid, command })
        };
        Ok(pids.filter_map(process).collect())
    }

    /// Changes the lab: `["kill", "n1"]`, `["start", "n1"]`, `["cut", "n1", "n2"]`, `["heal"]`.
    ///
    /// # Errors
    /// When the verb fails.
    pub fn change(&self, verb: &[&str]) -> Result<()> {
        xtask(["lab"].iter().chain(verb))?.success(&verb.join(" ")).map(drop)
    }

    /// Ends a node's daemon with SIGKILL at once, where even the start of `lab kill` would blur what is measured.
    ///
    /// # Errors
    /// When no daemon runs.
    pub fn sigkill(&self, node: &str) -> Result<()> {
        let pid = i32::try_from(self.pid(node)?).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("a process id is a positive number")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .with_context(|| format!("kill the daemon of {node}"))
    }

    /// A node's folder: `state/`, `docker.sock`, `edged.log`, `edged.toml`, `edged.pid`.
    pub fn folder(&self, node: &str) -> PathBuf {
        target().join("lab").join(node)
    }

    /// The process id of a node's daemon.
    ///
    /// # Errors
    /// When no daemon was started.
    pub fn pid(&self, node: &str) -> Result<u32> {
        let path = self.folder(node).join("edged.pid");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let pid = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        pid.with_context(|| format!("{} has no process id", path.display()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down {
            return;
        }
        if std::thread::panicking() {
            print_logs();
        }
        let ended = xtask(["lab", "down"]).and_then(|output| output.success("lab down"));
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
    }
}

/// After a failure the daemons' logs are what one looks at, and they go away with the lab.
fn print_logs() {
    let folders = std::fs::read_dir(target().join("lab")).into_iter().flatten().flatten();
    for log in folders.map(|entry| entry.path().join("edged.log")).filter(|log| log.is_file()) {
        let text = std::fs::read(&log).unwrap_or_default();
        eprintln!("--- {}\n{}", log.display(), String::from_utf8_lossy(&text));
    }
}

impl Output {
    /// Standard output, if the exit code was 0.
    ///
    /// # Errors
    /// When it was not: with everything the command printed; `what` names it.
    pub fn success(self, what: &str) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.stdout),
            code => {
                let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
                bail!("`{what}` ended with {code}\n{}{}", self.stdout, self.stderr)
            }
        }
    }
}

fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the workspace");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// Runs a verb of xtask: the program that `cargo xtask test` names, or by way of cargo.
///
/// # Errors
/// When it could not be started.
pub fn xtask<I>(words: I) -> Result<Output>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = match std::env::var_os("EDGED_XTASK") {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.current_dir(target().parent().unwrap_or(Path::new("."))).arg("xtask");
            cargo
        }
    };
    let output = command.args(words).stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
