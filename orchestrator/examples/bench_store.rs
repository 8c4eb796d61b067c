//! What the store costs: device bytes and time per commit, time to open. Run by `cargo xtask bench store`.
//!
//! In: a folder on the disk to measure (default: the current one; not a tmpfs), and for how many seconds to watch the idle store
//! (default: 10). Out: one line per figure, `name value unit`. Device bytes are the sectors written by the whole disk
//! (`/sys/dev/block/<dev>/stat`, field 7), so every figure is the least of several rounds, and a control that waits as long
//! shows what others wrote meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use orchestrator::store::{Store, StoreConfig};
use orchestrator_core::{
    model::{
        Availability, Ca, Cluster, ClusterId, Node, NodeDescription, NodeId, Role, Secret, Secret16, Settings, Tokens,
        UnixMillis,
    },
    state::{Action, Applied, Change, Entry, Key, Object},
};

const ROUNDS: usize = 25;
const COMMITS: u64 = 200;
/// Long enough to fill segments and write snapshots.
const LONG: u64 = 12_000;

fn main() -> Result<()> {
    let at = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let idle =
        std::env::args().nth(2).map_or(Ok(10), |seconds| seconds.parse()).context("the second argument is seconds")?;
    runtime.block_on(bench(&at, Duration::from_secs(idle)))
}

async fn bench(at: &Path, idle: Duration) -> Result<()> {
    let disk = Disk::of(at)?;
    let dir = tempfile::tempdir_in(at)?;
    let path = dir.path().join("store");
    let started = Instant::now();
    let store = open(&path).await?;
    let ca = Ca { certificate: Vec::new(), key: Secret(Vec::new()) };
    let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
    let cluster = Cluster::new(ClusterId(1), ca, tokens, Settings::default(), UnixMillis(0));
    store.initialize(entry(vec![(0, Object::Cluster(cluster))])).await?;
    figure("found a cluster", started.elapsed().as_secs_f64() * 1e3, "ms");

    for (name, objects, bytes) in [("1 change of 256 B", 1, 256), ("10 changes of 256 B", 10, 256)] {
        let (mut least, mut fastest, mut control) = (u64::MAX, Duration::MAX, u64::MAX);
        for _ in 0..ROUNDS {
            let (written, took) = (disk.written()?, Instant::now());
            commit(&store, objects, bytes, COMMITS).await?;
            let took = took.elapsed();
            least = least.min(disk.written()? - written);
            fastest = fastest.min(took);
            let still = disk.written()?;
            tokio::time::sleep(took).await;
            control = control.min(disk.written()? - still);
        }
        figure(&format!("{name}: device bytes per commit"), least as f64 / COMMITS as f64, "B");
        figure(&format!("{name}: control, bytes of others"), control as f64 / COMMITS as f64, "B");
        figure(&format!("{name}: time per commit"), fastest.as_secs_f64() * 1e6 / COMMITS as f64, "us");
    }

    let before = (disk.written()?, store.metrics().written);
    commit(&store, 1, 256, LONG).await?;
    let after = (disk.written()?, store.metrics().written);
    figure(
        "long run with snapshots and new segments: device bytes per commit",
        (after.0 - before.0) as f64 / LONG as f64,
        "B",
    );
    for (name, bytes) in [
        ("log", after.1.log - before.1.log),
        ("new segments", after.1.reserve - before.1.reserve),
        ("snapshots", after.1.snapshot - before.1.snapshot),
    ] {
        figure(&format!("long run: {name}, as counted"), bytes as f64 / LONG as f64, "B per commit");
    }

    // What the file system still owes (times of files) is not the idle store's.
    rustix::fs::sync();
    let before = (disk.written()?, store.metrics().written);
    tokio::time::sleep(idle).await;
    figure(&format!("idle for {idle:?}: device bytes"), (disk.written()? - before.0) as f64, "B");
    figure("idle: written by the store", (store.metrics().written.total() - before.1.total()) as f64, "B");

    let revision = store.state().revision;
    store.shutdown().await;
    drop(store);
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let store = open(&path).await?;
        store.leadership().wait_for(Option::is_some).await?;
        fastest = fastest.min(started.elapsed());
        anyhow::ensure!(
            store.state().revision == revision,
            "revision {} instead of {revision}",
            store.state().revision
        );
        store.shutdown().await;
    }
    figure("open and lead again", fastest.as_secs_f64() * 1e3, "ms");
    let size: u64 = fs::read_dir(&path)?.map(|file| Ok(file?.metadata()?.len())).sum::<Result<u64>>()?;
    figure("folder", size as f64 / 1024.0, "KiB");
    Ok(())
}

/// Proposes `commits` entries, each of which writes `objects` objects of about `bytes` bytes anew.
async fn commit(store: &Store, objects: u128, bytes: usize, commits: u64) -> Result<()> {
    for _ in 0..commits {
        let state = store.state();
        let changes = (0..objects).map(|n| (state.revision_of(Key::Node(NodeId(n))), node(n, bytes - 40))).collect();
        match store.propose(entry(changes)).await? {
            Applied::Done { .. } => {}
            conflict => bail!("{conflict:?}"),
        }
    }
    Ok(())
}

async fn open(path: &Path) -> Result<Store> {
    Ok(Store::open(StoreConfig::new(path, 1, "bench")).await?)
}

fn entry(changes: Vec<(u64, Object)>) -> Entry {
    let change = |(expect, object)| Change { expect, action: Action::Put(object) };
    Entry { at: UnixMillis(0), reads: Vec::new(), changes: changes.into_iter().map(change).collect() }
}

fn node(number: u128, padding: usize) -> Object {
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

fn figure(name: &str, value: f64, unit: &str) {
    println!("{name:70} {value:10.1} {unit}");
}

/// The whole disk a folder lies on.
struct Disk(PathBuf);

impl Disk {
    fn of(at: &Path) -> Result<Disk> {
        let dev = fs::metadata(at)?.dev();
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        fs::metadata(&stat).with_context(|| format!("{} lies on no block device", at.display()))?;
        Ok(Disk(stat))
    }

    fn written(&self) -> Result<u64> {
        let stat = fs::read_to_string(&self.0)?;
        let sectors: u64 = stat.split_whitespace().nth(6).context("no seventh field")?.parse()?;
        Ok(sectors * 512)
    }
}
