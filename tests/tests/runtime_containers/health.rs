//! Health checks, run inside.

use crate::support::Node;
use orchestrator::runtime::HealthStatus;
use orchestrator_core::model::{HealthCheck, HealthTest, Millis, TaskId};
use std::time::Duration;

fn check(line: &str) -> HealthCheck {
    HealthCheck {
        interval: Millis(50),
        timeout: Millis(400),
        retries: 2,
        ..HealthCheck::new(HealthTest::Shell(line.into()))
    }
}

/// Waits until the health is this.
async fn becomes(node: &Node, task: TaskId, wanted: HealthStatus) {
    let mut changes = node.runtime.changes();
    let wait = async {
        while node.status(task).await.health.unwrap().status != wanted {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn health_follows_the_check() {
    let node = node!();
    let mut config = node.container(&["sleep", "1000"]);
    config.image.health = Some(check("echo looking; test -e /tmp/works"));
    node.runtime.create(&config).await.unwrap();
    assert_eq!(node.status(config.task).await.health.unwrap().status, HealthStatus::Starting);
    node.runtime.start(config.task).await.unwrap();
    becomes(&node, config.task, HealthStatus::Unhealthy).await;
    let health = node.status(config.task).await.health.unwrap();
    assert_eq!((health.log[0].exit_code, health.log[0].output.as_str()), (1, "looking\n"));
    std::fs::write(node.rootfs().join("tmp/works"), "").unwrap();
    becomes(&node, config.task, HealthStatus::Healthy).await;

    // A restarted daemon does not begin anew.
    let next = Node::at(node.path(), &node.config.node_key, env!("CARGO_BIN_EXE_shim")).await;
    assert_eq!(next.status(config.task).await.health.unwrap().status, HealthStatus::Healthy);
    std::fs::remove_file(node.rootfs().join("tmp/works")).unwrap();
    becomes(&next, config.task, HealthStatus::Unhealthy).await;
    node.close().await;
}

#[tokio::test]
async fn a_check_that_hangs_has_failed() {
    let node = node!();
    let mut config = node.container(&["sleep", "1000"]);
    config.spec.health = Some(HealthCheck { retries: 1, ..check("echo stuck; sleep 100") });
    node.run(&config).await;
    becomes(&node, config.task, HealthStatus::Unhealthy).await;
    let health = node.status(config.task).await.health.unwrap();
    assert_eq!(
        (health.log[0].exit_code, health.log[0].output.as_str()),
        (-1, "Health check exceeded timeout (400ms): stuck\n")
    );
    node.close().await;
}

#[tokio::test]
async fn the_user_can_switch_the_check_of_an_image_off() {
    let node = node!();
    let mut config = node.container(&["sleep", "1000"]);
    config.image.health = Some(check("false"));
    config.spec.health = Some(HealthCheck::new(HealthTest::None));
    node.run(&config).await;
    assert_eq!(node.status(config.task).await.health, None);
    node.close().await;
}
