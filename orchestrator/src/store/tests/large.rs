//! Entries and states larger than what a request, or a heartbeat's time, has room for.

use std::sync::{Arc, atomic::Ordering};

use tempfile::TempDir;
use tokio::time::Instant;

use crate::store::{
    ProposeError,
    tests::wires::{Group, Wires, add, found, has, leader, put},
};

/// What the transport takes, less what its frames add.
const FRAME: usize = (8 << 20) - 4096;

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_entries_reach_everyone_in_requests_of_bounded_size() {
    let group = Group::found(3).await;
    let first = group.store(1);
    for number in 0..3 {
        // Three members that share a busy disk may be too slow to confirm it in time; it has to arrive all the same.
        match first.propose(put(&first.state(), number, 8_300_000)).await {
            Ok(_) | Err(ProposeError::Timeout) => has(first, &(0..=number).collect::<Vec<_>>()).await,
            Err(error) => panic!("{error:?}"),
        }
        leader(&[first]).await;
    }
    for store in &group.stores {
        has(store, &[0, 1, 2]).await;
    }
    let largest = group.wires.largest.load(Ordering::Relaxed);
    assert!(largest < FRAME, "a request of {largest} bytes");
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_entry_crosses_a_slow_network_and_unseats_nobody() {
    let group = Group::found(3).await;
    let first = group.store(1);
    let term = first.leadership().borrow().unwrap().term;
    // 3 MB at 1 MB/s: twice the time after which followers elect.
    group.wires.limit(1_000_000);
    let started = Instant::now();
    first.propose(put(&first.state(), 1, 3_000_000)).await.unwrap();
    println!("3 MB at 1 MB/s took {:?}", started.elapsed());
    for store in &group.stores {
        has(store, &[1]).await;
    }
    assert_eq!(first.leadership().borrow().map(|now| now.term), Some(term));
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_state_reaches_a_new_member_in_parts() {
    let dirs: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let wires = Arc::new(Wires::default());
    let first = wires.open(dirs[0].path(), 1).await;
    found(&first).await;
    let oldest = dirs[0].path().join("log-0000000000000001");
    let mut number = 0;
    while oldest.exists() {
        assert!(number < 400, "no log was purged");
        first.propose(put(&first.state(), number % 10, 500_000)).await.unwrap();
        number += 1;
    }
    wires.limit(20_000_000);
    let second = wires.open(dirs[1].path(), 2).await;
    add(&first, 2).await;
    has(&second, &(0..10).collect::<Vec<_>>()).await;
    assert!(second.metrics().written.snapshot > 5_000_000, "{:?}", second.metrics());
    let largest = wires.largest.load(Ordering::Relaxed);
    assert!(largest < FRAME, "a request of {largest} bytes");
    wires.close().await;
}
