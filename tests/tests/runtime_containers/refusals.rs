//! What cannot be done is refused with one line that names it, and leaves nothing behind.

use orchestrator::runtime::{ContainerConfig, RuntimeError, error_line};
use orchestrator_core::model::{Device, Mount, MountSource, Propagation};

/// Creation, and start if it came to that; the error, and nothing left.
async fn refused(change: impl FnOnce(&mut ContainerConfig)) -> Option<RuntimeError> {
    if let Some(why) = crate::support::unavailable() {
        println!("SKIPPED: {why}");
        return None;
    }
    let node = crate::support::Node::new(env!("CARGO_BIN_EXE_shim")).await;
    let mut config = node.shell("true");
    change(&mut config);
    let error = match node.runtime.create(&config).await {
        Err(error) => {
            assert_eq!(node.left(), Vec::<String>::new());
            assert!(node.runtime.traces().await.unwrap().is_empty());
            error
        }
        Ok(()) => node.runtime.start(config.task).await.unwrap_err(),
    };
    let line = error_line(&error);
    assert!(!line.contains('\n'), "{line}");
    node.close().await;
    Some(error)
}

macro_rules! assert_refused {
    ($variant:ident, $text:literal, $change:expr) => {
        if let Some(error) = refused($change).await {
            assert!(matches!(error, RuntimeError::$variant { .. }) && error.to_string().contains($text), "{error:?}");
        }
    };
}

#[tokio::test]
async fn a_command_that_is_not_in_the_image() {
    assert_refused!(NoSuchCommand, "exec: \"foo\": executable file not found in $PATH", |c| c.spec.command =
        Some(vec!["foo".into()]));
    assert_refused!(NoSuchCommand, "exec: \"/foo\": stat /foo: no such file or directory", |c| c.spec.command =
        Some(vec!["/foo".into()]));
    assert_refused!(NoSuchCommand, "exec: \"/etc/passwd\": permission denied", |c| c.spec.command =
        Some(vec!["/etc/passwd".into()]));
    assert_refused!(NoSuchCommand, "no command specified", |c| c.spec.command = None);
}

#[tokio::test]
async fn a_file_that_is_no_program() {
    assert_refused!(NoSuchCommand, "exec format error", |c| {
        let script = c.rootfs.join("bin/garbage");
        std::fs::write(&script, [0x7f, b'E', b'L', b'F', 0, 0]).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        c.spec.command = Some(vec!["garbage".into()]);
    });
    assert_refused!(NoSuchCommand, "interpreter", |c| {
        let script = c.rootfs.join("bin/script");
        std::fs::write(&script, "#!/no/such/shell\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        c.spec.command = Some(vec!["script".into()]);
        c.spec.init = Some(true);
    });
}

#[tokio::test]
async fn a_user_or_group_that_is_not_in_the_image() {
    assert_refused!(BadUser, "unable to find user nobody", |c| c.spec.user = Some("nobody".into()));
    assert_refused!(BadUser, "unable to find group wheel", |c| c.image.user = "web:wheel".into());
}

#[tokio::test]
async fn a_mount_that_cannot_be_made() {
    let bind = |path: &str, target: &str| Mount {
        target: target.into(),
        read_only: false,
        source: MountSource::Bind {
            path: path.into(),
            propagation: Propagation::RPrivate,
            recursive: true,
            create: false,
        },
    };
    assert_refused!(BadMount, "create /no/such/dir on the node", |c| c.spec.mounts =
        vec![bind("/no/such/dir", "/data")]);
    assert_refused!(BadMount, "", |c| c.spec.mounts = vec![bind("/tmp", "/etc/passwd")]);
}

#[tokio::test]
async fn privileges_over_the_node() {
    assert_refused!(BadRequest, "kernel.panic", |c| c.spec.sysctls =
        [("kernel.panic".to_owned(), "1".to_owned())].into());
    assert_refused!(BadRequest, "net.core.somaxconn", |c| c.spec.sysctls =
        [("net.core.somaxconn".to_owned(), "1".to_owned())].into());
    assert_refused!(BadRequest, "NO_SUCH_CAP", |c| c.spec.cap_add = vec!["NO_SUCH_CAP".into()]);
    assert_refused!(BadRequest, "is it plugged in?", |c| {
        c.spec.devices = vec![Device {
            host_path: "/dev/ttyUSB9".into(),
            container_path: "/dev/ttyUSB9".into(),
            permissions: "rw".into(),
        }];
    });
}

#[tokio::test]
async fn a_shim_that_cannot_be_run() {
    if let Some(why) = crate::support::unavailable() {
        println!("SKIPPED: {why}");
        return;
    }
    let node = crate::support::Node::new("/no/such/edged").await;
    let error = node.runtime.create(&node.shell("true")).await.unwrap_err();
    assert_eq!(error_line(&error), "cannot run /no/such/edged: No such file or directory (os error 2)");
    node.close().await;
}
