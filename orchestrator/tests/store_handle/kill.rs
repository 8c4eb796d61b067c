//! SIGKILL at any moment: a child process proposes and says what was acknowledged, this one kills it and looks.

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{entry, founding, leads, node, numbers, open};
use orchestrator::store::{InitializeError, Store};

const CHILD: &str = "EDGE_TEST_STORE_CHILD";
const ROUNDS: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_change_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        acknowledged.extend(child_until_killed(dir.path(), round));
        let store = open(dir.path()).await;
        let there: BTreeSet<u128> = if store.is_initialized() {
            leads(&store).await;
            numbers(&store.state()).into_iter().collect()
        } else {
            BTreeSet::new()
        };
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        // Proposed in order, so nothing may be there beyond a hole.
        assert!(there.iter().copied().eq(0..there.len() as u128), "round {round}: a hole in {there:?}");
        store.shutdown().await;
    }
    assert!(acknowledged.len() > 100, "only {} changes were acknowledged in all", acknowledged.len());
}

/// Runs the child on the store in `dir`, kills it at a moment that depends on `round`, and returns what it said.
fn child_until_killed(dir: &Path, round: u64) -> Vec<u128> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kill::the_child", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Some rounds end while the store is being opened or the cluster founded, most among the proposals.
    let random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let (lines, wait) = match round % 5 {
        0 => (0, Duration::from_micros(random % 60_000)),
        _ => (1 + random % 80, Duration::from_micros(random % 3_000)),
    };
    let mut acknowledged = Vec::new();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut numbers = output.by_ref().filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u128>().ok());
    acknowledged.extend(numbers.by_ref().take(lines as usize));
    let killed_at = Instant::now() + wait;
    while Instant::now() < killed_at {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    acknowledged.extend(numbers);
    child.wait().unwrap();
    acknowledged
}

/// Not a test of its own: what the test above runs in another process.
#[tokio::test(flavor = "multi_thread")]
async fn the_child() {
    let Some(dir) = env::var_os(CHILD) else { return };
    let store: Store = open(Path::new(&dir)).await;
    if store.is_initialized() {
        leads(&store).await;
    }
    match store.initialize(founding()).await {
        Ok(_) | Err(InitializeError::AlreadyInitialized) => {}
        Err(error) => panic!("{error:?}"),
    }
    for number in store.state().nodes.len() as u128.. {
        // Sizes that cross pages and sectors; now and then one that fills a good part of a segment.
        let padding = if number % 50 == 49 { 300_000 } else { (number as usize * 97) % 3000 };
        store.propose(entry([node(number, padding)])).await.unwrap();
        println!("acknowledged {number}");
    }
}
