//! Stores that go on alone, or are set aside.

use std::fs;

use crate::store::{
    Store, StoreConfig, StoreError,
    tests::wires::{Group, has, leader, put},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_on_alone_with_all_that_its_log_has() {
    let mut group = Group::found(3).await;
    let first = group.store(1).clone();
    first.propose(put(&first.state(), 1, 10)).await.unwrap();
    // The others are lost, and this one still took in a change that nobody confirmed.
    group.wires.stop(2).await;
    group.wires.stop(3).await;
    let _ = first.propose(put(&first.state(), 2, 10)).await.unwrap_err();
    let config = group.wires.config(group.dirs[0].path(), 1);
    assert!(matches!(Store::force_alone(config.clone()).await, Err(StoreError::Locked { .. })));
    group.wires.stop(1).await;
    drop(first);

    let before = group.wires.open(group.dirs[0].path(), 1).await;
    assert!(before.read().await.is_err(), "there is no quorum");
    group.wires.stop(1).await;
    drop(before);
    group.stores.remove(0);
    let alone = Store::force_alone(config.clone()).await.unwrap();
    leader(&[&alone]).await;
    has(&alone, &[1, 2]).await;
    assert_eq!(alone.members().voters, [1].into());
    assert!(alone.members().learners.is_empty());
    alone.propose(put(&alone.state(), 3, 10)).await.unwrap();
    alone.shutdown().await;
    drop(alone);

    // Asked for again, nothing changes.
    let again = Store::force_alone(config).await.unwrap();
    leader(&[&again]).await;
    has(&again, &[1, 2, 3]).await;
    // It takes in others again.
    again.add_learner(4, "n4").await.unwrap();
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_a_cluster_cannot_go_on_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(dir.path().join("raft-1"), 1, "n1");
    assert!(matches!(Store::force_alone(config.clone()).await, Err(StoreError::Empty { .. })));
    assert!(!config.dir.exists());
    Store::open(config.clone()).await.unwrap().shutdown().await;
    assert!(matches!(Store::force_alone(config).await, Err(StoreError::Empty { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_the_folder_can_be_set_aside() {
    let parent = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(parent.path().join("raft-1"), 1, "n1");
    let log = config.dir.join("log-0000000000000001");
    for round in 1..=3_u32 {
        let store = Store::open(config.clone()).await.unwrap();
        crate::store::tests::wires::found(&store).await;
        for number in 0..10 {
            store.propose(put(&store.state(), number, 100)).await.unwrap();
        }
        assert!(matches!(Store::quarantine(&config.dir), Err(StoreError::Locked { .. })));
        store.shutdown().await;
        drop(store);
        let mut bytes = fs::read(&log).unwrap();
        bytes[200] ^= 1;
        fs::write(&log, &bytes).unwrap();
        let error = Store::open(config.clone()).await.map(drop).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { file, .. } if file == "log-0000000000000001"), "{error:?}");
        let aside = Store::quarantine(&config.dir).unwrap();
        assert_eq!(aside, parent.path().join(format!("raft-1.damaged-{round}")));
        assert_eq!(fs::read(aside.join("log-0000000000000001")).unwrap(), bytes);
        assert!(!config.dir.exists());
    }
    let mut left: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["raft-1.damaged-2", "raft-1.damaged-3"]);
}
