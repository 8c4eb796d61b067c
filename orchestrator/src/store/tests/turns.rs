//! Changes of the membership after changes of the leader.

use crate::store::{
    MembersError, Store,
    tests::wires::{Group, LONG, add, leader, put, until, vote},
};
use tokio::time::{Instant, sleep};

/// Takes `gone` out as soon as the others answer their new leader.
async fn take_out(leads: &Store, gone: u64) {
    let deadline = Instant::now() + LONG;
    while let Err(error) = leads.remove(gone).await {
        assert!(matches!(error, MembersError::NoQuorum { .. } | MembersError::InProgress), "{error:?}");
        assert!(Instant::now() < deadline, "after 30 s still {error:?}");
        // Between two looks at what the leader says.
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_change_of_the_leader_a_member_can_be_taken_out_and_in_again() {
    let mut group = Group::found(3).await;
    for round in 0..3 {
        let all: Vec<_> = group.stores.iter().collect();
        let old = leader(&all).await.members().own;
        group.wires.stop(old).await;
        let new = leader(&group.others(old)).await;
        new.propose(put(&new.state(), round, 10)).await.unwrap();
        group.start(old).await;
        let own = new.members().own;
        let gone = (1..=3).find(|id| ![old, own].contains(id)).unwrap();
        take_out(&new, gone).await;
        until("it shows", || new.members().voters == [old, own].into()).await;
        add(&new, gone).await;
        vote(&new, gone).await;
        until("it shows", || new.members().voters == [1, 2, 3].into()).await;
    }
    group.wires.close().await;
}
