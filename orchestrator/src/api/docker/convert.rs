//! Docker's service specs to ours and back. Absent fields get Docker's defaults; going back, everything is spelled out, so
//! that what a client reads, changes and sends again means the same.
//!
//! In: the JSON types of `spec`. Out: checked `ServiceSpec`s of the core. Called by the service handlers.

use super::spec as wire;
use orchestrator_core::model::{
    Constraint, ContainerSpec, Device, DnsConfig, EndpointMode, EndpointSpec, FailureAction, HealthCheck, HealthTest,
    ImageName, Invalid, LogConfig, Millis, Mode, Mount, MountSource, Name, OnDisconnect, Placement, Platform, PortSpec,
    Propagation, Protocol, PublishMode, Resources, RestartCondition, RestartPolicy, ServiceParts, ServiceSpec, Signal,
    TaskSpec, Ulimit, UpdateConfig, UpdateOrder,
};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, Invalid>;

fn refuse<T>(field: &str, why: impl Into<String>) -> Result<T> {
    Err(Invalid::new(field, why))
}

/// Length in milliseconds; a fraction counts as a whole one, so that "very short" does not become "none".
fn millis(nanos: u64) -> Millis {
    Millis(nanos.div_ceil(1_000_000))
}

fn nanos(length: Millis) -> u64 {
    length.0.saturating_mul(1_000_000)
}

fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Checks a service spec. `before` is the spec that an update replaces: fields that only we know and that a client of
/// Docker's leaves out are taken from it.
///
/// # Errors
/// A value that is wrong or not supported, with the field's name.
pub fn service_spec(spec: &wire::ServiceSpec, before: Option<&ServiceSpec>) -> Result<ServiceSpec> {
    ServiceSpec::new(ServiceParts {
        name: Name::new(spec.name.as_str())?,
        labels: spec.labels.clone(),
        mode: mode(&spec.mode)?,
        task: task_spec(&spec.task_template, before.map(|spec| &spec.task))?,
        update: update_config("UpdateConfig", spec.update_config.as_ref())?,
        rollback: update_config("RollbackConfig", spec.rollback_config.as_ref())?,
        endpoint: endpoint(spec.endpoint_spec.as_ref())?,
        on_disconnect: on_disconnect(spec.on_disconnect.as_deref(), before)?,
        disconnect_grace: disconnect_grace(spec, before),
    })
}

fn on_disconnect(asked: Option<&str>, before: Option<&ServiceSpec>) -> Result<Option<OnDisconnect>> {
    match asked {
        None => Ok(before.and_then(|before| before.on_disconnect)),
        Some("" | "auto") => Ok(None),
        Some("keep") => Ok(Some(OnDisconnect::Keep)),
        Some("stop") => Ok(Some(OnDisconnect::Stop)),
        Some(other) => refuse("OnDisconnect", format!("{other:?} must be keep, stop or auto")),
    }
}

/// A service that is told to keep its tasks forgets a grace that it had before.
fn disconnect_grace(spec: &wire::ServiceSpec, before: Option<&ServiceSpec>) -> Option<Millis> {
    let kept = || before.and_then(|before| before.disconnect_grace).filter(|_| spec.on_disconnect.is_none());
    spec.disconnect_grace.map_or_else(kept, |grace| some(millis(grace)))
}

/// A service spec in Docker's form.
#[must_use]
pub fn to_service_spec(spec: &ServiceSpec) -> wire::ServiceSpec {
    wire::ServiceSpec {
        name: spec.name.to_string(),
        labels: spec.labels.clone(),
        task_template: to_task_spec(&spec.task),
        mode: match spec.mode {
            Mode::Replicated { replicas } => {
                wire::Mode { replicated: Some(wire::Replicated { replicas: Some(replicas) }), global: None }
            }
            Mode::Global => wire::Mode { replicated: None, global: Some(wire::Global {}) },
        },
        update_config: Some(to_update_config(&spec.update)),
        rollback_config: Some(to_update_config(&spec.rollback)),
        endpoint_spec: Some(to_endpoint(&spec.endpoint)),
        on_disconnect: spec.on_disconnect.map(|on| match on {
            OnDisconnect::Keep => "keep".into(),
            OnDisconnect::Stop => "stop".into(),
        }),
        disconnect_grace: spec.disconnect_grace.map(nanos),
    }
}

fn mode(mode: &wire::Mode) -> Result<Mode> {
    match (&mode.replicated, &mode.global) {
        (Some(_), Some(_)) => refuse("Mode", "must be one of Replicated and Global"),
        (None, Some(_)) => Ok(Mode::Global),
        (replicated, None) => {
            Ok(Mode::Replicated { replicas: replicated.as_ref().and_then(|r| r.replicas).unwrap_or(1) })
        }
    }
}

fn task_spec(task: &wire::TaskTemplate, before: Option<&TaskSpec>) -> Result<TaskSpec> {
    if !matches!(task.runtime.as_str(), "" | "container") {
        return refuse("TaskTemplate.Runtime", format!("{:?} is not supported; use container", task.runtime));
    }
    let mut container = container_spec(&task.container_spec, before.map(|task| &task.container))?;
    container.log = log_config(task.log_driver.as_ref())?;
    Ok(TaskSpec {
        container,
        resources: resources(task.resources.as_ref()),
        restart: restart(task.restart_policy.as_ref())?,
        placement: placement(task.placement.as_ref())?,
        force_update: task.force_update,
    })
}

/// What a task is, in Docker's form.
#[must_use]
pub fn to_task_spec(task: &TaskSpec) -> wire::TaskTemplate {
    let resources = &task.resources;
    let restart = &task.restart;
    let placement = &task.placement;
    wire::TaskTemplate {
        container_spec: to_container_spec(&task.container),
        resources: Some(wire::Resources {
            limits: Some(wire::Limits {
                nano_cpus: resources.limit_nano_cpus,
                memory_bytes: resources.limit_memory_bytes,
                pids: resources.limit_pids,
            }),
            reservations: Some(wire::Reservations {
                nano_cpus: resources.reserve_nano_cpus,
                memory_bytes: resources.reserve_memory_bytes,
            }),
        }),
        restart_policy: Some(wire::RestartPolicy {
            condition: match restart.condition {
                RestartCondition::None => "none",
                RestartCondition::OnFailure => "on-failure",
                RestartCondition::Any => "any",
            }
            .into(),
            delay: Some(nanos(restart.delay)),
            max_attempts: Some(restart.max_attempts),
            window: some(nanos(restart.window)),
        }),
        placement: Some(wire::Placement {
            constraints: placement
                .constraints
                .iter()
                .map(|c| format!("{}{}{}", c.key, if c.equal { "==" } else { "!=" }, c.value))
                .collect(),
            preferences: placement
                .spread
                .iter()
                .map(|label| wire::Preference { spread: wire::Spread { spread_descriptor: label.clone() } })
                .collect(),
            max_replicas: placement.max_per_node,
            platforms: placement.platforms.iter().map(to_platform).collect(),
        }),
        log_driver: (task.container.log != LogConfig::default()).then(|| wire::LogDriver {
            name: "json-file".into(),
            options: BTreeMap::from([
                ("max-size".into(), task.container.log.max_bytes.to_string()),
                ("max-file".into(), task.container.log.max_files.to_string()),
            ]),
        }),
        force_update: task.force_update,
        runtime: "container".into(),
    }
}

fn container_spec(spec: &wire::ContainerSpec, before: Option<&ContainerSpec>) -> Result<ContainerSpec> {
    if !matches!(spec.isolation.as_str(), "" | "default") {
        return refuse("Isolation", format!("{:?} is for Windows", spec.isolation));
    }
    let dns = spec.dns_config.clone().unwrap_or_default();
    Ok(ContainerSpec {
        image: ImageName::new(spec.image.as_str())?,
        command: some(spec.command.clone()),
        args: some(spec.args.clone()),
        env: spec.env.clone(),
        workdir: some(spec.dir.clone()),
        user: some(spec.user.clone()),
        groups: spec.groups.clone(),
        hostname: some(spec.hostname.clone()),
        labels: spec.labels.clone(),
        mounts: spec.mounts.iter().enumerate().map(|(at, m)| mount(at, m)).collect::<Result<_>>()?,
        read_only: spec.read_only,
        init: spec.init,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stop_signal: some(spec.stop_signal.as_str()).map(Signal::parse).transpose()?,
        stop_grace: spec.stop_grace_period.map_or(ContainerSpec::STOP_GRACE, millis),
        cap_add: spec.capability_add.iter().map(|name| capability(name)).collect(),
        cap_drop: spec.capability_drop.iter().map(|name| capability(name)).collect(),
        privileged: spec.privileged.unwrap_or(before.is_some_and(|before| before.privileged)),
        no_new_privileges: spec.privileges.as_ref().is_some_and(|p| p.no_new_privileges),
        devices: match (&spec.devices, before) {
            (Some(devices), _) => devices.iter().map(device).collect(),
            (None, Some(before)) => before.devices.clone(),
            (None, None) => Vec::new(),
        },
        sysctls: spec.sysctls.clone(),
        ulimits: spec.ulimits.iter().map(|u| (u.name.clone(), Ulimit { soft: u.soft, hard: u.hard })).collect(),
        health: spec.healthcheck.as_ref().map(health).transpose()?.flatten(),
        oom_score_adj: spec.oom_score_adj,
        hosts: spec.hosts.iter().map(|line| hosts(line)).collect::<Result<Vec<_>>>()?.concat(),
        dns: DnsConfig { servers: dns.nameservers, search: dns.search, options: dns.options },
        log: LogConfig::default(),
    })
}

fn to_container_spec(spec: &ContainerSpec) -> wire::ContainerSpec {
    wire::ContainerSpec {
        image: spec.image.to_string(),
        labels: spec.labels.clone(),
        command: spec.command.clone().unwrap_or_default(),
        args: spec.args.clone().unwrap_or_default(),
        hostname: spec.hostname.clone().unwrap_or_default(),
        env: spec.env.clone(),
        dir: spec.workdir.clone().unwrap_or_default(),
        user: spec.user.clone().unwrap_or_default(),
        groups: spec.groups.clone(),
        privileges: spec.no_new_privileges.then_some(wire::Privileges { no_new_privileges: true }),
        init: spec.init,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(to_mount).collect(),
        stop_signal: spec.stop_signal.map(signal_name).unwrap_or_default(),
        stop_grace_period: Some(nanos(spec.stop_grace)),
        healthcheck: spec.health.as_ref().map(to_health),
        hosts: spec.hosts.iter().map(|(name, address)| format!("{address} {name}")).collect(),
        dns_config: Some(wire::DnsConfig {
            nameservers: spec.dns.servers.clone(),
            search: spec.dns.search.clone(),
            options: spec.dns.options.clone(),
        }),
        oom_score_adj: spec.oom_score_adj,
        isolation: "default".into(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.iter().map(|name| to_capability(name)).collect(),
        capability_drop: spec.cap_drop.iter().map(|name| to_capability(name)).collect(),
        ulimits: spec
            .ulimits
            .iter()
            .map(|(name, limit)| wire::Ulimit { name: name.clone(), hard: limit.hard, soft: limit.soft })
            .collect(),
        privileged: spec.privileged.then_some(true),
        devices: some(spec.devices.iter().map(to_device).collect()),
    }
}

fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).into()
}

fn to_capability(name: &str) -> String {
    if name == "ALL" { name.into() } else { format!("CAP_{name}") }
}

/// The two signals that glibc keeps to itself have numbers only (signal(7)).
fn signal_name(signal: Signal) -> String {
    match signal.number() {
        number @ (32 | 33) => number.to_string(),
        _ => signal.to_string(),
    }
}

fn device(device: &wire::Device) -> Device {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    Device {
        host_path: device.path_on_host.clone(),
        container_path: or(&device.path_in_container, &device.path_on_host),
        permissions: or(&device.cgroup_permissions, "rwm"),
    }
}

fn to_device(device: &Device) -> wire::Device {
    wire::Device {
        path_on_host: device.host_path.clone(),
        path_in_container: device.container_path.clone(),
        cgroup_permissions: device.permissions.clone(),
    }
}

/// Reads `ADDRESS NAME [NAME...]`, the form of hosts(5).
fn hosts(line: &str) -> Result<Vec<(String, String)>> {
    let mut words = line.split_whitespace();
    let (Some(address), names) = (words.next(), words.collect::<Vec<_>>()) else {
        return refuse("Hosts", "an entry is empty");
    };
    if names.is_empty() || address.parse::<std::net::IpAddr>().is_err() {
        return refuse("Hosts", format!("{line:?} must be an address and a host name"));
    }
    Ok(names.into_iter().map(|name| (name.to_owned(), address.to_owned())).collect())
}

const PROPAGATIONS: [(Propagation, &str); 6] = [
    (Propagation::RPrivate, "rprivate"),
    (Propagation::Private, "private"),
    (Propagation::RShared, "rshared"),
    (Propagation::Shared, "shared"),
    (Propagation::RSlave, "rslave"),
    (Propagation::Slave, "slave"),
];

/// Docker's permission bits for the root of a tmpfs mount.
const TMPFS_MODE: u32 = 0o1777;

fn mount(at: usize, mount: &wire::Mount) -> Result<Mount> {
    let field = |name: &str| format!("Mounts[{at}].{name}");
    let foreign = |options: bool, name: &str| match options {
        true => refuse(&field(name), format!("does not fit a mount of type {}", mount.r#type)),
        false => Ok(()),
    };
    let source = match mount.r#type.as_str() {
        "bind" => {
            foreign(mount.volume_options.is_some(), "VolumeOptions")?;
            foreign(mount.tmpfs_options.is_some(), "TmpfsOptions")?;
            let options = mount.bind_options.clone().unwrap_or_default();
            let known = PROPAGATIONS.iter().find(|(_, name)| *name == options.propagation);
            let propagation = match known {
                Some((propagation, _)) => *propagation,
                None if options.propagation.is_empty() => Propagation::default(),
                None => {
                    return refuse(&field("BindOptions.Propagation"), format!("unknown: {:?}", options.propagation));
                }
            };
            MountSource::Bind {
                path: mount.source.clone(),
                propagation,
                recursive: !options.non_recursive,
                create: options.create_mountpoint,
            }
        }
        "volume" | "" => {
            foreign(mount.bind_options.is_some(), "BindOptions")?;
            foreign(mount.tmpfs_options.is_some(), "TmpfsOptions")?;
            let options = mount.volume_options.clone().unwrap_or_default();
            MountSource::Volume {
                name: some(mount.source.clone()),
                no_copy: options.no_copy,
                labels: options.labels,
                subpath: some(options.subpath),
            }
        }
        "tmpfs" => {
            foreign(mount.bind_options.is_some(), "BindOptions")?;
            foreign(mount.volume_options.is_some(), "VolumeOptions")?;
            if !mount.source.is_empty() {
                return refuse(&field("Source"), "a tmpfs mount has none");
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            MountSource::Tmpfs { size_bytes: some(options.size_bytes), mode: some(options.mode).unwrap_or(TMPFS_MODE) }
        }
        other => {
            return refuse(&field("Type"), format!("{other:?} is not supported; use bind, volume or tmpfs"));
        }
    };
    Ok(Mount { target: mount.target.clone(), read_only: mount.read_only, source })
}

fn to_mount(mount: &Mount) -> wire::Mount {
    let mut out = wire::Mount { target: mount.target.clone(), read_only: mount.read_only, ..Default::default() };
    match &mount.source {
        MountSource::Bind { path, propagation, recursive, create } => {
            out.r#type = "bind".into();
            out.source = path.clone();
            let name = PROPAGATIONS.iter().find(|(p, _)| p == propagation).map_or("", |(_, name)| name);
            out.bind_options = Some(wire::BindOptions {
                propagation: name.into(),
                non_recursive: !recursive,
                create_mountpoint: *create,
            });
        }
        MountSource::Volume { name, no_copy, labels, subpath } => {
            out.r#type = "volume".into();
            out.source = name.clone().unwrap_or_default();
            out.volume_options = some(wire::VolumeOptions {
                no_copy: *no_copy,
                labels: labels.clone(),
                subpath: subpath.clone().unwrap_or_default(),
            });
        }
        MountSource::Tmpfs { size_bytes, mode } => {
            out.r#type = "tmpfs".into();
            out.tmpfs_options = Some(wire::TmpfsOptions { size_bytes: size_bytes.unwrap_or(0), mode: *mode });
        }
    }
    out
}

fn health(check: &wire::Healthcheck) -> Result<Option<HealthCheck>> {
    let test = match check.test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
        None if *check == wire::Healthcheck::default() => return Ok(None),
        None => {
            return refuse(
                "Healthcheck",
                "times for the image's own check are not supported yet; give the command too (--health-cmd)",
            );
        }
        Some(("NONE", _)) => HealthTest::None,
        Some(("CMD", words)) => HealthTest::Exec(words.to_vec()),
        Some(("CMD-SHELL", words)) => HealthTest::Shell(words.join(" ")),
        Some((other, _)) => {
            return refuse("Healthcheck.Test", format!("{other:?} must be NONE, CMD or CMD-SHELL"));
        }
    };
    let default = HealthCheck::new(test);
    Ok(Some(HealthCheck {
        interval: some(check.interval).map_or(default.interval, millis),
        timeout: some(check.timeout).map_or(default.timeout, millis),
        retries: some(check.retries).unwrap_or(default.retries),
        start_period: some(check.start_period).map_or(default.start_period, millis),
        start_interval: some(check.start_interval).map_or(default.start_interval, millis),
        test: default.test,
    }))
}

fn to_health(check: &HealthCheck) -> wire::Healthcheck {
    wire::Healthcheck {
        test: match &check.test {
            HealthTest::None => vec!["NONE".into()],
            HealthTest::Exec(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
            HealthTest::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
        },
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        start_interval: nanos(check.start_interval),
        retries: check.retries,
    }
}

fn resources(resources: Option<&wire::Resources>) -> Resources {
    let given = resources.cloned().unwrap_or_default();
    let (limits, reservations) = (given.limits.unwrap_or_default(), given.reservations.unwrap_or_default());
    Resources {
        limit_nano_cpus: limits.nano_cpus,
        limit_memory_bytes: limits.memory_bytes,
        limit_pids: limits.pids,
        reserve_nano_cpus: reservations.nano_cpus,
        reserve_memory_bytes: reservations.memory_bytes,
    }
}

fn restart(policy: Option<&wire::RestartPolicy>) -> Result<RestartPolicy> {
    let default = RestartPolicy::default();
    let Some(policy) = policy else { return Ok(default) };
    Ok(RestartPolicy {
        condition: match policy.condition.as_str() {
            "" => default.condition,
            "none" => RestartCondition::None,
            "on-failure" => RestartCondition::OnFailure,
            "any" => RestartCondition::Any,
            other => {
                return refuse("RestartPolicy.Condition", format!("{other:?} must be none, on-failure or any"));
            }
        },
        delay: policy.delay.map_or(default.delay, millis),
        max_attempts: policy.max_attempts.unwrap_or(default.max_attempts),
        window: policy.window.map_or(default.window, millis),
    })
}

fn placement(placement: Option<&wire::Placement>) -> Result<Placement> {
    let given = placement.cloned().unwrap_or_default();
    Ok(Placement {
        constraints: given.constraints.iter().map(|text| Constraint::parse(text)).collect::<Result<_>>()?,
        spread: given.preferences.into_iter().map(|preference| preference.spread.spread_descriptor).collect(),
        max_per_node: given.max_replicas,
        // Docker's client sends 32-bit ARM without an architecture, which says nothing.
        platforms: given
            .platforms
            .into_iter()
            .filter(|platform| !platform.architecture.is_empty())
            .map(|platform| Platform {
                os: platform.os,
                arch: go_arch(&platform.architecture),
                variant: platform.variant,
            })
            .collect(),
    })
}

/// Go's word for an architecture; some clients send the kernel's.
#[must_use]
pub fn go_arch(arch: &str) -> String {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        other => other,
    }
    .into()
}

fn to_platform(platform: &Platform) -> wire::Platform {
    wire::Platform { architecture: platform.arch.clone(), os: platform.os.clone(), variant: platform.variant.clone() }
}

/// Names of Docker's log drivers whose behaviour ours has: rotated files on the node.
const LOG_DRIVERS: [&str; 3] = ["", "json-file", "local"];

fn log_config(driver: Option<&wire::LogDriver>) -> Result<LogConfig> {
    let mut config = LogConfig::default();
    let Some(driver) = driver else { return Ok(config) };
    if !LOG_DRIVERS.contains(&driver.name.as_str()) {
        return refuse("log-driver", format!("{:?} is not supported yet; use json-file or local", driver.name));
    }
    for (key, value) in &driver.options {
        match key.as_str() {
            "max-size" => config.max_bytes = parse_bytes(value).ok_or_else(|| bad_option(key, value))?,
            "max-file" => config.max_files = value.parse().map_err(|_| bad_option(key, value))?,
            _ => return refuse("log-opt", format!("{key} is not supported yet; use max-size and max-file")),
        }
    }
    Ok(config)
}

fn bad_option(key: &str, value: &str) -> Invalid {
    Invalid::new("log-opt", format!("{key}={value:?} is not a valid value"))
}

/// Reads a number of bytes with an optional binary unit, as Docker does: `512`, `10m`, `1.5GiB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..split].parse().ok()?;
    let shift = match lower[split..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    Some((number * (1u64 << shift) as f64) as u64)
}

fn update_config(field: &str, config: Option<&wire::UpdateConfig>) -> Result<UpdateConfig> {
    let default = UpdateConfig::default();
    let Some(config) = config else { return Ok(default) };
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return refuse(&format!("{field}.MaxFailureRatio"), "must be between 0 and 1");
    }
    Ok(UpdateConfig {
        parallelism: config.parallelism,
        delay: millis(config.delay),
        on_failure: match config.failure_action.as_str() {
            "" | "pause" => FailureAction::Pause,
            "continue" => FailureAction::Continue,
            "rollback" => FailureAction::Rollback,
            other => {
                let why = format!("{other:?} must be pause, continue or rollback");
                return refuse(&format!("{field}.FailureAction"), why);
            }
        },
        monitor: some(config.monitor).map_or(default.monitor, millis),
        max_failure_ppm: (config.max_failure_ratio * 1e6).round() as u32,
        order: match config.order.as_str() {
            "" | "stop-first" => UpdateOrder::StopFirst,
            "start-first" => UpdateOrder::StartFirst,
            other => {
                return refuse(&format!("{field}.Order"), format!("{other:?} must be stop-first or start-first"));
            }
        },
    })
}

fn to_update_config(config: &UpdateConfig) -> wire::UpdateConfig {
    wire::UpdateConfig {
        parallelism: config.parallelism,
        delay: nanos(config.delay),
        failure_action: match config.on_failure {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        }
        .into(),
        monitor: nanos(config.monitor),
        max_failure_ratio: f64::from(config.max_failure_ppm) / 1e6,
        order: match config.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
        .into(),
    }
}

fn endpoint(spec: Option<&wire::EndpointSpec>) -> Result<EndpointSpec> {
    let given = spec.cloned().unwrap_or_default();
    Ok(EndpointSpec {
        mode: match given.mode.as_str() {
            "" | "vip" => EndpointMode::Vip,
            "dnsrr" => EndpointMode::DnsRr,
            other => return refuse("EndpointSpec.Mode", format!("{other:?} must be vip or dnsrr")),
        },
        ports: given.ports.iter().map(port).collect::<Result<_>>()?,
    })
}

fn to_endpoint(spec: &EndpointSpec) -> wire::EndpointSpec {
    wire::EndpointSpec {
        mode: match spec.mode {
            EndpointMode::Vip => "vip",
            EndpointMode::DnsRr => "dnsrr",
        }
        .into(),
        ports: spec.ports.iter().map(to_port).collect(),
    }
}

fn port(port: &wire::Port) -> Result<PortSpec> {
    Ok(PortSpec {
        protocol: match port.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return refuse("publish", format!("protocol {other:?} is not supported; use tcp or udp")),
        },
        target: port.target_port,
        published: port.published_port,
        mode: match port.publish_mode.as_str() {
            "" | "ingress" => PublishMode::Ingress,
            "host" => PublishMode::Host,
            other => return refuse("publish", format!("mode {other:?} must be ingress or host")),
        },
    })
}

/// A published port in Docker's form.
#[must_use]
pub fn to_port(port: &PortSpec) -> wire::Port {
    wire::Port {
        name: String::new(),
        protocol: port.protocol.as_str().into(),
        target_port: port.target,
        published_port: port.published,
        publish_mode: match port.mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        }
        .into(),
    }
}
