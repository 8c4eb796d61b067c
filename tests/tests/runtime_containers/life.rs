//! From creation to removal: states, exit codes, signals, and who may die meanwhile.

use crate::support::{Node, eventually};
use orchestrator::runtime::{ContainerState, RuntimeError};
use orchestrator_core::model::{Signal, TaskId};
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

#[tokio::test]
async fn a_container_is_created_started_and_ends_with_its_code() {
    let node = node!();
    let config = node.shell("echo out; echo err >&2; exit 7");
    node.runtime.create(&config).await.unwrap();
    assert!(matches!(node.state(config.task).await, ContainerState::Created { .. }));
    assert!(matches!(node.runtime.create(&config).await, Err(RuntimeError::AlreadyExists(_))));
    node.runtime.start(config.task).await.unwrap();
    assert_eq!(node.exit_code(config.task).await, 7);
    assert_eq!(node.log(config.task).await.lines().count(), 2);
    node.close().await;
}

#[tokio::test]
async fn starting_twice_is_fine_and_starting_nothing_is_not() {
    let node = node!();
    let config = node.container(&["sleep", "1000"]);
    node.run(&config).await;
    node.runtime.start(config.task).await.unwrap();
    assert!(matches!(node.runtime.start(TaskId(99)).await, Err(RuntimeError::NotFound(_))));
    node.close().await;
}

#[tokio::test]
async fn the_stop_signal_asks_and_the_kill_signal_ends() {
    let node = node!();
    let mut config = node.shell("trap 'exit 5' USR1; echo ready; while :; do sleep 0.02; done");
    config.image.stop_signal = Some(Signal::parse("USR1").unwrap());
    node.run(&config).await;
    node.await_output(config.task, "ready").await;
    node.runtime.stop(config.task).await.unwrap();
    assert_eq!(node.exit_code(config.task).await, 5);

    let deaf = node.shell("trap '' TERM; echo ready; while :; do sleep 0.02; done");
    node.run(&deaf).await;
    node.await_output(deaf.task, "ready").await;
    node.runtime.stop(deaf.task).await.unwrap();
    assert!(matches!(node.state(deaf.task).await, ContainerState::Running { .. }));
    node.runtime.signal(deaf.task, Signal::KILL).await.unwrap();
    match node.ended(deaf.task).await {
        ContainerState::Exited { code: 137, signal: Some(9), oom: false, started_at: Some(start), finished_at } => {
            assert!(start <= finished_at);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(node.runtime.signal(deaf.task, Signal::TERM).await, Err(RuntimeError::NotRunning(_))));
    node.close().await;
}

#[tokio::test]
async fn a_container_outlives_the_daemon_and_is_found_by_the_next() {
    let node = node!();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_shim"))
        .arg("daemon")
        .arg(node.path())
        .arg(&node.config.node_key)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let (task, status) = node.runtime.observe().await.unwrap().pop_first().unwrap();
    assert!(matches!(status.state, ContainerState::Running { .. }), "{status:?}");
    node.await_output(task, "ready").await;
    node.runtime.stop(task).await.unwrap();
    assert_eq!(node.exit_code(task).await, 3);
    assert_eq!(node.log(task).await, "ready\nbye\n");
    node.close().await;
}

#[tokio::test]
async fn an_end_that_no_daemon_saw_is_recorded() {
    let node = node!();
    let mut config = node.shell("read line; exit 4");
    config.spec.open_stdin = true;
    node.run(&config).await;
    drop(node.runtime.stdin(config.task).await.unwrap());
    let exit_file = node.config.run_dir.join(config.task.to_string()).join("exit.json");
    // The shim keeps standard input open for whoever comes next, so the end is brought about by a signal.
    let ContainerState::Running { pid, .. } = node.state(config.task).await else { panic!() };
    Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap();
    eventually("the exit is recorded", || exit_file.exists());
    let next = Node::at(node.path(), &node.config.node_key, env!("CARGO_BIN_EXE_shim")).await;
    assert_eq!(next.exit_code(config.task).await, 137);
    node.close().await;
}

#[tokio::test]
async fn a_container_whose_shim_was_killed_is_reported_and_can_be_removed() {
    let node = node!();
    let config = node.container(&["sleep", "1000"]);
    node.run(&config).await;
    let ContainerState::Running { pid, .. } = node.state(config.task).await else { panic!() };
    let record = fs::read_to_string(node.config.run_dir.join(config.task.to_string()).join("shim.pid")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    Command::new("kill").args(["-9", &record["pid"].to_string()]).status().unwrap();
    match node.ended(config.task).await {
        ContainerState::Broken { pid: Some(orphan), .. } => assert_eq!(orphan, pid),
        other => panic!("{other:?}"),
    }
    node.runtime.delete(config.task).await.unwrap();
    eventually("the process is gone", || !fs::exists(format!("/proc/{pid}/cmdline")).unwrap());
    node.close().await;
}

#[tokio::test]
async fn logs_stay_after_removal_until_they_are_forgotten() {
    let node = node!();
    let config = node.shell("echo kept");
    node.run(&config).await;
    node.exit_code(config.task).await;
    node.runtime.delete(config.task).await.unwrap();
    node.runtime.delete(config.task).await.unwrap();
    assert_eq!(node.log(config.task).await, "kept\n");
    assert!(node.runtime.traces().await.unwrap().contains(&config.task));
    node.runtime.forget(config.task).await.unwrap();
    assert!(node.runtime.traces().await.unwrap().is_empty());
    node.close().await;
}

#[tokio::test]
async fn init_reaps_orphans_passes_signals_on_and_ends_as_its_program() {
    let node = node!();
    let mut config = node.shell("trap 'exit 6' TERM; (sleep 0.01 &); echo ready; while :; do sleep 0.02; done");
    config.spec.init = Some(true);
    node.run(&config).await;
    node.await_output(config.task, "ready").await;
    let ContainerState::Running { pid, .. } = node.state(config.task).await else { panic!() };
    eventually("the orphan is reaped", || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().count() == 1
    });
    node.runtime.stop(config.task).await.unwrap();
    assert_eq!(node.exit_code(config.task).await, 6);
    node.close().await;
}

#[tokio::test]
async fn twenty_containers_live_side_by_side() {
    let node = node!();
    let configs: Vec<_> = (0..20).map(|n| node.shell(&format!("echo {n}; read line; exit {n}"))).collect();
    let mut all = tokio::task::JoinSet::new();
    for mut config in configs.clone() {
        let runtime = node.runtime.clone();
        config.spec.open_stdin = true;
        all.spawn(async move {
            runtime.create(&config).await.unwrap();
            runtime.start(config.task).await.unwrap();
            let mut stdin = runtime.stdin(config.task).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n").await.unwrap();
        });
    }
    all.join_all().await;
    for (n, config) in configs.iter().enumerate() {
        assert_eq!(node.exit_code(config.task).await, i32::try_from(n).unwrap());
        assert_eq!(node.log(config.task).await, format!("{n}\n"));
    }
    node.close().await;
}
