//! The largest clusters that are promised: what a snapshot takes, and that no pass looks at every task for every node.

#![cfg(test)]

#[path = "support/parts.rs"]
mod parts;

use orchestrator_core::{
    assignment::{Assignments, assign},
    intent,
    members::Members,
    model::*,
    plan::plan,
    state::State,
    wire,
};
use parts::{authority, default_parts};
use std::{collections::BTreeMap, time::Instant};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn node(number: u32) -> Node {
    Node {
        id: NodeId(u128::from(number) << 96 | 0x5bd1_e995),
        hostname: format!("node-{number}"),
        role: Role::Worker,
        raft_id: None,
        availability: Availability::Active,
        labels: BTreeMap::from([("zone".into(), format!("z{}", number % 3))]),
        description: NodeDescription {
            platform: Some(Platform { os: "linux".into(), arch: "arm64".into(), variant: "v8".into() }),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            version: "0.1.0".into(),
            address: format!("10.99.{}.{}", number / 250, number % 250 + 1),
            port: 2377,
            ..NodeDescription::default()
        },
        created_at: NOW,
    }
}

struct Cluster {
    state: State,
    live: Live,
}

impl Cluster {
    fn new(nodes: u32) -> Self {
        let mut cluster = Self { state: State::default(), live: Live::default() };
        for number in 0..nodes {
            let node = node(number);
            let (id, description) = (node.id, node.description.clone());
            let entry = if number == 0 {
                let (ca, tokens) = authority();
                intent::init_cluster(&cluster.state, ClusterId(7), node, ca, tokens, Settings::default(), NOW).unwrap()
            } else {
                intent::join_node(&cluster.state, node, Role::Worker, NOW).unwrap().unwrap()
            };
            cluster.state.apply(cluster.state.revision + 1, &entry);
            let report = Report {
                node: id,
                term: 1,
                revision: 0,
                description,
                raft: None,
                lost_log: None,
                tasks: BTreeMap::new(),
                held_ports: vec![],
            };
            cluster.live.nodes.insert(id, NodeLive { ready: true, since: NOW, report });
        }
        cluster
    }

    /// A service as people have them: labels, environment, a mount, a health check, reservations.
    fn service(&mut self, number: u32, replicas: u32, published: bool) {
        let mut parts = default_parts(&format!("service-{number}"));
        parts.mode = Mode::Replicated { replicas };
        parts.labels.insert("com.example.team".into(), format!("team-{}", number % 10));
        let container = &mut parts.task.container;
        container.image =
            ImageName::new(format!("registry.example.com/team/service-{number}:1.2.3@sha256:{:064x}", number)).unwrap();
        container.env = (0..6).map(|key| format!("SETTING_{key}=some value of {number}")).collect();
        container.args = Some(vec!["--listen".into(), "0.0.0.0:8080".into(), "--verbose".into()]);
        container.health = Some(HealthCheck::new(HealthTest::Shell("curl -f http://localhost:8080/health".into())));
        if published {
            let port = PortSpec { protocol: Protocol::Tcp, target: 8080, published: 0, mode: PublishMode::Ingress };
            parts.endpoint.ports.push(port);
        }
        let (_, entry) = intent::create_service(&self.state, ServiceSpec::new(parts).unwrap(), NOW).unwrap();
        self.state.apply(self.state.revision + 1, &entry);
    }

    fn plan(&mut self) {
        let entry = plan(&self.state, &self.live, NOW).entry.unwrap();
        self.state.apply(self.state.revision + 1, &entry);
    }
}

#[test]
fn a_snapshot_of_1000_services_is_below_5_mb() {
    let mut cluster = Cluster::new(5);
    for number in 0..1000 {
        cluster.service(number, 3, true);
    }
    cluster.plan();
    assert_eq!(cluster.state.tasks.values().filter(|task| task.placed.is_some()).count(), 3000);
    let bytes = wire::encode(&cluster.state).unwrap().len();
    assert!(bytes < 5_000_000, "{bytes} bytes");
}

#[test]
fn the_assignments_of_all_nodes_are_made_in_one_pass() {
    let mut cluster = Cluster::new(1000);
    for number in 0..100 {
        cluster.service(number, 200, false);
    }
    cluster.plan();
    assert_eq!(cluster.state.tasks.len(), 20_000);
    let members = Members::default();
    let started = Instant::now();
    let assignments = Assignments::new(&cluster.state, &cluster.live, 1, &members);
    let all: Vec<_> = cluster.state.nodes.keys().map(|id| assignments.of(*id)).collect();
    let took = started.elapsed();
    assert_eq!(all.iter().map(|assignment| assignment.tasks.len()).sum::<usize>(), 20_000);
    assert!(all.iter().all(|assignment| assignment.tasks.len() == 20), "spread evenly");
    assert_eq!(all[500], assign(&cluster.state, &cluster.live, all[500].node, 1, &members));
    // 0.1 s in a debug build; a pass over all tasks for each node takes minutes.
    assert!(took.as_secs() < 10, "{took:?}");
}
