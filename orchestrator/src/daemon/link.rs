//! The link between this node's agent and whoever leads: through the process where this node leads itself, else over
//! `edge-node/1`. Leaders come and go; the agent's end of the link stays.
//!
//! In: reports of the agent. Out: assignments for it, whether there is contact, and renewed certificates. Whatever goes wrong
//! with a manager leads to the next one: first the leader if it is known, then all managers the last assignment named, then
//! those that multicast DNS finds.

use super::{Base, Manager, certificates, contact::Contact};
use crate::{
    agent::Wire,
    pki::{Credentials, renew_at, utc},
    transport::{Alpn, Connection, Message, SendStream, Source, frames},
};
use orchestrator_core::{
    assignment::{AssignedTask, Assignment, Membership},
    model::{ClusterId, Desired, NodeId, Report, Role},
    protocol::{Down, Up},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{interval, sleep, timeout},
};

/// A manager that takes longer to shake hands is passed over for the next one.
const DIAL: Duration = Duration::from_secs(3);
/// First and longest pause after all managers failed; in between it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(8));
/// Pause between two requests for a certificate.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// What a manager says and this node has not taken in yet: it says little, and the newest assignment replaces all others.
const DOWNS: usize = 16;

/// How the link stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No manager was reached yet; the last error.
    Searching(String),
    /// In contact with this leader.
    Attached(NodeId),
    /// The cluster has removed this node.
    Removed,
}

/// What the daemon holds of a running link.
pub(super) struct Handle {
    pub(super) standing: watch::Receiver<Standing>,
    /// The role that the certificate should carry; the link has it renewed until it does.
    pub(super) role: watch::Sender<Option<Role>>,
    /// Number of a store that was lost; reports tell it, and the leader gives another one.
    pub(super) lost: watch::Sender<Option<u64>>,
    /// Set once this node has left in all but deed: assignments are ignored from then on.
    pub(super) leaves: Arc<AtomicBool>,
    /// Tells the leader that this node leaves; the answer comes when it was told, or could not be.
    pub(super) leave: mpsc::Sender<oneshot::Sender<()>>,
}

/// What a link is made of.
pub(super) struct Parts {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) base: Base,
    pub(super) credentials: watch::Sender<Credentials>,
    pub(super) manager: watch::Receiver<Option<Arc<Manager>>>,
    /// Managers that the node knew when it joined.
    pub(super) named: Vec<NodeId>,
    /// The last assignment that the ledger has.
    pub(super) last: Option<Arc<Assignment>>,
}

/// The link.
pub(super) struct Link {
    parts: Parts,
    contact: Arc<Contact>,
    assignments: watch::Sender<Option<Arc<Assignment>>>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    standing: watch::Sender<Standing>,
    role: watch::Receiver<Option<Role>>,
    lost: watch::Receiver<Option<u64>>,
    leaves: Arc<AtomicBool>,
    leave: mpsc::Receiver<oneshot::Sender<()>>,
    renew: Renewal,
}

/// When the certificate was asked for last, and the draw that says when the next one is due.
struct Renewal {
    asked: Option<Instant>,
    /// Not before, by monotonic time: to a clock that is far ahead of the cluster's every certificate looks old.
    earliest: Option<Instant>,
    draw: f64,
}

/// Why a session ended.
enum Ended {
    /// Another one leads.
    Elsewhere(Option<NodeId>),
    /// The manager could not be reached or was lost.
    Lost(String),
    /// This node leads now, or does so no more.
    Own,
    /// The agent or the daemon ends.
    Over,
}

impl Link {
    /// A link, what the daemon holds of it, the agent's end, and where assignments are put.
    pub(super) fn new(parts: Parts) -> (Self, Handle, Wire, watch::Sender<Option<Arc<Assignment>>>) {
        // The agent has it from its ledger, too; what ends a membership is made of it.
        let (assignments, assigned) = watch::channel(parts.last.clone());
        let (reported, reports) = watch::channel(None);
        let (standing, stands) = watch::channel(Standing::Searching("no manager was asked yet".into()));
        let (wanted, role) = watch::channel(None);
        let (loses, lost) = watch::channel(None);
        let (told, leave) = mpsc::channel(1);
        let leaves = Arc::new(AtomicBool::new(false));
        let contact = Contact::new();
        let description = parts.base.description.subscribe();
        let wire = Wire { assignments: assigned, reports: reported, cut_off: contact.cut_off(), description };
        let handle = Handle { standing: stands, role: wanted, lost: loses, leaves: leaves.clone(), leave: told };
        let renew = Renewal { asked: None, earliest: None, draw: draw() };
        let put = assignments.clone();
        let mut link = Self { parts, contact, assignments, reports, standing, role, lost, leaves, leave, renew };
        if let Some(last) = link.parts.last.take() {
            link.learn(&last);
            link.parts.named.extend(last.membership.managers.keys());
        }
        (link, handle, wire, put)
    }

    /// Runs until the agent ends.
    pub(super) async fn run(mut self) {
        let contact = self.contact.clone();
        tokio::select! {
            () = self.serve() => {}
            () = contact.watch() => {}
        }
    }

    async fn serve(&mut self) {
        let mut pause = PAUSE.0;
        let mut hint = None;
        // Managers that failed in this round; each is asked once in every round.
        let mut failed: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let (target, ended) = if let Some(manager) = self.leading() {
                (self.parts.node, self.at_own_desk(&manager).await)
            } else {
                let candidates = self.candidates(hint.take());
                if candidates.iter().all(|node| failed.contains(node)) {
                    failed.clear();
                }
                match candidates.into_iter().find(|node| !failed.contains(node)) {
                    Some(target) => (target, self.at(target).await),
                    None => (self.parts.node, Ended::Lost("no manager is known".into())),
                }
            };
            let attached = matches!(*self.standing.borrow(), Standing::Attached(_));
            if attached {
                pause = PAUSE.0;
                failed.clear();
            }
            match ended {
                Ended::Over => return,
                Ended::Own => {}
                Ended::Elsewhere(Some(leader)) if leader != self.parts.node => {
                    // Two that name each other would keep this node running between them.
                    if !failed.insert(target) {
                        self.rest(&mut pause, false).await;
                    }
                    failed.remove(&leader);
                    hint = Some(leader);
                }
                Ended::Elsewhere(_) => {
                    failed.insert(target);
                    self.rest(&mut pause, false).await;
                }
                Ended::Lost(why) => {
                    failed.insert(target);
                    tracing::debug!(why, "no session with a leader");
                    if *self.standing.borrow() != Standing::Removed {
                        self.standing.send_replace(Standing::Searching(why));
                    }
                    let all = self.candidates(None).iter().all(|node| failed.contains(node));
                    if all || !attached {
                        self.rest(&mut pause, all).await;
                    }
                }
            }
        }
    }

    /// Waits a little, longer each time that nobody at all was reached; ends early when this node leads.
    async fn rest(&mut self, pause: &mut Duration, nobody: bool) {
        if nobody {
            self.parts.base.finder.look(self.parts.cluster, &self.parts.base.endpoint);
        }
        let wait = if nobody { *pause } else { PAUSE.0 }.mul_f64(0.5 + draw());
        if nobody {
            *pause = (*pause * 2).min(PAUSE.1);
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = leads(&mut self.parts.manager) => {}
        }
    }

    /// This node's own manager, while it leads.
    fn leading(&self) -> Option<Arc<Manager>> {
        let manager = self.parts.manager.borrow().clone()?;
        let leads = manager.desk.borrow().is_some();
        leads.then_some(manager)
    }

    /// Managers to ask, the best first.
    fn candidates(&self, hint: Option<NodeId>) -> Vec<NodeId> {
        let own = self.parts.manager.borrow().as_ref().and_then(|manager| manager.leader());
        let named = self.assignments.borrow().as_ref().map(|a| a.membership.managers.clone()).unwrap_or_default();
        let mut all: Vec<NodeId> = Vec::new();
        let first = hint.into_iter().chain(own);
        let before = self.parts.named.iter().copied();
        for node in first.chain(named.into_keys()).chain(before).chain(self.parts.base.finder.found(self.parts.cluster))
        {
            if node != self.parts.node && !all.contains(&node) {
                all.push(node);
            }
        }
        all
    }

    /// A session with the leader in this very process.
    async fn at_own_desk(&mut self, manager: &Arc<Manager>) -> Ended {
        let Some(mut session) = manager.desk.borrow().as_ref().map(|sessions| sessions.open(self.parts.node)) else {
            return Ended::Own;
        };
        self.standing.send_replace(Standing::Attached(self.parts.node));
        let mut beat = interval(self.contact.heartbeat());
        self.reports.mark_changed();
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    self.contact.heard();
                    if session.reports.send(Message::Heartbeat(self.parts.node)).await.is_err() {
                        return Ended::Own;
                    }
                    if let Some(csr) = self.wanted_certificate() {
                        match certificates::issue(&manager.store.state(), self.parts.node, &csr, self.parts.base.time.now()) {
                            Ok(certificate) => self.renewed(certificate),
                            Err(error) => tracing::warn!(error = format!("{error:#}"), "no new certificate"),
                        }
                    }
                }
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        return Ended::Over;
                    }
                    if let Some(report) = self.report()
                        && session.reports.send(Message::Report(report)).await.is_err()
                    {
                        return Ended::Own;
                    }
                }
                changed = session.assignments.changed() => {
                    if changed.is_err() {
                        return Ended::Own;
                    }
                    let new = session.assignments.borrow_and_update().clone();
                    self.assigned(new);
                }
                _ = self.parts.manager.changed() => self.reports.mark_changed(),
                Some(told) = self.leave.recv() => {
                    // Who asked may have given up meanwhile.
                    if told.is_closed() {
                        continue;
                    }
                    let _ended = session.reports.send(Message::Leave(self.parts.node)).await;
                    let _gone = told.send(());
                }
            }
        }
    }

    /// A session with the leader on another node.
    async fn at(&mut self, target: NodeId) -> Ended {
        let dial = async {
            let connection = self.parts.base.endpoint.connect(target, Alpn::Node).await?;
            anyhow::ensure!(connection.peer().role == Role::Manager, "node {target} is no manager by its certificate");
            let streams = connection.open().await?;
            anyhow::Ok((connection, streams))
        };
        let dialled = tokio::select! {
            dialled = timeout(DIAL, dial) => dialled,
            () = leads(&mut self.parts.manager) => return Ended::Own,
        };
        let (connection, (mut up, mut down)) = match dialled {
            Ok(Ok(dialled)) => dialled,
            Ok(Err(error)) => return Ended::Lost(format!("{error:#}")),
            Err(_) => return Ended::Lost(format!("manager {target} did not answer within {} s", DIAL.as_secs())),
        };
        let (heard, mut hears) = mpsc::channel(DOWNS);
        // Reading is not safe to give up half-way, so it has a task of its own.
        let reader = tokio::spawn(async move {
            loop {
                let message = frames::read::<Down>(&mut down).await;
                let last = message.is_err();
                if heard.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        let ended = self.talk(target, &connection, &mut up, &mut hears).await;
        reader.abort();
        ended
    }

    async fn talk(
        &mut self,
        target: NodeId,
        connection: &Connection,
        up: &mut SendStream,
        hears: &mut mpsc::Receiver<Result<Down, frames::FrameError>>,
    ) -> Ended {
        let lost =
            |what: &str, error: &dyn std::fmt::Display| Ended::Lost(format!("manager {target}: {what}: {error}"));
        let mut beat = interval(self.contact.heartbeat());
        let mut silent_since = Instant::now();
        let mut left = None::<oneshot::Sender<()>>;
        let mut raft = self.parts.manager.clone();
        let elsewhere = another_leads(raft.borrow().clone(), target);
        tokio::pin!(elsewhere);
        self.reports.mark_changed();
        loop {
            let mut says = None;
            tokio::select! {
                _ = beat.tick() => {
                    // Half of what makes a node down: time enough to find another manager before this node is.
                    if silent_since.elapsed() > self.contact.down_after() / 2 {
                        return Ended::Lost(format!("manager {target} has fallen silent"));
                    }
                    says = Some(self.wanted_certificate().map_or(Up::Heartbeat, Up::Renew));
                }
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        return Ended::Over;
                    }
                    says = self.report().map(Up::Report);
                }
                _ = raft.changed() => self.reports.mark_changed(),
                Ok(()) = self.lost.changed() => self.reports.mark_changed(),
                leader = &mut elsewhere => return Ended::Elsewhere(Some(leader)),
                () = leads(&mut self.parts.manager) => return Ended::Own,
                Some(told) = self.leave.recv() => {
                    if told.is_closed() {
                        continue;
                    }
                    says = Some(Up::Leave);
                    left = Some(told);
                }
                message = hears.recv() => match message {
                    None => return Ended::Lost(format!("manager {target} closed the session")),
                    Some(Err(error)) => {
                        let reason = connection.close_reason().unwrap_or_else(|| error.to_string());
                        return lost("the session broke", &reason);
                    }
                    Some(Ok(message)) => {
                        silent_since = Instant::now();
                        if let Some(ended) = self.hear(target, message) {
                            return ended;
                        }
                    }
                },
            }
            if let Some(message) = says
                && let Err(error) = frames::write(up, &message).await
            {
                let reason = connection.close_reason().unwrap_or_else(|| error.to_string());
                return lost("the session broke", &reason);
            }
            if let Some(told) = left.take() {
                let _gone = told.send(());
            }
        }
    }

    /// Takes in what a leader says.
    fn hear(&mut self, from: NodeId, message: Down) -> Option<Ended> {
        match message {
            Down::Elsewhere { leader } => {
                if let Some((node, address)) = &leader
                    && let Ok(address) = address.parse()
                {
                    self.parts.base.endpoint.book().learn(*node, address, Source::Assigned);
                }
                return Some(Ended::Elsewhere(leader.map(|(node, _)| node)));
            }
            Down::Removed => {
                self.contact.heard();
                if self.standing.send_replace(Standing::Removed) != Standing::Removed {
                    tracing::error!("this node was removed from the cluster; it stops its containers");
                    self.assignments.send_modify(|current| {
                        *current = current.as_ref().map(|old| Arc::new(nothing(old)));
                    });
                }
                return Some(Ended::Lost("this node was removed from the cluster".into()));
            }
            Down::Heard { now } => self.parts.base.time.raise(now),
            Down::Assignment(new) => self.assigned(Some(Arc::new(*new))),
            Down::Certificate(certificate) => self.renewed(certificate),
            Down::NoCertificate(why) => tracing::warn!(why, "the leader issues no new certificate"),
        }
        self.contact.heard();
        if *self.standing.borrow() != Standing::Attached(from) {
            tracing::info!(leader = %from, "in session with the leader");
            self.standing.send_replace(Standing::Attached(from));
        }
        None
    }

    fn assigned(&mut self, new: Option<Arc<Assignment>>) {
        let Some(new) = new else { return };
        self.contact.heard();
        self.learn(&new);
        // Whoever leaves ends what it has, whatever the cluster thinks of it for a moment longer.
        if !self.leaves.load(Ordering::Relaxed) {
            self.assignments.send_replace(Some(new));
        }
    }

    /// Takes in what an assignment says of the cluster.
    fn learn(&self, assignment: &Assignment) {
        let membership = &assignment.membership;
        self.contact.set(membership.heartbeat, membership.down_after);
        for (node, address) in &membership.managers {
            if let Ok(address) = address.parse() {
                self.parts.base.endpoint.book().learn(*node, address, Source::Assigned);
            }
        }
    }

    /// The newest report, with what the agent does not know of.
    fn report(&mut self) -> Option<Box<Report>> {
        let report = self.reports.borrow_and_update().clone()?;
        let raft = self.parts.manager.borrow().as_ref().map(|manager| manager.raft_id);
        let lost_log = *self.lost.borrow();
        Some(Box::new(Report { raft, lost_log, ..Report::clone(&report) }))
    }

    /// A signing request, if a new certificate is due: by age, or because the role changed.
    fn wanted_certificate(&mut self) -> Option<Vec<u8>> {
        let (due, key) = {
            let credentials = self.parts.credentials.borrow();
            let subject = credentials.subject();
            let role_changed = self.role.borrow().is_some_and(|role| role != subject.role);
            let early = self.renew.earliest.is_some_and(|earliest| Instant::now() < earliest);
            let due = role_changed || (!early && self.parts.base.time.now() >= renew_at(subject, self.renew.draw));
            (due, credentials.key().clone())
        };
        if !due || self.renew.asked.is_some_and(|at| at.elapsed() < RENEW_AGAIN) {
            return None;
        }
        self.renew.asked = Some(Instant::now());
        Some(key.csr())
    }

    fn renewed(&mut self, certificate: Vec<u8>) {
        let renewed = {
            let old = self.parts.credentials.borrow();
            Credentials::new(old.key().clone(), certificate, old.ca().to_vec())
        };
        let saved = renewed.and_then(|new| new.save(&self.parts.base.state_dir).map(|()| new));
        match saved {
            Ok(new) => {
                let subject = *new.subject();
                let life = Duration::from_millis(subject.not_after.since(subject.not_before).0);
                // Once more at the earliest after a while, whatever the next assignment says of its role.
                self.renew =
                    Renewal { asked: Some(Instant::now()), earliest: Some(Instant::now() + life / 4), draw: draw() };
                self.parts.base.time.raise(subject.not_before);
                let until = utc(subject.not_after);
                if self.parts.base.time.now() > subject.not_after {
                    tracing::warn!(until, "the new certificate has run out already by this node's clock: is it wrong?");
                } else {
                    tracing::info!(role = ?subject.role, until, "the certificate was renewed");
                }
                self.parts.base.endpoint.set_credentials(Some(new.clone()));
                self.parts.credentials.send_replace(new);
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "the new certificate is not used");
            }
        }
    }
}

/// The assignment of a node that should have nothing any more: its containers end as their services want them to, and it keeps no
/// log: with others that are no members either it could elect a leader of a cluster that is none.
pub(super) fn nothing(old: &Assignment) -> Assignment {
    let end = |task: &AssignedTask| AssignedTask { desired: Desired::Remove, ..task.clone() };
    Assignment {
        edition: old.edition + 1,
        membership: Membership { role: Role::Worker, raft_id: None, ..old.membership.clone() },
        tasks: old.tasks.iter().map(|(id, task)| (*id, end(task))).collect(),
        history: Default::default(),
        services: Default::default(),
        ..old.clone()
    }
}

/// Returns when this node's own manager hears of a new leader, other than `than`. What it knew before may be older than what
/// led to `than`.
async fn another_leads(manager: Option<Arc<Manager>>, than: NodeId) -> NodeId {
    let Some(manager) = manager else { return std::future::pending().await };
    let mut leader = manager.store.leader();
    leader.mark_unchanged();
    while leader.changed().await.is_ok() {
        let known = leader.borrow_and_update().as_ref().and_then(|member| member.node.parse::<NodeId>().ok());
        if let Some(node) = known.filter(|node| *node != than) {
            return node;
        }
    }
    std::future::pending().await
}

/// Returns when this node's own manager leads.
async fn leads(manager: &mut watch::Receiver<Option<Arc<Manager>>>) {
    loop {
        let current = manager.borrow().clone();
        match current {
            Some(current) => {
                let mut desk = current.desk.clone();
                if desk.wait_for(Option::is_some).await.is_ok() {
                    return;
                }
                // This manager has ended; the next one is told of.
                if manager.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => {
                if manager.wait_for(Option::is_some).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// A number from 0 up to 1.
pub(super) fn draw() -> f64 {
    let bits = super::identity::random() as u64;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
