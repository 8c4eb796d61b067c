//! From creation to removal: states, exit codes, signals, and who may die meanwhile.

use crate::support::{Node, unavailable};
use orchestrator::runtime::{ContainerState, RuntimeError};
use orchestrator_core::model::Signal;

macro_rules! node {
    () => {{
        if let Some(why) = unavailable() {
            println!("SKIPPED: {why}");
            return;
        }
        Node::new().await
    }};
}

#[tokio::test]
async fn a_container_is_created_started_and_ends_with_its_code() {
    let node = node!();
    let config = node.shell("echo out; echo err >&2; exit 7");
    node.runtime.create(&config).await.unwrap();
    assert!(matches!(node.state(config.task).await, ContainerState::Created { .. }));
    assert!(matches!(node.runtime.create(&config).await, Err(RuntimeError::AlreadyExists(_))));
    node.runtime.start(config.task).await.unwrap();
    assert_eq!(node.exit_code(config.task).await, 7);
    assert_eq!(node.log(config.task).lines().count(), 2);
    node.close().await;
}

#[tokio::test]
async fn a_signal_ends_it_and_shows_in_the_exit_code() {
    let node = node!();
    let config = node.container(&["sleep", "1000"]);
    node.run(&config).await;
    assert!(matches!(node.state(config.task).await, ContainerState::Running { .. }));
    node.runtime.signal(config.task, Signal::KILL).await.unwrap();
    match node.ended(config.task).await {
        ContainerState::Exited { code: 137, signal: Some(9), oom: false, .. } => {}
        other => panic!("{other:?}"),
    }
    node.close().await;
}
