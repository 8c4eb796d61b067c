//! How long three managers are without a leader. Run by `cargo run --release --example bench_cluster -- [DIR] [ROUNDS]`.
//!
//! In: a folder on the disk to use (default: the current one) and a number of rounds (default: 20). Out: one line per figure,
//! `name value unit`. The members run in this process and reach each other by function calls, so what is measured is raft's timing
//! and the disk, without a network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use orchestrator::store::{Member, PeerError, Peers, Store, StoreConfig};
use orchestrator_core::{model::UnixMillis, state::Entry};

const MEMBERS: u64 = 3;
const COMMITS: u32 = 200;

/// The running members, by the names of their nodes.
#[derive(Clone, Default)]
struct Group(Arc<Mutex<BTreeMap<String, Store>>>);

/// The way of one node to the others.
struct Wire {
    from: String,
    group: Group,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: &Member, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        let store = self.group.0.lock().ok().and_then(|stores| stores.get(&member.node).cloned());
        let unreachable = || PeerError { node: member.node.clone(), why: "it does not run".into() };
        store.ok_or_else(unreachable)?.answer(&self.from, &request).await.map_err(|_| unreachable())
    }
}

impl Group {
    async fn open(&self, dir: &Path, id: u64) -> Result<Store> {
        let node = format!("n{id}");
        let dir = dir.join(&node);
        let peers = Arc::new(Wire { from: node.clone(), group: self.clone() });
        let config = StoreConfig { dir, raft_id: id, node: node.clone(), peers };
        let store = Store::open(config).await?;
        self.0.lock().ok().context("a thread panicked")?.insert(node, store.clone());
        Ok(store)
    }

    /// The member disappears: no other can reach it from now on.
    async fn lose(&self, id: u64) -> Result<()> {
        let store = self.0.lock().ok().context("a thread panicked")?.remove(&format!("n{id}"));
        store.context("the member does not run")?.shutdown().await;
        Ok(())
    }

    /// Waits for a leader, and for a change to be committed by it.
    async fn writes(&self) -> Result<Store> {
        loop {
            let stores: Vec<Store> = self.0.lock().ok().context("a thread panicked")?.values().cloned().collect();
            for store in stores {
                if store.propose(nothing()).await.is_ok() {
                    return Ok(store);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn main() -> Result<()> {
    let at = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let rounds = std::env::args().nth(2).map_or(Ok(20), |rounds| rounds.parse());
    let rounds = rounds.context("the second argument is a number of rounds")?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench(&at, rounds))
}

async fn bench(at: &Path, rounds: u32) -> Result<()> {
    let dir = tempfile::tempdir_in(at)?;
    let group = Group::default();
    let first = group.open(dir.path(), 1).await?;
    first.initialize(nothing()).await?;
    for id in 2..=MEMBERS {
        group.open(dir.path(), id).await?;
        first.add_learner(id, format!("n{id}")).await?;
        while first.make_voter(id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let started = Instant::now();
    for _ in 0..COMMITS {
        first.propose(nothing()).await?;
    }
    println!("commit by {MEMBERS} members {:.0} us", started.elapsed().as_secs_f64() * 1e6 / f64::from(COMMITS));

    let mut lost = Vec::new();
    let mut handed = Vec::new();
    for _ in 0..rounds {
        let leader = group.writes().await?;
        let started = Instant::now();
        leader.hand_over().await?;
        group.writes().await?;
        handed.push(started.elapsed());

        let id = group.writes().await?.members().own;
        let started = Instant::now();
        group.lose(id).await?;
        group.writes().await?;
        lost.push(started.elapsed());
        group.open(dir.path(), id).await?;
        // It takes part again before the next one goes.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    figures("leader handed over, writes again", handed);
    figures("leader lost, writes again", lost);
    Ok(())
}

fn figures(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{what}: median {} ms", median.as_millis());
    println!("{what}: longest of {} {} ms", took.len(), longest.as_millis());
}

fn nothing() -> Entry {
    Entry { at: UnixMillis(0), reads: Vec::new(), changes: Vec::new() }
}
