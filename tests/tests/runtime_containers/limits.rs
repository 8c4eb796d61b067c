//! Limits hold, are visible, and what ran into them is told.

use orchestrator::runtime::ContainerState;
use orchestrator_core::model::Resources;

#[tokio::test]
async fn a_container_that_takes_too_much_memory_is_killed_and_says_so() {
    let node = node!();
    let mut config = node
        .shell("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; tail /dev/zero");
    config.resources.limit_memory_bytes = 32 << 20;
    node.run(&config).await;
    match node.ended(config.task).await {
        ContainerState::Exited { code: 137, oom: true, .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(node.log(config.task).await.starts_with("33554432\n"));
    node.close().await;
}

#[tokio::test]
async fn the_number_of_processes_is_limited() {
    let node = node!();
    let mut config = node.shell("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all");
    config.resources.limit_pids = 5;
    let (_, output) = node.output(&config).await;
    assert!(output.contains("can't fork"), "{output}");

    let plain = node.container(&["sleep", "1000"]);
    node.run(&plain).await;
    // Helpers of the start may still be on their way out of the group.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let stats = loop {
        let stats = node.runtime.stats(plain.task).await.unwrap();
        if stats.pids == 1 || std::time::Instant::now() > deadline {
            break stats;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((stats.pids, stats.pids_limit), (1, Some(Resources::DEFAULT_PIDS)));
    node.close().await;
}

#[tokio::test]
async fn processor_time_is_limited() {
    let node = node!();
    let mut config = node.shell(
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max; sleep 1000",
    );
    config.resources.limit_nano_cpus = 250_000_000;
    node.run(&config).await;
    node.await_output(config.task, "25000\n").await;
    node.close().await;
}

#[tokio::test]
async fn use_is_counted() {
    let node = node!();
    let config = node.shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; sleep 1000");
    node.run(&config).await;
    node.await_output(config.task, "ready").await;
    let stats = node.runtime.stats(config.task).await.unwrap();
    assert!(stats.cpu_nanos > 1_000_000 && stats.cpu_nanos < stats.machine_cpu_nanos, "{stats:?}");
    assert!(stats.memory_bytes > 4096 && stats.memory_limit_bytes.is_none() && stats.machine_cpus > 0, "{stats:?}");
    node.close().await;
}
