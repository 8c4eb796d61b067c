//! The leader: exists only while this node leads. Turns state and reports into plans, and plans into assignments.
//!
//! In: the replicated state, and messages of node sessions. Out: one raft entry per plan, and for each session the newest
//! assignment. It never touches a driver; the agent, here or on another node, is reached through a [`crate::transport::Session`] only.

use crate::{
    clock,
    store::Store,
    transport::{Message, Sessions},
};
use orchestrator_core::{
    assignment::Assignments,
    intent,
    members::Members,
    model::{Cluster, Live, Millis, NodeId, NodeLive, Report, UnixMillis},
    plan::{Plan, plan},
    state::{Applied, Entry, State},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// A node that was not heard of for this long is down. Five missed heartbeats: Wi-Fi loses one or two now and then.
pub const DOWN_AFTER: Millis = Millis(5_000);
const SILENCE: Duration = Duration::from_millis(DOWN_AFTER.0);

/// Reports that come within this time are planned together, so that the ends of many tasks cost one commit.
const GATHER: Duration = Duration::from_millis(20);

/// Pause after a proposal that failed; the next one may find the cause gone.
const RETRY: Millis = Millis(500);

/// What the leader knows beyond the log, for the API.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Reports and liveness.
    pub live: Arc<Live>,
    /// The last plan; its reasons explain what is waiting.
    pub plan: Arc<Plan>,
}

/// Runs for as long as the process lives; leads whenever the store says so.
pub async fn run(store: Store, sessions: Arc<Sessions>, mut inbox: mpsc::Receiver<Message>, view: watch::Sender<View>) {
    let mut leadership = store.leadership();
    loop {
        let term = match *leadership.borrow_and_update() {
            Some(leading) => leading.term,
            None => 0,
        };
        if term != 0 {
            tracing::info!(term, "leading");
            lead(&store, &sessions, &mut inbox, &view, &mut leadership, term).await;
            view.send_replace(View::default());
            tracing::info!(term, "leading no more");
        } else {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                // Reports to a node that does not lead are stale; their senders will find the leader.
                message = inbox.recv() => if message.is_none() { return },
            }
        }
    }
}

async fn lead(
    store: &Store,
    sessions: &Sessions,
    inbox: &mut mpsc::Receiver<Message>,
    view: &watch::Sender<View>,
    leadership: &mut watch::Receiver<Option<crate::store::Leadership>>,
    term: u64,
) {
    let mut nodes = Roster::new(clock::now());
    let mut states = store.watch();
    sessions.greet_all();
    loop {
        // What waited while a plan was committed comes first: nobody is down for the slowness of this disk.
        while let Ok(message) = inbox.try_recv() {
            nodes.hear(message);
        }
        let state = states.borrow_and_update().clone();
        let now = clock::now();
        let live = Arc::new(nodes.live(now));
        let plan = Arc::new(plan(&state, &live, now));
        view.send_replace(View { live: live.clone(), plan: plan.clone() });
        let entry = plan.entry.clone().or_else(|| description_changed(&state, &live, now));
        let mut retry_at = None;
        if let Some(entry) = entry {
            match store.propose(entry).await {
                Ok(Applied::Done { .. } | Applied::Conflict { .. }) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a plan could not be committed");
                    retry_at = Some(now + RETRY);
                }
            }
        }
        // One member: this one.
        let own = state.nodes.values().find_map(|node| node.raft_id).unwrap_or(Cluster::FIRST_RAFT_ID);
        let members = Members { voters: [own].into(), own, ..Members::default() };
        let assignments = Assignments::new(&state, &live, term, &members);
        sessions.assign(|node| state.nodes.contains_key(&node).then(|| assignments.of(node)));

        let due = [plan.wake_at, nodes.next_down(now), retry_at].into_iter().flatten().min();
        let sleep = Duration::from_millis(due.map_or(u64::MAX >> 12, |due| due.since(now).0.max(1)));
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = leadership.changed() => {
                let still = leadership.borrow_and_update().as_ref().is_some_and(|leading| leading.term == term);
                if changed.is_err() || !still {
                    return;
                }
            }
            message = inbox.recv() => {
                let Some(message) = message else { return };
                if nodes.hear(message) {
                    tokio::time::sleep(GATHER).await;
                }
                while let Ok(message) = inbox.try_recv() {
                    nodes.hear(message);
                }
            }
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// An entry that takes over what a node says of itself, if one says something new.
fn description_changed(state: &State, live: &Live, now: UnixMillis) -> Option<Entry> {
    let mut told = live.nodes.values().filter_map(|node| {
        let Report { node: id, description, .. } = &node.report;
        let known = state.nodes.get(id)?;
        intent::describe_node(state, *id, known.hostname.clone(), description.clone(), now).ok().flatten()
    });
    told.next()
}

/// Who was heard when, and what they said last.
struct Roster {
    elected_at: UnixMillis,
    edition: u64,
    nodes: BTreeMap<NodeId, Heard>,
}

struct Heard {
    /// Monotonic: a clock that is set by NTP makes nobody silent.
    last: Instant,
    since: UnixMillis,
    ready: bool,
    report: Report,
}

impl Roster {
    fn new(now: UnixMillis) -> Self {
        Self { elected_at: now, edition: now.0, nodes: BTreeMap::new() }
    }

    /// Takes a message in; tells whether it may change a plan.
    fn hear(&mut self, message: Message) -> bool {
        let now = clock::now();
        match message {
            Message::Heartbeat(node) => {
                if let Some(heard) = self.nodes.get_mut(&node) {
                    heard.last = Instant::now();
                }
                false
            }
            Message::Report(report) => {
                let before = self.nodes.get(&report.node);
                let changed = before.is_none_or(|heard| heard.report != *report);
                let since = before.filter(|heard| heard.ready).map_or(now, |heard| heard.since);
                self.nodes.insert(report.node, Heard { last: Instant::now(), since, ready: true, report: *report });
                self.edition += u64::from(changed);
                changed
            }
        }
    }

    fn live(&mut self, now: UnixMillis) -> Live {
        for heard in self.nodes.values_mut() {
            let ready = heard.last.elapsed() < SILENCE;
            if heard.ready != ready {
                (heard.ready, heard.since) = (ready, now);
                self.edition += 1;
            }
        }
        let nodes = self.nodes.iter().map(|(id, heard)| {
            (*id, NodeLive { ready: heard.ready, since: heard.since, report: heard.report.clone() })
        });
        Live { nodes: nodes.collect(), down_after: self.elected_at + DOWN_AFTER, edition: self.edition }
    }

    /// When the next node is down if nothing is heard of it.
    fn next_down(&self, now: UnixMillis) -> Option<UnixMillis> {
        let left = |heard: &Heard| SILENCE.saturating_sub(heard.last.elapsed()).as_millis();
        let ready = self.nodes.values().filter(|heard| heard.ready);
        let ready = ready.map(|heard| now + Millis(u64::try_from(left(heard)).unwrap_or(u64::MAX)));
        let grace = self.elected_at + DOWN_AFTER;
        ready.chain((grace > now).then_some(grace)).min()
    }
}
