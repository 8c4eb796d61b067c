//! Several members in one process, over a network of function calls that can be cut and slowed down.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::select_all;
use orchestrator_core::{
    model::{
        Availability, Ca, Cluster, ClusterId, Node, NodeDescription, NodeId, Role, Secret, Secret16, Settings, Tokens,
        UnixMillis,
    },
    state::{Action, Change, Entry, Object, State},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{Member, MembersError, PeerError, Peers, Store, StoreConfig};

/// Longer than anything may take on a busy machine.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// Everybody's network, and who is cut off from it.
#[derive(Default)]
pub(super) struct Wires {
    stores: Mutex<BTreeMap<String, Store>>,
    cut: Mutex<BTreeSet<String>>,
    /// Bytes a second between any two; 0 for no limit.
    speed: AtomicUsize,
    /// The largest request so far.
    pub(super) largest: AtomicUsize,
}

struct Wire {
    from: String,
    wires: Arc<Wires>,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: &Member, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        self.wires.largest.fetch_max(request.len(), Ordering::Relaxed);
        let unreachable = || PeerError { node: member.node.clone(), why: "cut".into() };
        let speed = self.wires.speed.load(Ordering::Relaxed);
        if speed > 0 {
            // As long as the bytes take on the way.
            sleep(Duration::from_secs_f64(request.len() as f64 / speed as f64)).await;
        }
        let to = self.wires.stores.lock().unwrap().get(&member.node).cloned().ok_or_else(unreachable)?;
        if self.wires.is_cut(&self.from, &member.node) {
            return Err(unreachable());
        }
        let answer = to.answer(&self.from, &request).await.map_err(|_| unreachable())?;
        if self.wires.is_cut(&self.from, &member.node) { Err(unreachable()) } else { Ok(answer) }
    }
}

impl Wires {
    pub(super) async fn open(self: &Arc<Self>, dir: &Path, id: u64) -> Store {
        self.open_on(&name(id), dir, id).await
    }

    /// Opens the store of member `id` on another node than usual.
    pub(super) async fn open_on(self: &Arc<Self>, node: &str, dir: &Path, id: u64) -> Store {
        let peers = Arc::new(Wire { from: node.into(), wires: self.clone() });
        let config = StoreConfig { node: node.into(), peers, ..self.config(dir, id) };
        let store = Store::open(config).await.unwrap();
        self.stores.lock().unwrap().insert(node.into(), store.clone());
        store
    }

    pub(super) fn config(self: &Arc<Self>, dir: &Path, id: u64) -> StoreConfig {
        let peers = Arc::new(Wire { from: name(id), wires: self.clone() });
        StoreConfig { dir: dir.into(), raft_id: id, node: name(id), peers }
    }

    /// From now on nobody reaches these members, and they reach nobody.
    pub(super) fn cut(&self, ids: &[u64]) {
        *self.cut.lock().unwrap() = ids.iter().map(|id| name(*id)).collect();
    }

    pub(super) fn limit(&self, bytes_a_second: usize) {
        self.speed.store(bytes_a_second, Ordering::Relaxed);
    }

    /// From now on requests to this node reach `store`.
    pub(super) fn replace(&self, node: &str, store: Store) {
        self.stores.lock().unwrap().insert(node.into(), store);
    }

    /// Shuts a member down. Its other handles stay, and fail.
    pub(super) async fn stop(&self, id: u64) {
        let store = self.stores.lock().unwrap().remove(&name(id));
        store.expect("the member runs").shutdown().await;
    }

    pub(super) async fn close(&self) {
        let stores = std::mem::take(&mut *self.stores.lock().unwrap());
        for store in stores.into_values() {
            store.shutdown().await;
        }
    }

    fn is_cut(&self, one: &str, other: &str) -> bool {
        let cut = self.cut.lock().unwrap();
        cut.contains(one) || cut.contains(other)
    }
}

fn name(id: u64) -> String {
    format!("n{id}")
}

/// A cluster of voters, numbered from 1.
pub(super) struct Group {
    pub(super) wires: Arc<Wires>,
    pub(super) dirs: Vec<TempDir>,
    pub(super) stores: Vec<Store>,
}

impl Group {
    /// `voters` members that all vote; the first one leads.
    pub(super) async fn found(voters: u64) -> Self {
        let wires = Arc::new(Wires::default());
        let dirs: Vec<TempDir> = (0..voters).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut stores = Vec::new();
        for (id, dir) in (1..).zip(&dirs) {
            stores.push(wires.open(dir.path(), id).await);
        }
        found(&stores[0]).await;
        for id in 2..=voters {
            add(&stores[0], id).await;
            vote(&stores[0], id).await;
        }
        Group { wires, dirs, stores }
    }

    /// The member `id`.
    pub(super) fn store(&self, id: u64) -> &Store {
        &self.stores[id as usize - 1]
    }

    /// All members but `id`.
    pub(super) fn others(&self, id: u64) -> Vec<&Store> {
        (1..).zip(&self.stores).filter(|(other, _)| *other != id).map(|(_, store)| store).collect()
    }

    /// Stops the member `id` and starts it again.
    pub(super) async fn restart(&mut self, id: u64) {
        self.wires.stop(id).await;
        self.start(id).await;
    }

    /// Starts the member `id`, which was stopped.
    pub(super) async fn start(&mut self, id: u64) {
        self.stores[id as usize - 1] = self.wires.open(self.dirs[id as usize - 1].path(), id).await;
    }
}

/// An entry that makes node `number`, with `padding` bytes to make it large.
pub(super) fn put(state: &State, number: u128, padding: usize) -> Entry {
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

/// Numbers of the nodes in a state.
pub(super) fn numbers(state: &State) -> Vec<u128> {
    state.nodes.keys().map(|id| id.0).collect()
}

pub(super) async fn found(store: &Store) {
    let cluster = {
        let ca = Ca { certificate: Vec::new(), key: Secret(Vec::new()) };
        let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
        Object::Cluster(Cluster::new(ClusterId(1), ca, tokens, Settings::default(), UnixMillis(0)))
    };
    let changes = vec![Change { expect: 0, action: Action::Put(cluster) }];
    store.initialize(Entry { at: UnixMillis(0), reads: Vec::new(), changes }).await.unwrap();
}

pub(super) async fn add(leader: &Store, id: u64) {
    leader.add_learner(id, name(id)).await.unwrap();
}

/// Makes the learner `id` a voter as soon as it can be.
pub(super) async fn vote(leader: &Store, id: u64) {
    let voting = async {
        while let Err(error) = leader.make_voter(id).await {
            assert!(matches!(error, MembersError::NotYet { .. } | MembersError::InProgress), "{error:?}");
            // Between two requests, until the deadline below.
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, voting).await.expect("a learner that answers gets to vote");
}

/// Waits until `store` has exactly the nodes `wanted`.
pub(super) async fn has(store: &Store, wanted: &[u128]) {
    let mut states = store.watch();
    let there = states.wait_for(|state| numbers(state) == wanted);
    if timeout(LONG, there).await.is_err() {
        panic!("{:?} instead of {wanted:?}", numbers(&store.state()));
    }
}

/// Waits until one of `stores` leads.
pub(super) async fn leader(stores: &[&Store]) -> Store {
    let waits = stores.iter().map(|store| {
        Box::pin(async move {
            store.leadership().wait_for(Option::is_some).await.unwrap();
            (*store).clone()
        })
    });
    timeout(LONG, select_all(waits)).await.expect("one of them leads within 30 s").0
}

/// Waits until `holds` does.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "after 30 s still not: {what}");
        // Between two looks.
        sleep(Duration::from_millis(10)).await;
    }
}
