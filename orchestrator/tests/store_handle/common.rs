//! What the store's tests share: entries to propose, and waiting for a state.

use std::{collections::BTreeMap, path::Path, time::Duration};

use orchestrator::store::{Leadership, Store, StoreConfig};
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
