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
    /// left behind is taken down first.
    ///
    /// # Errors
    /// When the lab does not come up; with the end of the daemon's log where it was to blame.
    pub fn up(options: &[&str]) -> Result<Self> {
        let words = ["lab", "up", "--for-test"].iter().chain(options);
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

    /// The processes on this machine whose command line is exactly this, as a container of the lab has it. They are
    /// found by the lab's mark in their cgroup's path, so that a shell with the same words is none of them.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn processes(&self, node: &str, command: &[&str]) -> Result<Vec<u32>> {
        let line = command.iter().flat_map(|word| word.bytes().chain([0])).collect::<Vec<u8>>();
        let key = format!("lab-{node}");
        let pids = std::fs::read_dir("/proc").context("read /proc")?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        Ok(pids
            .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == line))
            .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&key)))
            .collect())
    }

    /// Changes the lab: `["kill", "n1"]`, `["start", "n1"]`, `["cut", "n1", "n2"]`, `["heal"]`.
    ///
    /// # Errors
    /// When the verb fails.
    pub fn change(&self, verb: &[&str]) -> Result<()> {
        xtask(["lab"].iter().chain(verb))?.success(&verb.join(" ")).map(drop)
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
