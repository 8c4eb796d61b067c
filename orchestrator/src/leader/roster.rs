//! Who was heard when, and what they said last: the leader's memory of the nodes, collected anew after each election.

use crate::clock;
use orchestrator_core::{
    model::{Live, Millis, NodeId, NodeLive, Report, Settings, UnixMillis},
    state::State,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A node that said that it leaves, and is heard of after this time, has thought better of it.
const LEAVES: Duration = Duration::from_secs(30);

pub(super) struct Roster {
    /// Monotonic, as the clock of a board may be set seconds after it has booted.
    elected: Instant,
    elected_at: UnixMillis,
    /// Counts from the time of the election, so that a leader that restarts within its term goes on above what it said before.
    edition: u64,
    nodes: BTreeMap<NodeId, Heard>,
}

struct Heard {
    /// Monotonic: a clock that is set by NTP makes nobody silent.
    last: Instant,
    /// When it said that it leaves.
    left: Option<Instant>,
    since: UnixMillis,
    ready: bool,
    report: Report,
}

impl Heard {
    fn leaves(&self) -> bool {
        self.left.is_some_and(|left| left.elapsed() < LEAVES)
    }
}

impl Roster {
    pub(super) fn new(now: UnixMillis) -> Self {
        Self { elected: Instant::now(), elected_at: now, edition: now.0, nodes: BTreeMap::new() }
    }

    /// Assignments say something new though neither the state nor a node did.
    pub(super) fn raise(&mut self) {
        self.edition += 1;
    }

    /// A node is alive. Tells whether that may change a plan.
    pub(super) fn beat(&mut self, node: NodeId) -> bool {
        let Some(heard) = self.nodes.get_mut(&node) else { return false };
        heard.last = Instant::now();
        !heard.ready && !heard.leaves()
    }

    /// A node says everything about itself. Tells whether that may change a plan.
    pub(super) fn report(&mut self, report: Report) -> bool {
        let now = clock::now();
        let report = bounded(report);
        let before = self.nodes.get(&report.node);
        let changed = before.is_none_or(|heard| !heard.ready || heard.report != report);
        let since = before.filter(|heard| heard.ready).map_or(now, |heard| heard.since);
        let left = before.and_then(|heard| heard.left);
        let ready = before.is_none_or(|heard| !heard.leaves());
        self.nodes.insert(report.node, Heard { last: Instant::now(), left, since, ready, report });
        self.edition += u64::from(changed);
        changed
    }

    /// A node says that it goes.
    pub(super) fn leave(&mut self, node: NodeId) -> bool {
        let Some(heard) = self.nodes.get_mut(&node) else { return false };
        heard.left = Some(Instant::now());
        true
    }

    /// Forgets nodes that are no members any more.
    pub(super) fn keep(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_member(*node));
    }

    /// What is known of all nodes. `keeps_log` tells whether a node keeps the log under a number; a node's own word for it is
    /// not enough, since others are refused things by it.
    pub(super) fn live(&mut self, state: &State, now: UnixMillis, keeps_log: impl Fn(NodeId, u64) -> bool) -> Live {
        let down_after = down_after(state);
        for heard in self.nodes.values_mut() {
            let ready = !heard.leaves() && heard.last.elapsed() < silence(down_after);
            if heard.ready != ready {
                (heard.ready, heard.since) = (ready, now);
                self.edition += 1;
            }
        }
        let nodes = self.nodes.iter().map(|(id, heard)| {
            let mut report = heard.report.clone();
            report.raft = report.raft.filter(|number| keeps_log(*id, *number));
            (*id, NodeLive { ready: heard.ready, since: heard.since, report })
        });
        Live { nodes: nodes.collect(), down_after: self.grace_ends(down_after, now), edition: self.edition }
    }

    /// When the time is over that nodes have to report to a new leader.
    fn grace_ends(&self, down_after: Millis, now: UnixMillis) -> UnixMillis {
        let left = silence(down_after).saturating_sub(self.elected.elapsed()).as_millis();
        match u64::try_from(left).unwrap_or(u64::MAX) {
            0 => (self.elected_at + down_after).min(now),
            left => now + Millis(left),
        }
    }

    /// When the next node is down if nothing is heard of it.
    pub(super) fn next_down(&self, state: &State, now: UnixMillis) -> Option<UnixMillis> {
        let down_after = down_after(state);
        let left = |heard: &Heard| silence(down_after).saturating_sub(heard.last.elapsed()).as_millis();
        let ready = self.nodes.values().filter(|heard| heard.ready);
        let ready = ready.map(|heard| now + Millis(u64::try_from(left(heard)).unwrap_or(u64::MAX)));
        let grace = self.grace_ends(down_after, now);
        ready.chain((grace > now).then_some(grace)).min()
    }
}

/// Characters of a message that a task's outcome keeps: a node may say more, but what it says is replicated.
const MESSAGE: usize = 1024;
/// Bytes of labels, of a version or of an address that a node may tell of itself. More is not taken over.
const DESCRIPTION: usize = 16 << 10;
/// Ports of the host that a report may name: more than there are listeners on any board.
const HELD_PORTS: usize = 4096;

/// A report without what no honest node says.
fn bounded(mut report: Report) -> Report {
    let cut = |text: &mut String, limit: usize| {
        if text.len() > limit {
            let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
        }
    };
    for task in report.tasks.values_mut() {
        cut(&mut task.message, MESSAGE);
    }
    report.held_ports.truncate(HELD_PORTS);
    for port in &mut report.held_ports {
        cut(&mut port.holder, MESSAGE);
    }
    let description = &mut report.description;
    let labels: usize = description.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels > DESCRIPTION {
        tracing::warn!(node = %report.node, labels, "labels of a node are left out: they are more than {DESCRIPTION} bytes");
        description.labels.clear();
    }
    cut(&mut description.version, MESSAGE);
    cut(&mut description.address, MESSAGE);
    report
}

fn down_after(state: &State) -> Millis {
    state.cluster.as_ref().map_or_else(|| Settings::default().down_after, |cluster| cluster.settings.down_after)
}

fn silence(down_after: Millis) -> Duration {
    Duration::from_millis(down_after.0)
}
