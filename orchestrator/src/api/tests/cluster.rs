//! Several nodes: who answers what, and what a caller sees while the leader changes.

use super::http::{WEB, json, message, open, read_until};
use crate::api::fake::Fake;
use orchestrator_core::model::Role;
use std::time::Duration;

#[tokio::test]
async fn every_manager_answers_for_the_cluster() {
    let leader = Fake::cluster().await;
    let follower = leader.joined(Role::Manager);
    let (status, _, body) = follower.request("POST", "/v1.47/services/create", WEB).await;
    assert_eq!(status, 201, "{body}");
    let (_, _, nodes) = follower.request("GET", "/nodes", "").await;
    let nodes = json(&nodes);
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    let one_leads = nodes.as_array().unwrap().iter().filter(|node| node["ManagerStatus"]["Leader"] == true).count();
    assert_eq!(one_leads, 1);
    assert_eq!(message(&follower, "GET", "/services/none", "").await, (404, "service none not found".into()));
    let (status, headers, _) = follower.request("DELETE", "/services/web", "").await;
    assert_eq!(status, 200);
    assert!(!headers.contains_key("edged-not-leader"));
    assert_eq!(message(&leader, "GET", "/services/web", "").await.0, 404);
}

#[tokio::test]
async fn each_node_answers_for_itself() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    leader.request("POST", "/services/create", WEB).await;
    for (fake, name) in [(&leader, "pi1"), (&worker, "pi2")] {
        let (_, _, info) = fake.request("GET", "/info", "").await;
        assert_eq!(json(&info)["Name"], name);
        let (_, _, containers) = fake.request("GET", "/containers/json", "").await;
        assert_eq!(json(&containers).as_array().unwrap().len(), 1, "{name} has one of two");
    }
    let (status, text) = message(&worker, "GET", "/services", "").await;
    assert_eq!(status, 503);
    assert!(text.contains("Worker nodes can't be used to view or modify cluster state"), "{text}");
}

#[tokio::test]
async fn a_caller_waits_through_an_election() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    first.set_leader(None);
    let creating = second.request("POST", "/services/create", WEB);
    let electing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        first.set_leader(Some(&second));
    };
    let ((status, _, body), ()) = tokio::join!(creating, electing);
    assert_eq!(status, 201, "{body}");
}

#[tokio::test]
async fn without_a_leader_a_caller_is_told_why() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    first.set_leader(None);
    let (status, text) = message(&second, "GET", "/nodes", "").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("The swarm does not have a leader."), "{text}");
    assert!(text.contains("nobody was elected"), "{text}");
}

#[tokio::test]
async fn a_leader_that_does_not_answer_is_named_until_another_is_elected() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    first.cut(true);
    let asking = second.request("GET", "/nodes", "");
    let electing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        first.set_leader(Some(&second));
    };
    let ((status, _, body), ()) = tokio::join!(asking, electing);
    assert_eq!(status, 200, "{body}");
    first.set_leader(Some(&first));
    let (status, text) = message(&second, "GET", "/nodes", "").await;
    assert_eq!(status, 503);
    assert!(text.contains("does not answer"), "{text}");
}

#[tokio::test]
async fn a_manager_asks_any_node_in_its_users_name() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    let follower = leader.joined(Role::Manager);
    for asked in [&leader, &follower] {
        let (_, _, info) = asked.request("GET", "/edge/v1/nodes/pi2/api/info", "").await;
        assert_eq!(json(&info)["Name"], "pi2");
    }
    assert_eq!(message(&leader, "GET", "/edge/v1/nodes/pi9/api/info", "").await.0, 404);
    assert_eq!(message(&leader, "GET", "/edge/v1/nodes/pi2/api/services", "").await.0, 400);
    assert_eq!(message(&worker, "GET", "/edge/v1/nodes/pi1/api/info", "").await.0, 503);
    let mut events = open(&follower, "GET /edge/v1/nodes/pi2/api/events HTTP/1.1\nHost: x\n\n").await;
    read_until(&mut events, "200 OK").await;
    worker.daemon.emit("die");
    read_until(&mut events, r#""status":"die""#).await;
}

#[tokio::test]
async fn an_exec_reaches_a_container_of_another_node() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    leader.request("POST", "/services/create", WEB).await;
    let (_, _, list) = worker.request("GET", "/containers/json", "").await;
    let id = json(&list)[0]["Id"].as_str().unwrap().to_owned();
    let there = "/edge/v1/nodes/pi2/api";
    let body = r#"{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["cat"]}"#;
    let (status, _, created) = leader.request("POST", &format!("{there}/containers/{id}/exec"), body).await;
    assert_eq!(status, 201, "{created}");
    let exec = json(&created)["Id"].as_str().unwrap().to_owned();
    let request = format!(
        "POST {there}/exec/{exec}/start HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\n\
         Content-Type: application/json\nContent-Length: 12\n\n{{\"Tty\":true}}"
    );
    let mut stream = open(&leader, &request).await;
    read_until(&mut stream, "101 ").await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello there").await.unwrap();
    read_until(&mut stream, "hello there").await;
}
