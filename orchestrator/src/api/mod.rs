//! The HTTP API of a node: Docker's Engine API for cluster and node objects (`docker`), and `/edge/v1` for what Docker has
//! no words for (`edge`). It decides nothing: it reads [`node::Cluster`] and [`node::LocalNode`], turns wishes into entries
//! with `orchestrator_core::intent`, and shows what came of them. What concerns the cluster is answered by its leader, to
//! which other managers pass it on (`proxy`). The daemon calls [`server::serve`] for users and [`server::serve_stream`] for
//! other nodes.

pub mod docker;
pub mod edge;
pub mod error;
pub mod node;
mod proxy;
pub mod request;
pub mod server;
pub mod time;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use docker::events::EventLog;
use error::ApiError;
use node::{Cluster, LocalNode, Remote};
use orchestrator_core::{
    model::UnixMillis,
    state::{Applied, Entry, State},
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What every handler gets. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The replicated side.
    pub cluster: Arc<dyn Cluster>,
    /// The drivers of this machine.
    pub node: Arc<dyn LocalNode>,
    /// The way to other nodes.
    pub remote: Arc<dyn Remote>,
    /// The clock.
    pub now: fn() -> UnixMillis,
    /// What happened, for `GET /events`.
    pub events: Arc<EventLog>,
    /// Cancelled when the server stops: streams end.
    pub shutdown: CancellationToken,
}

/// Times that a change is decided anew when others changed the same objects in between.
const PROPOSE_ATTEMPTS: u32 = 8;

impl App {
    /// An API over these, which stops when `shutdown` is cancelled.
    pub fn new(
        cluster: Arc<dyn Cluster>,
        node: Arc<dyn LocalNode>,
        remote: Arc<dyn Remote>,
        now: fn() -> UnixMillis,
        shutdown: CancellationToken,
    ) -> Self {
        let events = EventLog::new();
        Self { cluster, node, remote, now, events, shutdown }
    }

    /// The state as of now, for a request that needs a cluster.
    pub(crate) async fn read(&self) -> Result<Arc<State>, ApiError> {
        if self.cluster.membership().cluster.is_none() {
            return Err(node::ProposeError::NoCluster.into());
        }
        Ok(self.cluster.read().await?)
    }

    /// Decides on the newest state and commits; decides anew when a guard did not hold.
    pub(crate) async fn change<T>(
        &self,
        mut decide: impl FnMut(&State, UnixMillis) -> Result<(T, Entry), ApiError>,
    ) -> Result<T, ApiError> {
        for _ in 0..PROPOSE_ATTEMPTS {
            let state = self.read().await?;
            let (value, entry) = decide(&state, (self.now)())?;
            match self.cluster.propose(entry).await? {
                Applied::Done { .. } => return Ok(value),
                Applied::Conflict { .. } => {}
            }
        }
        Err(ApiError::conflict("the object is being changed by others all the time; try again"))
    }
}
