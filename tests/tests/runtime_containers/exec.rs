//! Programs run inside running containers.

use crate::support::Node;
use orchestrator::runtime::{ExecSpec, RuntimeError, Stream};
use orchestrator_core::model::TaskId;
use tokio::io::AsyncWriteExt;

async fn running(node: &Node) -> TaskId {
    let mut config = node.container(&["sleep", "1000"]);
    config.spec.env = vec!["OF=container".into()];
    node.run(&config).await;
    config.task
}

fn shell(line: &str) -> ExecSpec {
    ExecSpec { args: ["sh", "-c", line].map(Into::into).into(), ..ExecSpec::default() }
}

/// Exit code, standard output, standard error.
async fn run(node: &Node, task: TaskId, exec: ExecSpec, input: &[u8]) -> (i32, String, String) {
    let mut session = node.runtime.exec(task, exec).await.unwrap();
    if let Some(mut stdin) = session.stdin.take() {
        stdin.write_all(input).await.unwrap();
        stdin.shutdown().await.unwrap();
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(piece) = session.output.next().await {
        match piece.unwrap() {
            (Stream::Stdout, bytes) => out.extend(bytes),
            (Stream::Stderr, bytes) => err.extend(bytes),
        }
    }
    let code = session.exit.wait().await.unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[tokio::test]
async fn streams_and_exit_code_come_back() {
    let node = node!();
    let task = running(&node).await;
    let exec =
        ExecSpec { stdin: true, env: vec!["MORE=1".into()], ..shell("cat; echo $OF $MORE; echo no >&2; exit 9") };
    assert_eq!(run(&node, task, exec, b"typed\n").await, (9, "typed\ncontainer 1\n".into(), "no\n".into()));
    assert_eq!(run(&node, task, shell("kill -9 $$"), b"").await.0, 137);
    let big = run(&node, task, shell("head -c 1000000 /dev/zero | tr '\\0' x"), b"").await;
    assert_eq!(big.1.len(), 1_000_000);
    node.close().await;
}

#[tokio::test]
async fn user_and_folder_can_be_chosen() {
    let node = node!();
    let task = running(&node).await;
    let exec = ExecSpec { user: Some("web".into()), workdir: Some("/tmp".into()), ..shell("id -u; id -G; pwd") };
    assert_eq!(run(&node, task, exec, b"").await, (0, "33\n34 44\n/tmp\n".into(), String::new()));
    node.close().await;
}

#[tokio::test]
async fn the_program_has_the_containers_limits_and_filter() {
    let node = node!();
    let task = running(&node).await;
    let status = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";
    let (_, plain, _) = run(&node, task, shell(status), b"").await;
    assert_eq!(plain, "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n");
    let user = ExecSpec { user: Some("web".into()), ..shell(status) };
    let (_, user, _) = run(&node, task, user, b"").await;
    assert_eq!(user, "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n");
    let all = ExecSpec {
        privileged: true,
        ..shell("grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted")
    };
    assert_eq!(run(&node, task, all, b"").await.1, "Seccomp:\t0\nmounted\n");
    let (_, groups, _) = run(&node, task, shell("cat /proc/self/cgroup"), b"").await;
    assert!(groups.contains(&task.to_string()), "{groups}");
    node.close().await;
}

#[tokio::test]
async fn a_terminal_is_one_and_can_be_resized() {
    let node = node!();
    let task = running(&node).await;
    let exec = ExecSpec {
        tty: true,
        stdin: true,
        size: Some((30, 90)),
        ..shell("stty size; tty; read line; stty size; echo $TERM; exit 2")
    };
    let mut session = node.runtime.exec(task, exec).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("/dev/pts/") {
        seen.extend(session.output.next().await.unwrap().unwrap().1);
    }
    session.terminal.as_ref().unwrap().resize(40, 120).unwrap();
    session.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    while let Some(Ok((_, bytes))) = session.output.next().await {
        seen.extend(bytes);
    }
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.starts_with("30 90\r\n/dev/pts/") && seen.ends_with("40 120\r\nxterm\r\n"), "{seen:?}");
    assert_eq!(session.exit.wait().await.unwrap(), 2);
    node.close().await;
}

#[tokio::test]
async fn a_container_can_have_a_terminal_of_its_own() {
    let node = node!();
    let mut config = node.shell("tty; stty size; read line; stty size; echo got $line");
    config.spec.tty = true;
    config.spec.open_stdin = true;
    node.run(&config).await;
    node.await_output(config.task, "24 80").await;
    node.runtime.resize(config.task, 50, 132).await.unwrap();
    node.runtime.stdin(config.task).await.unwrap().write_all(b"word\n").await.unwrap();
    assert_eq!(node.exit_code(config.task).await, 0);
    let log = node.log(config.task).await;
    assert!(log.starts_with("/dev/console\r\n24 80\r\n") || log.starts_with("/dev/pts/0\r\n24 80\r\n"), "{log:?}");
    assert!(log.ends_with("50 132\r\ngot word\r\n"), "{log:?}");
    node.close().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused() {
    let node = node!();
    let task = running(&node).await;
    let exec = |args: &[&str]| ExecSpec { args: args.iter().map(|s| (*s).into()).collect(), ..ExecSpec::default() };
    let error = node.runtime.exec(task, exec(&["foo"])).await.unwrap_err();
    assert!(error.to_string().contains("exec: \"foo\": executable file not found in $PATH"), "{error:?}");
    let nobody = ExecSpec { user: Some("nobody".into()), ..exec(&["true"]) };
    assert!(matches!(node.runtime.exec(task, nobody).await, Err(RuntimeError::BadUser { .. })));
    assert!(matches!(node.runtime.exec(TaskId(99), exec(&["true"])).await, Err(RuntimeError::NotFound(_))));

    let created = node.shell("true");
    node.runtime.create(&created).await.unwrap();
    assert!(matches!(node.runtime.exec(created.task, exec(&["true"])).await, Err(RuntimeError::NotRunning(_))));
    node.runtime.start(created.task).await.unwrap();
    node.exit_code(created.task).await;
    assert!(matches!(node.runtime.exec(created.task, exec(&["true"])).await, Err(RuntimeError::NotRunning(_))));
    node.close().await;
}

#[tokio::test]
async fn sessions_end_with_the_container() {
    let node = node!();
    let task = running(&node).await;
    let mut session = node.runtime.exec(task, shell("sleep 1000")).await.unwrap();
    node.runtime.signal(task, orchestrator_core::model::Signal::KILL).await.unwrap();
    assert_eq!(session.exit.wait().await.unwrap(), 137);
    assert_eq!(node.exit_code(task).await, 137);
    node.close().await;
}
