//! Who was heard when, and what they said last: the leader's memory of the nodes, collected anew after each election.

use crate::clock;
use orchestrator_core::{
    members::Members,
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
    elected_at: UnixMillis,
    /// Counts from the time of the election, so that a leader that restarts within its term goes on above what it said before.
    edition: u64,
    members: Members,
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
        Self { elected_at: now, edition: now.0, members: Members::default(), nodes: BTreeMap::new() }
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

    /// Takes in who keeps the log. Assignments are made from that, too, so that one that was made from other members must
    /// have a smaller number.
    pub(super) fn count(&mut self, members: &Members) {
        if self.members != *members {
            self.members = members.clone();
            self.edition += 1;
        }
    }

    /// Forgets nodes that are no members any more.
    pub(super) fn keep(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_member(*node));
    }

    pub(super) fn live(&mut self, state: &State, now: UnixMillis) -> Live {
        let down_after = down_after(state);
        for heard in self.nodes.values_mut() {
            let ready = !heard.leaves() && heard.last.elapsed() < silence(down_after);
            if heard.ready != ready {
                (heard.ready, heard.since) = (ready, now);
                self.edition += 1;
            }
        }
        let nodes = self.nodes.iter().map(|(id, heard)| {
            (*id, NodeLive { ready: heard.ready, since: heard.since, report: heard.report.clone() })
        });
        Live { nodes: nodes.collect(), down_after: self.elected_at + down_after, edition: self.edition }
    }

    /// When the next node is down if nothing is heard of it.
    pub(super) fn next_down(&self, state: &State, now: UnixMillis) -> Option<UnixMillis> {
        let down_after = down_after(state);
        let left = |heard: &Heard| silence(down_after).saturating_sub(heard.last.elapsed()).as_millis();
        let ready = self.nodes.values().filter(|heard| heard.ready);
        let ready = ready.map(|heard| now + Millis(u64::try_from(left(heard)).unwrap_or(u64::MAX)));
        let grace = self.elected_at + down_after;
        ready.chain((grace > now).then_some(grace)).min()
    }
}

fn down_after(state: &State) -> Millis {
    state.cluster.as_ref().map_or_else(|| Settings::default().down_after, |cluster| cluster.settings.down_after)
}

fn silence(down_after: Millis) -> Duration {
    Duration::from_millis(down_after.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestrator_core::assignment::assign;

    #[test]
    fn an_assignment_made_from_other_members_of_the_log_supersedes_the_one_before() {
        let (state, node) = (State::default(), NodeId(1));
        let mut roster = Roster::new(UnixMillis(1_000));
        let mut assigned = |voters: &[u64]| {
            let members = Members { voters: voters.iter().copied().collect(), own: 2, ..Members::default() };
            roster.count(&members);
            assign(&state, &roster.live(&state, UnixMillis(2_000)), node, 7, &members)
        };
        let before = assigned(&[1, 2, 3]);
        assert!(!assigned(&[1, 2, 3]).supersedes(&before), "nothing is new");
        assert!(assigned(&[1, 2]).supersedes(&before));
    }
}
