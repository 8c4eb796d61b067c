//! What a container sees and may do: identity, capabilities, system calls, files.

use orchestrator_core::model::{Device, Mount, MountSource, Propagation};
use std::fs;

/// A line of `/proc/self/status` of process 1.
const STATUS: &str = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";

#[tokio::test]
async fn the_default_capabilities_and_filter_are_dockers() {
    let node = node!();
    let (_, status) = node.output(&node.shell(STATUS)).await;
    // The 14 default capabilities as bits: Docker's well-known a80425fb.
    assert_eq!(status, "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n");

    let mut config = node.shell(STATUS);
    config.spec.no_new_privileges = true;
    config.spec.cap_drop = vec!["ALL".into()];
    config.spec.cap_add = vec!["CHOWN".into()];
    let (_, status) = node.output(&config).await;
    assert_eq!(status, "CapEff:\t0000000000000001\nCapBnd:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    node.close().await;
}

#[tokio::test]
async fn forbidden_calls_are_refused() {
    let node = node!();
    let (code, output) = node
        .output(
            &node.shell("mount -t tmpfs x /tmp; unshare -m true; hostname other; chroot / true && echo chroot; exit 0"),
        )
        .await;
    assert_eq!(code, 0);
    assert!(
        output.contains("mount: permission denied")
            || output.contains("mount: mounting x on /tmp failed: Operation not permitted"),
        "{output}"
    );
    assert!(output.contains("unshare") && output.contains("Operation not permitted"), "{output}");
    assert!(output.contains("sethostname") || output.contains("hostname"), "{output}");
    assert!(output.contains("chroot\n"), "{output}");
    node.close().await;
}

#[tokio::test]
async fn privileged_containers_have_no_filter_and_may_mount() {
    let node = node!();
    let mut config = node.shell("mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status && ls /dev/kmsg");
    config.spec.privileged = true;
    let (code, output) = node.output(&config).await;
    assert_eq!((code, output.as_str()), (0, "Seccomp:\t0\n/dev/kmsg\n"));
    node.close().await;
}

#[tokio::test]
async fn users_and_groups_come_from_the_image() {
    let node = node!();
    let mut config = node.shell("id; pwd; echo $HOME $HOSTNAME $A $B; hostname");
    config.spec.user = Some("web".into());
    config.spec.groups = vec!["7".into()];
    config.spec.workdir = Some("/srv/new".into());
    config.image.env = vec!["A=image".into(), "B=image".into()];
    config.spec.env = vec!["A=mine".into(), "B".into()];
    let (code, output) = node.output(&config).await;
    assert_eq!(code, 0, "{output}");
    assert_eq!(output, "uid=33(web) gid=34(web) groups=7,34(web),44(video)\n/srv/new\n/tmp box mine\nbox\n");
    node.close().await;
}

#[tokio::test]
async fn paths_of_the_kernel_are_masked_or_read_only() {
    let node = node!();
    let (_, output) = node
        .output(&node.shell(
            "wc -c < /proc/keys; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
             echo 1 > /proc/sys/kernel/panic; echo 1 > /proc/irq/default_smp_affinity; mkdir /sys/fs/x; true",
        ))
        .await;
    assert!(output.contains("0\n0\n0\n"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 3, "{output}");
    node.close().await;
}

#[tokio::test]
async fn a_read_only_root_refuses_writes_but_not_to_mounts() {
    let node = node!();
    let mut config =
        node.shell("echo x > /file; echo y > /tmp/file && cat /tmp/file; stat -c %a /tmp; df -k /tmp | tail -1");
    config.spec.read_only = true;
    config.spec.mounts = vec![tmpfs("/tmp")];
    let (_, output) = node.output(&config).await;
    assert!(output.contains("can't create /file: Read-only file system"), "{output}");
    assert!(output.contains("y\n1770\n") && output.contains("1024"), "{output}");
    node.close().await;
}

#[tokio::test]
async fn binds_and_volumes_show_folders_of_the_node() {
    let node = node!();
    let (shared, data) = (node.path().join("shared"), node.path().join("volume"));
    fs::create_dir_all(&shared).unwrap();
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(shared.join("here"), "from the node").unwrap();
    let mut config = node.shell(
        "cat /in/here; echo x > /in/new; echo kept > /data/file; echo low > /sub/file; echo img > /image/file; true",
    );
    let bind = MountSource::Bind {
        path: shared.to_str().unwrap().into(),
        propagation: Propagation::RPrivate,
        recursive: true,
        create: false,
    };
    let volume = |subpath: Option<&str>| MountSource::Volume {
        name: Some("data".into()),
        no_copy: false,
        labels: Default::default(),
        subpath: subpath.map(Into::into),
    };
    config.spec.mounts = vec![
        Mount { target: "/in".into(), read_only: true, source: bind },
        Mount { target: "/data".into(), read_only: false, source: volume(None) },
        Mount { target: "/sub".into(), read_only: false, source: volume(Some("sub")) },
    ];
    config.image.volumes = vec!["/image".into()];
    let own = node.path().join("anonymous");
    fs::create_dir(&own).unwrap();
    config.volumes = [("/data", &data), ("/sub", &data), ("/image", &own)]
        .map(|(target, dir)| (target.to_owned(), dir.clone()))
        .into();
    let (_, output) = node.output(&config).await;
    assert!(
        output.contains("from the node") && output.contains("can't create /in/new: Read-only file system"),
        "{output}"
    );
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "kept\n");
    assert_eq!(fs::read_to_string(data.join("sub/file")).unwrap(), "low\n");
    assert_eq!(fs::read_to_string(own.join("file")).unwrap(), "img\n");
    node.close().await;
}

#[tokio::test]
async fn a_link_put_into_a_volume_while_a_container_is_made_does_not_lead_out() {
    if let Some(why) = crate::support::unavailable() {
        println!("SKIPPED: {why}");
        return;
    }
    // As late as can be: the daemon has looked everything up, and the shim is about to mount it.
    let swap = tempfile::tempdir().unwrap();
    let (volume, outside, shim) = (swap.path().join("volume"), swap.path().join("outside"), swap.path().join("shim"));
    for (dir, name) in [(volume.join("sub"), "inside"), (outside.clone(), "outside")] {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), "").unwrap();
    }
    let script = format!(
        "#!/bin/sh\nPATH=/usr/bin:/bin\nmv {volume}/sub {volume}/moved && ln -s {outside} {volume}/sub\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_shim"),
        volume = volume.display(),
        outside = outside.display(),
    );
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let node = crate::support::Node::new(shim.to_str().unwrap()).await;
    let mut config = node.shell("ls /sub; echo x > /sub/written");
    let source = MountSource::Volume {
        name: Some("data".into()),
        no_copy: false,
        labels: Default::default(),
        subpath: Some("sub".into()),
    };
    config.spec.mounts = vec![Mount { target: "/sub".into(), read_only: false, source }];
    config.volumes = [("/sub".to_owned(), volume.clone())].into();
    assert_eq!(node.output(&config).await, (0, "inside\n".into()));
    assert!(volume.join("moved/written").exists() && !outside.join("written").exists());
    node.close().await;
}

#[tokio::test]
async fn names_and_devices_are_its_own() {
    let node = node!();
    let (code, output) = node
        .output(&node.shell(
            "cat /etc/hosts /etc/hostname /etc/resolv.conf; ls /dev | tr '\\n' ' '; echo; echo x > /dev/null; \
             head -c 4 /dev/zero | wc -c; ps -o pid,args | grep -c sh; echo $$",
        ))
        .await;
    assert_eq!(code, 0, "{output}");
    assert!(output.starts_with("127.0.0.1 localhost\nbox\nnameserver 127.0.0.53\n"), "{output}");
    assert!(
        output.contains("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"),
        "{output}"
    );
    assert!(output.ends_with("\n1\n"), "{output}");
    node.close().await;
}

#[tokio::test]
async fn devices_that_were_not_given_cannot_be_opened() {
    let node = node!();
    // The node's disks have nodes in a container that makes them; on cgroup v1 the devices controller refuses to open them.
    let make = "mknod /tmp/disk b 254 0 && mknod /tmp/kmsg c 1 11";
    let mut config =
        node.shell(&format!("{make}; cat /tmp/kmsg | head -c 1; dd if=/tmp/disk of=/dev/null count=1; true"));
    let (_, output) = node.output(&config).await;
    if !std::path::Path::new("/sys/fs/cgroup/devices").exists() {
        println!("SKIPPED: device rules are enforced on cgroup v1 only");
        return node.close().await;
    }
    assert_eq!(output.matches("Operation not permitted").count(), 2, "{output}");

    config = node.shell("(: < /dev/given) && echo read; (: > /dev/given); true");
    config.spec.devices = vec![Device {
        host_path: "/dev/loop-control".into(),
        container_path: "/dev/given".into(),
        permissions: "r".into(),
    }];
    let (_, output) = node.output(&config).await;
    // Two streams: which line comes first is chance.
    assert!(
        output.contains("read\n") && output.contains("can't create /dev/given: Operation not permitted"),
        "{output}"
    );
    node.close().await;
}

#[tokio::test]
async fn kernel_parameters_of_its_own_namespaces_can_be_set() {
    let node = node!();
    let mut config = node.shell("cat /proc/sys/kernel/shmmax; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    config.spec.sysctls = [("kernel.shmmax".to_owned(), "4096000".to_owned())].into();
    config.spec.ulimits = [("nofile".to_owned(), orchestrator_core::model::Ulimit { soft: 100, hard: 200 })].into();
    config.spec.oom_score_adj = 300;
    let (_, output) = node.output(&config).await;
    assert_eq!(output, "4096000\n100\n200\n300\n");
    node.close().await;
}

fn tmpfs(target: &str) -> Mount {
    let source = MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: 0o1770 };
    Mount { target: target.into(), read_only: false, source }
}
