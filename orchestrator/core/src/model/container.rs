//! What runs in one task: image, process, isolation, resources. The shapes follow what `docker service create` can say.

use super::{ImageName, Millis, Signal};
use alloc::{collections::BTreeMap, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// One container as the user described it. What is `None` comes from the image or from the node's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The image, tag or digest included.
    pub image: ImageName,
    /// Replaces the image's entrypoint (Docker's `Command`, `--entrypoint`).
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments (Docker's `Args`).
    pub args: Option<Vec<String>>,
    /// `KEY=value` pairs laid over the image's environment; a key alone removes it.
    pub env: Vec<String>,
    /// Working directory; absolute.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// Supplementary groups by name or number.
    pub groups: Vec<String>,
    /// Host name inside; the default is the start of the task's id.
    pub hostname: Option<String>,
    /// Labels of the container (those of the service are elsewhere).
    pub labels: BTreeMap<String, String>,
    /// Binds, volumes and tmpfs.
    pub mounts: Vec<Mount>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether a small init reaps orphans as process 1; `None` leaves it to the node's default (no).
    pub init: Option<bool>,
    /// Whether a terminal is allocated.
    pub tty: bool,
    /// Whether standard input is kept open.
    pub open_stdin: bool,
    /// Asks the process to end; the default is the image's, then SIGTERM.
    pub stop_signal: Option<Signal>,
    /// Time between the stop signal and SIGKILL.
    pub stop_grace: Millis,
    /// Capabilities beyond the default set, without the `CAP_` prefix, upper case; `ALL` is all of them.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` takes all of them.
    pub cap_drop: Vec<String>,
    /// All capabilities, all devices, no seccomp, nothing masked.
    pub privileged: bool,
    /// Whether the process may gain privileges through set-user-id programs and file capabilities.
    pub no_new_privileges: bool,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Kernel parameters of the container's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of processes (setrlimit(2)) by lower-case name without `RLIMIT_`.
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Health check; `None` leaves it to the image.
    pub health: Option<HealthCheck>,
    /// Score that the out-of-memory killer adds, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Extra lines for `/etc/hosts`: host name and address.
    pub hosts: Vec<(String, String)>,
    /// Name servers, search domains and options that replace the node's resolver.
    pub dns: DnsConfig,
    /// Rotated log files of the container.
    pub log: LogConfig,
}

impl ContainerSpec {
    /// `docker service`'s default grace period (moby `api/defaults`).
    pub const STOP_GRACE: Millis = Millis::from_secs(10);

    /// The defaults of everything but the image.
    #[must_use]
    pub fn new(image: ImageName) -> Self {
        Self {
            image,
            command: None,
            args: None,
            env: Vec::new(),
            workdir: None,
            user: None,
            groups: Vec::new(),
            hostname: None,
            labels: BTreeMap::new(),
            mounts: Vec::new(),
            read_only: false,
            init: None,
            tty: false,
            open_stdin: false,
            stop_signal: None,
            stop_grace: Self::STOP_GRACE,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            privileged: false,
            no_new_privileges: false,
            devices: Vec::new(),
            sysctls: BTreeMap::new(),
            ulimits: BTreeMap::new(),
            health: None,
            oom_score_adj: 0,
            hosts: Vec::new(),
            dns: DnsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// A file system made visible inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container.
    pub target: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute path on the node.
        path: String,
        /// How mounts made later travel between host and container.
        propagation: Propagation,
        /// Whether mounts below `path` are shown too.
        recursive: bool,
        /// Whether a missing `path` is made as a directory.
        create: bool,
    },
    /// A named volume of the node; without a name, one that lives and dies with the task.
    Volume {
        /// Name of the volume.
        name: Option<String>,
        /// Whether a new volume stays empty instead of being filled from the image.
        no_copy: bool,
        /// Labels given to the volume when it is made.
        labels: BTreeMap<String, String>,
        /// Path below the volume's root that is mounted.
        subpath: Option<String>,
    },
    /// Memory.
    Tmpfs {
        /// Size limit in bytes; `None` is half the node's memory (tmpfs(5)).
        size_bytes: Option<u64>,
        /// Permission bits of the root; Docker's default is 1777 octal.
        mode: u32,
    },
}

/// Mount propagation (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Private, recursively.
    #[default]
    RPrivate,
    /// Private.
    Private,
    /// Shared, recursively.
    RShared,
    /// Shared.
    Shared,
    /// Slave, recursively.
    RSlave,
    /// Slave.
    Slave,
}

/// A device node of the host, given to the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the node, for example `/dev/ttyUSB0`.
    pub host_path: String,
    /// Path inside the container.
    pub container_path: String,
    /// Any of `r` read, `w` write, `m` mknod (cgroup-v1 devices.rst).
    pub permissions: String,
}

/// A pair of limits (getrlimit(2)); -1 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The limit in force.
    pub soft: i64,
    /// The ceiling of the soft limit.
    pub hard: i64,
}

/// How a running container shows that it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is tried.
    pub test: HealthTest,
    /// Time between two checks.
    pub interval: Millis,
    /// A check that takes longer has failed.
    pub timeout: Millis,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
    /// Failures in this time after the start do not count.
    pub start_period: Millis,
    /// Time between two checks during the start period.
    pub start_interval: Millis,
}

impl HealthCheck {
    /// Docker's defaults for what is not given: 30 s, 30 s, 3, 0, 5 s.
    #[must_use]
    pub const fn new(test: HealthTest) -> Self {
        Self {
            test,
            interval: Millis::from_secs(30),
            timeout: Millis::from_secs(30),
            retries: 3,
            start_period: Millis(0),
            start_interval: Millis::from_secs(5),
        }
    }
}

/// What a health check tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthTest {
    /// No check, also when the image has one.
    None,
    /// A program in the container; exit code 0 is healthy.
    Exec(Vec<String>),
    /// A line for the container's shell; exit code 0 is healthy.
    Shell(String),
}

/// Name servers and search list; what is empty comes from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// resolv.conf(5) options.
    pub options: Vec<String>,
}

/// Size of the rotated log files of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// A file that has grown to this many bytes is rotated.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
}

impl Default for LogConfig {
    /// 2 files of 5 MiB: 20 tasks of a small board take 200 MiB at most.
    fn default() -> Self {
        Self { max_bytes: 5 << 20, max_files: 2 }
    }
}

/// What a task may use and what is set aside for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU time in billionths of a core; 0 is no limit.
    pub limit_nano_cpus: u64,
    /// Memory in bytes; 0 is no limit.
    pub limit_memory_bytes: u64,
    /// Processes and threads; 0 is the node's default.
    pub limit_pids: u64,
    /// CPU time set aside, in billionths of a core.
    pub reserve_nano_cpus: u64,
    /// Memory set aside, in bytes.
    pub reserve_memory_bytes: u64,
}

impl Resources {
    /// Docker's smallest memory limit, 6 MiB: below it no runtime starts reliably (moby `daemon_unix.go`, linuxMinMemory).
    pub const MIN_MEMORY: u64 = 6 << 20;
    /// Limit of processes where none is asked for: enough for databases, far from the default 32,768 of a small board's
    /// `kernel.pid_max`, which one fork bomb would otherwise use up.
    pub const DEFAULT_PIDS: u64 = 4096;
}
