//! Stores that go on alone, or are set aside.

use std::{
    fs,
    path::{Path, PathBuf},
};

use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, Vote,
    raft::{AppendEntriesRequest, VoteRequest},
};

use crate::store::{
    Store, StoreConfig, StoreError,
    network::{Message, Request},
    tests::wires::{Group, add, found, has, leader, numbers, put},
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
    let parent = tempfile::tempdir().unwrap();
    let forced = |config| Store::force_alone(config, place(parent.path()));
    assert!(matches!(forced(config.clone()).await, Err(StoreError::Locked { .. })));
    group.wires.stop(1).await;
    drop(first);

    let before = group.wires.open(group.dirs[0].path(), 1).await;
    assert!(before.read().await.is_err(), "there is no quorum");
    group.wires.stop(1).await;
    drop(before);
    group.stores.remove(0);
    let alone = forced(config.clone()).await.unwrap();
    leader(&[&alone]).await;
    has(&alone, &[1, 2]).await;
    let own = alone.members().own;
    assert!(own > 3, "the others know member {own}");
    assert_eq!(alone.members().voters, [own].into());
    assert!(alone.members().learners.is_empty());
    alone.propose(put(&alone.state(), 3, 10)).await.unwrap();
    alone.shutdown().await;
    drop(alone);

    // Asked for again, nothing changes.
    let config = StoreConfig { dir: place(parent.path())(own), raft_id: own, ..config };
    let again = forced(config).await.unwrap();
    assert_eq!(again.members().own, own);
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
    let forced = |config| Store::force_alone(config, place(dir.path()));
    assert!(matches!(forced(config.clone()).await, Err(StoreError::Empty { .. })));
    assert!(!config.dir.exists());
    Store::open(config.clone()).await.unwrap().shutdown().await;
    assert!(matches!(forced(config).await, Err(StoreError::Empty { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn going_on_alone_keeps_what_only_a_snapshot_has_and_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(dir.path().join("raft-1"), 1, "n1");
    let store = Store::open(config.clone()).await.unwrap();
    found(&store).await;
    // A learner, so that there is something to leave behind.
    add(&store, 2).await;
    let oldest = config.dir.join("log-0000000000000001");
    let mut number = 0;
    while oldest.exists() {
        assert!(number < 2000, "no log was purged");
        store.propose(put(&store.state(), number % 4, 40_000)).await.unwrap();
        number += 1;
    }
    let state = store.state();
    store.shutdown().await;
    drop(store);
    // The second time finds what the first one left, as after a crash before the new number was kept.
    for _ in 0..2 {
        let alone = Store::force_alone(config.clone(), place(dir.path())).await.unwrap();
        leader(&[&alone]).await;
        assert_eq!(*alone.state(), *state);
        alone.shutdown().await;
    }
}

/// The others were only out of reach, and have had many elections since.
#[tokio::test(flavor = "multi_thread")]
async fn others_that_come_back_neither_take_over_nor_stop_a_member_that_went_on_alone() {
    let mut group = Group::found(3).await;
    let first = group.store(1);
    first.propose(put(&first.state(), 1, 10)).await.unwrap();
    has(group.store(3), &[1]).await;
    group.wires.stop(3).await;
    group.stores.pop();
    for _ in 0..3 {
        // Each takes the lead from the other.
        let all: Vec<_> = group.stores.iter().collect();
        leader(&all).await.hand_over().await.unwrap();
    }
    let all: Vec<_> = group.stores.iter().collect();
    let others = leader(&all).await;
    // Their log is longer, and contradicts what is committed alone.
    for number in 10..20 {
        others.propose(put(&others.state(), number, 10)).await.unwrap();
    }

    let parent = tempfile::tempdir().unwrap();
    let config = group.wires.config(group.dirs[2].path(), 3);
    let alone = Store::force_alone(config, place(parent.path())).await.unwrap();
    leader(&[&alone]).await;
    alone.propose(put(&alone.state(), 2, 10)).await.unwrap();
    let leadership = *alone.leadership().borrow();
    let last = others.metrics().last_index;
    // The network heals.
    group.wires.replace("n3", alone.clone());
    for store in &group.stores {
        store.hand_over().await.unwrap();
    }
    let others = leader(&all).await;
    others.propose(put(&others.state(), 20, 10)).await.unwrap();
    alone.propose(put(&alone.state(), 3, 10)).await.unwrap();

    assert_eq!(numbers(&alone.state()), [1, 2, 3]);
    assert_eq!(*alone.leadership().borrow(), leadership, "somebody interfered");
    assert!(others.metrics().last_index > last);
    assert_eq!(numbers(&others.state()), [1].into_iter().chain(10..=20).collect::<Vec<_>>());
    group.wires.close().await;
}

/// What a manager that is not itself may say, to the right number.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_contradict_the_members_or_what_is_committed_are_refused() {
    let group = Group::found(3).await;
    let first = group.store(1);
    for number in 1..5 {
        first.propose(put(&first.state(), number, 10)).await.unwrap();
    }
    let second = group.store(2);
    has(second, &[1, 2, 3, 4]).await;
    let committed = second.metrics().last_index.unwrap();

    let id = |term, node, index| LogId::new(CommittedLeaderId::new(term, node), index);
    let append = |vote, prev_log_id, index: Option<LogId<u64>>, leader_commit| {
        let entries = index.map(|log_id| Entry { log_id, payload: EntryPayload::Blank }).into_iter().collect();
        Message::Append(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
    };
    let won = Vote::new_committed(99, 3);
    let vote = |vote| Message::Vote(VoteRequest { vote, last_log_id: Some(id(98, 3, 1000)) });
    for (from, message) in [
        // Somebody else's number, or this member's own.
        ("n1", vote(Vote::new(99, 3))),
        ("n9", vote(Vote::new(99, 1))),
        ("n3", vote(Vote::new(99, 2))),
        ("n3", Message::WouldElect { candidate: 1, last: None, writable: true }),
        ("n3", Message::Elect { term: 1, last: None }),
        ("n1", append(won, None, None, None)),
        // A vote that is none.
        ("n3", vote(Vote::new_committed(99, 3))),
        ("n3", vote(Vote::new(u64::MAX, 3))),
        ("n3", append(Vote::new(99, 3), None, None, None)),
        // Another log.
        ("n3", append(won, Some(id(98, 3, 1)), None, None)),
        ("n3", append(won, Some(id(98, 3, 1)), Some(id(98, 3, 2)), None)),
        ("n3", append(won, None, None, Some(id(98, 3, 1)))),
        ("n3", append(won, Some(id(1, 1, committed)), Some(id(1, 1, committed + 2)), None)),
        ("n3", append(won, Some(id(1, 1, committed)), Some(id(100, 3, committed + 1)), None)),
        ("n3", Message::Snapshot(won, Default::default(), vec![1, 2, 3])),
    ] {
        let request = postcard::to_allocvec(&Request { to: 2, message }).unwrap();
        let answer = second.answer(from, &request).await.unwrap();
        let (answer, _) = postcard::take_from_bytes::<Result<(), String>>(&answer).unwrap();
        println!("{}", answer.expect_err("it is refused"));
    }
    // Nobody was unsettled by any of them.
    first.propose(put(&first.state(), 5, 10)).await.unwrap();
    has(second, &[1, 2, 3, 4, 5]).await;
    assert_eq!(first.metrics().term, 1);
    group.wires.close().await;
}

/// Folders for stores below `parent`.
fn place(parent: &Path) -> impl FnOnce(u64) -> PathBuf + Send + use<> {
    let parent = parent.to_owned();
    move |raft_id| parent.join(format!("raft-{raft_id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_the_folder_can_be_set_aside() {
    let parent = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(parent.path().join("raft-1"), 1, "n1");
    let log = config.dir.join("log-0000000000000001");
    for round in 1..=3_u32 {
        let store = Store::open(config.clone()).await.unwrap();
        found(&store).await;
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
