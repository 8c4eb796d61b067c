//! What a node is told to have: its tasks, its history, and who serves which port anywhere.

#![cfg(test)]

mod support;

use orchestrator_core::{
    assignment::{Assignment, assign},
    intent::{self, NodeWish},
    members::Members,
    model::*,
};
use support::Cluster;

fn cluster(script: &str) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.run(script);
    cluster
}

fn told(cluster: &Cluster, node: &str) -> Assignment {
    assign(&cluster.state, &cluster.live, cluster.node_id(node), 1, &Members::default())
}

/// Tasks by name, with what is asked of them.
fn tasks(cluster: &Cluster, node: &str) -> Vec<(String, Desired)> {
    let assignment = told(cluster, node);
    let mut tasks: Vec<_> = assignment
        .tasks
        .iter()
        .map(|(id, task)| (cluster.state.task_name(&cluster.state.tasks[id]), task.desired))
        .collect();
    tasks.sort();
    tasks
}

/// Slots of the backends that new connections may go to, and of those that only finish.
fn backends(cluster: &Cluster, node: &str) -> (Vec<String>, Vec<String>) {
    let assignment = told(cluster, node);
    let mut all: Vec<_> = assignment.services.values().flat_map(|service| &service.backends).collect();
    all.sort_by_key(|backend| cluster.state.tasks[&backend.task].slot);
    let name = |task: TaskId| cluster.state.task_name(&cluster.state.tasks[&task]);
    let here = cluster.node_id(node);
    let (active, draining): (Vec<_>, Vec<_>) = all.into_iter().partition(|backend| backend.is_open_to(here));
    let names = |backends: Vec<&_>| {
        backends
            .into_iter()
            .map(|backend: &orchestrator_core::assignment::AssignedBackend| name(backend.task))
            .collect()
    };
    (names(active), names(draining))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_node_gets_its_own_tasks_and_the_backends_of_all() {
    let cluster = cluster("node a\nnode b\nservice web replicas=3 publish=8080:80\nplan\nall running");
    let run = |name: &str| (name.to_owned(), Desired::Run);
    assert_eq!(tasks(&cluster, "a"), [run("web.1"), run("web.3")]);
    assert_eq!(tasks(&cluster, "b"), [run("web.2")]);
    for node in ["a", "b"] {
        assert_eq!(backends(&cluster, node), (names(&["web.1", "web.2", "web.3"]), vec![]));
        let assignment = told(&cluster, node);
        let service = assignment.services.values().next().unwrap();
        assert_eq!(service.name, "web");
        assert_eq!(service.ports.iter().map(|port| port.published).collect::<Vec<_>>(), [8080]);
        let mut numbers: Vec<u16> = service.backends.iter().map(|backend| backend.slots[0].1).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), 3, "each backend has a number of its own");
    }
}

#[test]
fn another_nodes_task_gets_traffic_once_it_is_known_to_run() {
    let mut cluster = cluster("node a\nnode b\nservice web replicas=2 publish=8080:80\nplan");
    // A node sees for itself whether its own task is up.
    assert_eq!(backends(&cluster, "a"), (names(&["web.1"]), names(&["web.2"])));
    cluster.run("web.2 starting");
    assert_eq!(backends(&cluster, "a").0, names(&["web.1"]));
    cluster.run("web.2 running");
    assert_eq!(backends(&cluster, "a").0, names(&["web.1", "web.2"]));
    cluster.run("down b");
    assert_eq!(backends(&cluster, "a").0, names(&["web.1"]));
}

#[test]
fn after_an_election_traffic_goes_on_as_before() {
    let mut cluster = cluster("node a\nnode b\nservice web replicas=2 publish=8080:80\nplan\nall running");
    cluster.run("forget a\nforget b");
    assert_eq!(backends(&cluster, "a").0, names(&["web.1", "web.2"]));
}

#[test]
fn a_task_that_is_to_end_drains_and_stays_until_its_end_is_replicated() {
    let mut cluster =
        cluster("node a\nservice web replicas=2 publish=8080:80\nplan\nall running\nupdate web image=nginx:2\nplan");
    assert_eq!(tasks(&cluster, "a"), [("web.1".to_owned(), Desired::Shutdown), ("web.2".to_owned(), Desired::Run)]);
    assert_eq!(backends(&cluster, "a"), (names(&["web.2"]), names(&["web.1"])));
    assert!(told(&cluster, "a").history.is_empty());

    let ended = cluster.task("web.1/a");
    cluster.run("web.1/a shutdown\nplan");
    let assignment = told(&cluster, "a");
    assert!(!assignment.tasks.contains_key(&ended));
    assert!(assignment.history.contains(&ended), "its logs are kept");
}

#[test]
fn traces_go_with_the_history_and_with_the_service() {
    let mut cluster = cluster("node a\nservice web restart_delay=0\nplan\nweb.1 failed\nplan");
    let first = cluster.task("web.1/a");
    for _ in 0..4 {
        cluster.run("web.1 failed\nplan");
    }
    assert_eq!(told(&cluster, "a").history.len(), 5);
    cluster.run("web.1 failed\nplan");
    assert_eq!(told(&cluster, "a").history.len(), 5);
    assert!(!told(&cluster, "a").history.contains(&first));

    cluster.run("remove web\nplan");
    let assignment = told(&cluster, "a");
    assert!(assignment.history.is_empty());
    assert_eq!(assignment.tasks.values().map(|task| task.desired).collect::<Vec<_>>(), [Desired::Remove]);
    assert!(assignment.services.is_empty(), "its port and its name are free at once");
}

#[test]
fn the_newer_term_wins_then_the_newer_state_then_the_newer_knowledge() {
    let cluster = cluster("node a");
    let numbered = |term, revision, edition| Assignment { term, revision, edition, ..told(&cluster, "a") };
    let ascending = [numbered(1, 5, 0), numbered(1, 5, 1), numbered(1, 6, 0), numbered(2, 3, 0)];
    for (at, one) in ascending.iter().enumerate() {
        for (other_at, other) in ascending.iter().enumerate() {
            assert_eq!(one.supersedes(other), at > other_at);
        }
        assert!(one.says_the_same(&ascending[0]));
    }
}

/// What `node` is told to be, with these members of the log.
fn membership(cluster: &Cluster, node: &str, members: &[u64]) -> (Role, Option<u64>) {
    let members = Members { voters: members.iter().copied().collect(), ..Members::default() };
    let told = assign(&cluster.state, &cluster.live, cluster.node_id(node), 1, &members).membership;
    (told.role, told.raft_id)
}

#[test]
fn a_manager_that_is_demoted_keeps_the_log_until_it_is_no_member_any_more() {
    let mut cluster = cluster("node a\nnode b");
    let b = cluster.node_id("b");
    assert_eq!(membership(&cluster, "b", &[1]), (Role::Manager, Some(2)), "not a member yet");
    assert_eq!(membership(&cluster, "b", &[1, 2]), (Role::Manager, Some(2)));
    let mut wish = |role| {
        let node = &cluster.state.nodes[&b];
        let wish = NodeWish { role, availability: node.availability, labels: node.labels.clone() };
        let entry = intent::update_node(&cluster.state, &cluster.live, b, node.revision, wish, cluster.now).unwrap();
        cluster.apply(&entry);
    };
    wish(Role::Worker);
    assert_eq!(membership(&cluster, "b", &[1, 2]), (Role::Worker, Some(2)));
    assert_eq!(membership(&cluster, "b", &[1]), (Role::Worker, None));
}

#[test]
fn every_node_is_told_where_the_managers_are_and_what_a_member_must_know() {
    let mut cluster = cluster("node a\nnode b\nnode c");
    for (name, address) in [("a", "10.0.0.1"), ("b", "fd99::2")] {
        let (id, node) = (cluster.node_id(name), cluster.state.nodes[&cluster.node_id(name)].clone());
        let description = NodeDescription { address: address.into(), port: 2377, ..node.description.clone() };
        let entry = intent::describe_node(&cluster.state, id, name.into(), description, cluster.now).unwrap().unwrap();
        cluster.apply(&entry);
    }
    let told = told(&cluster, "c").membership;
    // The third one has told no address yet.
    let managers = [("a", "10.0.0.1:2377"), ("b", "[fd99::2]:2377")];
    assert_eq!(told.managers, managers.map(|(name, at)| (cluster.node_id(name), at.to_owned())).into());
    let settings = Settings::default();
    assert_eq!((told.heartbeat, told.down_after), (settings.heartbeat, settings.down_after));
    assert_eq!((told.cert_validity, &told.ca[..]), (settings.cert_validity, &b"certificate"[..]));
}

#[test]
fn what_a_cut_off_node_does_with_a_task_follows_from_its_service() {
    let cluster = cluster(
        "node a
        service one
        service two replicas=2
        service every global
        service kept on_disconnect=keep
        service stopped replicas=2 on_disconnect=stop
        service soon disconnect_grace=1
        service bound constraint=node.hostname==a
        service elsewhere constraint=node.hostname!=b
        plan",
    );
    let told = told(&cluster, "a");
    let stop = |name: &str| told.tasks.values().find(|task| task.service_name == name).unwrap().on_disconnect;
    let seconds = |seconds| Some(Millis::from_secs(seconds));
    assert_eq!(["one", "stopped", "soon"].map(stop), [seconds(10), seconds(10), seconds(1)]);
    assert_eq!(["two", "every", "kept"].map(stop), [None; 3]);
    // Nobody else can run what is bound to this node.
    assert_eq!(["bound", "elsewhere"].map(stop), [None, seconds(10)]);
}

#[test]
fn a_leader_that_is_restarted_within_its_term_is_not_taken_for_its_past() {
    let cluster = cluster("node a");
    let at = |clock: u64, reports: u64| Assignment { edition: clock + reports, ..told(&cluster, "a") };
    assert!(at(1_700_000_002_000, 0).supersedes(&at(1_700_000_000_000, 30)));
}
