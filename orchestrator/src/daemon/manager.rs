//! The part of a node that exists while it is a manager: its store, and the leader that may run on it.

use crate::{
    leader,
    pki::LastSeen,
    store::{Member as RaftMember, PeerError, Peers, Store, StoreConfig, StoreError},
    transport::{Alpn, Endpoint, Sessions, Source},
};
use async_trait::async_trait;
use orchestrator_core::{model::NodeId, state::State};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// Time that handing the lead over may take before the daemon ends all the same.
const HAND_OVER: Duration = Duration::from_secs(3);

/// The longest that raft waits for another manager's answer. A snapshot of a large cluster on a slow card takes its time; raft
/// itself gives up earlier on votes and heartbeats.
const ANSWER: Duration = Duration::from_secs(30);

/// A manager's half of this node.
pub struct Manager {
    /// Its number in raft.
    pub(super) raft_id: u64,
    /// The replicated state.
    pub(super) store: Store,
    /// Where nodes open their sessions while this node leads.
    pub(super) desk: watch::Receiver<Option<Arc<Sessions>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Manager {
    /// Opens the store of `raft_id` and lets a leader run on it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn start(
        state_dir: &Path,
        (raft_id, node): (u64, NodeId),
        endpoint: &Endpoint,
        time: Arc<LastSeen>,
        view: watch::Sender<leader::View>,
        revision: watch::Sender<u64>,
    ) -> Result<Arc<Self>, StoreError> {
        let store = Store::open(config(state_dir, raft_id, node, endpoint)).await?;
        let (desk, at) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(leader::run(store.clone(), desk, view));
        tasks.spawn(follow(store.clone(), endpoint.clone(), time, revision));
        Ok(Arc::new(Self { raft_id, store, desk: at, tasks: Mutex::new(tasks) }))
    }

    /// Who leads, as far as raft knows.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.store.leader().borrow().as_ref()?.node.parse().ok()
    }

    /// Gives the lead to another, if there is one, and closes the store.
    pub(super) async fn stop(&self) {
        if self.desk.borrow().is_some() && self.store.members().voters.len() > 1 {
            match timeout(HAND_OVER, self.store.hand_over()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "nobody took the lead")
                }
                Err(_) => tracing::warn!("nobody took the lead in time"),
            }
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.store.shutdown().await;
    }
}

/// Where and as whom a store runs.
pub(super) fn config(state_dir: &Path, raft_id: u64, node: NodeId, endpoint: &Endpoint) -> StoreConfig {
    let peers = Arc::new(QuicPeers(endpoint.clone()));
    StoreConfig { dir: dir(state_dir, raft_id), raft_id, node: node.to_string(), peers }
}

/// The folder of a store.
pub(super) fn dir(state_dir: &Path, raft_id: u64) -> PathBuf {
    state_dir.join(format!("raft-{raft_id}"))
}

/// Deletes the stores of this node, all but one: a store of the past has no say in the present.
pub(super) fn remove_stores(state_dir: &Path, keep: Option<u64>) -> std::io::Result<()> {
    let keep = keep.map(|raft_id| dir(state_dir, raft_id));
    let entries = match std::fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("raft-")?.parse::<u64>().ok());
        if number.is_some() && Some(&path) != keep.as_ref() {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Passes on what every new state means for this node's connections: where the others are, and who is no member any more.
async fn follow(store: Store, endpoint: Endpoint, time: Arc<LastSeen>, revision: watch::Sender<u64>) {
    let mut states = store.watch();
    let mut refused = BTreeSet::new();
    loop {
        let state = states.borrow_and_update().clone();
        revision.send_replace(state.revision);
        for node in state.nodes.values() {
            if let Some(address) = address(&state, node.id) {
                endpoint.book().learn(node.id, address, Source::Assigned);
            }
        }
        let removed: BTreeSet<NodeId> =
            state.cluster.iter().flat_map(|cluster| cluster.removed.keys().copied()).collect();
        for node in removed.difference(&refused) {
            endpoint.drop_peer(*node);
        }
        refused = removed;
        if let Some(cluster) = &state.cluster {
            time.raise(cluster.created_at);
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Where a node listens.
pub(super) fn address(state: &State, node: NodeId) -> Option<std::net::SocketAddr> {
    let description = &state.nodes.get(&node)?.description;
    Some((description.address.parse::<std::net::IpAddr>().ok()?, description.port).into())
}

/// The way to the other managers, over `edge-raft/1`.
struct QuicPeers(Endpoint);

#[async_trait]
impl Peers for QuicPeers {
    async fn call(&self, member: &RaftMember, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        let fail = |why: String| PeerError { node: member.node.clone(), why };
        let node = member.node.parse::<NodeId>().map_err(|error| fail(error.to_string()))?;
        match timeout(ANSWER, self.0.call(node, Alpn::Raft, &request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(fail(format!("{:#}", anyhow::Error::from(error)))),
            Err(_) => Err(fail(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }
}
