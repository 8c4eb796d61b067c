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
        // As long as an election takes: the caller is to wait meanwhile.
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
        // As long as an election takes: the caller is to wait meanwhile.
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

#[tokio::test]
async fn a_node_joins_with_the_token_of_the_role_that_it_is_to_have() {
    let first = Fake::cluster().await;
    let (_, _, swarm) = first.request("GET", "/swarm", "").await;
    let swarm = json(&swarm);
    assert!(swarm["TLSInfo"]["TrustRoot"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let token = |role: &str| swarm["JoinTokens"][role].as_str().unwrap().to_owned();
    assert!(token("Worker").starts_with("EDGE-1-"));
    let body =
        |token: &str| format!(r#"{{"JoinToken":"{token}","RemoteAddrs":["10.0.0.5:2377"],"Availability":"drain"}}"#);

    let worker = first.neighbour();
    let (status, text) = message(&worker, "POST", "/swarm/join", &body("SWMTKN-1-a-b")).await;
    assert_eq!(status, 400);
    assert!(text.contains("docker join token"), "{text}");
    assert_eq!(worker.request("POST", "/swarm/join", &body(&token("Worker"))).await.0, 200);
    let (status, text) = message(&worker, "POST", "/swarm/join", &body(&token("Worker"))).await;
    assert_eq!(status, 503);
    assert!(text.starts_with("This node is already part of a swarm."), "{text}");
    let (_, headers, _) = worker.request("GET", "/_ping", "").await;
    assert_eq!(headers["swarm"], "active/worker");
    let (_, _, info) = worker.request("GET", "/info", "").await;
    let info = json(&info);
    assert_eq!(
        (&info["Swarm"]["LocalNodeState"], &info["Swarm"]["ControlAvailable"]),
        (&"active".into(), &false.into())
    );
    assert_eq!(info["Swarm"]["RemoteManagers"][0]["Addr"], "10.0.0.5:2377");

    let rotate = format!("/swarm/update?version={}&rotateManagerToken=1", swarm["Version"]["Index"]);
    assert_eq!(first.request("POST", &rotate, &swarm["Spec"].to_string()).await.0, 200);
    let manager = first.neighbour();
    let (status, text) = message(&manager, "POST", "/swarm/join", &body(&token("Manager"))).await;
    assert_eq!((status, text.as_str()), (403, "the token is refused"));
    let (_, _, renewed) = first.request("GET", "/swarm", "").await;
    let renewed = json(&renewed);
    assert_eq!(renewed["JoinTokens"]["Worker"], swarm["JoinTokens"]["Worker"]);
    let good = renewed["JoinTokens"]["Manager"].as_str().unwrap();
    assert_eq!(manager.request("POST", "/swarm/join", &body(good)).await.0, 200);
    let (_, _, node) = manager.request("GET", "/nodes/pi3", "").await;
    let node = json(&node);
    assert_eq!((&node["Spec"]["Role"], &node["Spec"]["Availability"]), (&"manager".into(), &"drain".into()));
    assert_eq!(node["ManagerStatus"]["Addr"], "10.0.0.7:2377");
    assert_eq!(node["Description"]["TLSInfo"]["TrustRoot"], swarm["TLSInfo"]["TrustRoot"]);
}

#[tokio::test]
async fn settings_change_together_with_what_hangs_on_them() {
    let fake = Fake::cluster().await;
    let (_, _, before) = fake.request("GET", "/swarm", "").await;
    let mut before = json(&before);
    before["Spec"]["Dispatcher"]["HeartbeatPeriod"] = 3_000_000_000_u64.into();
    let path = format!("/swarm/update?version={}", before["Version"]["Index"]);
    assert_eq!(fake.request("POST", &path, &before["Spec"].to_string()).await.0, 200);
    let settings = fake.daemon.settings();
    assert_eq!((settings.heartbeat.0, settings.down_after.0, settings.task_history), (3000, 15_000, 5));
}

#[tokio::test]
async fn leaving_says_what_the_cluster_loses() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    let (_, text) = message(&second, "POST", "/swarm/leave", "").await;
    assert!(text.contains("Removing this node leaves 1 managers out of 2."), "{text}");
    let third = first.joined(Role::Manager);
    let fourth = first.joined(Role::Manager);
    let (_, text) = message(&fourth, "POST", "/swarm/leave", "").await;
    assert!(text.contains("Demote it first"), "{text}");
    let worker = first.joined(Role::Worker);
    assert_eq!(worker.request("POST", "/swarm/leave", "").await.0, 200);
    assert_eq!(message(&worker, "POST", "/swarm/leave", "").await, (503, "This node is not part of a swarm".into()));
    assert_eq!(third.request("POST", "/swarm/leave?force=1", "").await.0, 200);
    let (_, _, node) = first.request("GET", "/nodes/pi3", "").await;
    let node = json(&node);
    assert_eq!(
        (&node["Status"]["State"], &node["ManagerStatus"]["Reachability"]),
        (&"down".into(), &"unreachable".into())
    );
}

#[tokio::test]
async fn managers_are_promoted_demoted_and_removed_as_far_as_a_majority_remains() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    let set = async |name: &str, role: &str| {
        let (_, _, node) = first.request("GET", &format!("/nodes/{name}"), "").await;
        let mut node = json(&node);
        node["Spec"]["Role"] = role.into();
        let path = format!("/nodes/{name}/update?version={}", node["Version"]["Index"]);
        let (status, _, body) = first.request("POST", &path, &node["Spec"].to_string()).await;
        (status, body)
    };
    let third = first.joined(Role::Worker);
    second.cut(true);
    let (status, text) = set("pi1", "worker").await;
    assert_eq!(status, 400);
    assert!(text.contains("loss of quorum (0 of the 1 other managers reachable, 1 needed)"), "{text}");
    second.cut(false);
    assert_eq!(set("pi3", "manager").await.0, 200);
    assert_eq!(set("pi2", "worker").await.0, 200);
    let (status, text) = message(&third, "DELETE", "/nodes/pi2", "").await;
    assert_eq!(status, 400);
    assert!(text.ends_with("is not down and can't be removed"), "{text}");
    assert_eq!(third.request("DELETE", "/nodes/pi2?force=1", "").await.0, 200);
    assert_eq!(message(&first, "GET", "/nodes/pi2", "").await.0, 404);
    let (_, text) = message(&first, "DELETE", "/nodes/pi3?force=1", "").await;
    assert!(text.contains("It must be demoted to worker before removal"), "{text}");
}

#[tokio::test]
async fn logs_come_from_all_nodes_and_a_missing_node_is_told() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    let follower = leader.joined(Role::Manager);
    let three = WEB.replace(r#""Replicas":2"#, r#""Replicas":3"#);
    leader.request("POST", "/services/create", &three).await;
    let path = "/services/web/logs?stdout=1&stderr=1&details=1";
    let (status, _, body) = follower.request("GET", path, "").await;
    assert_eq!(status, 200);
    assert_eq!(body.matches("careful").count(), 3, "{body}");
    assert!(["web.1", "web.2", "web.3"].iter().all(|name| body.contains(&format!("hello from {name}"))), "{body}");

    let mut following =
        open(&follower, "GET /services/web/logs?stdout=1&stderr=1&follow=1 HTTP/1.1\nHost: x\n\n").await;
    let seen = read_until(&mut following, "hello").await;
    let mut seen = seen.matches("hello").count();
    while seen < 3 {
        seen += read_until(&mut following, "hello").await.matches("hello").count();
    }

    worker.cut(true);
    let (status, _, body) = follower.request("GET", path, "").await;
    assert_eq!(status, 200);
    assert!(body.contains("incomplete log stream") && body.contains("node pi2 is not available"), "{body}");
    assert!(body.matches("careful").count() >= 2, "those of the others are there: {body}");
    assert_eq!(
        body.matches("com.docker.swarm.task.id=").count(),
        body.lines().count(),
        "each line names its task: {body}"
    );
}

#[tokio::test]
async fn workers_may_ask_nothing_of_other_nodes() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    let (status, body) = worker.ask_as_node(&leader, "/swarm").await;
    assert_eq!(status, 403, "{body}");
    let (status, body) = leader.joined(Role::Manager).ask_as_node(&leader, "/edge/v1/nodes/pi2/api/info").await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn every_node_says_why_it_refuses_a_task() {
    let leader = Fake::cluster().await;
    let _worker = leader.joined(Role::Worker);
    let body = WEB.replace(
        r#""TaskTemplate":{"#,
        r#""TaskTemplate":{"Placement":{"Constraints":["node.role==manager","node.hostname==pi2"]},"#,
    );
    let (status, _, body) = leader.request("POST", "/services/create", &body).await;
    assert_eq!(status, 201, "{body}");
    let (_, _, body) = leader.request("GET", "/edge/v1/services/web/explain", "").await;
    let nodes = &json(&body)["tasks"][0]["nodes"];
    assert_eq!(nodes["pi1"], "it does not satisfy node.hostname==pi2");
    assert_eq!(nodes["pi2"], "it does not satisfy node.role==manager");
}

#[tokio::test]
async fn a_leader_that_falls_silent_costs_no_read_and_leaves_no_write_in_doubt_unsaid() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Manager);
    first.mute();
    let elected = async {
        // As long as an election takes: the request is to be with the silent leader by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        first.set_leader(Some(&second));
    };
    let ((status, _, body), ()) = tokio::join!(second.request("GET", "/nodes", ""), elected);
    assert_eq!(status, 200, "{body}");
    first.set_leader(Some(&first));
    let elected = async {
        // As long as an election takes: the request is to be with the silent leader by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        first.set_leader(Some(&second));
    };
    let ((status, text), ()) = tokio::join!(message(&second, "POST", "/services/create", WEB), elected);
    assert_eq!(status, 503);
    assert!(text.contains("the change may have been made or not"), "{text}");
}

#[tokio::test]
async fn large_bodies_go_through_as_they_come() {
    let leader = Fake::cluster().await;
    let worker = leader.joined(Role::Worker);
    let archive = "x".repeat(5 << 20);
    let (status, _, body) = leader.request("POST", "/edge/v1/nodes/pi2/api/images/load", &archive).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("Loaded image"), "{body}");
    assert_eq!(*worker.daemon.loaded.lock().unwrap(), 5 << 20);
    let label = "y".repeat(2 << 20);
    let large = WEB.replace(r#""Name":"web","#, &format!(r#""Name":"web","Labels":{{"a":"{label}"}},"#));
    let follower = leader.joined(Role::Manager);
    let (status, _, body) = follower.request("POST", "/services/create", &large).await;
    assert_eq!(status, 201, "{body}");
}
