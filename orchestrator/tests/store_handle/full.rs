//! A full disk: the store says so, keeps what it has, and goes on when there is room.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use orchestrator::store::{Health, ProposeError};
use rustix::mount::{MountFlags, mount};

use crate::common::{entry, found, leads, node, numbers, open};

const CHILD: &str = "EDGE_TEST_STORE_FULL";

/// The disk is a small tmpfs in a mount namespace that ends with the child.
#[test]
fn on_a_full_disk_the_store_is_read_only_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let unshare = Command::new("unshare").args(["--mount", "--propagation", "private", "true"]).output();
    if !unshare.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: unshare(1) cannot make a mount namespace; run as root");
        return;
    }
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "full::the_child", "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("filled and emptied"), "{output}");
}

/// Not a test of its own: what the test above runs in another process.
#[tokio::test(flavor = "multi_thread")]
async fn the_child() {
    let Some(dir) = env::var_os(CHILD).map(PathBuf::from) else { return };
    mount("none", &dir, "tmpfs", MountFlags::empty(), Some(c"size=16m")).unwrap();
    let at = dir.join("store");
    let store = found(&at).await;
    let ballast = fill(&dir);

    // Snapshots fail for want of room as well, and the log goes on until its segment is full and no spare can be made.
    let mut last = 0;
    let reason = loop {
        match store.propose(entry([node(last, 50_000)])).await {
            Ok(_) => last += 1,
            Err(ProposeError::ReadOnly { reason }) => break reason,
            Err(error) => panic!("after {last} entries: {error:?}"),
        }
        assert!(last < 200, "ten MiB were written to a full disk");
    };
    assert!(reason.contains("No space left on device"), "{reason}");
    assert!(last >= 30, "only {last} entries fit the two segments that were there");
    assert_eq!(numbers(&store.read().await.unwrap()), (0..last).collect::<Vec<_>>());

    // A restart on a full disk changes nothing.
    store.shutdown().await;
    let store = open(&at).await;
    leads(&store).await;
    assert_eq!(numbers(&store.state()), (0..last).collect::<Vec<_>>());
    let mut health = store.health();
    let read_only = health.wait_for(|health| matches!(health, Health::ReadOnly { .. }));
    tokio::time::timeout(Duration::from_secs(20), read_only).await.unwrap().unwrap();

    fs::remove_file(ballast).unwrap();
    let writable = health.wait_for(|health| *health == Health::Writable);
    tokio::time::timeout(Duration::from_secs(20), writable).await.unwrap().unwrap();
    store.propose(entry([node(last, 50_000)])).await.unwrap();
    store.shutdown().await;
    let store = open(&at).await;
    leads(&store).await;
    assert_eq!(numbers(&store.state()), (0..=last).collect::<Vec<_>>());
    println!("filled and emptied");
}

/// Takes all the room there is.
fn fill(dir: &Path) -> PathBuf {
    let ballast = dir.join("ballast");
    let mut size = 16 << 20;
    let file = fs::File::create(&ballast).unwrap();
    let mut at = 0;
    while size >= 4096 {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, size) {
            Ok(()) => at += size,
            Err(_) => size /= 2,
        }
    }
    ballast
}
