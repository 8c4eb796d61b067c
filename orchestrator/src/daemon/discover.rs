//! Finding managers by multicast DNS, and being found. What it says is used as addresses to try and trusted for nothing.

use crate::transport::{Announcement, Discovery, Endpoint, Found, Source};
use orchestrator_core::model::{ClusterId, NodeId, Role};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// How long one search of a node that has lost its managers lasts.
const SEARCH: Duration = Duration::from_secs(5);
/// Managers that one search remembers: anybody on the link may announce any number, and each is asked in vain.
const REMEMBERED: usize = 8;

/// Searches on demand: a cluster at rest sends no multicast questions.
#[derive(Clone)]
pub(super) struct Finder {
    discovery: Option<Arc<Discovery>>,
    found: Arc<Mutex<BTreeSet<(ClusterId, NodeId)>>>,
    searching: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Finder {
    /// `None` finds nothing and announces nothing.
    pub(super) fn new(discovery: Option<Discovery>) -> Self {
        Self { discovery: discovery.map(Arc::new), found: Arc::default(), searching: Arc::default() }
    }

    /// Lets others find this node while it is a manager.
    pub(super) fn announce(&self, announcement: Option<&Announcement>) {
        let Some(discovery) = &self.discovery else { return };
        if let Err(error) = discovery.announce(announcement) {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "not announced by multicast DNS");
        }
    }

    /// Starts a search for managers of `cluster`, unless one is under way; what it finds is in [`Finder::found`] and in the
    /// endpoint's address book.
    pub(super) fn look(&self, cluster: ClusterId, endpoint: &Endpoint) {
        let Some(discovery) = self.discovery.clone() else { return };
        let mut searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        if searching.as_ref().is_some_and(|search| !search.is_finished()) {
            return;
        }
        self.lock().clear();
        let (finder, endpoint) = (self.clone(), endpoint.clone());
        *searching = Some(tokio::spawn(async move {
            let until = Instant::now() + SEARCH;
            let mut answers = match discovery.browse() {
                Ok(answers) => answers,
                Err(error) => {
                    tracing::debug!(error = format!("{:#}", anyhow::Error::from(error)), "no search by multicast DNS");
                    return;
                }
            };
            while let Ok(Some(found)) = timeout_at(until, answers.recv()).await {
                if found.cluster == cluster && found.role == Role::Manager {
                    for address in &found.addrs {
                        endpoint.book().learn(found.node, *address, Source::Found);
                    }
                    finder.remember(&found);
                }
            }
        }));
    }

    /// Managers of `cluster` that were found so far.
    pub(super) fn found(&self, cluster: ClusterId) -> Vec<NodeId> {
        self.lock().iter().filter(|(of, _)| *of == cluster).map(|(_, node)| *node).collect()
    }

    /// Addresses of managers of whatever cluster: a joiner's token tells which is the right one. Waits until some time after
    /// the first answer, or for `longest`.
    pub(super) async fn managers(&self, longest: Duration) -> Vec<SocketAddr> {
        let Some(Ok(mut answers)) = self.discovery.as_deref().map(Discovery::browse) else { return Vec::new() };
        let mut until = Instant::now() + longest;
        let mut addresses = BTreeSet::new();
        while let Ok(Some(found)) = timeout_at(until, answers.recv()).await {
            addresses.extend(found.addrs);
            until = until.min(Instant::now() + longest / 5);
        }
        addresses.into_iter().collect()
    }

    fn remember(&self, found: &Found) {
        let mut known = self.lock();
        if known.len() < REMEMBERED {
            known.insert((found.cluster, found.node));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(ClusterId, NodeId)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
