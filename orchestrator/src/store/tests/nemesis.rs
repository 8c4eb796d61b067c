//! Faults at random: members are cut off, stopped, started, and made to hand over, while clients write and read.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::store::{
    Leadership, ProposeError, Store,
    tests::wires::{Group, has, leader, numbers, put, until},
};

const ROUNDS: u64 = 12;

/// What the clients saw.
#[derive(Default)]
struct Record {
    acknowledged: BTreeSet<u128>,
    /// Which member wrote in which term.
    leaders: BTreeSet<(u64, u64)>,
}

/// One client: writes to whoever leads, and reads back what it wrote from whoever leads then.
async fn client(stores: Arc<Mutex<Vec<Store>>>, first: u128, record: Arc<Mutex<Record>>, stop: Arc<AtomicBool>) {
    let leading = || {
        let stores = stores.lock().unwrap();
        let leads = |store: &Store| Some((store.clone(), (*store.leadership().borrow())?));
        stores.iter().find_map(leads)
    };
    let mut last = None;
    for number in first.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Some((store, Leadership { term })) = leading() else {
            // Between two looks; the test ends this loop.
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        if let Ok(state) = store.read().await {
            assert!(last.is_none_or(|last| numbers(&state).contains(&last)), "a stale read: {last:?} is missing");
        }
        match store.propose(put(&store.state(), number, 50)).await {
            Ok(_) => {
                let mut record = record.lock().unwrap();
                record.acknowledged.insert(number);
                // The leadership may have ended and another begun here since it was looked up.
                if *store.leadership().borrow() == Some(Leadership { term }) {
                    record.leaders.insert((term, store.members().own));
                }
                last = Some(number);
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Timeout | ProposeError::ShutDown) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_cut_or_stopped_no_acknowledged_write_is_lost_and_no_read_is_stale() {
    let mut group = Group::found(3).await;
    let stores = Arc::new(Mutex::new(group.stores.clone()));
    let record = Arc::new(Mutex::new(Record::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..3 {
        clients.spawn(client(stores.clone(), number << 32, record.clone(), stop.clone()));
    }
    // SplitMix64's increment walks through all kinds of rounds the same way each time.
    let mut random = 0x1234_5678_u64;
    let written = || record.lock().unwrap().acknowledged.len();
    for _ in 0..ROUNDS {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let victim = 1 + (random >> 33) % 3;
        let pause = Duration::from_millis(200 + (random >> 40) % 2500);
        match (random >> 60) % 4 {
            0 => {
                group.wires.cut(&[victim]);
                // How long the fault lasts.
                sleep(pause).await;
                group.wires.cut(&[]);
            }
            1 => {
                let leads = leader(&group.stores.iter().collect::<Vec<_>>()).await;
                // Whether it works or not is none of this test's business.
                let _ = leads.hand_over().await;
            }
            2 => {
                group.wires.stop(victim).await;
                // How long the fault lasts.
                sleep(pause).await;
                group.start(victim).await;
                *stores.lock().unwrap() = group.stores.clone();
            }
            _ => {
                group.wires.cut(&[1, 2, 3]);
                // How long the fault lasts.
                sleep(pause).await;
                group.wires.cut(&[]);
            }
        }
        let before = written();
        let healed = Instant::now();
        until("writes go on", || written() > before + 10).await;
        println!("writes again {:?} after healing", healed.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let leads = leader(&group.stores.iter().collect::<Vec<_>>()).await;
    let there: BTreeSet<u128> = numbers(&leads.read().await.unwrap()).into_iter().collect();
    let record = std::mem::take(&mut *record.lock().unwrap());
    let lost: Vec<_> = record.acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let terms: BTreeSet<u64> = record.leaders.iter().map(|(term, _)| *term).collect();
    assert_eq!(terms.len(), record.leaders.len(), "two leaders in one term: {:?}", record.leaders);
    let all: Vec<u128> = there.into_iter().collect();
    for store in &group.stores {
        has(store, &all).await;
    }
    println!("{} writes acknowledged by {} leaders", record.acknowledged.len(), record.leaders.len());
    group.wires.close().await;
}
