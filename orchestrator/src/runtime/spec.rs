//! The OCI runtime spec of a container, from what the user, the image and the node say. Pure: whatever has to be looked up
//! is in [`Facts`]. Called by the driver, which writes the result for libcontainer; built as JSON in the spec's own words
//! (github.com/opencontainers/runtime-spec, config.md, config-linux.md) and checked by parsing it.
//!
//! Defaults are Docker's: mounts, devices, 14 capabilities, masked and read-only paths, seccomp, and a limit of processes.

use super::{
    capabilities,
    config::{ContainerConfig, ExecSpec},
    error::RuntimeError,
    seccomp,
    user::User,
};
use oci_spec::runtime::{LinuxCapabilities, Process, Spec};
use orchestrator_core::model::{MountSource, Propagation, Resources};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// PATH where neither image nor user set one (Docker's).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Length in microseconds of the span over which the CPU limit holds (the kernel's default, sched-bwc.rst).
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Smallest quota the kernel takes, in microseconds.
const MIN_CPU_QUOTA_MICROS: u64 = 1000;
/// Open files of a process unless told otherwise: what systemd and Docker give (file-hierarchy: 1024 soft for select(2)).
const OPEN_FILES: (u64, u64) = (1024, 524_288);

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What was looked up on the node for one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Who it runs as.
    pub user: User,
    /// Nodes of devices: those asked for, or all for a privileged container.
    pub devices: Vec<DeviceNode>,
    /// Real sources of binds and volumes, by mount target.
    pub sources: BTreeMap<String, PathBuf>,
    /// Folder with the files `hosts`, `hostname` and `resolv.conf`.
    pub etc: PathBuf,
    /// Control group, with leading slash.
    pub cgroup: String,
    /// Whether the machine has cgroup version 2 alone.
    pub cgroup_v2: bool,
    /// Whether swap can be limited.
    pub limits_swap: bool,
    /// Capabilities that `edged` may hand on, one bit each.
    pub capabilities: u64,
    /// Most open files that a process of `edged` may have.
    pub open_files: u64,
    /// Machine architecture, as Rust names it.
    pub arch: &'static str,
}

/// A device node to make in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub path: String,
    /// `b` or `c`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Any of `rwm`.
    pub access: String,
}

/// Builds the spec.
pub(crate) fn build(config: &ContainerConfig, facts: &Facts) -> Result<Spec, RuntimeError> {
    let bad = |reason: String| RuntimeError::BadRequest { container: config.name.clone(), reason };
    let spec = &config.spec;
    let caps =
        capabilities::granted(spec.privileged, &spec.cap_add, &spec.cap_drop, facts.capabilities).map_err(bad)?;
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    if let Some(netns) = &config.netns {
        namespaces.push(json!({"type": "network", "path": netns}));
    }
    if facts.cgroup_v2 {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "cgroupsPath": facts.cgroup,
        "namespaces": namespaces,
        "resources": resources(config, facts),
        "devices": facts.devices.iter().map(device).collect::<Vec<_>>(),
        "sysctl": sysctls(config).map_err(bad)?,
    });
    if spec
        .mounts
        .iter()
        .any(|m| matches!(&m.source, MountSource::Bind { propagation: Propagation::Shared | Propagation::RShared, .. }))
    {
        linux["rootfsPropagation"] = json!("shared");
    }
    if !spec.privileged {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READONLY_PATHS);
        linux["seccomp"] = seccomp::profile(&caps, facts.arch)
            .map_err(|reason| RuntimeError::Seccomp { container: config.name.clone(), reason })?;
    }
    let mut process = json!({
        "terminal": spec.tty,
        "user": {"uid": facts.user.uid, "gid": facts.user.gid, "additionalGids": facts.user.groups},
        "args": command(config)?,
        "env": environment(config),
        "cwd": workdir(config),
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "rlimits": rlimits(config, facts).map_err(bad)?,
        "oomScoreAdj": spec.oom_score_adj,
    });
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    let document = json!({
        "ociVersion": "1.2.0",
        "root": {"path": config.rootfs, "readonly": spec.read_only},
        "hostname": config.hostname,
        "process": process,
        "mounts": mounts(config, facts).map_err(|(what, reason)| RuntimeError::BadMount { container: config.name.clone(), what, reason })?,
        "linux": linux,
    });
    serde_json::from_value(document).map_err(|e| bad(format!("the runtime spec cannot be built: {e}")))
}

/// The OCI process of an exec, from the container's own.
pub(crate) fn exec_process(
    container: &Process,
    exec: &ExecSpec,
    user: Option<User>,
    capabilities: &[String],
) -> Result<Value, serde_json::Error> {
    let mut process = serde_json::to_value(container)?;
    let mut env = container.env().clone().unwrap_or_default();
    if exec.tty {
        env = overlay(env, &["TERM=xterm".into()]);
    }
    process["terminal"] = json!(exec.tty);
    process["args"] = json!(exec.args);
    process["env"] = json!(overlay(env, &exec.env));
    process["capabilities"] = serde_json::to_value(capability_sets(capabilities)?)?;
    if let Some(workdir) = &exec.workdir {
        process["cwd"] = json!(absolute(workdir));
    }
    if let Some(user) = user {
        process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
    }
    Ok(process)
}

/// Capability sets of a process that has these, by OCI name, and can get no others.
pub(crate) fn capability_sets(names: &[String]) -> Result<LinuxCapabilities, serde_json::Error> {
    serde_json::from_value(json!({"bounding": names, "effective": names, "permitted": names}))
}

/// Names of the capabilities that a process has.
pub(crate) fn capability_names(process: &Process) -> Result<Vec<String>, serde_json::Error> {
    let effective = process.capabilities().as_ref().and_then(|c| c.effective().clone()).unwrap_or_default();
    serde_json::from_value(serde_json::to_value(effective)?)
}

/// The command line: the user's entrypoint drops the image's entrypoint and arguments, the user's arguments only the image's.
fn command(config: &ContainerConfig) -> Result<Vec<String>, RuntimeError> {
    let (spec, image) = (&config.spec, &config.image);
    let entrypoint = spec.command.as_ref().unwrap_or(&image.entrypoint);
    let args = match (&spec.command, &spec.args) {
        (_, Some(args)) => args.as_slice(),
        (Some(_), None) => &[],
        (None, None) => &image.cmd,
    };
    let all: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if all.is_empty() {
        let reason = "no command specified, neither by the image nor by the service".into();
        return Err(RuntimeError::NoSuchCommand { container: config.name.clone(), reason });
    }
    Ok(all)
}

fn environment(config: &ContainerConfig) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    if config.spec.tty {
        env.push("TERM=xterm".into());
    }
    overlay(overlay(env, &config.image.env), &config.spec.env)
}

/// Lays `KEY=value` pairs over others; a key alone removes. Keys that no environment can hold are left out.
fn overlay(mut env: Vec<String>, more: &[String]) -> Vec<String> {
    for pair in more {
        let (key, value) = pair.split_once('=').map_or((pair.as_str(), None), |(k, v)| (k, Some(v)));
        let at = env.iter().position(|e| e.split('=').next() == Some(key));
        match (at, value) {
            _ if key.is_empty() || pair.contains('\0') => {}
            (Some(at), Some(_)) => env[at].clone_from(pair),
            (None, Some(_)) => env.push(pair.clone()),
            (Some(at), None) => drop(env.remove(at)),
            (None, None) => {}
        }
    }
    env
}

/// The working directory, absolute.
pub(crate) fn workdir(config: &ContainerConfig) -> String {
    absolute(config.spec.workdir.as_deref().unwrap_or(&config.image.workdir))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/{path}") }
}

fn rlimits(config: &ContainerConfig, facts: &Facts) -> Result<Vec<Value>, String> {
    // -1 and nothing else is "unlimited" (RLIM_INFINITY).
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let mut limits = BTreeMap::from([("nofile", (OPEN_FILES.0, OPEN_FILES.1.min(facts.open_files)))]);
    for (name, limit) in &config.spec.ulimits {
        const KNOWN: &[&str] = &[
            "as",
            "core",
            "cpu",
            "data",
            "fsize",
            "locks",
            "memlock",
            "msgqueue",
            "nice",
            "nofile",
            "nproc",
            "rss",
            "rtprio",
            "rttime",
            "sigpending",
            "stack",
        ];
        if !KNOWN.contains(&name.as_str()) {
            return Err(format!("there is no ulimit {name:?}: use one of {}", KNOWN.join(", ")));
        }
        limits.insert(name, (value(limit.soft), value(limit.hard)));
    }
    let rlimit = |(name, (soft, hard)): (&str, (u64, u64))| json!({"type": format!("RLIMIT_{}", name.to_uppercase()), "soft": soft, "hard": hard});
    Ok(limits.into_iter().map(rlimit).collect())
}

/// Kernel parameters; only those of namespaces that the container has to itself.
fn sysctls(config: &ContainerConfig) -> Result<BTreeMap<String, String>, String> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    let own_network = config.netns.is_some();
    let mut all = BTreeMap::new();
    if own_network {
        // Docker's: without them a program that is not root could neither bind port 80 nor ping.
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for (name, value) in &config.spec.sysctls {
        let network = name.starts_with("net.");
        if network && !own_network {
            return Err(format!("sysctl {name} would change the node's network: not possible with the host network"));
        }
        if !(network || IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue."))
            || name.contains("..")
            || name.contains('/')
        {
            return Err(format!("sysctl {name} is not of a namespace of its own: it would change the whole node"));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all)
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": node.path, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
    })
}

fn resources(config: &ContainerConfig, facts: &Facts) -> Value {
    let limits = &config.resources;
    let mut devices = vec![json!({"allow": config.spec.privileged, "access": "rwm"})];
    if !config.spec.privileged {
        devices.extend(facts.devices.iter().map(|d| {
            json!({"allow": true, "type": d.kind.to_string(), "major": d.major, "minor": d.minor, "access": d.access})
        }));
    }
    let pids = if limits.limit_pids == 0 { Resources::DEFAULT_PIDS } else { limits.limit_pids };
    let mut all = json!({"devices": devices, "pids": {"limit": pids}});
    if limits.limit_memory_bytes > 0 {
        all["memory"] = json!({"limit": limits.limit_memory_bytes});
        if facts.limits_swap {
            // Memory and swap together: no swap, which would wear out flash.
            all["memory"]["swap"] = json!(limits.limit_memory_bytes);
        }
    }
    if limits.limit_nano_cpus > 0 {
        let quota = limits.limit_nano_cpus.saturating_mul(CPU_PERIOD_MICROS) / 1_000_000_000;
        all["cpu"] = json!({"period": CPU_PERIOD_MICROS, "quota": quota.max(MIN_CPU_QUOTA_MICROS)});
    }
    all
}

/// All mounts, outer ones first. Errors are (what, why).
fn mounts(config: &ContainerConfig, facts: &Facts) -> Result<Vec<Value>, (String, String)> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    // A privileged container may write to /sys; that changes the kernel of the node and is why it is privileged.
    let sys = if config.spec.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
    ];
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = facts.etc.join(name);
        all.push(mount(&format!("/etc/{name}"), "bind", &source.to_string_lossy(), &["bind", "rprivate"]));
    }
    let source = |target: &str, shown: &str| {
        facts
            .sources
            .get(target)
            .ok_or_else(|| (format!("{shown} on {target}"), "its folder on the node is not known".to_owned()))
    };
    let mut own = Vec::new();
    for m in &config.spec.mounts {
        let access = if m.read_only { "ro" } else { "rw" };
        own.push(match &m.source {
            MountSource::Bind { path, propagation, recursive, .. } => {
                let mut options =
                    vec![if *recursive { "rbind" } else { "bind" }, access, propagation_option(*propagation)];
                if m.read_only && *recursive {
                    options.push("rro");
                }
                mount(&m.target, "bind", &source(&m.target, path)?.to_string_lossy(), &options)
            }
            MountSource::Volume { name, .. } => {
                let shown = name.as_deref().unwrap_or("volume");
                mount(&m.target, "bind", &source(&m.target, shown)?.to_string_lossy(), &["rbind", access, "rprivate"])
            }
            MountSource::Tmpfs { size_bytes, mode } => {
                let (mode, size) = (format!("mode={mode:o}"), size_bytes.map(|n| format!("size={n}")));
                let mut options = vec!["nosuid", "nodev", "noexec", access, &mode];
                options.extend(size.as_deref());
                mount(&m.target, "tmpfs", "tmpfs", &options)
            }
        });
    }
    for target in &config.image.volumes {
        if !config.spec.mounts.iter().any(|m| m.target == *target) {
            own.push(mount(target, "bind", &source(target, "volume")?.to_string_lossy(), &["rbind", "rw", "rprivate"]));
        }
    }
    // What the user mounts takes the place of ours.
    all.retain(|base| !own.iter().any(|m| m["destination"] == base["destination"]));
    all.extend(own);
    all.sort_by_key(|m| Path::new(m["destination"].as_str().unwrap_or_default()).components().count());
    Ok(all)
}

fn propagation_option(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::RPrivate => "rprivate",
        Propagation::Private => "private",
        Propagation::RShared => "rshared",
        Propagation::Shared => "shared",
        Propagation::RSlave => "rslave",
        Propagation::Slave => "slave",
    }
}

#[cfg(test)]
mod tests;
