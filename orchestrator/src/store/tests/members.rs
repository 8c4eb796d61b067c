//! Members that come, vote, go and fall behind.

use std::{sync::Arc, time::Duration};

use orchestrator_core::{members::Members, state::Key};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::store::{
    MembersError, ProposeError,
    tests::wires::{Group, LONG, Wires, add, found, has, leader, put, until, vote},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_off_leader_did_not_commit_gives_way_to_what_the_others_did() {
    let mut group = Group::found(3).await;
    let [first, second, third] = [1, 2, 3].map(|id| group.store(id).clone());
    first.propose(put(&first.state(), 1, 10)).await.unwrap();
    has(&second, &[1]).await;
    has(&third, &[1]).await;
    assert!(matches!(second.propose(put(&second.state(), 9, 0)).await,
        Err(ProposeError::NotLeader { leader: Some(leader) }) if leader.node == "n1"));

    group.wires.cut(&[1]);
    let lost = tokio::spawn({
        let first = first.clone();
        async move { first.propose(put(&first.state(), 66, 10)).await }
    });
    let new = leader(&[&second, &third]).await;
    new.propose(put(&new.state(), 2, 10)).await.unwrap();
    group.wires.cut(&[]);
    for store in [&first, &second, &third] {
        has(store, &[1, 2]).await;
    }
    assert_eq!(lost.await.unwrap(), Err(ProposeError::Timeout));
    assert_eq!(*first.leadership().borrow(), None);

    // The overwritten tail stays overwritten on disk.
    group.wires.close().await;
    drop((first, second, third, new));
    group.start(1).await;
    group.start(2).await;
    leader(&[group.store(1), group.store(2)]).await;
    has(group.store(1), &[1, 2]).await;
    has(group.store(2), &[1, 2]).await;
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_the_log_does_not_reach_back_to_gets_the_snapshot() {
    let dirs: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let wires = Arc::new(Wires::default());
    let first = wires.open(dirs[0].path(), 1).await;
    found(&first).await;
    // The same few nodes over and over: much log, a small state.
    let oldest = dirs[0].path().join("log-0000000000000001");
    let mut number = 0;
    while oldest.exists() {
        assert!(number < 2000, "no log was purged");
        first.propose(put(&first.state(), number % 4, 40_000)).await.unwrap();
        number += 1;
    }
    let second = wires.open(dirs[1].path(), 2).await;
    add(&first, 2).await;
    has(&second, &[0, 1, 2, 3]).await;
    assert!(second.metrics().written.snapshot >= 160_000, "{:?}", second.metrics());
    first.propose(put(&first.state(), 4, 10)).await.unwrap();
    has(&second, &[0, 1, 2, 3, 4]).await;
    assert_eq!(*first.state(), *second.state());

    wires.close().await;
    drop((first, second));
    let first = wires.open(dirs[0].path(), 1).await;
    let second = wires.open(dirs[1].path(), 2).await;
    leader(&[&first]).await;
    first.propose(put(&first.state(), 5, 10)).await.unwrap();
    has(&second, &[0, 1, 2, 3, 4, 5]).await;
    assert_eq!(first.state().revision_of(Key::Cluster), second.state().revision_of(Key::Cluster));
    wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_the_members_may_be_asked_for_twice() {
    let mut group = Group::found(1).await;
    let dir = tempfile::tempdir().unwrap();
    let first = group.store(1).clone();
    let second = group.wires.open(dir.path(), 2).await;
    assert_eq!(second.members(), Members { own: 2, ..Default::default() });
    for _ in 0..2 {
        first.add_learner(2, "n2").await.unwrap();
    }
    let numbers = |ids: &[u64]| ids.iter().copied().collect();
    let expected = |voters, learners, own| Members { voters: numbers(voters), learners: numbers(learners), own };
    assert_eq!(first.members(), expected(&[1], &[2], 1));
    until("the learner knows", || second.members() == expected(&[1], &[2], 2)).await;
    until("the learner knows its leader", || second.leader().borrow().as_ref().is_some_and(|l| l.node == "n1")).await;
    vote(&first, 2).await;
    first.make_voter(2).await.unwrap();
    assert_eq!(first.members(), expected(&[1, 2], &[], 1));
    assert!(
        matches!(second.add_learner(3, "n3").await, Err(MembersError::NotLeader { leader: Some(l) }) if l.node == "n1")
    );
    for _ in 0..2 {
        first.remove(2).await.unwrap();
    }
    assert_eq!(first.members(), expected(&[1], &[], 1));
    assert_eq!(first.remove(1).await, Err(MembersError::Leads));
    first.propose(put(&first.state(), 1, 0)).await.unwrap();
    group.wires.stop(2).await;
    group.restart(1).await;
    leader(&[group.store(1)]).await;
    assert_eq!(group.store(1).members(), expected(&[1], &[], 1));
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_could_not_be_completed_is_refused_and_the_cluster_goes_on() {
    let group = Group::found(3).await;
    let first = group.store(1);
    // A learner that never answers.
    add(first, 9).await;
    assert!(matches!(first.make_voter(9).await, Err(MembersError::NotYet { raft_id: 9, .. })));
    assert!(matches!(first.make_voter(8).await, Err(MembersError::NotYet { raft_id: 8, .. })));
    first.remove(9).await.unwrap();

    group.wires.cut(&[3]);
    until("the silence is noticed", || !first.answers(3)).await;
    assert_eq!(first.remove(2).await, Err(MembersError::NoQuorum { voters: 2, silent: vec![3] }));
    first.propose(put(&first.state(), 1, 0)).await.unwrap();
    first.remove(3).await.unwrap();
    assert_eq!(first.members().voters, [1, 2].into());
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_change_of_the_members_ends_in_an_error_soon() {
    let group = Group::found(3).await;
    let first = group.store(1);
    group.wires.cut(&[1]);
    let started = Instant::now();
    let error = first.add_learner(4, "n4").await.unwrap_err();
    assert!(matches!(error, MembersError::Timeout | MembersError::NotLeader { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    group.wires.close().await;
}

/// The leader goes after the first half of a change was committed, and the next one finds both memberships in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_left_half_way_is_finished_by_the_next_leader() {
    let group = Group::found(4).await;
    let first = group.store(1);
    let joint = first.inner.raft.clone();
    // What `remove` does, stopped between its two steps.
    let half = tokio::spawn(async move {
        let _ = joint.change_membership(openraft::ChangeMembers::RemoveVoters([4].into()), false).await;
    });
    let mut metrics = first.inner.raft.server_metrics();
    metrics.wait_for(|now| now.membership_config.membership().get_joint_config().len() == 2).await.unwrap();
    group.wires.cut(&[1]);
    half.abort();
    let others = group.others(1);
    let new = leader(&others).await;
    let configs = || new.membership().get_joint_config().clone();
    until("one membership is in force", || configs().len() == 1).await;
    new.propose(put(&new.state(), 1, 0)).await.unwrap();
    group.wires.cut(&[]);
    has(first, &[1]).await;
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_load_and_no_change_is_lost() {
    let mut group = Group::found(3).await;
    let mut dirs = Vec::new();
    let mut number = 0;
    for id in 4..10 {
        let dir = tempfile::tempdir().unwrap();
        let new = group.wires.open(dir.path(), id).await;
        dirs.push(dir);
        group.stores.push(new);
        let all: Vec<_> = group.stores.iter().collect();
        let leads = leader(&all).await;
        let proposing = {
            let leads = leads.clone();
            let from = number;
            tokio::spawn(async move {
                for number in from..from + 30 {
                    leads.propose(put(&leads.state(), number, 500)).await.unwrap();
                }
            })
        };
        add(&leads, id).await;
        vote(&leads, id).await;
        // The oldest that does not lead goes; its number is never used again.
        let gone = leads.members().voters.into_iter().find(|voter| *voter != leads.members().own).unwrap();
        let deadline = Instant::now() + LONG;
        while let Err(error) = leads.remove(gone).await {
            assert_eq!(error, MembersError::InProgress);
            assert!(Instant::now() < deadline, "after 30 s still under way");
            // Between two requests.
            sleep(Duration::from_millis(20)).await;
        }
        group.wires.stop(gone).await;
        proposing.await.unwrap();
        number += 30;
    }
    let all: Vec<_> = group.stores.iter().collect();
    let leads = leader(&all).await;
    assert_eq!(leads.members().voters.len(), 3);
    let wanted: Vec<u128> = (0..number).collect();
    for id in leads.members().voters {
        has(group.store(id), &wanted).await;
    }
    group.wires.close().await;
}

/// A node that was demoted and promoted again has a new member's empty store, while the old member still counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_on_a_members_node_never_speaks_for_that_member() {
    let group = Group::found(3).await;
    let first = group.store(1);
    group.wires.stop(3).await;
    let dir = tempfile::tempdir().unwrap();
    let new = group.wires.open_on("n3", dir.path(), 7).await;
    until("the silence is noticed", || !first.answers(3)).await;
    first.propose(put(&first.state(), 1, 0)).await.unwrap();
    assert_eq!(new.metrics().last_index, None, "it took in what was sent to another member");
    // As what it is, it is welcome.
    first.add_learner(7, "n3").await.unwrap();
    vote(first, 7).await;
    first.remove(3).await.unwrap();
    has(&new, &[1]).await;
    assert_eq!(first.members().voters, [1, 2, 7].into());
    group.wires.close().await;
}
