//! Sessions: where leader and agents meet. Assignments go one way and only the newest counts; reports go the other.
//!
//! In: a leader that has just been elected makes [`Sessions`]; whoever carries a node's words (the link of the same process, or
//! the server of the `edge-node/1` protocol) opens that node's [`Session`]. Out: when the leadership ends, the sessions are
//! dropped, and every session sees its end.

use orchestrator_core::{
    assignment::Assignment,
    model::{NodeId, Report},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, watch};

/// What a node tells the leader.
#[derive(Clone, Debug)]
pub enum Message {
    /// It is alive and nothing changed.
    Heartbeat(NodeId),
    /// Everything about it.
    Report(Box<Report>),
    /// It leaves the cluster now.
    Leave(NodeId),
}

/// Messages that wait for the leader. A report replaces the one before, so a slow leader loses nothing by a full queue:
/// senders wait.
const INBOX: usize = 256;

type Assigned = watch::Sender<Option<Arc<Assignment>>>;

/// All open sessions of one leadership.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Assigned>>,
    inbox: mpsc::Sender<Message>,
}

/// The node's end of a session. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    /// The newest assignment; `None` until the leader has one. Closed when the leadership ends, or when the same node opens
    /// another session.
    pub assignments: watch::Receiver<Option<Arc<Assignment>>>,
    /// Takes reports and heartbeats.
    pub reports: mpsc::Sender<Message>,
}

impl Sessions {
    /// No sessions yet; the receiver is for the leader.
    #[must_use]
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (inbox, messages) = mpsc::channel(INBOX);
        (Arc::new(Self { open: Mutex::default(), inbox }), messages)
    }

    /// Opens the session of `node` and ends an older one of it.
    #[must_use]
    pub fn open(&self, node: NodeId) -> Session {
        let (sender, assignments) = watch::channel(None);
        self.lock().insert(node, sender);
        Session { assignments, reports: self.inbox.clone() }
    }

    /// Ends the sessions of nodes that are no members any more.
    pub(crate) fn keep(&self, is_member: impl Fn(NodeId) -> bool) {
        self.lock().retain(|node, session| is_member(*node) && !session.is_closed());
    }

    /// Nodes with an open session.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    /// Offers a session its assignment; what is unchanged wakes nobody.
    pub(crate) fn assign(&self, node: NodeId, new: Assignment) {
        let open = self.lock();
        let Some(session) = open.get(&node) else { return };
        session.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|old| old.says_the_same(&new));
            if !same {
                *current = Some(Arc::new(new));
            }
            !same
        });
    }

    /// Ends all sessions: the leadership is over.
    pub(crate) fn end(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Assigned>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
