//! The node agent: observes, decides with [`orchestrator_core::node`], and has the drivers carry it out. It never writes
//! replicated state; it hears assignments and tells reports.
//!
//! ```text
//!   wire ─────► newest assignment ──► ledger (disk)
//!                     │
//!   kernel ──► observe ──► reconcile ──► chains of steps, one task each, side by side
//!                     │                  forwarding and names, whole, when they differ
//!                     └──► report ──► wire
//! ```
//! Every event (a container ended, a link changed, a chain is done, time is up) only means "look again".

mod drivers;
mod execute;
mod ledger;
mod memory;
mod observe;
mod volumes;

pub use drivers::Drivers;
pub(crate) use drivers::{locked, logs_dir};
pub use execute::task_name;
pub use ledger::{Ledger, LedgerError};
pub use volumes::{VolumeError, Volumes};

use crate::clock;
use execute::Chain;
use memory::Memory;
use orchestrator_core::{
    assignment::Assignment,
    model::{Desired, NodeDescription, NodeId, Report, UnixMillis},
    node::{self, Observed},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// Pause after the kernel could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// Time after which the kernel is read again though nothing was heard: what events miss is mended this late at the latest.
const RESYNC: Duration = Duration::from_secs(10);

/// Time between two looks at the node's base; connections that are over are forgotten then too (dataplane's advice: 10 s).
const MEND: Duration = Duration::from_secs(10);

/// Events that come within this time are looked at together.
const GATHER: Duration = Duration::from_millis(5);

/// The agent of one node.
pub struct Agent {
    node: NodeId,
    drivers: Drivers,
    ledger: Ledger,
    memory: Arc<Memory>,
    view: watch::Sender<View>,
}

/// The agent's end of whatever connects it with the leader. It lasts as long as the agent: leaders come and go behind it.
#[derive(Debug)]
pub struct Wire {
    /// The newest assignment that was heard of.
    pub assignments: watch::Receiver<Option<Arc<Assignment>>>,
    /// The newest report; it is complete, so whoever carries it needs no older one.
    pub reports: watch::Sender<Option<Arc<Report>>>,
    /// When a manager was heard of last, once that is so long ago that the node counts as cut off; `None` while there is contact.
    pub cut_off: watch::Receiver<Option<Instant>>,
    /// What the node says of itself.
    pub description: watch::Receiver<NodeDescription>,
}

/// What the agent knows, for the API.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it should have.
    pub assignment: Option<Arc<Assignment>>,
    /// What it has.
    pub observed: Arc<Observed>,
}

impl Agent {
    /// An agent for `node`; its view can be watched from the start.
    #[must_use]
    pub fn new(node: NodeId, drivers: Drivers, ledger: Ledger, view: watch::Sender<View>) -> Self {
        Self { node, drivers, ledger, memory: Arc::default(), view }
    }

    /// Runs until the other end of `wire` is gone or the task is dropped. Containers do not notice either.
    pub async fn run(self, mut wire: Wire) {
        let mut assignment = self.recall();
        let mut kept = true;
        let mut chains = JoinSet::new();
        let mut containers = self.drivers.runtime.changes();
        let mut links = self.drivers.network.changes();
        let mut mended_at = None::<Instant>;
        loop {
            if let Some(new) = wire.assignments.borrow_and_update().clone() {
                self.accept(&mut assignment, new, &mut kept);
            }
            if let Some(current) = &assignment
                && !kept
            {
                kept = self.keep(current);
            }
            let cut_off = *wire.cut_off.borrow_and_update();
            let description = wire.description.borrow_and_update().clone();
            let mut look_again_in = RESYNC;
            let report = match &assignment {
                Some(current) => {
                    let mend = mended_at.is_none_or(|at| at.elapsed() >= MEND);
                    if mend {
                        mended_at = Some(Instant::now());
                    }
                    match self.step(current, cut_off, description, &mut chains, mend).await {
                        Ok((report, wake_in)) => {
                            look_again_in = look_again_in.min(wake_in);
                            Some(report)
                        }
                        Err(error) => {
                            tracing::warn!(error = format!("{error:#}"), "the node could not be looked at");
                            look_again_in = RETRY;
                            None
                        }
                    }
                }
                None => Some(self.report(0, 0, description)),
            };
            if let Some(report) = report {
                wire.reports.send_if_modified(|told| {
                    let new = told.as_deref() != Some(&report);
                    if new {
                        *told = Some(Arc::new(report));
                    }
                    new
                });
            }
            let ended = tokio::select! {
                changed = wire.assignments.changed() => changed.is_err(),
                changed = wire.cut_off.changed() => changed.is_err(),
                changed = wire.description.changed() => {
                    // The node has another address: what is bound to addresses follows at once.
                    mended_at = None;
                    changed.is_err()
                }
                _ = containers.changed() => false,
                _ = links.changed() => false,
                Some(_) = chains.join_next() => false,
                () = tokio::time::sleep(look_again_in) => false,
            };
            if ended {
                return;
            }
            tokio::time::sleep(GATHER).await;
            while chains.try_join_next().is_some() {}
            containers.mark_unchanged();
            links.mark_unchanged();
        }
    }

    fn recall(&self) -> Option<Arc<Assignment>> {
        match self.ledger.load() {
            Ok(assignment) => assignment.filter(|assignment| assignment.node == self.node).map(Arc::new),
            Err(error) => {
                tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the ledger cannot be read");
                None
            }
        }
    }

    /// Takes an assignment if it is not older than the one in force, and notes whether the ledger has it.
    fn accept(&self, current: &mut Option<Arc<Assignment>>, new: Arc<Assignment>, kept: &mut bool) {
        if current.as_ref().is_some_and(|old| !new.supersedes(old)) {
            return;
        }
        let same = current.as_ref().is_some_and(|old| old.says_the_same(&new));
        *kept = *kept && same;
        *current = Some(new);
    }

    /// Whether the ledger has the assignment; writes it if need be.
    fn keep(&self, assignment: &Assignment) -> bool {
        match self.ledger.save(assignment) {
            Ok(()) => true,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "the assignment is carried out but would be lost by a power cut");
                false
            }
        }
    }

    /// One look and what follows from it. Returns the report and the time until the next look.
    async fn step(
        &self,
        assignment: &Arc<Assignment>,
        cut_off: Option<Instant>,
        description: NodeDescription,
        chains: &mut JoinSet<()>,
        mend: bool,
    ) -> anyhow::Result<(Report, Duration)> {
        let assigned = assignment.tasks.keys().copied().collect::<BTreeSet<_>>();
        let busy_before = self.memory.busy();
        let mut look = observe::look(&self.drivers, assignment).await?;
        self.memory.abort_fetches(|task| assignment.tasks.get(&task).is_none_or(|task| task.desired != Desired::Run));
        self.memory.add_to(&mut look.observed, &assigned, &busy_before);
        // Counted back from now: a clock that was set meanwhile ends nothing early.
        look.observed.cut_off_since = cut_off.map(|heard| {
            let silent = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
            UnixMillis(clock::now().0.saturating_sub(silent))
        });

        let links = look.observed.tasks.values().filter_map(|seen| Some(seen.attached.as_ref()?.ifindex)).collect();
        if mend && let Err(error) = self.drivers.mend(&look.strays, links).await {
            tracing::warn!(error = format!("{error:#}"), "the node could not be mended");
        }
        let now = clock::now();
        let mut forwarding_failed = false;
        let table = node::forwarding(assignment, &look.observed, now);
        if let Err(error) = self.drivers.forward(table, &mut look).await {
            tracing::warn!(error = format!("{error:#}"), "forwarding could not be brought up to date");
            forwarding_failed = true;
        }
        self.drivers.resolve(&node::names(assignment, &look.observed, now));

        let work = node::reconcile(assignment, &look.observed, now);
        for task in work.restarts {
            if let Some(assigned) = assignment.tasks.get(&task) {
                tracing::info!(%task, service = assigned.service_name, "started again, as no manager is heard that would replace it");
                self.memory.restart(task, &assigned.spec.restart);
            }
        }
        for (task, ops) in work.tasks {
            self.memory.begin(task);
            look.observed.tasks.entry(task).or_default().busy = true;
            let chain = Chain::new(&self.drivers, &self.memory, assignment, task);
            let abort = chains.spawn(chain.run(ops));
            self.memory.started(task, abort);
        }

        let mut report = self.report(assignment.term, assignment.revision, description);
        report.tasks = node::report(assignment, &look.observed, now);
        report.held_ports = look.held_ports;
        let wake_in = work.wake_at.map_or(RESYNC, |at| Duration::from_millis(at.since(now).0));
        let wake_in = if forwarding_failed { wake_in.min(RETRY) } else { wake_in };
        self.view.send_replace(View { assignment: Some(assignment.clone()), observed: Arc::new(look.observed) });
        Ok((report, wake_in))
    }

    fn report(&self, term: u64, revision: u64, description: NodeDescription) -> Report {
        Report {
            node: self.node,
            term,
            revision,
            description,
            raft: None,
            lost_log: None,
            tasks: Default::default(),
            held_ports: Vec::new(),
        }
    }
}
