//! Leaders that are lost, cut off, or followed by too few.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::store::{
    ProposeError, ReadError,
    tests::wires::{Group, LONG, has, leader, put, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn after_each_loss_of_the_leader_another_one_takes_over() {
    let mut group = Group::found(3).await;
    let mut took = Vec::new();
    for round in 0..20 {
        let all: Vec<_> = group.stores.iter().collect();
        let old = leader(&all).await.members().own;
        let started = Instant::now();
        group.wires.stop(old).await;
        let new = leader(&group.others(old)).await;
        new.propose(put(&new.state(), round, 10)).await.unwrap();
        took.push(started.elapsed());
        group.start(old).await;
        has(group.store(old), &(0..=round).collect::<Vec<_>>()).await;
    }
    took.sort_unstable();
    println!("until writes succeed again: median {:?}, longest {:?}", took[10], took[19]);
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_soon_takes_no_changes_and_answers_no_reads() {
    let group = Group::found(3).await;
    let first = group.store(1);
    let mut leadership = first.leadership();
    let started = Instant::now();
    group.wires.cut(&[1]);
    let read = first.read().await.unwrap_err();
    assert_eq!(read, ReadError::NoQuorum);
    assert!(started.elapsed() < Duration::from_secs(2) + LONG / 10, "{:?}", started.elapsed());
    timeout(LONG, leadership.wait_for(Option::is_none)).await.unwrap().unwrap();
    println!("stopped leading {:?} after the cut", started.elapsed());
    assert_eq!(first.propose(put(&first.state(), 7, 0)).await, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(first.read().await.unwrap_err(), ReadError::NotLeader { leader: None });
    assert_eq!(*first.leader().borrow(), None);
    let new = leader(&group.others(1)).await;
    new.propose(put(&new.state(), 1, 0)).await.unwrap();
    group.wires.cut(&[]);
    has(first, &[1]).await;
    until("it knows who leads", || *first.leader().borrow() == *new.leader().borrow()).await;
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_quorum_comes_back_leads_on_in_the_same_term() {
    let group = Group::found(3).await;
    let first = group.store(1);
    let term = first.leadership().borrow().unwrap().term;
    // Nobody reaches anybody, so nobody else is elected meanwhile.
    group.wires.cut(&[1, 2, 3]);
    let mut leadership = first.leadership();
    let waiting = tokio::spawn({
        let first = first.clone();
        async move { first.propose(put(&first.state(), 1, 0)).await }
    });
    timeout(LONG, leadership.wait_for(Option::is_none)).await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap(), Err(ProposeError::Timeout));
    // Longer than any voter is patient.
    sleep(Duration::from_secs(3)).await;
    group.wires.cut(&[]);
    let again = timeout(LONG, leadership.wait_for(Option::is_some)).await.unwrap().unwrap().unwrap();
    assert_eq!(again.term, term, "an election was held though nobody could win one");
    first.propose(put(&first.state(), 2, 0)).await.unwrap();
    // What was not acknowledged may have taken effect, and here it did.
    has(group.store(2), &[1, 2]).await;
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_come_back_do_not_unseat_the_leader() {
    let mut group = Group::found(3).await;
    let term = group.store(1).leadership().borrow().unwrap().term;
    for round in 0..3 {
        group.wires.cut(&[2]);
        // Longer than any voter is patient.
        sleep(Duration::from_secs(3)).await;
        group.wires.cut(&[]);
        group.restart(3).await;
        let first = group.store(1);
        first.propose(put(&first.state(), round, 0)).await.unwrap();
        for store in &group.stores {
            has(store, &(0..=round).collect::<Vec<_>>()).await;
        }
    }
    assert_eq!(group.store(1).leadership().borrow().unwrap().term, term);
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_stopped_at_once_have_everything_again_after_their_start() {
    let mut group = Group::found(3).await;
    for number in 0..50 {
        let first = group.store(1);
        first.propose(put(&first.state(), number, 1000)).await.unwrap();
    }
    group.wires.close().await;
    let started = Instant::now();
    for id in 1..=3 {
        group.start(id).await;
    }
    let all: Vec<_> = group.stores.iter().collect();
    let leads = leader(&all).await;
    leads.propose(put(&leads.state(), 50, 0)).await.unwrap();
    println!("serving {:?} after the start", started.elapsed());
    for store in &group.stores {
        has(store, &(0..=50).collect::<Vec<_>>()).await;
    }
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_cluster_writes_nothing() {
    let group = Group::found(3).await;
    let first = group.store(1);
    first.propose(put(&first.state(), 1, 0)).await.unwrap();
    for store in &group.stores {
        has(store, &[1]).await;
    }
    let written = || group.stores.iter().map(|store| store.metrics().written).collect::<Vec<_>>();
    let before = written();
    // Idle for 24 heartbeats.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(written(), before);
    assert!(first.leadership().borrow().is_some());
    group.wires.close().await;
}
