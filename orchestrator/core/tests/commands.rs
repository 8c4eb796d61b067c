//! What users' commands become, how they are refused, and how things are found by name.

#![cfg(test)]

mod support;

use orchestrator_core::{
    find::{find_node, find_service, find_task},
    intent::{self, NodeWish, Refusal},
    model::*,
    state::{Applied, Entry, Key, State},
};
use support::{Cluster, authority, default_parts};

fn cluster(script: &str) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.run(script);
    cluster
}

fn spec(name: &str) -> ServiceSpec {
    ServiceSpec::new(default_parts(name)).unwrap()
}

fn service(state: &State, name: &str) -> (ServiceId, u64) {
    let id = find_service(state, name).unwrap();
    (id, state.services[&id].revision)
}

fn init(state: &State, node: Node, settings: Settings) -> Result<Entry, Refusal> {
    let (ca, tokens) = authority();
    intent::init_cluster(state, ClusterId(1), node, ca, tokens, settings, UnixMillis(0))
}

#[test]
fn two_services_of_one_name_that_did_not_see_each_other_do_not_both_come_to_be() {
    let mut cluster = cluster("node a");
    let (_, first) = intent::create_service(&cluster.state, spec("web"), cluster.now).unwrap();
    // An unrelated entry gives the second one another id.
    cluster.run("pause a");
    let (_, second) = intent::create_service(&cluster.state, spec("web"), cluster.now).unwrap();
    cluster.apply(&second);
    assert!(matches!(cluster.state.apply(99, &first), Applied::Conflict { key: Key::Turn, .. }));
    assert_eq!(cluster.state.services.len(), 1);
}

#[test]
fn a_service_is_not_renamed_nor_changed_in_mode() {
    let cluster = cluster("node a\nservice web\nservice agent global");
    let (id, revision) = service(&cluster.state, "web");
    let refused = |id, revision, spec| {
        intent::update_service(&cluster.state, id, revision, spec, cluster.now).unwrap_err().to_string()
    };
    assert_eq!(refused(id, revision, spec("other")), "renaming services is not supported");
    let (agent, its_revision) = service(&cluster.state, "agent");
    assert_eq!(refused(agent, its_revision, spec("agent")), "service mode change is not allowed");
}

#[test]
fn an_update_from_what_is_no_more_is_out_of_sequence() {
    let mut cluster = cluster("node a\nservice web");
    let (id, stale) = service(&cluster.state, "web");
    cluster.run("update web label=x");
    let update = intent::update_service(&cluster.state, id, stale, spec("web"), cluster.now);
    assert_eq!(update, Err(Refusal::OutOfSequence));
    let rollback = intent::rollback_service(&cluster.state, id, stale, cluster.now);
    assert_eq!(rollback.unwrap_err().to_string(), "update out of sequence");
}

#[test]
fn without_a_version_before_there_is_no_rollback() {
    let cluster = cluster("node a\nservice web");
    let (id, revision) = service(&cluster.state, "web");
    let refused = intent::rollback_service(&cluster.state, id, revision, cluster.now).unwrap_err();
    assert_eq!(refused.to_string(), "service web does not have a previous spec");
}

#[test]
fn a_second_rollback_returns_to_what_the_first_one_left() {
    let mut cluster = cluster("node a\nservice web image=one\nupdate web image=two\nrollback web");
    let image = |cluster: &Cluster| {
        let (id, _) = service(&cluster.state, "web");
        let version = cluster.state.current_spec(&cluster.state.services[&id]).unwrap();
        version.spec.task.container.image.to_string()
    };
    assert_eq!(image(&cluster), "one");
    cluster.run("rollback web");
    assert_eq!(image(&cluster), "two");
}

#[test]
fn the_last_manager_stays_one() {
    let cluster = cluster("node a");
    let id = cluster.node_id("a");
    let node = &cluster.state.nodes[&id];
    let wish = NodeWish { role: Role::Worker, availability: Availability::Active, labels: node.labels.clone() };
    let refused = intent::update_node(&cluster.state, &cluster.live, id, node.revision, wish, cluster.now).unwrap_err();
    assert_eq!(refused.to_string(), "attempting to demote the last manager of the swarm");
}

#[test]
fn of_the_last_two_managers_only_one_steps_down() {
    let mut cluster = cluster("node a\nnode b");
    let down = |name: &str| {
        let id = cluster.node_id(name);
        let node = &cluster.state.nodes[&id];
        let wish = NodeWish { role: Role::Worker, availability: Availability::Active, labels: node.labels.clone() };
        intent::update_node(&cluster.state, &cluster.live, id, node.revision, wish, cluster.now).unwrap()
    };
    let (first, second) = (down("a"), down("b"));
    cluster.apply(&first);
    assert!(matches!(cluster.state.apply(99, &second), Applied::Conflict { .. }));
}

#[test]
fn a_node_that_says_nothing_new_writes_nothing_and_keeps_what_users_decided() {
    let mut cluster = cluster("node a label=zone:x\ndrain a");
    let known = Node::clone(&cluster.state.nodes[&cluster.node_id("a")]);
    assert_eq!(intent::join_node(&cluster.state, known.clone(), Role::Manager, cluster.now), Ok(None));
    let told = Node {
        hostname: "renamed".into(),
        availability: Availability::Active,
        labels: Default::default(),
        ..known.clone()
    };
    let entry = intent::join_node(&cluster.state, told, Role::Worker, cluster.now).unwrap().unwrap();
    cluster.apply(&entry);
    assert_eq!(*cluster.state.nodes[&known.id].value, Node { hostname: "renamed".into(), ..known });
}

#[test]
fn a_cluster_is_initialised_once_and_before_anything_else() {
    let cluster = cluster("node a");
    let node = Node::clone(&cluster.state.nodes[&cluster.node_id("a")]);
    let again = init(&cluster.state, node.clone(), Settings::default());
    assert_eq!(again.unwrap_err().to_string(), "this node is already part of a cluster");
    let early = intent::create_service(&State::default(), spec("web"), cluster.now);
    assert_eq!(early, Err(Refusal::NoCluster));
    assert_eq!(intent::join_node(&State::default(), node, Role::Worker, cluster.now), Err(Refusal::NoCluster));
}

#[test]
fn things_are_found_by_id_name_and_start_of_an_id() {
    let mut cluster = cluster("node a\nnode b\nservice web replicas=2 restart_delay=0\nplan\nweb.1 failed\nplan");
    let state = cluster.state.clone();
    let web = find_service(&state, "web").unwrap();
    assert_eq!(find_service(&state, &web.to_string()), Ok(web));
    assert_eq!(find_service(&state, &web.to_string()[..6]), Ok(web));
    assert_eq!(find_service(&state, "we").unwrap_err().to_string(), "service we not found");
    assert_eq!(find_service(&state, "").unwrap_err().to_string(), "service  not found");
    assert_eq!(find_node(&state, "b"), Ok(cluster.node_id("b")));
    // Ids of the nodes here are small numbers, which all begin with zeros.
    assert_eq!(find_node(&state, "000").unwrap_err().to_string(), "node 000 is ambiguous (2 matches found)");

    let newest = cluster.task("web.1/b");
    assert_eq!(find_task(&state, "web.1"), Ok(newest));
    let older = cluster.task("web.1/a");
    assert_eq!(find_task(&state, &format!("web.1.{older}")), Ok(older));
    assert_eq!(find_task(&state, &older.to_string()), Ok(older));
    assert!(find_task(&state, &format!("web.2.{older}")).is_err(), "the id belongs to another slot");
    assert_eq!(state.task_name(&state.tasks[&older]), "web.1");

    cluster.run("remove web");
    assert!(find_service(&cluster.state, "web").is_err(), "a removed service is not found");
}
