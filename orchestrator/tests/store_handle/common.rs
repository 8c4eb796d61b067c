//! What the store's tests share: entries to propose, and waiting for a state.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use orchestrator::store::{Leadership, Member, PeerError, Peers, Store, StoreConfig};
use orchestrator_core::{
    model::{
        Availability, Ca, Cluster, ClusterId, Node, NodeDescription, NodeId, Role, Secret, Secret16, Settings, Tokens,
        UnixMillis,
    },
    state::{Action, Change, Entry, Object, State},
};

/// The raft id of every store here.
pub(crate) const RAFT_ID: u64 = 7;

/// Opens the store in `dir`.
pub(crate) async fn open(dir: &Path) -> Store {
    Store::open(StoreConfig::new(dir, RAFT_ID, "n1")).await.unwrap()
}

/// Opens the store in `dir` and founds a cluster in it.
pub(crate) async fn found(dir: &Path) -> Store {
    let store = open(dir).await;
    store.initialize(founding()).await.unwrap();
    store
}

/// The first entry of a cluster.
pub(crate) fn founding() -> Entry {
    let ca = Ca { certificate: Vec::new(), key: Secret(Vec::new()) };
    let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
    let cluster = Cluster::new(ClusterId(1), ca, tokens, Settings::default(), UnixMillis(0));
    entry([Object::Cluster(cluster)])
}

/// An entry that makes all of `objects`.
pub(crate) fn entry(objects: impl IntoIterator<Item = Object>) -> Entry {
    let changes = objects.into_iter().map(|object| Change { expect: 0, action: Action::Put(object) }).collect();
    Entry { at: UnixMillis(0), reads: Vec::new(), changes }
}

/// Node number `number`, with `padding` bytes to make it large.
pub(crate) fn node(number: u128, padding: usize) -> Object {
    Object::Node(Node {
        id: NodeId(number),
        hostname: "x".repeat(padding),
        role: Role::Worker,
        raft_id: None,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        description: NodeDescription::default(),
        created_at: UnixMillis(0),
    })
}

/// Numbers of the nodes in a state.
pub(crate) fn numbers(state: &State) -> Vec<u128> {
    state.nodes.keys().map(|id| id.0).collect()
}

/// Waits until the store leads.
pub(crate) async fn leads(store: &Store) -> Leadership {
    let mut leadership = store.leadership();
    let leads = tokio::time::timeout(Duration::from_secs(20), leadership.wait_for(Option::is_some)).await;
    (*leads.expect("the only voter leads within 20 s").unwrap()).unwrap()
}

/// Members in one process that reach each other by function calls.
#[derive(Clone, Default)]
pub(crate) struct Group(Arc<Mutex<BTreeMap<String, Store>>>);

/// The way of one node to the others.
struct Wire {
    from: String,
    group: Group,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: &Member, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        let store = self.group.0.lock().unwrap().get(&member.node).cloned();
        let unreachable = || PeerError { node: member.node.clone(), why: "it does not run".into() };
        store.ok_or_else(unreachable)?.answer(&self.from, &request).await.map_err(|_| unreachable())
    }
}

impl Group {
    /// Opens the store of the member `id` in `dir`.
    pub(crate) async fn open(&self, dir: &Path, id: u64) -> Store {
        let node = format!("n{id}");
        let peers = Arc::new(Wire { from: node.clone(), group: self.clone() });
        let config = StoreConfig { dir: dir.into(), raft_id: id, node: node.clone(), peers };
        let store = Store::open(config).await.unwrap();
        self.0.lock().unwrap().insert(node, store.clone());
        store
    }
}

/// Waits until `holds` does.
pub(crate) async fn until(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            // Between two looks, until the deadline below.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it holds within 30 s");
}
