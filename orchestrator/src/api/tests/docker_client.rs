//! The stock `docker` client against the fake. Without one on this machine the tests say so and pass.

use crate::api::fake::Fake;
use std::{process::Stdio, time::Duration};
use tokio::{io::AsyncBufReadExt, process::Command};

/// A `docker` command is given up after this long; waiting for a service to be stable takes five seconds of it.
const PATIENCE: Duration = Duration::from_secs(40);

fn docker(fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).env("DOCKER_HOST", fake.host()).env("HOME", "/nonexistent").env("DOCKER_CLI_HINTS", "0");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn available() -> bool {
    let found = Command::new("docker").arg("--version").output().await.is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: there is no docker client on this machine");
    }
    found
}

/// Runs a command; standard output and standard error, and the exit code.
async fn run(fake: &Fake, arguments: &[&str]) -> (String, i32) {
    let output = tokio::time::timeout(PATIENCE, docker(fake, arguments).output()).await;
    let output = output.unwrap_or_else(|_| panic!("docker {arguments:?} does not end")).unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

async fn ok(fake: &Fake, arguments: &[&str]) -> String {
    let (text, code) = run(fake, arguments).await;
    assert_eq!(code, 0, "docker {arguments:?}: {text}");
    text
}

#[tokio::test]
async fn docker_looks_at_the_node_and_the_cluster() {
    if !available().await {
        return;
    }
    let fake = Fake::bare().await;
    let text = ok(&fake, &["swarm", "init"]).await;
    assert!(text.contains("is now a manager"), "{text}");
    assert!(ok(&fake, &["version"]).await.contains("API version:      1.47"));
    let info = ok(&fake, &["info"]).await;
    assert!(info.contains("Swarm: active") && info.contains("Kernel Version: 6.12.20"), "{info}");
    let nodes = ok(&fake, &["node", "ls"]).await;
    assert!(nodes.contains("pi1") && nodes.contains("Leader"), "{nodes}");
    assert!(ok(&fake, &["node", "inspect", "self", "--pretty"]).await.contains("Hostname:              	pi1"));
    ok(&fake, &["node", "update", "--label-add", "zone=a", "pi1"]).await;
    assert_eq!(ok(&fake, &["node", "inspect", "pi1", "-f", "{{.Spec.Labels.zone}}"]).await, "a\n");
    let (text, code) = run(&fake, &["node", "demote", "pi1"]).await;
    assert_ne!(code, 0, "{text}");
    assert!(text.contains("last manager"), "{text}");
    assert!(ok(&fake, &["system", "df"]).await.contains("187MB"));
}

#[tokio::test]
async fn docker_runs_a_service() {
    if !available().await {
        return;
    }
    let fake = Fake::cluster().await;
    let text = ok(
        &fake,
        &[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "-p",
            "8080:80",
            "--cap-add",
            "NET_ADMIN",
            "--env",
            "A=1",
            "--limit-memory",
            "64M",
            "nginx",
        ],
    )
    .await;
    assert!(text.contains("converged"), "{text}");
    let list = ok(&fake, &["service", "ls"]).await;
    assert!(list.contains("2/2") && list.contains("*:8080->80/tcp"), "{list}");
    assert!(ok(&fake, &["service", "ps", "web"]).await.contains("Running"));
    assert!(ok(&fake, &["node", "ps", "self"]).await.contains("web.2"));
    let inspect = ok(&fake, &["service", "inspect", "--pretty", "web"]).await;
    assert!(inspect.contains("Replicas:	2"), "{inspect}");
    let image = ok(&fake, &["service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", "web"]).await;
    assert!(image.starts_with("nginx:latest@sha256:aaaa"), "{image}");
    let logs = ok(&fake, &["service", "logs", "web"]).await;
    assert!(logs.contains("@pi1") && logs.contains("| hello from web.1"), "{logs}");

    ok(&fake, &["service", "scale", "-d", "web=3"]).await;
    ok(&fake, &["service", "update", "-d", "--env-add", "B=2", "--publish-add", "8081:81", "web"]).await;
    let env = ok(&fake, &["service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"]).await;
    assert!(env == "[A=1 B=2]\n" || env == "[B=2 A=1]\n", "the client orders them at random: {env}");
    ok(&fake, &["service", "rollback", "-d", "web"]).await;
    let env = ok(&fake, &["service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"]).await;
    assert_eq!(env, "[A=1]\n");

    let (text, code) = run(&fake, &["service", "create", "-d", "--name", "web", "nginx"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("service web already exists"), "{text}");
    let (text, code) = run(&fake, &["service", "create", "-d", "--network", "x", "nginx"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("x"), "{text}");

    assert_eq!(ok(&fake, &["service", "rm", "web"]).await, "web\n");
    assert!(!ok(&fake, &["service", "ls"]).await.contains("web"));
}

#[tokio::test]
async fn docker_looks_into_containers() {
    if !available().await {
        return;
    }
    let fake = Fake::cluster().await;
    ok(&fake, &["service", "create", "-d", "--name", "web", "-p", "8080:80", "nginx"]).await;
    let list = ok(&fake, &["ps"]).await;
    assert!(list.contains("web.1.") && list.contains("8080->80/tcp"), "{list}");
    let id = ok(&fake, &["ps", "-q"]).await.trim().to_owned();
    assert!(ok(&fake, &["logs", &id]).await.contains("hello from web.1"));
    assert_eq!(ok(&fake, &["inspect", "-f", "{{.State.Status}}", &id]).await, "running\n");
    assert_eq!(ok(&fake, &["inspect", "-f", "{{.Spec.Name}}", "web"]).await, "web\n");
    let stats = ok(&fake, &["stats", "--no-stream"]).await;
    assert!(stats.contains("20MiB / 100MiB"), "{stats}");
    let (text, code) = run(&fake, &["exec", &id, "hostname"]).await;
    assert_eq!((text.as_str(), code), ("hostname out\nhostname err\n", 7));
    let (text, code) = run(&fake, &["run", "nginx"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("containers outside of services are not supported yet"), "{text}");
    ok(&fake, &["stop", &id]).await;
    ok(&fake, &["kill", &id]).await;
}

#[tokio::test]
async fn docker_feeds_an_exec_and_ends_it() {
    if !available().await {
        return;
    }
    let fake = Fake::cluster().await;
    ok(&fake, &["service", "create", "-d", "--name", "web", "nginx"]).await;
    let id = ok(&fake, &["ps", "-q"]).await.trim().to_owned();
    let mut child =
        docker(&fake, &["exec", "-i", &id, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"one\ntwo\n").await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"one\ntwo\n"[..], Some(7)));
}

#[tokio::test]
async fn docker_handles_images() {
    if !available().await {
        return;
    }
    let fake = Fake::cluster().await;
    let list = ok(&fake, &["images"]).await;
    assert!(list.contains("nginx") && list.contains("187MB") && list.contains("3 days ago"), "{list}");
    assert!(ok(&fake, &["pull", "redis:7"]).await.contains("abc: Pull complete"));
    let (text, code) = run(&fake, &["pull", "missing"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("manifest for"), "{text}");
    let (text, code) = run(&fake, &["pull", "broken"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("the registry went away"), "{text}");
    assert_eq!(ok(&fake, &["image", "inspect", "-f", "{{.Os}}/{{.Architecture}}", "nginx"]).await, "linux/arm64\n");
    assert!(ok(&fake, &["history", "nginx"]).await.contains("COPY"));
    ok(&fake, &["tag", "nginx", "registry:5000/app:2"]).await;
    assert!(ok(&fake, &["images"]).await.contains("registry:5000/app"));
    assert!(ok(&fake, &["rmi", "redis:7"]).await.contains("Untagged: redis:7"));
    assert!(ok(&fake, &["image", "prune", "-f"]).await.contains("1.5MB"));
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), vec![7; 3 << 20]).unwrap();
    let text = ok(&fake, &["load", "-i", archive.path().to_str().unwrap()]).await;
    assert!(text.contains("Loaded image: nginx:latest"), "{text}");
    assert_eq!(*fake.daemon.loaded.lock().unwrap(), 3 << 20);
}

#[tokio::test]
async fn docker_follows_events() {
    if !available().await {
        return;
    }
    let fake = Fake::cluster().await;
    let mut child = docker(&fake, &["events", "--since", "1h"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    ok(&fake, &["service", "create", "-d", "--name", "web", "nginx"]).await;
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let line = if line.contains(" node ") {
        tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap()
    } else {
        line
    };
    assert!(line.contains(" service create ") && line.contains("(name=web)"), "{line}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn docker_makes_a_cluster_of_several_nodes() {
    if !available().await {
        return;
    }
    let first = Fake::bare().await;
    let text = ok(&first, &["swarm", "init", "--cert-expiry", "2h", "--availability", "active"]).await;
    assert!(text.contains("docker swarm join --token EDGE-1-") && text.contains("10.0.0.5:2377"), "{text}");
    let token = ok(&first, &["swarm", "join-token", "-q", "worker"]).await.trim().to_owned();
    let second = first.neighbour();
    let (text, code) = run(&second, &["swarm", "join", "--token", &token[..40], "10.0.0.5:2377"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("was it cut off?"), "{text}");
    let text = ok(&second, &["swarm", "join", "--token", &token, "10.0.0.5:2377"]).await;
    assert!(text.contains("This node joined a swarm as a worker."), "{text}");
    let (text, code) = run(&second, &["swarm", "join", "--token", &token, "10.0.0.5:2377"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("already part of a swarm"), "{text}");
    let (text, code) = run(&second, &["node", "ls"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("Worker nodes can't be used to view or modify cluster state"), "{text}");

    let text = ok(&first, &["node", "promote", "pi2"]).await;
    assert!(text.contains("promoted to a manager"), "{text}");
    let text = ok(&second, &["node", "ls"]).await;
    assert!(text.contains("Leader") && text.contains("Reachable"), "{text}");
    assert!(ok(&second, &["info"]).await.contains("Managers: 2"));
    ok(&second, &["node", "update", "--availability", "drain", "pi1"]).await;
    assert_eq!(ok(&second, &["node", "inspect", "-f", "{{.Spec.Availability}}", "pi1"]).await, "drain\n");
    ok(&second, &["service", "create", "-d", "--name", "web", "--replicas", "2", "nginx"]).await;
    assert!(ok(&second, &["node", "ps", "self"]).await.contains("web.2"));
    let text = ok(&second, &["service", "logs", "web"]).await;
    assert!(text.contains("@pi2") && text.contains("hello from web.1"), "{text}");

    let rotated = ok(&second, &["swarm", "join-token", "--rotate", "-q", "worker"]).await;
    assert!(rotated.starts_with("EDGE-1-") && rotated.trim() != token, "{rotated}");
    assert!(ok(&second, &["swarm", "update", "--task-history-limit", "3"]).await.contains("Swarm updated."));
    assert_eq!(second.daemon.settings().task_history, 3);
    assert_eq!(second.daemon.settings().cert_validity.0, 2 * 60 * 60 * 1000);
    assert!(ok(&second, &["swarm", "ca"]).await.starts_with("-----BEGIN CERTIFICATE-----"));
    let (text, _) = run(&second, &["swarm", "unlock-key"]).await;
    assert!(text.contains("no unlock key is set"), "{text}");

    let (text, code) = run(&second, &["swarm", "leave"]).await;
    assert_ne!(code, 0);
    assert!(text.contains("leaves 1 managers out of 2"), "{text}");
    let text = ok(&first, &["node", "demote", "pi2"]).await;
    assert!(text.contains("demoted"), "{text}");
    assert!(ok(&second, &["swarm", "leave"]).await.contains("Node left the swarm."));
    assert!(ok(&first, &["node", "ls"]).await.contains("Down"));
    assert_eq!(ok(&first, &["node", "rm", "pi2"]).await, "pi2\n");
    assert!(ok(&first, &["swarm", "init", "--force-new-cluster"]).await.contains("is now a manager"));
}
