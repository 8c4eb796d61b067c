//! A full disk: the store says so, keeps what it has, and goes on when there is room.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use orchestrator::store::{Health, ProposeError};
use rustix::mount::{MountFlags, mount};

use crate::common::{Group, entry, found, founding, leads, node, numbers, open, until};

const CHILD: &str = "EDGE_TEST_STORE_FULL";

/// The disk is a small tmpfs in a mount namespace that ends with the child.
#[test]
fn on_a_full_disk_the_store_is_read_only_until_there_is_room() {
    in_a_mount_namespace("full::the_child", "filled and emptied");
}

fn in_a_mount_namespace(test: &str, says: &str) {
    let dir = tempfile::tempdir().unwrap();
    let unshare = Command::new("unshare").args(["--mount", "--propagation", "private", "true"]).output();
    if !unshare.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: unshare(1) cannot make a mount namespace; run as root");
        return;
    }
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains(says), "{output}");
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

/// The same with two more members, whose disks have room.
#[test]
fn a_leader_with_a_full_disk_lets_another_one_lead_and_follows_it_when_there_is_room() {
    in_a_mount_namespace("full::the_child_with_others", "led and followed");
}

/// Not a test of its own, as above.
#[tokio::test(flavor = "multi_thread")]
async fn the_child_with_others() {
    let Some(dir) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    mount("none", &small, "tmpfs", MountFlags::empty(), Some(c"size=16m")).unwrap();
    let group = Group::default();
    let first = group.open(&small.join("store"), 1).await;
    first.initialize(founding()).await.unwrap();
    let mut others = Vec::new();
    for id in [2, 3] {
        others.push(group.open(&dir.join(format!("store-{id}")), id).await);
        first.add_learner(id, format!("n{id}")).await.unwrap();
        until(async || first.make_voter(id).await.is_ok()).await;
    }
    let ballast = fill(&small);

    // It fills its last segment, or hands over before: either way somebody else leads in the end.
    let mut last = 0;
    let started = std::time::Instant::now();
    loop {
        match first.propose(entry([node(last, 50_000)])).await {
            Ok(_) => last += 1,
            // One that was under way while the lead went over is there already, or is proposed once more.
            Err(ProposeError::ReadOnly { .. } | ProposeError::Timeout) => {
                assert!(started.elapsed() < Duration::from_secs(30), "it leads on");
                // Between two proposals.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(ProposeError::NotLeader { .. }) => break,
            Err(error) => panic!("after {last} entries: {error:?}"),
        }
    }
    let leading = || others.iter().find(|store| store.leadership().borrow().is_some());
    until(async || leading().is_some()).await;
    let new = leading().expect("it just did");
    let there = numbers(&first.state()).len();
    assert!(there >= 30, "only {there} entries are there");
    // Much more than the full disk has room for.
    for number in last..last + 100 {
        new.propose(entry([node(number, 50_000)])).await.unwrap();
    }
    assert!(matches!(&*first.health().borrow(), Health::ReadOnly { .. }), "{:?}", first.health().borrow());
    assert!(numbers(&first.state()).len() >= there);
    assert!(new.leadership().borrow().is_some(), "it lost the lead to the one with the full disk");

    fs::remove_file(ballast).unwrap();
    until(async || numbers(&first.state()) == (0..last + 100).collect::<Vec<_>>()).await;
    assert_eq!(*first.health().borrow(), Health::Writable);
    println!("led and followed");
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
