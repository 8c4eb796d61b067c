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
    let again =
        intent::describe_node(&cluster.state, known.id, known.hostname.clone(), known.description.clone(), cluster.now);
    assert_eq!(again, Ok(None));
    let told = Node {
        hostname: "renamed".into(),
        availability: Availability::Active,
        labels: Default::default(),
        ..known.clone()
    };
    let entry = intent::join_node(&cluster.state, told, Role::Worker, cluster.now).unwrap().unwrap();
    cluster.apply(&entry);
    // A manager that asks to be let in has lost its log, and must not vote under the number that it voted under.
    let raft_id = cluster.state.nodes[&known.id].raft_id;
    assert!(raft_id > known.raft_id);
    assert_eq!(*cluster.state.nodes[&known.id].value, Node { hostname: "renamed".into(), raft_id, ..known });
}

fn worker(cluster: &Cluster, id: u128) -> Node {
    Node { id: NodeId(id), hostname: format!("w{id}"), ..Node::clone(&cluster.state.nodes[&cluster.node_id("a")]) }
}

fn wish(cluster: &Cluster, name: &str, role: Role) -> Result<Entry, Refusal> {
    let id = cluster.node_id(name);
    let node = &cluster.state.nodes[&id];
    let wish = NodeWish { role, availability: node.availability, labels: node.labels.clone() };
    intent::update_node(&cluster.state, &cluster.live, id, node.revision, wish, cluster.now)
}

fn remove(cluster: &Cluster, name: &str, force: bool) -> Result<Entry, Refusal> {
    intent::remove_node(&cluster.state, &cluster.live, cluster.node_id(name), force, cluster.now)
}

#[test]
fn each_manager_gets_a_number_of_its_own_and_each_promotion_a_new_one() {
    let mut cluster = cluster("node a\nnode b\nnode c");
    let number = |cluster: &Cluster, name: &str| cluster.state.nodes[&cluster.node_id(name)].raft_id;
    assert_eq!(["a", "b", "c"].map(|name| number(&cluster, name)), [Some(1), Some(2), Some(3)]);
    let entry = wish(&cluster, "b", Role::Worker).unwrap();
    cluster.apply(&entry);
    assert_eq!(number(&cluster, "b"), None);
    let called_off = wish(&cluster, "b", Role::Manager).unwrap();
    let mut other = cluster.state.clone();
    other.apply(other.revision + 1, &called_off);
    assert_eq!(other.nodes[&cluster.node_id("b")].raft_id, Some(2), "it still keeps the log under its old number");
    let b = cluster.node_id("b");
    cluster.live.nodes.get_mut(&b).unwrap().report.raft = None;
    let entry = wish(&cluster, "b", Role::Manager).unwrap();
    cluster.apply(&entry);
    assert_eq!(number(&cluster, "b"), Some(4));
    // Its disk fails.
    let entry = intent::renew_raft_id(&cluster.state, b, 4, cluster.now).unwrap().unwrap();
    cluster.apply(&entry);
    assert_eq!(number(&cluster, "b"), Some(5));
    assert_eq!(intent::renew_raft_id(&cluster.state, b, 4, cluster.now), Ok(None), "one loss, one number");
}

#[test]
fn two_promotions_that_did_not_see_each_other_do_not_both_take_a_number() {
    let mut cluster = cluster("node a");
    for id in [500, 501] {
        let entry = intent::join_node(&cluster.state, worker(&cluster, id), Role::Worker, cluster.now);
        cluster.apply(&entry.unwrap().unwrap());
    }
    let promote = |id| {
        let node = &cluster.state.nodes[&NodeId(id)];
        let wish = NodeWish { role: Role::Manager, availability: node.availability, labels: node.labels.clone() };
        intent::update_node(&cluster.state, &cluster.live, node.id, node.revision, wish, cluster.now).unwrap()
    };
    let (one, other) = (promote(500), promote(501));
    cluster.apply(&one);
    assert!(matches!(cluster.state.apply(99, &other), Applied::Conflict { key: Key::Cluster, .. }));
}

#[test]
fn joining_twice_is_joining_once_and_promotes_nobody() {
    let mut cluster = cluster("node a");
    let node = worker(&cluster, 500);
    let entry = intent::join_node(&cluster.state, node.clone(), Role::Worker, cluster.now).unwrap().unwrap();
    cluster.apply(&entry);
    assert_eq!(intent::join_node(&cluster.state, node, Role::Manager, cluster.now), Ok(None));
    assert_eq!(cluster.state.nodes[&NodeId(500)].role, Role::Worker);
}

#[test]
fn a_node_is_removed_when_it_is_down_or_by_force_and_never_as_a_manager() {
    let mut cluster = cluster("node a\nnode b\nnode c");
    let b = cluster.node_id("b");
    let said = |refused: Result<Entry, Refusal>| refused.unwrap_err().to_string();
    for force in [false, true] {
        assert_eq!(
            said(remove(&cluster, "b", force)),
            format!(
                "node {b} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before \
                 removal"
            )
        );
    }
    let entry = wish(&cluster, "b", Role::Worker).unwrap();
    cluster.apply(&entry);
    // The log has not let go of it yet.
    assert!(said(remove(&cluster, "b", true)).contains("still a member of the raft cluster"));
    cluster.live.nodes.get_mut(&b).unwrap().report.raft = None;
    assert_eq!(said(remove(&cluster, "b", false)), format!("node {b} is not down and can't be removed"));
    assert!(remove(&cluster, "b", true).is_ok());
    cluster.run("down b");
    let entry = remove(&cluster, "b", false).unwrap();
    cluster.apply(&entry);
    assert!(!cluster.state.nodes.contains_key(&b));
}

#[test]
fn a_removed_node_is_refused_until_its_last_certificate_has_run_out() {
    let mut cluster = cluster("node a\nnode b");
    let node = Node::clone(&cluster.state.nodes[&cluster.node_id("b")]);
    let demote = wish(&cluster, "b", Role::Worker).unwrap();
    cluster.apply(&demote);
    cluster.run("down b");
    // Certificates that are issued from now on are shorter; the node's own is not.
    let hour = Settings { cert_validity: Millis::from_secs(3600), ..Settings::default() };
    let index = cluster.state.cluster.as_ref().unwrap().revision;
    let entry = intent::update_cluster(&cluster.state, index, hour, cluster.now).unwrap();
    cluster.apply(&entry);
    let entry = remove(&cluster, "b", false).unwrap();
    cluster.apply(&entry);

    let join = |at| intent::join_node(&cluster.state, node.clone(), Role::Worker, at);
    let days = |days: u64| cluster.now + Millis::from_secs(days * 24 * 3600);
    assert_eq!(join(days(89)), Err(Refusal::Removed(node.id)));
    assert!(intent::is_removed(&cluster.state, node.id, days(89)));
    assert!(join(days(90)).unwrap().is_some());
    // What is over is forgotten by whatever writes the cluster next.
    let entry = intent::rotate_token(&cluster.state, Role::Worker, Secret16([9; 16]), days(91)).unwrap();
    cluster.apply(&entry);
    assert!(cluster.state.cluster.as_ref().unwrap().removed.is_empty());
}

#[test]
fn rotating_one_token_leaves_the_other() {
    let mut cluster = cluster("node a");
    let before = cluster.state.cluster.as_ref().unwrap().tokens.clone();
    let entry = intent::rotate_token(&cluster.state, Role::Manager, Secret16([9; 16]), cluster.now).unwrap();
    cluster.apply(&entry);
    let after = &cluster.state.cluster.as_ref().unwrap().tokens;
    assert_eq!(*after, Tokens { manager: Secret16([9; 16]), ..before });
}

#[test]
fn settings_out_of_bounds_are_refused_by_name() {
    let cluster = cluster("node a");
    let index = cluster.state.cluster.as_ref().unwrap().revision;
    let said = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        let refused = intent::update_cluster(&cluster.state, index, settings, cluster.now);
        refused.err().map(|refusal| refusal.to_string()).unwrap_or_default()
    };
    assert_eq!(said(|settings| settings.heartbeat = Millis(100)), "");
    assert_eq!(
        said(|settings| settings.heartbeat = Millis(99)),
        "invalid heartbeat: 99 ms is not between 100 ms and 60 s"
    );
    assert!(said(|settings| settings.heartbeat = Millis(60_001)).starts_with("invalid heartbeat"));
    assert_eq!(
        said(|settings| settings.down_after = Millis(2_999)),
        "invalid down-after: 2999 ms is less than three heartbeats (3000 ms)"
    );
    assert_eq!(
        said(|settings| settings.cert_validity = Millis::from_secs(3_599)),
        "invalid cert-expiry: 3599 s is less than an hour"
    );
    let late = intent::update_cluster(&cluster.state, index + 1, Settings::default(), cluster.now);
    assert_eq!(late, Err(Refusal::OutOfSequence));
}

#[test]
fn after_the_loss_of_the_majority_one_manager_goes_on_alone() {
    let mut cluster = cluster("node a\nnode b\nnode c");
    let own = cluster.node_id("c");
    let entry = intent::force_new_cluster(&cluster.state, own, 7, cluster.now).unwrap();
    cluster.apply(&entry);
    let managers = cluster.state.nodes.values().filter(|node| node.role == Role::Manager);
    assert_eq!(managers.map(|node| (node.id, node.raft_id)).collect::<Vec<_>>(), [(own, Some(7))]);
    assert_eq!(cluster.state.cluster.as_ref().unwrap().next_raft_id, 8);
}

#[test]
fn secrets_are_not_shown() {
    let (mut ca, tokens) = authority();
    ca.key = Secret(b"SESAME".to_vec());
    assert!(format!("{ca:?}").ends_with("key: Secret(..) }"), "{ca:?}");
    assert_eq!(format!("{tokens:?}"), "Tokens { worker: Secret16(..), manager: Secret16(..) }");
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
