//! Three members in one process, over a network of function calls that can be cut: the paths that a single voter never takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use orchestrator_core::{
    model::{Availability, Node, NodeDescription, NodeId, Role, Turn, UnixMillis},
    state::{Action, Change, Entry, Key, Object, State},
};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::store::{Member, PeerError, Peers, ProposeError, Store, StoreConfig};

const LONG: Duration = Duration::from_secs(30);

/// Everybody's network, and who is cut off from it.
#[derive(Default)]
struct Wires {
    stores: Mutex<BTreeMap<String, Store>>,
    cut: Mutex<BTreeSet<String>>,
}

struct Wire {
    from: String,
    wires: Arc<Wires>,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: &Member, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        let to = {
            let cut = self.wires.cut.lock().unwrap();
            let open = !cut.contains(&self.from) && !cut.contains(&member.node);
            self.wires.stores.lock().unwrap().get(&member.node).filter(|_| open).cloned()
        };
        let unreachable = || PeerError { node: member.node.clone(), why: "cut".into() };
        to.ok_or_else(unreachable)?.answer(&request).await.map_err(|_| unreachable())
    }
}

impl Wires {
    async fn open(self: &Arc<Self>, dir: &Path, id: u64) -> Store {
        let node = format!("n{id}");
        let peers = Arc::new(Wire { from: node.clone(), wires: self.clone() });
        let config = StoreConfig { dir: dir.into(), raft_id: id, node: node.clone(), peers };
        let store = Store::open(config).await.unwrap();
        self.stores.lock().unwrap().insert(node, store.clone());
        store
    }

    fn cut(&self, nodes: &[&str]) {
        *self.cut.lock().unwrap() = nodes.iter().map(|node| (*node).into()).collect();
    }

    async fn close(&self) {
        let stores = std::mem::take(&mut *self.stores.lock().unwrap());
        for store in stores.into_values() {
            store.shutdown().await;
        }
    }
}

fn put(state: &State, number: u128, padding: usize) -> Entry {
    let node = Object::Node(Node {
        id: NodeId(number),
        hostname: "x".repeat(padding),
        role: Role::Worker,
        raft_id: None,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        description: NodeDescription::default(),
        created_at: UnixMillis(0),
    });
    Entry { at: UnixMillis(0), reads: Vec::new(), changes: vec![state.put_change(node)] }
}

async fn found(store: &Store) {
    let changes = vec![Change { expect: 0, action: Action::Put(Object::Turn(Turn)) }];
    store.initialize(Entry { at: UnixMillis(0), reads: Vec::new(), changes }).await.unwrap();
}

async fn add(leader: &Store, id: u64) {
    leader.raft().add_learner(id, Member { node: format!("n{id}") }, true).await.unwrap();
}

/// Waits until `store` has the nodes `numbers`.
async fn has(store: &Store, numbers: &[u128]) {
    let mut states = store.watch();
    let wanted = |state: &Arc<State>| state.nodes.keys().map(|id| id.0).eq(numbers.iter().copied());
    if timeout(LONG, states.wait_for(wanted)).await.is_err() {
        panic!("{:?} instead of {numbers:?}", store.state().nodes.keys().collect::<Vec<_>>());
    }
}

/// Waits until one of `stores` leads.
async fn leader(stores: &[&Store]) -> Store {
    let waits = stores.iter().map(|store| {
        Box::pin(async move {
            store.leadership().wait_for(Option::is_some).await.unwrap();
            (*store).clone()
        })
    });
    timeout(LONG, futures_util::future::select_all(waits)).await.expect("one of them leads within 30 s").0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_off_leader_did_not_commit_gives_way_to_what_the_others_did() {
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let wires = Arc::new(Wires::default());
    let first = wires.open(dirs[0].path(), 1).await;
    let second = wires.open(dirs[1].path(), 2).await;
    let third = wires.open(dirs[2].path(), 3).await;
    found(&first).await;
    add(&first, 2).await;
    add(&first, 3).await;
    first.raft().change_membership([1, 2, 3], false).await.unwrap();
    first.propose(put(&first.state(), 1, 10)).await.unwrap();
    has(&second, &[1]).await;
    has(&third, &[1]).await;
    assert!(matches!(second.propose(put(&second.state(), 9, 0)).await,
        Err(ProposeError::NotLeader { leader: Some(leader) }) if leader.node == "n1"));

    wires.cut(&["n1"]);
    let lost = tokio::spawn({
        let first = first.clone();
        async move { first.propose(put(&first.state(), 66, 10)).await }
    });
    let new = leader(&[&second, &third]).await;
    new.propose(put(&new.state(), 2, 10)).await.unwrap();
    wires.cut(&[]);
    for store in [&first, &second, &third] {
        has(store, &[1, 2]).await;
    }
    assert!(matches!(lost.await.unwrap(), Err(ProposeError::NotLeader { .. } | ProposeError::Timeout)));
    assert_eq!(*first.leadership().borrow(), None);

    // The overwritten tail stays overwritten on disk.
    wires.close().await;
    drop((first, second, third, new));
    let first = wires.open(dirs[0].path(), 1).await;
    let second = wires.open(dirs[1].path(), 2).await;
    leader(&[&first, &second]).await;
    has(&first, &[1, 2]).await;
    has(&second, &[1, 2]).await;
    wires.close().await;
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
