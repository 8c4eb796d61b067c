//! Leaders that go on purpose.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use crate::store::{
    HandOverError, ProposeError,
    tests::wires::{Group, LONG, has, leader, numbers, put, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn another_voter_leads_after_handing_over_and_nothing_acknowledged_is_lost() {
    for voters in [2, 3, 5] {
        let group = Group::found(voters).await;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let writers: Vec<_> = (0..4)
            .map(|writer: u128| {
                let (stores, stop, acknowledged) = (group.stores.clone(), stop.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    let mut number = writer << 32;
                    while !stop.load(Ordering::Relaxed) {
                        let leads = leader(&stores.iter().collect::<Vec<_>>()).await;
                        match leads.propose(put(&leads.state(), number, 100)).await {
                            Ok(_) => drop(acknowledged.lock().unwrap().insert(number)),
                            Err(ProposeError::NotLeader { .. }) => {}
                            Err(ProposeError::Timeout) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                        number += 1;
                    }
                })
            })
            .collect();
        for round in 0..5 {
            let before = acknowledged.lock().unwrap().len();
            until("writes go on", || acknowledged.lock().unwrap().len() > before + 20).await;
            let old = leader(&group.stores.iter().collect::<Vec<_>>()).await;
            let term = old.leadership().borrow().expect("it leads").term;
            let started = Instant::now();
            old.hand_over().await.unwrap();
            println!("{voters} voters, round {round}: handed over in {:?}", started.elapsed());
            assert_eq!(*old.leadership().borrow(), None);
            let new = leader(&group.others(old.members().own)).await;
            assert!(new.leadership().borrow().is_some_and(|now| now.term > term));
            println!("writes again after {:?}", started.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let leads = leader(&group.stores.iter().collect::<Vec<_>>()).await;
        let there: BTreeSet<u128> = numbers(&leads.read().await.unwrap()).into_iter().collect();
        let acknowledged = acknowledged.lock().unwrap().clone();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let all: Vec<u128> = there.into_iter().collect();
        for store in &group.stores {
            has(store, &all).await;
        }
        group.wires.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_can_follow_leads_on() {
    let group = Group::found(1).await;
    let first = group.store(1);
    assert!(matches!(first.hand_over().await, Err(HandOverError::NoCandidate { .. })));
    let mut leadership = first.leadership();
    tokio::time::timeout(LONG, leadership.wait_for(Option::is_some)).await.unwrap().unwrap();
    first.propose(put(&first.state(), 1, 0)).await.unwrap();
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_has_nothing_to_hand_over() {
    let group = Group::found(2).await;
    group.store(2).hand_over().await.unwrap();
    assert!(group.store(1).leadership().borrow().is_some());
    group.wires.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_does_not_answer_is_not_made_the_leader() {
    let group = Group::found(3).await;
    group.wires.cut(&[2]);
    let first = group.store(1);
    until("the silence is noticed", || !first.answers(2)).await;
    first.hand_over().await.unwrap();
    leader(&[group.store(3)]).await;
    group.wires.close().await;
}
