//! The files of one container, which are all that is remembered of it: written by its shim, read by whoever asks.
//!
//! Two folders belong to a container. `<run_dir>/<task>` lies in memory (tmpfs) and ends with the boot, like the container:
//!
//! | file | written by | says |
//! |---|---|---|
//! | `config.json`, `shim.json` | driver, before the shim | the OCI spec; what the shim needs beyond it |
//! | `seccomp.bpf` | driver, before the shim | the filter of its programs, unless it is privileged |
//! | `shim.pid` | shim, first | who the shim is |
//! | `init.pid` | shim, once created | who the container's first process is |
//! | `started` | shim | the process runs, since when |
//! | `exit.json` | shim, last | how it ended |
//! | `healthcheck.json` | driver, before the shim | how to check its health, if it is checked |
//! | `health.json` | driver, while it runs | newest health |
//! | `control.sock` | shim | start, exec, standard input |
//! | `<task>/` | libcontainer | its own state |
//!
//! While a container is made, `<run_dir>/mounts-<task>` holds the parts of volumes that it gets.
//!
//! `<state_dir>/<task>` lies on disk: log files, and the files mounted over `/etc/{hosts,hostname,resolv.conf}`.
//! A file appears complete or not at all (written aside, then renamed). None is synced: after a power cut there is no
//! container that they could be about.

use super::{devices::DeviceRules, process_ref::ProcessRef};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub(crate) const OCI_CONFIG: &str = "config.json";
pub(crate) const SHIM_CONFIG: &str = "shim.json";
pub(crate) const FILTER: &str = "seccomp.bpf";
pub(crate) const SHIM_PID: &str = "shim.pid";
pub(crate) const INIT_PID: &str = "init.pid";
pub(crate) const STARTED: &str = "started";
pub(crate) const EXIT: &str = "exit.json";
pub(crate) const HEALTH_CHECK: &str = "healthcheck.json";
pub(crate) const HEALTH: &str = "health.json";
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// What shim and libcontainer had to say; kept for people.
pub(crate) const SHIM_LOG: &str = "shim.log";

/// What a shim needs to know beyond the OCI spec.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    /// Id given to libcontainer, the task's id.
    pub id: String,
    /// Folder of the log files.
    pub log_dir: PathBuf,
    /// Size at which a log file is rotated, in bytes.
    pub log_max_bytes: u64,
    /// Log files kept.
    pub log_max_files: u32,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether standard input is a pipe that is kept open instead of /dev/null.
    pub open_stdin: bool,
    /// Signal that asks the process to end; for the driver, which may be another one than at creation.
    pub stop_signal: u8,
    /// Whether a small init runs as process 1.
    pub init: bool,
    /// Capabilities, by OCI name, that its programs keep once they have the filter; `None` if there is no filter, and what
    /// the OCI spec gives is what they keep.
    pub keep: Option<Vec<String>>,
    /// What it may do with devices, where the shim has to see to that: on cgroup v2, unless it is privileged.
    pub devices: Option<DeviceRules>,
    /// `cgroup.procs` files that the shim joins, so that it is charged neither to `edged` nor to the container.
    pub shim_cgroups: Vec<PathBuf>,
    /// File with a line `oom_kill N` (memory.oom_control or memory.events of the container).
    pub oom_file: Option<PathBuf>,
}

/// When the process of a container was started.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    /// Milliseconds since the epoch.
    pub at: u64,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Exit code, 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for lack of memory.
    pub oom: bool,
    /// Milliseconds since the epoch.
    pub finished_at: u64,
}

/// Reads one record; `None` if the file is not there.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one record so that a reader sees all of it or nothing.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    let aside = dir.join(format!(".{name}"));
    fs::write(&aside, serde_json::to_vec(record).map_err(io::Error::other)?)?;
    fs::rename(aside, dir.join(name))
}

/// The shim of the container in `dir`, if it has one that lives.
pub(crate) fn live_shim(dir: &Path) -> Option<ProcessRef> {
    read::<ProcessRef>(dir, SHIM_PID).ok().flatten().filter(ProcessRef::is_alive)
}
