//! Reading what containers wrote.

use orchestrator::runtime::{LogQuery, RuntimeError, Stream};
use orchestrator_core::model::TaskId;

#[tokio::test]
async fn streams_times_and_tails_can_be_chosen() {
    let node = node!();
    let config = node.shell("echo one; echo two >&2; echo three; printf four");
    node.run(&config).await;
    node.exit_code(config.task).await;
    let task = config.task;
    assert_eq!(node.read_log(task, LogQuery { stderr: false, ..LogQuery::default() }).await, "one\nthree\nfour");
    assert_eq!(node.read_log(task, LogQuery { stdout: false, ..LogQuery::default() }).await, "two\n");
    assert_eq!(
        node.read_log(task, LogQuery { stderr: false, tail: Some(2), ..LogQuery::default() }).await,
        "three\nfour"
    );
    assert_eq!(node.read_log(task, LogQuery { tail: Some(0), ..LogQuery::default() }).await, "");

    let mut logs = node.runtime.logs(task, LogQuery::default()).await.unwrap();
    let first = logs.next().await.unwrap().unwrap();
    assert!(first.unix_nanos > 1_700_000_000_000_000_000 && matches!(first.stream, Stream::Stdout | Stream::Stderr));
    let none = LogQuery { until_nanos: Some(first.unix_nanos - 1), ..LogQuery::default() };
    assert_eq!(node.read_log(task, none).await, "");
    let all = LogQuery { since_nanos: Some(first.unix_nanos), ..LogQuery::default() };
    assert_eq!(node.read_log(task, all).await.len(), "one\ntwo\nthree\nfour".len());
    assert!(matches!(node.runtime.logs(TaskId(99), LogQuery::default()).await, Err(RuntimeError::NotFound(_))));
    node.close().await;
}

#[tokio::test]
async fn following_goes_on_through_rotation_until_the_container_ends() {
    let node = node!();
    let mut config = node.shell(
        "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; [ $((i % 100)) = 0 ] && sleep 0.03; done; true",
    );
    config.spec.log.max_bytes = 4096;
    config.spec.log.max_files = 4;
    node.runtime.create(&config).await.unwrap();
    let mut logs = node.runtime.logs(config.task, LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
    node.runtime.start(config.task).await.unwrap();
    let mut all = String::new();
    while let Some(line) = logs.next().await {
        all += &String::from_utf8(line.unwrap().bytes).unwrap();
    }
    assert_eq!(all, (1..=2000).map(|i| format!("line {i}\n")).collect::<String>());
    assert_eq!(node.exit_code(config.task).await, 0);

    // What is kept is the end, in as many files as are allowed.
    let kept = node.log(config.task).await;
    assert!(kept.len() < all.len() && all.ends_with(&kept), "{kept}");
    let files = std::fs::read_dir(node.config.state_dir.join(config.task.to_string()).join("logs")).unwrap().count();
    assert_eq!(files, 4);
    node.close().await;
}

#[tokio::test]
async fn a_tail_is_followed_by_what_comes() {
    let node = node!();
    let mut config = node.shell("echo old; echo last; read line; echo $line");
    config.spec.open_stdin = true;
    node.run(&config).await;
    node.await_output(config.task, "last").await;
    let query = LogQuery { follow: true, tail: Some(1), ..LogQuery::default() };
    let mut logs = node.runtime.logs(config.task, query).await.unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap().bytes, b"last\n");
    let mut stdin = node.runtime.stdin(config.task).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"new\n").await.unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap().bytes, b"new\n");
    assert!(logs.next().await.is_none());
    node.close().await;
}
