//! Specs against expected ones: the whole of a default container, and what each wish changes in it.

use super::*;
use crate::runtime::ImageDefaults;
use orchestrator_core::model::{ContainerSpec, ImageName, Mount, TaskId, Ulimit};

fn container() -> ContainerConfig {
    ContainerConfig {
        task: TaskId(7),
        name: "web.1".into(),
        spec: ContainerSpec::new(ImageName::new("nginx").unwrap()),
        resources: Resources::default(),
        image: ImageDefaults {
            entrypoint: vec!["/entry.sh".into()],
            cmd: vec!["nginx".into(), "-g".into()],
            env: vec!["VERSION=1".into()],
            ..ImageDefaults::default()
        },
        rootfs: "/run/rootfs/7".into(),
        netns: Some("/run/netns/7".into()),
        hostname: "web".into(),
        hosts: String::new(),
        resolv_conf: String::new(),
        volumes: BTreeMap::new(),
    }
}

fn facts() -> Facts {
    Facts {
        user: User { uid: 33, gid: 34, groups: vec![34, 44] },
        etc: "/state/7/etc".into(),
        cgroup: "/edged-a/7".into(),
        limits_swap: true,
        capabilities: u64::MAX,
        open_files: u64::MAX,
        arch: "x86_64",
        ..Facts::default()
    }
}

/// The spec as JSON, after changes to the container.
fn built(change: impl FnOnce(&mut ContainerConfig)) -> Value {
    let mut config = container();
    change(&mut config);
    serde_json::to_value(build(&config, &facts()).unwrap()).unwrap()
}

fn args(change: impl FnOnce(&mut ContainerConfig)) -> Value {
    built(change)["process"]["args"].take()
}

fn words(text: &str) -> Option<Vec<String>> {
    Some(text.split(' ').map(Into::into).collect())
}

#[test]
fn the_spec_of_a_default_container_is_as_expected() {
    let mut spec = built(|_| {});
    // Has tests of its own.
    assert!(spec["linux"]["seccomp"].take()["syscalls"].is_array());
    for set in ["bounding", "effective", "permitted"] {
        // Sets without an order.
        spec["process"]["capabilities"][set].as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    let expected: Value = serde_json::from_str(include_str!("default.json")).unwrap();
    assert_eq!(spec, expected, "{}", serde_json::to_string_pretty(&spec).unwrap());
}

#[test]
fn command_and_arguments_combine_as_under_docker() {
    assert_eq!(args(|_| {}), json!(["/entry.sh", "nginx", "-g"]));
    assert_eq!(args(|c| c.spec.args = words("redis")), json!(["/entry.sh", "redis"]));
    assert_eq!(args(|c| c.spec.command = words("sh -c")), json!(["sh", "-c"]));
    assert_eq!(args(|c| (c.spec.command, c.spec.args) = (words("sh"), words("-x"))), json!(["sh", "-x"]));
}

#[test]
fn limits_become_quotas() {
    let spec = built(|c| {
        c.resources.limit_nano_cpus = 1_500_000_000;
        c.resources.limit_memory_bytes = 64 << 20;
        c.resources.limit_pids = 100;
    });
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({"period": 100_000, "quota": 150_000}));
    assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}));
    assert_eq!(resources["pids"], json!({"limit": 100}));
    // The kernel takes no quota below a millisecond.
    let tiny = built(|c| c.resources.limit_nano_cpus = 1_000_000);
    assert_eq!(tiny["linux"]["resources"]["cpu"]["quota"], 1000);
}

#[test]
fn no_new_privileges_is_said_only_if_it_is_wanted() {
    assert_eq!(built(|_| {})["process"].get("noNewPrivileges"), None);
    assert_eq!(built(|c| c.spec.no_new_privileges = true)["process"]["noNewPrivileges"], true);
}

#[test]
fn a_privileged_container_has_nothing_in_its_way() {
    let spec = built(|c| c.spec.privileged = true);
    assert_eq!(spec["linux"].get("seccomp").or(spec["linux"].get("maskedPaths")), None);
    assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
}

#[test]
fn what_the_user_mounts_replaces_ours_and_outer_mounts_come_first() {
    let tmpfs = |target: &str| Mount {
        target: target.into(),
        read_only: false,
        source: MountSource::Tmpfs { size_bytes: None, mode: 0o700 },
    };
    let spec = built(|c| c.spec.mounts = vec![tmpfs("/a/b/c"), tmpfs("/dev/shm"), tmpfs("/a")]);
    let mounts = spec["mounts"].as_array().unwrap();
    let at = |target: &str| mounts.iter().position(|m| m["destination"] == target).unwrap();
    assert!(at("/a") < at("/a/b/c"));
    assert_eq!(mounts[at("/dev/shm")]["options"], json!(["nosuid", "nodev", "noexec", "rw", "mode=700"]));
}

#[test]
fn shared_propagation_needs_a_shared_root() {
    let bind = |propagation| Mount {
        target: "/mnt".into(),
        read_only: true,
        source: MountSource::Bind { path: "/mnt".into(), propagation, recursive: true, create: false },
    };
    let mut config = container();
    config.spec.mounts = vec![bind(Propagation::RShared)];
    let facts = Facts { sources: [("/mnt".to_owned(), PathBuf::from("/mnt"))].into(), ..facts() };
    let spec = serde_json::to_value(build(&config, &facts).unwrap()).unwrap();
    assert_eq!(spec["linux"]["rootfsPropagation"], "shared");
    let mount = spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/mnt").unwrap();
    assert_eq!(mount["options"], json!(["rbind", "ro", "rshared", "rro"]));
}

#[test]
fn only_parameters_of_own_namespaces_can_be_set() {
    let with = |name: &str, netns: bool| {
        let mut config = container();
        config.spec.sysctls = [(name.to_owned(), "1".to_owned())].into();
        if !netns {
            config.netns = None;
        }
        build(&config, &facts()).map(|_| ())
    };
    assert!(with("net.core.somaxconn", true).is_ok() && with("kernel.shmmax", false).is_ok());
    for (name, netns) in
        [("net.core.somaxconn", false), ("kernel.panic", true), ("vm.swappiness", true), ("net/../x", true)]
    {
        assert!(matches!(with(name, netns), Err(RuntimeError::BadRequest { .. })), "{name}");
    }
}

#[test]
fn unknown_ulimits_are_refused_and_minus_one_is_no_limit() {
    let limit = |name: &str| {
        let mut config = container();
        config.spec.ulimits = [(name.to_owned(), Ulimit { soft: -1, hard: -1 })].into();
        build(&config, &facts())
    };
    assert!(limit("nofiles").is_err());
    let spec = serde_json::to_value(limit("memlock").unwrap()).unwrap();
    assert_eq!(spec["process"]["rlimits"][0], json!({"type": "RLIMIT_MEMLOCK", "soft": u64::MAX, "hard": u64::MAX}));
}

#[test]
fn an_exec_inherits_what_it_does_not_change() {
    let spec = build(&container(), &facts()).unwrap();
    let exec = ExecSpec { args: vec!["sh".into()], env: vec!["A=1".into()], tty: true, ..ExecSpec::default() };
    let process = exec_process(spec.process().as_ref().unwrap(), &exec, None, &["CAP_CHOWN".into()]).unwrap();
    assert_eq!(process["args"], json!(["sh"]));
    assert_eq!(process["user"]["uid"], 33);
    let env: Vec<&str> = process["env"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    assert_eq!(env, [DEFAULT_PATH, "HOSTNAME=web", "VERSION=1", "TERM=xterm", "A=1"]);
    assert_eq!(process["capabilities"]["bounding"], json!(["CAP_CHOWN"]));
}
