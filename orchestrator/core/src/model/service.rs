//! What a user asks for: a service. [`ServiceSpec`] can only be made from [`ServiceParts`] that fit together.

use super::{Constraint, ContainerSpec, HealthTest, Invalid, Millis, Mount, MountSource, Name, Resources, Settings};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};
use core::ops::Deref;
use serde::{Deserialize, Serialize};

/// A checked service: every value of this type fits the rules of [`ServiceSpec::new`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ServiceParts", into = "ServiceParts")]
pub struct ServiceSpec(ServiceParts);

/// The fields of a service, not yet checked against each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceParts {
    /// Unique among services.
    pub name: Name,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// How many tasks, and where.
    pub mode: Mode,
    /// What each task is.
    pub task: TaskSpec,
    /// How a change of `task` is rolled out.
    pub update: UpdateConfig,
    /// How it is rolled back.
    pub rollback: UpdateConfig,
    /// How others reach the tasks.
    pub endpoint: EndpointSpec,
    /// What becomes of a task whose node reaches no manager; `None` leaves it to the number of replicas
    /// ([`ServiceParts::disconnect_stop`]).
    pub on_disconnect: Option<OnDisconnect>,
    /// How long such a node waits before it stops the task; `None` is twice [`Settings::down_after`].
    pub disconnect_grace: Option<Millis>,
}

/// What becomes of a task whose node reaches no manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// It goes on: better twice than not at all.
    Keep,
    /// It ends after the grace: better not at all than twice.
    Stop,
}

impl ServiceParts {
    /// After which time without a manager a node stops a task of this service; `None` if it keeps it. Unless the user says
    /// otherwise, the only replica of a service is stopped: it may guard data that two must not write. Not so one that is bound
    /// to its node by a constraint: no other node can run it meanwhile.
    #[must_use]
    pub fn disconnect_stop(&self, settings: &Settings) -> Option<Millis> {
        let on_disconnect = self.on_disconnect.unwrap_or(match self.mode {
            Mode::Replicated { replicas: 1 } if !self.is_bound_to_one_node() => OnDisconnect::Stop,
            Mode::Replicated { .. } | Mode::Global => OnDisconnect::Keep,
        });
        match on_disconnect {
            OnDisconnect::Keep => None,
            OnDisconnect::Stop => {
                Some(self.disconnect_grace.unwrap_or(Millis(settings.down_after.0.saturating_mul(2))))
            }
        }
    }

    /// Whether constraints leave no choice of a node.
    #[must_use]
    pub fn is_bound_to_one_node(&self) -> bool {
        let one = |constraint: &Constraint| {
            constraint.equal
                && (matches!(constraint.key.as_str(), "node.id" | "node.hostname")
                    || (constraint.key == "node.ip" && !constraint.value.contains('/')))
        };
        self.task.placement.constraints.iter().any(one)
    }
}

/// What each task of a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The container.
    pub container: ContainerSpec,
    /// Limits and reservations.
    pub resources: Resources,
    /// When a task that ended is replaced.
    pub restart: RestartPolicy,
    /// Where tasks may run.
    pub placement: Placement,
    /// Raised to replace all tasks though nothing else changed.
    pub force_update: u64,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// A number of slots, spread over the nodes.
    Replicated {
        /// Slots.
        replicas: u32,
    },
    /// One task on each node that fits.
    Global,
}

/// When a task that ended is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Which ends count.
    pub condition: RestartCondition,
    /// Time from the end to the replacement.
    pub delay: Millis,
    /// Replacements per slot within `window`; 0 is no limit.
    pub max_attempts: u32,
    /// The time over which `max_attempts` is counted; 0 is for ever.
    pub window: Millis,
}

impl Default for RestartPolicy {
    /// SwarmKit's defaults (`api/defaults/service.go`): any, after 5 s, without limit.
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay: Millis::from_secs(5), max_attempts: 0, window: Millis(0) }
    }
}

/// Which ends of a task lead to a replacement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    /// None.
    None,
    /// Those with a non-zero exit code, and failures.
    OnFailure,
    /// All.
    #[default]
    Any,
}

/// Where tasks may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// Node labels over whose values tasks are spread, the first one first.
    pub spread: Vec<String>,
    /// Tasks of the service on one node; 0 is no limit.
    pub max_per_node: u32,
    /// Platforms the image has; empty if not known.
    pub platforms: Vec<Platform>,
}

/// Operating system and architecture in Go's words (`linux`, `arm64`), as images carry them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// For example `arm64`, `amd64`, `arm`.
    pub arch: String,
    /// For example `v7`; empty if none.
    pub variant: String,
}

/// How a new version of a service replaces the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Slots replaced at the same time; 0 is all of them.
    pub parallelism: u32,
    /// Pause between two batches.
    pub delay: Millis,
    /// What happens when too many new tasks fail.
    pub on_failure: FailureAction,
    /// A new task that fails within this time counts.
    pub monitor: Millis,
    /// Millionths of the slots that may fail before `on_failure`.
    pub max_failure_ppm: u32,
    /// Whether the old task ends before or after the new one runs.
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    /// SwarmKit's defaults (`api/defaults/service.go`): one at a time, monitored for 5 s, pause on failure, stop first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Millis(0),
            on_failure: FailureAction::Pause,
            monitor: Millis::from_secs(5),
            max_failure_ppm: 0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// What a failing update does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    /// Waits for the user.
    Pause,
    /// Goes on.
    Continue,
    /// Returns to the version before.
    Rollback,
}

/// Which of the two tasks of a slot comes first in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    /// The old task ends, then the new one starts.
    StopFirst,
    /// The new task runs, then the old one ends.
    StartFirst,
}

/// How others reach the tasks of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// What the service's name resolves to.
    pub mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<PortSpec>,
}

/// What a service's name resolves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    /// One virtual address, balanced over the tasks.
    #[default]
    Vip,
    /// The addresses of the tasks.
    DnsRr,
}

/// One port of the tasks, made reachable from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortSpec {
    /// Protocol.
    pub protocol: Protocol,
    /// Port inside the container, not 0.
    pub target: u16,
    /// Port on the nodes; 0 lets the cluster choose.
    pub published: u16,
    /// On every node, or only on those that run a task.
    pub mode: PublishMode,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// On which nodes a published port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PublishMode {
    /// On every node, through the routing mesh.
    Ingress,
    /// On the node of each task.
    Host,
}

/// More replicas than this are a typing error: the planner is measured up to 20,000 tasks.
pub const REPLICAS_MAX: u32 = 20_000;

impl ServiceSpec {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// The first rule that is broken, with the field's name.
    pub fn new(parts: ServiceParts) -> Result<Self, Invalid> {
        if let Mode::Replicated { replicas } = parts.mode
            && replicas > REPLICAS_MAX
        {
            return Err(Invalid::new("replicas", format!("{replicas} is more than {REPLICAS_MAX}")));
        }
        check_container(&parts.task.container)?;
        check_resources(&parts.task.resources)?;
        check_ports(&parts.endpoint)?;
        for (field, config) in [("update-config", &parts.update), ("rollback-config", &parts.rollback)] {
            if config.max_failure_ppm > 1_000_000 {
                return Err(Invalid::new(field, "max-failure-ratio must be between 0 and 1"));
            }
        }
        if parts.on_disconnect == Some(OnDisconnect::Keep) && parts.disconnect_grace.is_some() {
            return Err(Invalid::new(
                "disconnect-grace",
                "has no meaning with on-disconnect keep: leave one of them out",
            ));
        }
        if parts.rollback.on_failure == FailureAction::Rollback {
            return Err(Invalid::new("rollback-config", "failure-action must be pause or continue"));
        }
        Ok(Self(parts))
    }

    /// Gives the parts back, to change them and check them anew.
    #[must_use]
    pub fn into_parts(self) -> ServiceParts {
        self.0
    }
}

impl Deref for ServiceSpec {
    type Target = ServiceParts;
    fn deref(&self) -> &ServiceParts {
        &self.0
    }
}

impl TryFrom<ServiceParts> for ServiceSpec {
    type Error = Invalid;
    fn try_from(parts: ServiceParts) -> Result<Self, Invalid> {
        Self::new(parts)
    }
}

impl From<ServiceSpec> for ServiceParts {
    fn from(spec: ServiceSpec) -> ServiceParts {
        spec.0
    }
}

fn check_container(spec: &ContainerSpec) -> Result<(), Invalid> {
    if let Some(dir) = &spec.workdir
        && !dir.starts_with('/')
    {
        return Err(Invalid::new("workdir", format!("{dir:?} is not an absolute path")));
    }
    if let Some(host) = &spec.hostname
        && (host.is_empty()
            || host.len() > 64
            || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._{}".contains(&b)))
    {
        return Err(Invalid::new("hostname", format!("{host:?} must be 1 to 64 letters, digits, '-', '.' or '_'")));
    }
    for entry in &spec.env {
        if entry.is_empty() || entry.starts_with('=') || entry.contains('\0') {
            return Err(Invalid::new("env", format!("{entry:?} must be KEY=VALUE")));
        }
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return Err(Invalid::new("oom-score-adj", format!("{} is not between -1000 and 1000", spec.oom_score_adj)));
    }
    if spec.command.as_ref().or(spec.args.as_ref()).is_some_and(|words| words.iter().any(|word| word.contains('\0'))) {
        return Err(Invalid::new("command", "contains a NUL character"));
    }
    check_mounts(&spec.mounts)?;
    for device in &spec.devices {
        let permissions = &device.permissions;
        if permissions.is_empty() || !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(Invalid::new("device", format!("permissions {permissions:?} must be made of r, w and m")));
        }
        for path in [&device.host_path, &device.container_path] {
            if !path.starts_with("/dev/") {
                return Err(Invalid::new("device", format!("{path:?} is not below /dev")));
            }
        }
    }
    for (name, limit) in &spec.ulimits {
        if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
            return Err(Invalid::new(
                "ulimit",
                format!("{name}: soft limit {} is above hard limit {}", limit.soft, limit.hard),
            ));
        }
    }
    if let Some(check) = &spec.health {
        let empty = matches!(&check.test, HealthTest::Exec(words) if words.is_empty());
        if empty || matches!(&check.test, HealthTest::Shell(line) if line.trim().is_empty()) {
            return Err(Invalid::new("health-cmd", "is empty"));
        }
        for (field, length) in [("health-interval", check.interval), ("health-timeout", check.timeout)] {
            if length.0 == 0 {
                return Err(Invalid::new(field, "must be at least 1ms"));
            }
        }
    }
    if spec.log.max_bytes < 4096 || spec.log.max_files == 0 {
        return Err(Invalid::new("log-opt", "max-size must be at least 4k and max-file at least 1"));
    }
    Ok(())
}

fn check_mounts(mounts: &[Mount]) -> Result<(), Invalid> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        let target = mount.target.trim_end_matches('/');
        if !mount.target.starts_with('/') || target.is_empty() {
            return Err(Invalid::new("mount", format!("target {:?} must be an absolute path below /", mount.target)));
        }
        if mount.target.split('/').any(|part| part == "..") {
            return Err(Invalid::new("mount", format!("target {:?} must not contain '..'", mount.target)));
        }
        if !targets.insert(target) {
            return Err(Invalid::new("mount", format!("duplicate mount point: {target}")));
        }
        match &mount.source {
            MountSource::Bind { path, .. } if !path.starts_with('/') => {
                return Err(Invalid::new("mount", format!("bind source {path:?} must be an absolute path")));
            }
            MountSource::Volume { name: Some(name), .. } => {
                Name::new(name.as_str()).map_err(|why| Invalid::new("mount", format!("volume {}", why.why)))?;
            }
            MountSource::Tmpfs { mode, .. } if *mode > 0o7777 => {
                return Err(Invalid::new("mount", format!("tmpfs-mode {mode:o} is above 7777")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_resources(resources: &Resources) -> Result<(), Invalid> {
    let limit = resources.limit_memory_bytes;
    if limit != 0 && limit < Resources::MIN_MEMORY {
        return Err(Invalid::new(
            "limit-memory",
            format!("{limit} bytes is below the minimum of 6MB; raise it or leave it out"),
        ));
    }
    if limit != 0 && resources.reserve_memory_bytes > limit {
        return Err(Invalid::new("reserve-memory", "is above limit-memory"));
    }
    // 0.001 cores is the smallest share that a period of 100 ms can express (1 ms is the kernel's floor: sched-bwc.rst).
    if resources.limit_nano_cpus != 0 && resources.limit_nano_cpus < 1_000_000 {
        return Err(Invalid::new("limit-cpu", "must be at least 0.001"));
    }
    Ok(())
}

fn check_ports(endpoint: &EndpointSpec) -> Result<(), Invalid> {
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if port.target == 0 {
            return Err(Invalid::new("publish", "target port must be between 1 and 65535"));
        }
        if endpoint.mode == EndpointMode::DnsRr && port.mode == PublishMode::Ingress {
            return Err(Invalid::new("publish", "port published with ingress mode can't be used with dnsrr mode"));
        }
        if port.published != 0 && !published.insert((port.protocol, port.published)) {
            return Err(Invalid::new(
                "publish",
                format!("port {}/{} is published twice", port.published, port.protocol.as_str()),
            ));
        }
    }
    Ok(())
}
