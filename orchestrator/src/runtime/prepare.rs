//! Everything that happens on the node before the shim of a container is started: looking up users, devices and folders,
//! making what is missing, writing the files of the container. Blocking; called by the driver.

use super::{
    cgroup::Hierarchies,
    config::{ContainerConfig, Health},
    confined,
    devices::DeviceRules,
    error::{At, RuntimeError, error_line},
    files::{self, ShimConfig},
    filter::{self, Filters},
    spec::{self, DeviceNode, Facts},
    staging,
    user::{self, User},
};
use oci_spec::runtime::Spec;
use orchestrator_core::model::MountSource;
use rustix::{
    fs::{major, minor},
    process::{Resource, getrlimit},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Where one container's things lie.
pub(crate) struct Places {
    /// Ends with the boot.
    pub run: PathBuf,
    /// Holds mounts while the container is made.
    pub staging: PathBuf,
    /// Outlives the container.
    pub state: PathBuf,
    /// Control group of the node, without slashes.
    pub parent: String,
}

impl Places {
    /// Folder of the log files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }
}

/// Writes all that the shim needs.
pub(crate) fn prepare(
    config: &ContainerConfig,
    places: &Places,
    hierarchies: &Hierarchies,
    filters: &Filters,
) -> Result<(), RuntimeError> {
    let sources = sources(config, &places.staging)?;
    let facts = Facts {
        user: find_user(
            &config.name,
            &config.rootfs,
            config.spec.user.as_deref().unwrap_or(&config.image.user),
            &config.spec.groups,
        )?,
        devices: devices(config)?,
        sources,
        etc: places.state.join("etc"),
        cgroup: format!("/{}/{}", places.parent, config.task),
        cgroup_v2: hierarchies.is_v2(),
        limits_swap: hierarchies.limits_swap(),
        capabilities: own_capabilities(),
        open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        arch: std::env::consts::ARCH,
    };
    require_controllers(config, hierarchies)?;
    let mut spec = spec::build(config, &facts)?;
    make_workdir(config, &facts)?;
    let keep = take_seccomp(config, places, &mut spec, filters)?;

    fs::create_dir_all(&facts.etc).at("create", &facts.etc)?;
    for (name, text) in [
        ("hosts", &config.hosts),
        ("hostname", &format!("{}\n", config.hostname)),
        ("resolv.conf", &config.resolv_conf),
    ] {
        let path = facts.etc.join(name);
        fs::write(&path, text).at("write", path)?;
    }
    let shim = ShimConfig {
        id: config.task.to_string(),
        log_dir: places.logs(),
        log_max_bytes: config.spec.log.max_bytes,
        log_max_files: config.spec.log.max_files,
        tty: config.spec.tty,
        open_stdin: config.spec.open_stdin,
        stop_signal: config.stop_signal().number(),
        init: config.spec.init.unwrap_or(false),
        keep,
        devices: hierarchies
            .v2_group(facts.cgroup.trim_start_matches('/'))
            .filter(|_| !config.spec.privileged)
            .map(|group| DeviceRules::new(group, &facts.devices)),
        shim_cgroups: hierarchies.shim_groups(&places.parent),
        oom_file: hierarchies.oom_file(facts.cgroup.trim_start_matches('/')),
    };
    if let Some(check) = config.health_check() {
        let path = |name: &str| places.run.join(name);
        files::write(&places.run, files::HEALTH_CHECK, check).at("write", path(files::HEALTH_CHECK))?;
        files::write(&places.run, files::HEALTH, &Health::starting()).at("write", path(files::HEALTH))?;
    }
    files::write(&places.run, files::OCI_CONFIG, &spec).at("write", places.run.join(files::OCI_CONFIG))?;
    files::write(&places.run, files::SHIM_CONFIG, &shim).at("write", places.run.join(files::SHIM_CONFIG))
}

/// Moves the seccomp profile out of the spec into a file of its own, as the filter that the executor loads; for that the
/// process gets [`filter::NEEDED`] on top. The capabilities that it is to keep are returned. Nothing is done where there is
/// no profile.
fn take_seccomp(
    config: &ContainerConfig,
    places: &Places,
    spec: &mut Spec,
    filters: &Filters,
) -> Result<Option<Vec<String>>, RuntimeError> {
    let Some(mut linux) = spec.linux().clone() else { return Ok(None) };
    let Some(profile) = linux.seccomp().clone() else { return Ok(None) };
    let failed = |reason: String| RuntimeError::Seccomp { container: config.name.clone(), reason };
    let made = filters.get(&profile).map_err(failed)?;
    let path = places.run.join(files::FILTER);
    fs::write(&path, made).at("write", path)?;
    linux.set_seccomp(None);
    spec.set_linux(Some(linux));

    let mut process = spec.process().clone().unwrap_or_default();
    let kept = spec::capability_names(&process).map_err(|e| failed(e.to_string()))?;
    let mut given = kept.clone();
    given.extend(filter::NEEDED.map(String::from));
    process.set_capabilities(Some(spec::capability_sets(&given).map_err(|e| failed(e.to_string()))?));
    spec.set_process(Some(process));
    Ok(Some(kept))
}

/// Resolves a user against the files of an image.
pub(crate) fn find_user(container: &str, rootfs: &Path, who: &str, groups: &[String]) -> Result<User, RuntimeError> {
    let read = |path: &str| {
        confined::read_text(rootfs, path).map_err(|e| RuntimeError::BadUser {
            container: container.into(),
            reason: format!("cannot read {path} of the image: {}", error_line(&e)),
        })
    };
    user::resolve(who, groups, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|reason| RuntimeError::BadUser { container: container.into(), reason })
}

/// Capabilities that this process can hand on, one bit each.
pub(crate) fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// A limit that the machine cannot enforce must not look as if it held.
fn require_controllers(config: &ContainerConfig, hierarchies: &Hierarchies) -> Result<(), RuntimeError> {
    let wanted = [
        (
            "memory",
            config.resources.limit_memory_bytes > 0,
            "add cgroup_enable=memory to the kernel command line (/boot/firmware/cmdline.txt) and reboot",
        ),
        ("cpu", config.resources.limit_nano_cpus > 0, "the kernel needs CONFIG_CFS_BANDWIDTH"),
        ("pids", true, "the kernel needs CONFIG_CGROUP_PIDS"),
    ];
    for (controller, needed, remedy) in wanted {
        if needed && !hierarchies.has(controller) {
            let reason = format!("the {controller} controller is off: {remedy}");
            return Err(RuntimeError::Cgroup { container: config.name.clone(), reason });
        }
    }
    Ok(())
}

/// Where binds and volumes lie, by target; parts of volumes below `staging`.
fn sources(config: &ContainerConfig, staging: &Path) -> Result<BTreeMap<String, PathBuf>, RuntimeError> {
    let mut all = config.volumes.clone();
    for (number, mount) in config.spec.mounts.iter().enumerate() {
        let bad = |source: &Path, reason: String| RuntimeError::BadMount {
            container: config.name.clone(),
            what: format!("{} on {}", source.display(), mount.target),
            reason,
        };
        match &mount.source {
            MountSource::Bind { path, create, .. } => {
                let path = PathBuf::from(path);
                if !confined::exists(&path) {
                    if !create {
                        return Err(bad(
                            &path,
                            format!("bind source path does not exist: create {} on the node", path.display()),
                        ));
                    }
                    fs::create_dir_all(&path).map_err(|e| bad(&path, format!("cannot create it: {e}")))?;
                }
                all.insert(mount.target.clone(), path);
            }
            MountSource::Volume { subpath: Some(subpath), .. } => {
                let Some(root) = config.volumes.get(&mount.target) else { continue };
                let part = confined::open_path(root, Path::new(subpath))
                    .map_err(|e| bad(root, format!("subpath {subpath} cannot be found in the volume: {e}")))?;
                let place = staging::mount(staging, number, &part)
                    .map_err(|e| bad(root, format!("subpath {subpath} cannot be mounted: {e}")))?;
                all.insert(mount.target.clone(), place);
            }
            MountSource::Volume { .. } | MountSource::Tmpfs { .. } => {}
        }
    }
    Ok(all)
}

/// The working directory exists by then, in the image or in what is mounted over it, as under Docker.
fn make_workdir(config: &ContainerConfig, facts: &Facts) -> Result<(), RuntimeError> {
    let workdir = spec::workdir(config);
    let target = Path::new(&workdir);
    let over = facts.sources.iter().filter(|(t, _)| target.starts_with(t)).max_by_key(|(t, _)| t.len());
    let (root, below) = match over {
        Some((t, source)) => (source.as_path(), target.strip_prefix(t).unwrap_or(Path::new(""))),
        None => (config.rootfs.as_path(), target),
    };
    if below.as_os_str().is_empty() || confined::open_path(root, below).is_ok() {
        return Ok(());
    }
    confined::create_dir_all(root, below).map_err(|e| RuntimeError::BadRequest {
        container: config.name.clone(),
        reason: format!("cannot create working directory {workdir}: {e}"),
    })
}

fn devices(config: &ContainerConfig) -> Result<Vec<DeviceNode>, RuntimeError> {
    let mut all = Vec::new();
    if config.spec.privileged {
        walk_devices(Path::new("/dev"), &mut all);
    }
    for wanted in &config.spec.devices {
        let bad = |reason: &str| RuntimeError::BadRequest {
            container: config.name.clone(),
            reason: format!("device {}: {reason}", wanted.host_path),
        };
        let metadata =
            fs::metadata(&wanted.host_path).map_err(|_| bad("there is none on this node: is it plugged in?"))?;
        if wanted.permissions.is_empty() || wanted.permissions.chars().any(|c| !"rwm".contains(c)) {
            return Err(bad("permissions are made of r, w and m"));
        }
        let node = device_node(&wanted.container_path, &metadata, &wanted.permissions)
            .ok_or_else(|| bad("it is no device node"))?;
        all.retain(|d: &DeviceNode| d.path != node.path);
        all.push(node);
    }
    Ok(all)
}

/// All device nodes of the machine, without terminals and shared memory, which a container has of its own.
fn walk_devices(dir: &Path, all: &mut Vec<DeviceNode>) {
    const OWN: &[&str] = &["pts", "shm", "fd", "mqueue", "console", "ptmx", ".udev", ".lxc", ".lxd-mounts"];
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if OWN.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let path = entry.path();
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk_devices(&path, all),
            Ok(metadata) => all.extend(device_node(&path.to_string_lossy(), &metadata, "rwm")),
            // Unplugged meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => {}
        }
    }
}

fn device_node(path: &str, metadata: &fs::Metadata, access: &str) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => return None,
    };
    Some(DeviceNode {
        path: path.into(),
        kind,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.into(),
    })
}
