//! Broken states are recognised as such; that sound histories never lead there is shown in `histories.rs`.

#![cfg(test)]

mod support;

use orchestrator_core::model::*;
use std::sync::Arc;
use support::Cluster;

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.run("node a\nservice web publish=8080:80\nservice api\nplan");
    cluster
}

/// What is said of the state after a change of its only task of `web`.
fn with_twin(change: impl Fn(&mut Task)) -> Vec<String> {
    let mut cluster = cluster();
    let mut twin = cluster.state.tasks[&cluster.task("web.1")].clone();
    let task = Arc::make_mut(&mut twin.value);
    task.id = TaskId(1);
    change(task);
    cluster.state.tasks.insert(TaskId(1), twin);
    let said = cluster.state.check().into_iter();
    said.map(|violation| format!("{violation:?}").split(['(', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn twins_share_an_address_a_backend_and_a_slot() {
    assert_eq!(with_twin(|_| {}), ["SameAddress", "SameBackend", "CrowdedSlot"]);
    let apart = |task: &mut Task| {
        task.slot = Slot::Replica(2);
        let placed = task.placed.as_mut().unwrap();
        (placed.index, placed.backends[0]) = (placed.index ^ 1, placed.backends[0] ^ 1);
    };
    assert_eq!(with_twin(apart), [""; 0]);
    assert_eq!(with_twin(|task| (apart(task), task.placed.as_mut().unwrap().index = 1).1), ["BadAddress"]);
    assert_eq!(with_twin(|task| (apart(task), task.placed.as_mut().unwrap().backends.clear()).1), ["Backends"]);
}

#[test]
fn what_ended_shares_freely() {
    let end = Outcome { end: End::Failed, at: UnixMillis(1), exit_code: None, message: String::new() };
    assert_eq!(with_twin(|task| task.outcome = Some(end.clone())), [""; 0]);
    let unplaced = |task: &mut Task| (task.outcome, task.placed) = (Some(end.clone()), None);
    assert_eq!(with_twin(unplaced), ["EndedUnplaced"]);
}

#[test]
fn two_services_do_not_publish_one_port() {
    let mut cluster = cluster();
    let port = cluster.state.services.values().flat_map(|service| service.ports.clone()).next().unwrap();
    for service in cluster.state.services.values_mut() {
        Arc::make_mut(&mut service.value).ports = vec![port];
    }
    let said = cluster.state.check();
    assert_eq!(said.len(), 1);
    assert!(said[0].to_string().ends_with("both publish port 8080/tcp"), "{}", said[0]);
}

#[test]
fn managers_have_numbers_of_their_own_and_no_member_was_removed() {
    let with = |change: fn(&mut Node), at: usize| {
        let mut cluster = Cluster::new();
        cluster.run("node a\nnode b");
        let node = cluster.state.nodes.values_mut().nth(at).unwrap();
        change(Arc::make_mut(&mut node.value));
        cluster.state.check().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(with(|_| {}, 0), "");
    assert!(with(|node| node.role = Role::Worker, 0).ends_with("is a Worker with raft id Some(1)"));
    assert!(with(|node| node.raft_id = None, 0).ends_with("is a Manager with raft id None"));
    assert!(with(|node| node.raft_id = Some(1), 1).ends_with("which is another's or not given out yet"));
    assert!(with(|node| node.raft_id = Some(3), 1).ends_with("which is another's or not given out yet"));

    let mut cluster = Cluster::new();
    cluster.run("node a");
    let (id, until) = (cluster.node_id("a"), cluster.now + Millis(1));
    let object = &mut cluster.state.cluster.as_mut().unwrap().value;
    Arc::make_mut(object).removed.insert(id, until);
    assert!(cluster.state.check()[0].to_string().ends_with("was removed and is a member"));
}
