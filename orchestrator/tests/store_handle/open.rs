//! The store as its callers see it: founding, proposing, reading, and opening again what is there, whole or damaged.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::common::{RAFT_ID, entry, found, founding, leads, node, numbers, open};
use orchestrator::store::{InitializeError, ProposeError, ReadError, Store, StoreConfig, StoreError};
use orchestrator_core::state::Applied;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    for number in 0..20 {
        let outcome = store.propose(entry([node(number, 10)])).await.unwrap();
        assert!(matches!(outcome, Applied::Done { revision } if revision == store.state().revision));
    }
    let before = store.read().await.unwrap();
    store.shutdown().await;
    drop(store);

    let store = open(dir.path()).await;
    leads(&store).await;
    assert_eq!(*store.state(), *before);
    assert_eq!(numbers(&before), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_leads_without_waiting_for_an_election() {
    let dir = tempfile::tempdir().unwrap();
    found(dir.path()).await.shutdown().await;
    let started = Instant::now();
    let store = open(dir.path()).await;
    leads(&store).await;
    assert!(started.elapsed() < Duration::from_millis(1000), "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_before_its_cluster_takes_no_proposals() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert!(!store.is_initialized());
    assert_eq!(store.propose(entry([node(1, 0)])).await, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(store.read().await, Err(ReadError::NotLeader { leader: None }));
    assert_eq!(*store.leadership().borrow(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_founded_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    assert!(store.is_initialized());
    assert!(matches!(store.initialize(founding()).await, Err(InitializeError::AlreadyInitialized)));
    store.shutdown().await;
    drop(store);
    let store = open(dir.path()).await;
    assert!(matches!(store.initialize(founding()).await, Err(InitializeError::AlreadyInitialized)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_guard_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    store.propose(entry([node(1, 0)])).await.unwrap();
    let outcome = store.propose(entry([node(2, 0), node(1, 5)])).await.unwrap();
    assert!(matches!(outcome, Applied::Conflict { expected: 0, .. }), "{outcome:?}");
    assert_eq!(numbers(&store.state()), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_larger_than_a_segment_is_taken_and_one_above_the_limit_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    let refused = store.propose(entry([node(1, 9_000_000)])).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { bytes }) if bytes > 9_000_000));
    for number in 1..4 {
        store.propose(entry([node(number, 4_000_000)])).await.unwrap();
    }
    store.propose(entry([node(4, 10)])).await.unwrap();
    let before = store.state();
    store.shutdown().await;
    let store = open(dir.path()).await;
    leads(&store).await;
    assert_eq!(*store.state(), *before);
    assert_eq!(numbers(&before), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_the_newest_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    let mut states = store.watch();
    let proposer = store.clone();
    let proposals = tokio::spawn(async move {
        for number in 0..10 {
            proposer.propose(entry([node(number, 0)])).await.unwrap();
        }
    });
    let all = tokio::time::timeout(Duration::from_secs(20), states.wait_for(|state| state.nodes.len() == 10)).await;
    assert_eq!(numbers(&all.unwrap().unwrap()), (0..10).collect::<Vec<_>>());
    proposals.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_serves_one_process_and_one_member() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    let second = Store::open(StoreConfig::new(dir.path(), RAFT_ID, "n1")).await;
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    store.shutdown().await;
    assert_eq!(store.propose(entry([node(1, 0)])).await, Err(ProposeError::ShutDown));
    let other = Store::open(StoreConfig::new(dir.path(), RAFT_ID + 1, "n1")).await;
    assert!(matches!(other, Err(StoreError::Foreign { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_store_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    store.propose(entry([node(1, 0)])).await.unwrap();
    let before = (store.metrics().written, modified(dir.path()));
    // Sixteen heartbeats and more than the longest election timeout.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((store.metrics().written, modified(dir.path())), before);
    assert_eq!(store.metrics().term, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_and_leading_again_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    found(dir.path()).await.shutdown().await;
    let before = modified(dir.path());
    let store = open(dir.path()).await;
    leads(&store).await;
    assert_eq!((store.metrics().written.total(), modified(dir.path())), (0, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_follow_the_size_of_the_log_and_bound_it() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled_with_snapshots(dir.path()).await;
    let names = file_names(dir.path());
    assert_eq!(names.iter().filter(|name| name.starts_with("snapshot-")).count(), 2, "{names:?}");
    assert!(!names.contains(&"log-0000000000000001".into()), "the oldest log is kept: {names:?}");
    let total: u64 = names.iter().map(|name| fs::metadata(dir.path().join(name)).unwrap().len()).sum();
    assert!(total < 10 << 20, "{total} bytes in {names:?}");

    let store = open(dir.path()).await;
    leads(&store).await;
    assert_eq!(numbers(&store.state()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_made_up_for_by_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled_with_snapshots(dir.path()).await;
    let newest = file_names(dir.path()).into_iter().rfind(|name| name.starts_with("snapshot-")).unwrap();
    flip(&dir.path().join(&newest), 1000);
    let store = open(dir.path()).await;
    leads(&store).await;
    assert_eq!(numbers(&store.state()), before);
    assert_eq!(store.metrics().damaged_snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_damaged_snapshots_are_refused_and_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    filled_with_snapshots(dir.path()).await;
    for name in file_names(dir.path()).into_iter().filter(|name| name.starts_with("snapshot-")) {
        flip(&dir.path().join(name), 1000);
    }
    let before = file_names(dir.path());
    let refused = Store::open(StoreConfig::new(dir.path(), RAFT_ID, "n1")).await;
    assert!(matches!(&refused, Err(StoreError::Corrupt { file, .. }) if file.starts_with("snapshot-")));
    assert_eq!(file_names(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_damaged_in_the_middle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = found(dir.path()).await;
    for number in 0..3 {
        store.propose(entry([node(number, 300)])).await.unwrap();
    }
    store.shutdown().await;
    let log = dir.path().join("log-0000000000000001");
    let place = fs::read(&log).unwrap().windows(20).position(|bytes| bytes == [b'x'; 20]).unwrap();
    flip(&log, place);
    let refused = Store::open(StoreConfig::new(dir.path(), RAFT_ID, "n1")).await;
    assert!(matches!(&refused, Err(StoreError::Corrupt { file, offset, .. })
        if file == "log-0000000000000001" && (place as u64 - 100..place as u64).contains(offset)));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_without_their_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled_with_snapshots(dir.path()).await;
    for name in file_names(dir.path()).into_iter().filter(|name| name.starts_with("log-")) {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let before = file_names(dir.path());
    for _ in 0..2 {
        let refused = Store::open(StoreConfig::new(dir.path(), RAFT_ID, "n1")).await;
        assert!(matches!(&refused, Err(StoreError::Corrupt { file, .. }) if file == "log-0000000000000001"));
        assert_eq!(file_names(dir.path()), before);
    }
}

/// Fills a store in `dir` until it has removed old log; returns the numbers of its nodes.
async fn filled_with_snapshots(dir: &Path) -> Vec<u128> {
    let store = found(dir).await;
    let oldest = dir.join("log-0000000000000001");
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut number = 0;
    while oldest.exists() {
        assert!(Instant::now() < deadline, "no old log was removed: {:?} {:?}", store.metrics(), file_names(dir));
        // Sixteen numbers in turn, deleted again, so that the state stays small beside the log.
        let state = store.state();
        let mut change = entry([node(number, 40_000)]);
        if number >= 8 {
            let key = orchestrator_core::state::Key::Node(orchestrator_core::model::NodeId(number - 8));
            change.changes.push(state.delete_change(key));
        }
        store.propose(change).await.unwrap();
        number += 1;
    }
    let numbers = numbers(&store.state());
    store.shutdown().await;
    numbers
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn modified(dir: &Path) -> Vec<(String, std::time::SystemTime)> {
    let at = |name: &String| fs::metadata(dir.join(name)).unwrap().modified().unwrap();
    file_names(dir).into_iter().map(|name| (name.clone(), at(&name))).collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}
