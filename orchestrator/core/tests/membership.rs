//! Who keeps the log: joins, promotions, demotions, removals and crashes in any order, with a log whose membership changes by
//! nothing but the steps that are decided here.

#![cfg(test)]

mod support;

use orchestrator_core::{
    intent::{self, NodeWish},
    members::{Members, Step, next_step, would_lose_quorum},
    model::*,
    state::{Applied, Entry, State},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use support::{Cluster, authority};

const NODES: u8 = 7;

#[derive(Clone, Debug)]
enum Event {
    Join {
        node: u8,
        manager: bool,
    },
    Promote {
        node: u8,
    },
    Demote {
        node: u8,
    },
    Remove {
        node: u8,
    },
    /// The node's disk fails: its log is gone.
    Lose {
        node: u8,
    },
    /// The node dies, or comes back.
    Power {
        node: u8,
        on: bool,
    },
    /// The leader takes one step.
    Step,
    /// Another voter leads.
    Election {
        pick: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..NODES;
    prop_oneof![
        3 => (node.clone(), any::<bool>()).prop_map(|(node, manager)| Event::Join { node, manager }),
        3 => node.clone().prop_map(|node| Event::Promote { node }),
        3 => node.clone().prop_map(|node| Event::Demote { node }),
        1 => node.clone().prop_map(|node| Event::Remove { node }),
        1 => node.clone().prop_map(|node| Event::Lose { node }),
        2 => (node, any::<bool>()).prop_map(|(node, on)| Event::Power { node, on }),
        8 => Just(Event::Step),
        1 => any::<usize>().prop_map(|pick| Event::Election { pick }),
    ]
}

struct World {
    state: State,
    members: Members,
    up: BTreeMap<NodeId, bool>,
    /// The number that each node's store runs with.
    stores: BTreeMap<NodeId, u64>,
    now: UnixMillis,
}

fn id(node: u8) -> NodeId {
    NodeId(u128::from(node) + 1)
}

fn node(id: NodeId) -> Node {
    Node {
        id,
        hostname: format!("n{}", id.0),
        role: Role::Worker,
        raft_id: None,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        description: NodeDescription::default(),
        created_at: UnixMillis(0),
    }
}

impl World {
    fn new() -> Self {
        let (ca, tokens) = authority();
        let entry = intent::init_cluster(
            &State::default(),
            ClusterId(1),
            node(id(0)),
            ca,
            tokens,
            Settings::default(),
            UnixMillis(0),
        );
        let mut world = World {
            state: State::default(),
            members: Members { voters: [1].into(), learners: BTreeSet::new(), own: 1 },
            up: [(id(0), true)].into(),
            stores: [(id(0), 1)].into(),
            now: UnixMillis(1000),
        };
        world.apply(&entry.unwrap());
        world
    }

    fn apply(&mut self, entry: &Entry) {
        let index = self.state.revision + 1;
        assert_eq!(self.state.apply(index, entry), Applied::Done { revision: index });
        assert_eq!(self.state.check(), vec![]);
        // Nodes open a store under the number that they are told, once the log has let go of the one they have.
        for (id, node) in &self.state.nodes {
            let held = self.stores.get(id).is_some_and(|own| self.members.contains(*own));
            if !held {
                match node.raft_id {
                    Some(raft_id) => drop(self.stores.insert(*id, raft_id)),
                    None => drop(self.stores.remove(id)),
                }
            }
        }
    }

    /// What the leader hears: its own node too.
    fn live(&self) -> Live {
        let report = |id: NodeId| Report {
            node: id,
            term: 1,
            revision: 0,
            description: NodeDescription::default(),
            raft: self.stores.get(&id).copied(),
            lost_log: None,
            tasks: BTreeMap::new(),
            held_ports: vec![],
        };
        let heard = self.state.nodes.keys().map(|id| {
            (*id, NodeLive { ready: self.up.get(id) == Some(&true), since: UnixMillis(0), report: report(*id) })
        });
        Live { nodes: heard.collect(), ..Live::default() }
    }

    fn alive(&self) -> BTreeSet<u64> {
        let up = |id: &&NodeId| self.up.get(*id) == Some(&true);
        self.stores.iter().filter(|(id, _)| up(id)).map(|(_, raft_id)| *raft_id).collect()
    }

    fn has_majority(&self) -> bool {
        self.members.voters.intersection(&self.alive()).count() > self.members.voters.len() / 2
    }

    /// A leader that is dead leads no more; a voter that is alive takes over, if there is a majority.
    fn lead(&mut self, pick: usize) -> bool {
        let alive = self.alive();
        let voters: Vec<u64> = self.members.voters.intersection(&alive).copied().collect();
        if !self.has_majority() {
            return false;
        }
        self.members.own = voters[pick % voters.len()];
        true
    }

    /// One step of the leader; tells whether there was one.
    fn step(&mut self) -> bool {
        if !self.has_majority() {
            return false;
        }
        if !self.alive().contains(&self.members.own) {
            self.lead(0);
        }
        let Some(step) = next_step(&self.state, &self.live(), &self.members) else { return false };
        match step {
            Step::AddLearner { raft_id, node } => {
                assert_eq!(self.state.nodes[&node].raft_id, Some(raft_id), "nobody is added who is not wanted");
                assert_eq!(self.stores[&node], raft_id, "a log is sent to who keeps it");
                assert!(self.members.learners.insert(raft_id) && !self.members.voters.contains(&raft_id));
            }
            Step::MakeVoter(raft_id) => {
                assert!(self.members.learners.remove(&raft_id), "a voter was a learner before");
                assert!(self.alive().contains(&raft_id), "a new voter is alive");
                self.members.voters.insert(raft_id);
            }
            Step::Remove(raft_id) => {
                assert_ne!(raft_id, self.members.own, "a leader does not remove itself");
                assert!(self.state.nodes.values().all(|node| node.raft_id != Some(raft_id)), "wanted ones stay");
                assert!(self.members.voters.remove(&raft_id) | self.members.learners.remove(&raft_id));
            }
            Step::HandOver => {
                let own = self.members.own;
                let wanted: BTreeSet<u64> = self.state.nodes.values().filter_map(|node| node.raft_id).collect();
                assert!(!wanted.contains(&own), "only one that goes hands over");
                let alive = self.alive();
                let heirs: Vec<u64> =
                    self.members.voters.intersection(&alive).copied().filter(|id| *id != own).collect();
                assert!(!heirs.is_empty());
                self.members.own = heirs[0];
            }
        }
        assert!(self.has_majority(), "{step:?} gave up the majority: {:?}", self.members);
        let unchanged = Entry { at: self.now, reads: vec![], changes: vec![] };
        self.apply(&unchanged);
        true
    }

    /// Only where the others have the log, too: what a lost majority takes along is another matter.
    fn lose(&mut self, node: NodeId) {
        let Some(lost) = self.state.nodes.get(&node).and_then(|known| known.raft_id) else { return };
        if self.stores.get(&node) != Some(&lost) || self.members.own == lost {
            return;
        }
        let kept = self.stores.remove(&node);
        if !self.has_majority() {
            self.stores.extend(kept.map(|kept| (node, kept)));
            return;
        }
        let entry = intent::renew_raft_id(&self.state, node, lost, self.now).unwrap().unwrap();
        self.apply(&entry);
    }

    fn wish(&mut self, node: NodeId, role: Role) {
        let Some(known) = self.state.nodes.get(&node) else { return };
        let wish = NodeWish { role, availability: known.availability, labels: BTreeMap::new() };
        let entry = intent::update_node(&self.state, &self.live(), node, known.revision, wish, self.now);
        if let Ok(entry) = entry {
            self.apply(&entry);
        }
    }

    fn is_manager(&self, node: NodeId) -> bool {
        self.state.nodes.get(&node).is_some_and(|known| known.role == Role::Manager)
    }

    fn handle(&mut self, event: &Event) {
        // Without a leader no command is carried out.
        let led = self.has_majority();
        match *event {
            Event::Join { .. } | Event::Promote { .. } | Event::Demote { .. } | Event::Remove { .. } if !led => {}
            // A manager joins anew when it has lost its log.
            Event::Join { node: number, .. } if self.is_manager(id(number)) => self.lose(id(number)),
            Event::Join { node: number, manager } => {
                let role = if manager { Role::Manager } else { Role::Worker };
                if let Ok(Some(entry)) = intent::join_node(&self.state, node(id(number)), role, self.now) {
                    self.apply(&entry);
                    self.up.insert(id(number), true);
                }
            }
            Event::Promote { node } => self.wish(id(node), Role::Manager),
            Event::Demote { node } => self.wish(id(node), Role::Worker),
            Event::Remove { node } => {
                if let Ok(entry) = intent::remove_node(&self.state, &self.live(), id(node), true, self.now) {
                    self.apply(&entry);
                    self.up.insert(id(node), false);
                }
            }
            Event::Lose { node } => self.lose(id(node)),
            Event::Power { node, on } => {
                if self.state.nodes.contains_key(&id(node)) {
                    self.up.insert(id(node), on);
                }
            }
            Event::Step => drop(self.step()),
            Event::Election { pick } => drop(self.lead(pick)),
        }
    }
}

/// 400 cases take 0.1 s in a debug build; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_step_gives_up_the_majority_and_in_the_end_the_wanted_managers_vote(
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new();
        for event in &events {
            world.handle(event);
        }
        // All that can come back does.
        for id in world.state.nodes.keys() {
            world.up.insert(*id, true);
        }
        let ids: BTreeSet<u64> = world.state.nodes.values().filter_map(|node| node.raft_id).collect();
        prop_assert!(world.lead(0), "all voters that are members are up");
        for round in 0.. {
            prop_assert!(round < 100, "does not come to rest");
            if !world.step() {
                break;
            }
        }
        prop_assert_eq!(&world.members.voters, &ids);
        prop_assert!(world.members.learners.is_empty());
        prop_assert!(ids.contains(&world.members.own));
    }
}

/// A cluster of managers that all vote and are up, and who is who.
fn managers(names: &str) -> (Cluster, Members) {
    let mut cluster = Cluster::new();
    for name in names.split_whitespace() {
        cluster.run(&format!("node {name}"));
    }
    let voters = cluster.state.nodes.values().filter_map(|node| node.raft_id).collect();
    (cluster, Members { voters, learners: BTreeSet::new(), own: 1 })
}

fn next(cluster: &Cluster, members: &Members) -> Option<Step> {
    next_step(&cluster.state, &cluster.live, members)
}

fn demote(cluster: &mut Cluster, name: &str) {
    let id = cluster.node_id(name);
    let node = &cluster.state.nodes[&id];
    let wish = NodeWish { role: Role::Worker, availability: node.availability, labels: BTreeMap::new() };
    let entry = intent::update_node(&cluster.state, &cluster.live, id, node.revision, wish, cluster.now).unwrap();
    cluster.apply(&entry);
}

#[test]
fn a_manager_that_joins_learns_before_it_votes_and_only_once_it_says_its_number() {
    let (mut cluster, _) = managers("a b");
    let mut members = Members { voters: [1].into(), learners: BTreeSet::new(), own: 1 };
    let b = cluster.node_id("b");
    let silent = cluster.live.nodes[&b].clone();
    cluster.live.nodes.get_mut(&b).unwrap().report.raft = None;
    assert_eq!(next(&cluster, &members), None);
    cluster.live.nodes.insert(b, silent);
    assert_eq!(next(&cluster, &members), Some(Step::AddLearner { raft_id: 2, node: b }));
    members.learners.insert(2);
    cluster.run("down b");
    assert_eq!(next(&cluster, &members), None, "a dead voter would cost the majority");
    cluster.run("up b");
    assert_eq!(next(&cluster, &members), Some(Step::MakeVoter(2)));
}

#[test]
fn a_leader_that_is_demoted_hands_over_and_is_removed_by_the_next_one() {
    let (mut cluster, mut members) = managers("a b c");
    demote(&mut cluster, "a");
    assert_eq!(next(&cluster, &members), Some(Step::HandOver));
    members.own = 2;
    assert_eq!(next(&cluster, &members), Some(Step::Remove(1)));
    members.voters.remove(&1);
    assert_eq!(next(&cluster, &members), None);
}

#[test]
fn a_dead_manager_that_is_demoted_goes_before_another_one_comes() {
    let (mut cluster, members) = managers("a b c");
    cluster.run("down c");
    demote(&mut cluster, "c");
    cluster.run("node d");
    assert_eq!(next(&cluster, &members), Some(Step::Remove(3)));
}

#[test]
fn without_a_majority_nothing_is_tried() {
    let (mut cluster, members) = managers("a b c");
    demote(&mut cluster, "c");
    cluster.run("down b\ndown c");
    assert_eq!(next(&cluster, &members), None);
}

#[test]
fn a_demotion_that_would_lose_the_quorum_is_refused_with_the_counts() {
    let (mut cluster, _) = managers("a b c");
    let refused = |cluster: &Cluster, name: &str| {
        would_lose_quorum(&cluster.state, &cluster.live, cluster.node_id(name)).map(|refusal| refusal.to_string())
    };
    assert_eq!(refused(&cluster, "b"), None);
    cluster.run("down c");
    assert_eq!(refused(&cluster, "c"), None, "the dead one may go");
    assert_eq!(
        refused(&cluster, "b").unwrap(),
        "can't remove member from the raft: this would result in a loss of quorum \
         (1 of the 2 other managers reachable, 2 needed)"
    );
}
