//! Sessions: where leader and agents meet. Assignments go one way and only the newest counts; reports go the other.

use orchestrator_core::{
    assignment::Assignment,
    model::{NodeId, Report},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, watch};

/// What an agent tells the leader.
#[derive(Clone, Debug)]
pub enum Message {
    /// It is alive and nothing changed.
    Heartbeat(NodeId),
    /// Everything about it.
    Report(Box<Report>),
}

/// Messages that wait for the leader. A report replaces the one before, so a slow leader loses nothing by a full queue:
/// senders wait.
const INBOX: usize = 256;

type Assigned = watch::Sender<Option<Arc<Assignment>>>;

/// All open sessions of this leader.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Assigned>>,
    inbox: mpsc::Sender<Message>,
}

/// The agent's end of a session. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    /// The newest assignment; `None` until the leader has one.
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

    /// Opens the session of `node`; an older one of the same node gets nothing more.
    #[must_use]
    pub fn open(&self, node: NodeId) -> Session {
        let (sender, assignments) = watch::channel(None);
        self.lock().insert(node, sender);
        Session { assignments, reports: self.inbox.clone() }
    }

    /// Offers each session its assignment; what is unchanged wakes nobody.
    pub(crate) fn assign(&self, make: impl Fn(NodeId) -> Option<Assignment>) {
        self.lock().retain(|_, session| !session.is_closed());
        for (node, session) in self.lock().iter() {
            let Some(new) = make(*node) else { continue };
            session.send_if_modified(|current| {
                let same = current.as_ref().is_some_and(|old| old.term == new.term && old.says_the_same(&new));
                if !same {
                    *current = Some(Arc::new(new));
                }
                !same
            });
        }
    }

    /// Wakes all agents, so that they report to a new leader.
    pub(crate) fn greet_all(&self) {
        for session in self.lock().values() {
            session.send_modify(|_| {});
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Assigned>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
