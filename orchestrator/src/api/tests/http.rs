//! Status codes, words and streams, by plain requests.

use crate::api::fake::Fake;
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(super) const WEB: &str = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx"}},
    "Mode":{"Replicated":{"Replicas":2}},"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080}]}}"#;

pub(super) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(super) async fn message(fake: &Fake, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, _, body) = fake.request(method, path, body).await;
    (status, json(&body)["message"].as_str().unwrap_or_else(|| panic!("no message: {body}")).to_owned())
}

#[tokio::test]
async fn ping_tells_versions_and_membership() {
    let fake = Fake::bare().await;
    let (status, headers, body) = fake.request("GET", "/_ping", "").await;
    assert_eq!((status, body.as_str()), (200, "OK"));
    assert_eq!(headers["api-version"], "1.47");
    assert_eq!(headers["swarm"], "inactive");
    assert_eq!(fake.request("POST", "/v1.40/swarm/init", "{}").await.0, 200);
    let (status, headers, body) = fake.request("HEAD", "/v1.24/_ping", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(headers["swarm"], "active/manager");
}

#[tokio::test]
async fn without_a_cluster_cluster_requests_get_503_and_node_requests_work() {
    let fake = Fake::bare().await;
    for path in ["/services", "/tasks", "/nodes", "/swarm"] {
        let (status, text) = message(&fake, "GET", path, "").await;
        assert_eq!(status, 503, "{path}");
        assert!(text.starts_with("This node is not a swarm manager."), "{text}");
    }
    for path in ["/info", "/version", "/containers/json", "/images/json", "/system/df", "/edge/v1/doctor"] {
        assert_eq!(fake.request("GET", path, "").await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn a_service_goes_through_its_life() {
    let fake = Fake::cluster().await;
    let (status, _, body) = fake.request("POST", "/v1.47/services/create", WEB).await;
    assert_eq!(status, 201, "{body}");
    let id = json(&body)["ID"].as_str().unwrap().to_owned();
    assert_eq!(
        message(&fake, "POST", "/services/create", WEB).await,
        (409, "name conflicts with an existing object: service web already exists".into())
    );

    let (_, _, body) = fake.request("GET", "/services?status=true", "").await;
    let list = json(&body);
    assert_eq!(list[0]["ServiceStatus"]["RunningTasks"], 2);
    assert_eq!(list[0]["Endpoint"]["Ports"][0]["PublishedPort"], 8080);

    let (_, _, body) = fake.request("GET", "/services/web", "").await;
    let mut service = json(&body);
    let version = service["Version"]["Index"].as_u64().unwrap();
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = 3.into();
    let spec = service["Spec"].to_string();
    let update = format!("/services/{id}/update?version={version}");
    assert_eq!(fake.request("POST", &update, &spec).await.0, 200);
    assert_eq!(message(&fake, "POST", &update, &spec).await, (400, "update out of sequence".into()));
    let (_, _, body) = fake.request("GET", "/tasks?filters=%7B%22desired-state%22%3A%5B%22running%22%5D%7D", "").await;
    assert_eq!(json(&body).as_array().unwrap().len(), 3);

    let (_, _, body) = fake.request("GET", &format!("/services/{}", &id[..6]), "").await;
    let version = json(&body)["Version"]["Index"].as_u64().unwrap();
    let rollback = format!("/services/{id}/update?version={version}&rollback=previous");
    assert_eq!(fake.request("POST", &rollback, "{}").await.0, 200);
    let (_, _, body) = fake.request("GET", "/services/web", "").await;
    assert_eq!(json(&body)["Spec"]["Mode"]["Replicated"]["Replicas"], 2);

    assert_eq!(fake.request("DELETE", "/services/web", "").await.0, 200);
    assert_eq!(message(&fake, "GET", "/services/web", "").await, (404, "service web not found".into()));
}

#[tokio::test]
async fn a_service_without_a_name_gets_one() {
    let fake = Fake::cluster().await;
    let body = r#"{"TaskTemplate":{"ContainerSpec":{"Image":"nginx"}}}"#;
    for _ in 0..3 {
        let (status, _, body) = fake.request("POST", "/services/create", body).await;
        assert_eq!(status, 201, "{body}");
    }
    let (_, _, body) = fake.request("GET", "/services", "").await;
    let mut names: Vec<_> = json(&body).as_array().unwrap().iter().map(|s| s["Spec"]["Name"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3);
}

#[tokio::test]
async fn wrong_requests_are_refused_in_words() {
    let fake = Fake::cluster().await;
    assert_eq!(fake.request("POST", "/services/create", WEB).await.0, 201);
    let cases = [
        ("POST", "/services/create", "{", 400, "invalid JSON"),
        ("POST", "/services/create", r#"{"Name":"a b"}"#, 400, "invalid name"),
        (
            "POST",
            "/services/create",
            r#"{"Name":"a","TaskTemplate":{"Networks":[{"Target":"x"}]}}"#,
            400,
            "invalid TaskTemplate.Networks: not supported yet",
        ),
        (
            "POST",
            "/services/create",
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"i"}},"EndpointSpec":{"Ports":[{"TargetPort":1,"PublishedPort":8080}]}}"#,
            400,
            "port '8080' is already in use by service 'web'",
        ),
        ("POST", "/services/web/update", "{}", 400, "invalid service version"),
        ("GET", "/services/none", "", 404, "service none not found"),
        ("GET", "/services?filters=%7B%22x%22%3A%5B%22y%22%5D%7D", "", 400, "invalid filter 'x'"),
        ("GET", "/tasks/none", "", 404, "task none not found"),
        ("GET", "/nodes/none", "", 404, "node none not found"),
        ("DELETE", "/nodes/pi1", "", 400, "is a cluster manager"),
        ("GET", "/containers/none/json", "", 404, "No such container: none"),
        ("POST", "/containers/create?name=x", "{}", 501, "containers outside of services"),
        ("POST", "/containers/none/start", "", 404, "No such container: none"),
        ("POST", "/networks/create", "{}", 501, "networks are not supported yet"),
        ("GET", "/networks/x", "", 404, "No such network: x"),
        ("GET", "/volumes/x", "", 404, "No such volume: x"),
        ("POST", "/swarm/join", "{}", 503, "already part of a swarm"),
        ("POST", "/swarm/leave", "", 503, "Removing the last manager erases all current state of the swarm"),
        ("POST", "/swarm/unlock", r#"{"UnlockKey":"x"}"#, 409, "swarm is not locked"),
        ("POST", "/swarm/update", "{}", 400, "invalid swarm version"),
        ("POST", "/swarm/update?version=1", r#"{"CAConfig":{"NodeCertExpiry":1000000000}}"#, 400, "less than an hour"),
        ("POST", "/swarm/update?version=99", "{}", 400, "update out of sequence"),
        (
            "POST",
            "/swarm/update?version=1",
            r#"{"EncryptionConfig":{"AutoLockManagers":true}}"#,
            501,
            "invalid EncryptionConfig.AutoLockManagers: not supported yet",
        ),
        (
            "POST",
            "/swarm/update?version=1",
            r#"{"Raft":{"SnapshotInterval":9}}"#,
            400,
            "invalid Raft: not supported yet",
        ),
        ("POST", "/swarm/nonsense", "", 404, "page not found"),
        ("POST", "/swarm/init", "{}", 503, "already part of a swarm"),
        ("GET", "/images/none/json", "", 404, "No such image: none"),
        ("POST", "/images/create?fromImage=missing", "", 404, "manifest for missing not found"),
        ("GET", "/exec/exec9x/json", "", 404, "No such exec instance"),
        ("GET", "/services/web/logs", "", 400, "choose at least one stream"),
        ("POST", "/auth", r#"{"username":"u","password":"wrong"}"#, 403, "unauthorized"),
        ("GET", "/nowhere", "", 404, "page not found"),
        ("PUT", "/services", "", 405, "PUT is not possible on /services"),
        ("GET", "/v1.23/services", "", 400, "client version 1.23 is too old"),
    ];
    for (method, path, body, status, words) in cases {
        let (found, text) = message(&fake, method, path, body).await;
        assert_eq!(found, status, "{method} {path}: {text}");
        assert!(text.contains(words), "{method} {path}: {text}");
    }
    let huge = format!(r#"{{"Name":"{}"}}"#, "x".repeat(crate::api::request::BODY_MAX));
    assert_eq!(message(&fake, "POST", "/services/create", &huge).await.0, 413);
}

#[tokio::test]
async fn stand_alone_verbs_name_the_service() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let (_, _, body) = fake.request("GET", "/containers/json", "").await;
    let id = json(&body)[0]["Id"].as_str().unwrap().to_owned();
    let (status, text) = message(&fake, "POST", &format!("/containers/{id}/restart"), "").await;
    assert_eq!(status, 501);
    assert!(text.contains("it belongs to service web"), "{text}");
}

#[tokio::test]
async fn a_pull_that_fails_midway_says_so_in_its_stream() {
    let fake = Fake::cluster().await;
    let (status, _, body) = fake.request("POST", "/images/create?fromImage=broken&tag=1", "").await;
    assert_eq!(status, 200);
    let lines: Vec<Value> = body.lines().map(json).collect();
    assert_eq!(lines[1]["progressDetail"]["total"], 100);
    assert_eq!(lines.last().unwrap()["errorDetail"]["message"], "the registry went away");
}

#[tokio::test]
async fn service_logs_are_framed_with_details_and_ordered_by_time() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let (status, headers, body) =
        fake.request("GET", "/services/web/logs?stdout=1&stderr=1&details=1&timestamps=1", "").await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "application/vnd.docker.multiplexed-stream");
    assert_eq!(body.matches("com.docker.swarm.node.id=").count(), 4);
    let hello = body.find("hello from web.2").unwrap();
    assert!(hello < body.find("careful").unwrap(), "{body}");
}

/// Reads a stream until it contains `text`.
pub(super) async fn read_until(stream: &mut tokio::net::UnixStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "ended before {text:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap_or_else(|_| panic!("never came: {text:?}"));
    String::from_utf8_lossy(&seen).into_owned()
}

pub(super) async fn open(fake: &Fake, request: &str) -> tokio::net::UnixStream {
    let mut stream = tokio::net::UnixStream::connect(&fake.socket).await.unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn followed_logs_cover_tasks_that_come_later() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let mut logs = open(&fake, "GET /services/web/logs?stdout=1&follow=1 HTTP/1.1\nHost: x\n\n").await;
    read_until(&mut logs, "hello from web.2").await;
    let (_, _, body) = fake.request("GET", "/services/web", "").await;
    let mut service = json(&body);
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = 3.into();
    let path = format!("/services/web/update?version={}", service["Version"]["Index"]);
    fake.request("POST", &path, &service["Spec"].to_string()).await;
    read_until(&mut logs, "hello from web.3").await;
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let mut fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let mut events = open(&fake, "GET /events HTTP/1.1\nHost: x\n\n").await;
    read_until(&mut events, "200 OK").await;
    let mut logs = open(&fake, "GET /services/web/logs?stdout=1&follow=1 HTTP/1.1\nHost: x\n\n").await;
    read_until(&mut logs, "hello").await;
    fake.shutdown.cancel();
    let server = fake.server.take().unwrap();
    tokio::time::timeout(Duration::from_secs(4), server).await.expect("the server stops").unwrap();
}

#[tokio::test]
async fn events_tell_what_happens_and_what_happened() {
    let fake = Fake::cluster().await;
    let mut events = open(&fake, "GET /events HTTP/1.1\nHost: x\n\n").await;
    read_until(&mut events, "200 OK").await;
    fake.request("POST", "/services/create", WEB).await;
    let text = read_until(&mut events, "\"create\"").await;
    assert!(text.contains(r#""Type":"service""#), "{text}");
    fake.daemon.emit("die");
    read_until(&mut events, r#""status":"die""#).await;
    let until = crate::api::fake::now().0 / 1000 + 1;
    let filter = "filters=%7B%22type%22%3A%5B%22container%22%5D%7D";
    let (_, _, past) = fake.request("GET", &format!("/events?since=1&until={until}&{filter}"), "").await;
    assert_eq!(past.lines().count(), 1, "{past}");
    assert!(past.contains(r#""Action":"die""#), "{past}");
}

async fn exec(fake: &Fake, body: &str) -> String {
    let (_, _, list) = fake.request("GET", "/containers/json", "").await;
    let name = json(&list)[0]["Names"][0].as_str().unwrap().trim_start_matches('/').to_owned();
    let (status, _, created) = fake.request("POST", &format!("/containers/{name}/exec"), body).await;
    assert_eq!(status, 201, "{created}");
    json(&created)["Id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn exec_hijacks_the_connection_and_keeps_the_exit_code() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let id = exec(&fake, r#"{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}"#).await;
    let start = format!(
        "POST /exec/{id}/start HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\nContent-Length: 2\n\n{{}}"
    );
    let mut stream = open(&fake, &start).await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let echoed = read_until(&mut stream, "ping").await;
    assert_eq!(echoed.as_bytes(), b"\x01\0\0\0\0\0\0\x04ping");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    let (_, _, state) = fake.request("GET", &format!("/exec/{id}/json"), "").await;
    assert_eq!(json(&state)["ExitCode"], 7);
}

#[tokio::test]
async fn exec_without_upgrade_answers_with_the_output() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let id = exec(&fake, r#"{"AttachStdout":true,"Cmd":["hostname"]}"#).await;
    let (status, _, body) = fake.request("POST", &format!("/exec/{id}/start"), "{}").await;
    assert_eq!(status, 200);
    assert_eq!(body.as_bytes(), b"\x01\0\0\0\0\0\0\x0dhostname out\n\x02\0\0\0\0\0\0\x0dhostname err\n");
}

#[tokio::test]
async fn a_resize_reaches_the_terminal() {
    let fake = Fake::cluster().await;
    fake.request("POST", "/services/create", WEB).await;
    let id = exec(&fake, r#"{"AttachStdin":true,"Tty":true,"Cmd":["size"]}"#).await;
    let body = r#"{"Tty":true,"ConsoleSize":[10,20]}"#;
    let length = body.len();
    let start = format!(
        "POST /exec/{id}/start HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\nContent-Length: {length}\n\n{body}"
    );
    let mut stream = open(&fake, &start).await;
    read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(fake.request("POST", &format!("/exec/{id}/resize?h=30&w=40"), "").await.0, 200);
    stream.write_all(b"\n").await.unwrap();
    let text = read_until(&mut stream, "}").await;
    assert!(text.contains("rows: 30, columns: 40"), "{text}");
}

#[tokio::test]
async fn explain_tells_why_a_service_is_not_running() {
    let fake = Fake::cluster().await;
    let body = r#"{"Name":"lost","TaskTemplate":{"ContainerSpec":{"Image":"nginx"},
        "Placement":{"Constraints":["node.labels.zone==moon"]}}}"#;
    assert_eq!(fake.request("POST", "/services/create", body).await.0, 201);
    let (status, _, body) = fake.request("GET", "/edge/v1/services/lost/explain", "").await;
    assert_eq!(status, 200);
    let explanation = json(&body);
    assert_eq!((&explanation["desired"], &explanation["running"]), (&1.into(), &0.into()));
    assert!(!explanation["tasks"][0]["reasons"].as_array().unwrap().is_empty(), "{body}");
}
