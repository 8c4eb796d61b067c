//! What the driver is told: where it keeps things, what a container is made of, what to run inside it; and what it says of
//! containers. Plain data.

use orchestrator_core::model::{ContainerSpec, HealthCheck, Resources, Signal, TaskId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// Where a node keeps its containers.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// On disk: log files, per task.
    pub state_dir: PathBuf,
    /// In memory (tmpfs): everything that ends with the boot, per task.
    pub run_dir: PathBuf,
    /// Tells nodes on one kernel apart; the control groups are below `edged-<node_key>`.
    pub node_key: String,
    /// The program that is run as `<shim_exe> shim <dir>`; the running `edged`.
    pub shim_exe: PathBuf,
}

/// What an image says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The words after them, unless the user gives others.
    pub cmd: Vec<String>,
    /// `KEY=value` pairs.
    pub env: Vec<String>,
    /// Working directory; empty is `/`.
    pub workdir: String,
    /// `user[:group]`; empty is root.
    pub user: String,
    /// Asks the process to end.
    pub stop_signal: Option<Signal>,
    /// Health check.
    pub health: Option<HealthCheck>,
    /// Paths that the image wants to be volumes.
    pub volumes: Vec<String>,
}

/// Everything that makes a container.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// The task it is for; its identity.
    pub task: TaskId,
    /// For people, in messages.
    pub name: String,
    /// What the user asked for.
    pub spec: ContainerSpec,
    /// Its limits.
    pub resources: Resources,
    /// What the image adds.
    pub image: ImageDefaults,
    /// Root file system, already mounted.
    pub rootfs: PathBuf,
    /// Path of its network namespace; `None` shares the node's.
    pub netns: Option<PathBuf>,
    /// Host name.
    pub hostname: String,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Folders on the node of all volumes, by mount target: those of the spec and those the image wants.
    pub volumes: BTreeMap<String, PathBuf>,
}

impl ContainerConfig {
    /// The signal that asks the container to end: the user's choice, the image's, or SIGTERM.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        self.spec.stop_signal.or(self.image.stop_signal).unwrap_or(Signal::TERM)
    }

    /// The check to run, if there is one: the user's choice, or the image's.
    #[must_use]
    pub fn health_check(&self) -> Option<&HealthCheck> {
        use orchestrator_core::model::HealthTest;
        self.spec.health.as_ref().or(self.image.health.as_ref()).filter(|check| check.test != HealthTest::None)
    }
}

/// A program to run inside a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// The command line.
    pub args: Vec<String>,
    /// `KEY=value` pairs laid over those of the container.
    pub env: Vec<String>,
    /// Whether it gets a terminal; then standard output and standard error are one stream.
    pub tty: bool,
    /// Size of the terminal, rows and columns.
    pub size: Option<(u16, u16)>,
    /// Whether standard input is connected; otherwise it is empty.
    pub stdin: bool,
    /// `user[:group]`; the default is the container's.
    pub user: Option<String>,
    /// Working directory; the default is the container's.
    pub workdir: Option<String>,
    /// All capabilities and no seccomp.
    pub privileged: bool,
}

/// A container as the kernel and its files show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStatus {
    /// How far it is.
    pub state: ContainerState,
    /// Its newest health, where there is a check.
    pub health: Option<Health>,
}

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its shim makes it.
    Creating,
    /// Everything is in place; the process waits to be started.
    Created {
        /// First process, in the node's pid namespace.
        pid: u32,
    },
    /// The process runs.
    Running {
        /// First process, in the node's pid namespace.
        pid: u32,
        /// Since when.
        started_at: UnixMillis,
    },
    /// The process ended.
    Exited {
        /// Exit code, 128 + signal when a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether the kernel killed one of its processes for lack of memory.
        oom: bool,
        /// When it was started; `None` if it never was.
        started_at: Option<UnixMillis>,
        /// When it ended.
        finished_at: UnixMillis,
    },
    /// Its shim is gone without saying how the container ended; the container may run on, but nobody collects its
    /// output or its exit code. It should be deleted.
    Broken {
        /// For people.
        why: String,
        /// First process, if it still runs.
        pid: Option<u32>,
    },
}

/// Health of a running container, in Docker's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Where it stands.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The newest results, oldest first.
    pub log: Vec<HealthResult>,
}

/// Docker's words for health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthStatus {
    /// No check has decided yet.
    Starting,
    /// The last check succeeded, or too few failed in a row.
    Healthy,
    /// As many checks in a row failed as were allowed.
    Unhealthy,
}

/// One run of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    /// When it began.
    pub start: UnixMillis,
    /// When it ended.
    pub end: UnixMillis,
    /// Exit code; -1 if it took too long or could not be run.
    pub exit_code: i32,
    /// The beginning of what it printed, at most 4 KiB.
    pub output: String,
}
