//! The leader: exists only while this node leads. Turns state and reports into plans, and plans into assignments.
//!
//! In: the replicated state, and messages of node sessions. Out: one raft entry per plan, for each session the newest
//! assignment, and changes of raft's membership. It never touches a driver; the agent, here or on another node, is reached
//! through a [`crate::transport::Session`] only.

mod members;
mod roster;

use crate::{
    clock,
    store::{Leadership, Store},
    transport::{Message, Sessions},
};
use orchestrator_core::{
    assignment::Assignments,
    intent::{self, NodeWish},
    model::{Live, Millis, Node, NodeId, NodeLive, Report, Role, UnixMillis},
    plan::{Plan, plan},
    state::{Applied, Entry, State},
};
use roster::Roster;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

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

/// Runs for as long as the store lives; leads whenever the store says so. While it does, nodes open their sessions at `desk`.
pub async fn run(store: Store, desk: watch::Sender<Option<Arc<Sessions>>>, view: watch::Sender<View>) {
    let mut leadership = store.leadership();
    loop {
        let Ok(Some(Leadership { term })) = leadership.wait_for(Option::is_some).await.map(|leading| *leading) else {
            return;
        };
        tracing::info!(term, "leading");
        let (sessions, inbox) = Sessions::new();
        desk.send_replace(Some(sessions.clone()));
        let mut helpers = JoinSet::new();
        helpers.spawn(members::keep(store.clone(), view.subscribe()));
        lead(&store, &sessions, inbox, &view, &mut leadership, term).await;
        desk.send_replace(None);
        sessions.end();
        helpers.shutdown().await;
        view.send_replace(View::default());
        tracing::info!(term, "leading no more");
    }
}

async fn lead(
    store: &Store,
    sessions: &Sessions,
    mut inbox: mpsc::Receiver<Message>,
    view: &watch::Sender<View>,
    leadership: &mut watch::Receiver<Option<Leadership>>,
    term: u64,
) {
    let mut states = store.watch();
    let mut members = store.watch_members();
    let mut nodes = Roster::new(clock::now());
    let mut leaving = Vec::new();
    loop {
        // What waited while a plan was committed comes first: nobody is down for the slowness of this disk.
        while let Ok(message) = inbox.try_recv() {
            hear(message, &mut nodes, &mut leaving);
        }
        let state = states.borrow_and_update().clone();
        sessions.keep(|node| state.nodes.contains_key(&node));
        nodes.keep(|node| state.nodes.contains_key(&node));
        let now = clock::now();
        let known = members.borrow_and_update().clone();
        nodes.count(&known);
        let live = Arc::new(nodes.live(&state, now));
        let plan = Arc::new(plan(&state, &live, now));
        view.send_replace(View { live: live.clone(), plan: plan.clone() });
        let entry = plan.entry.clone().or_else(|| told(&state, &live, now));
        let entry = entry.or_else(|| demotion(&state, &live, &mut leaving, now));
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
        let assignments = Assignments::new(&state, &live, term, &known);
        for node in sessions.nodes() {
            sessions.assign(node, assignments.of(node));
        }

        let due = [plan.wake_at, nodes.next_down(&state, now), retry_at].into_iter().flatten().min();
        let sleep = Duration::from_millis(due.map_or(u64::MAX >> 12, |due| due.since(now).0.max(1)));
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = members.changed() => if changed.is_err() { return },
            changed = leadership.changed() => {
                let still = leadership.borrow_and_update().as_ref().is_some_and(|leading| leading.term == term);
                if changed.is_err() || !still {
                    return;
                }
            }
            message = inbox.recv() => {
                let Some(message) = message else { return };
                if hear(message, &mut nodes, &mut leaving) {
                    tokio::time::sleep(GATHER).await;
                }
            }
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Takes a message in; tells whether it may change a plan.
fn hear(message: Message, nodes: &mut Roster, leaving: &mut Vec<NodeId>) -> bool {
    match message {
        Message::Heartbeat(node) => nodes.beat(node),
        Message::Report(report) => nodes.report(*report),
        Message::Leave(node) => {
            leaving.push(node);
            nodes.leave(node)
        }
    }
}

/// An entry that makes a worker of a manager that leaves, unless that would cost the quorum; its node asks again then.
fn demotion(state: &State, live: &Live, leaving: &mut Vec<NodeId>, now: UnixMillis) -> Option<Entry> {
    while let Some(id) = leaving.pop() {
        let Some(node) = state.nodes.get(&id).filter(|node| node.role == Role::Manager) else { continue };
        let Node { availability, ref labels, .. } = *node.value;
        let wish = NodeWish { role: Role::Worker, availability, labels: labels.clone() };
        match intent::update_node(state, live, id, node.revision, wish, now) {
            Ok(entry) => return Some(entry),
            Err(refusal) => tracing::warn!(node = %id, %refusal, "a manager that leaves stays one"),
        }
    }
    None
}

/// An entry that takes over what a node says of itself, or gives it what it lacks, if one says something new.
fn told(state: &State, live: &Live, now: UnixMillis) -> Option<Entry> {
    let entry = |node: &NodeLive| {
        let Report { node: id, description, lost_log, .. } = &node.report;
        let known = state.nodes.get(id)?;
        let new = intent::describe_node(state, *id, known.hostname.clone(), description.clone(), now).ok().flatten();
        new.or_else(|| intent::renew_raft_id(state, *id, (*lost_log)?, now).ok().flatten())
    };
    live.nodes.values().find_map(entry)
}
