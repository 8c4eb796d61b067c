//! The verbs of the cluster and its nodes, and what is reached on other nodes.

use super::{CREATE, ctl, ok, steady};
use crate::api::fake::Fake;
use orchestrator_core::model::{OnDisconnect, Role};

#[tokio::test]
async fn a_cluster_grows_by_the_commands_that_it_shows() {
    let first = Fake::bare().await;
    let shown = ok(&first, &["cluster", "init", "--cert-expiry", "1h", "--dispatcher-heartbeat", "2s"]).await;
    let settings = first.daemon.settings();
    assert_eq!((settings.cert_validity.0, settings.heartbeat.0, settings.down_after.0), (3_600_000, 2000, 10_000));
    let command = shown.lines().find(|line| line.contains("cluster join")).unwrap().trim().to_owned();
    let second = first.neighbour();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(words.last(), Some(&"10.0.0.5:2377"));
    assert_eq!(ok(&second, &words).await, "This node joined a cluster as a worker.\n");
    let again = ctl(&second, &words).await;
    assert_eq!(again.code, 1);
    assert!(again.err.starts_with("edgectl: join the cluster: This node is already part of a swarm."), "{}", again.err);

    let token = ok(&first, &["swarm", "join-token", "-q", "manager"]).await;
    let third = first.neighbour();
    let text = ok(&third, &["cluster", "join", "--availability", "pause", "--token", token.trim()]).await;
    assert_eq!(text, "This node joined a cluster as a manager.\n");
    assert_eq!(
        steady(&ok(&third, &["node", "ls"]).await),
        "ID HOSTNAME STATUS AVAILABILITY MANAGER STATUS ADDRESS VERSION\n\
         ID pi1 Ready Active Leader 10.0.0.5 0.1.0\n\
         ID pi2 Ready Active 10.0.0.6 0.1.0\n\
         ID * pi3 Ready Pause Reachable 10.0.0.7 0.1.0\n"
    );
    let rotated = ok(&third, &["cluster", "join-token", "--rotate", "manager"]).await;
    assert!(rotated.starts_with("Successfully rotated the manager join token.\n\nTo add a manager"), "{rotated}");
    assert!(!rotated.contains(token.trim()));
    assert!(ok(&third, &["cluster", "ca"]).await.ends_with("-----END CERTIFICATE-----\n"));
    ok(&third, &["cluster", "update", "--task-history-limit", "2"]).await;
    assert_eq!(first.daemon.settings().task_history, 2);
    let info = ok(&third, &["info"]).await;
    assert!(info.contains("  Managers at:    10.0.0.7:2377, 10.0.0.5:2377\n"), "in the order of their ids: {info}");
    let ran = ctl(&second, &["node", "ls"]).await;
    assert!(ran.err.contains("Please run this command on a manager node"), "{}", ran.err);
    assert_eq!(ok(&second, &["cluster", "leave"]).await, "Node left the cluster.\n");
    let text = ok(&third, &["cluster", "init", "--force-new-cluster"]).await;
    assert!(text.contains("is the only manager of the cluster from now on"), "{text}");
    assert_eq!(
        steady(&ok(&third, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).await),
        "pi1\npi2\npi3 Leader\n"
    );
}

#[tokio::test]
async fn several_nodes_are_changed_at_once_and_failures_are_all_told() {
    let first = Fake::cluster().await;
    let (_second, third) = (first.joined(Role::Worker), first.joined(Role::Worker));
    assert_eq!(
        ok(&first, &["node", "promote", "pi2", "pi1", "pi3"]).await,
        "Node pi2 promoted to a manager in the cluster.\nNode pi1 is already a manager.\n\
         Node pi3 promoted to a manager in the cluster.\n"
    );
    assert_eq!(ok(&third, &["node", "demote", "self"]).await, "Node self demoted in the cluster.\n");
    let ran = ctl(&first, &["node", "update", "--label-add", "zone=a", "pi1", "none", "pi3", "nil"]).await;
    assert_eq!((ran.out.as_str(), ran.code), ("pi1\npi3\n", 1));
    assert_eq!(
        ran.err,
        "edgectl: update node none: node none not found\nedgectl: update node nil: node nil not found\n"
    );
    let pretty = ok(&first, &["node", "inspect", "--pretty", "pi2"]).await;
    assert!(pretty.contains("Manager:      Reachable at 10.0.0.6:2377\n"), "{pretty}");
    let ran = ctl(&first, &["node", "rm", "pi3"]).await;
    assert!(ran.err.contains("is not down and can't be removed"), "{}", ran.err);
    assert_eq!(ok(&first, &["node", "rm", "--force", "pi3"]).await, "pi3\n");
}

#[tokio::test]
async fn containers_of_other_nodes_are_reached_from_a_manager() {
    let first = Fake::cluster().await;
    let second = first.joined(Role::Worker);
    ok(&first, CREATE).await;
    let there = ok(&second, &["ps", "-q", "--no-trunc"]).await.trim().to_owned();
    let ran = ctl(&first, &["exec", &there, "ls", "-l"]).await;
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.code), ("ls out\n", "ls err\n", 7));
    assert!(ok(&first, &["logs", &there]).await.starts_with("hello from web."));
    assert!(ok(&first, &["stats", "--no-stream", &there]).await.contains("20MiB / 100MiB"));
    assert_eq!(ok(&first, &["inspect", "-f", "{{.State.Status}}", &there]).await, "running\n");
    ok(&first, &["stop", &there]).await;
    let here = ok(&first, &["ps", "-q", "--no-trunc"]).await.trim().to_owned();
    let ran = ctl(&second, &["logs", &here]).await;
    assert!(ran.err.contains("on this node; those of other nodes are reached from a manager"), "{}", ran.err);
    second.cut(true);
    let ran = ctl(&first, &["inspect", &there]).await;
    assert!(ran.code == 1 && ran.err.contains("does not answer"), "{}", ran.err);
}

#[tokio::test]
async fn what_a_cut_off_node_does_is_the_services_choice() {
    let fake = Fake::cluster().await;
    let create =
        ["service", "create", "-d", "--name", "db", "--on-disconnect", "stop", "--disconnect-grace", "30s", "nginx"];
    ok(&fake, &create).await;
    let spec = super::spec(&fake);
    assert_eq!((spec.on_disconnect, spec.disconnect_grace.unwrap().0), (Some(OnDisconnect::Stop), 30_000));
    let pretty = async || {
        let text = ok(&fake, &["service", "inspect", "--pretty", "db"]).await;
        text.lines()
            .find(|line| line.starts_with("On disconnect:"))
            .unwrap()
            .split_once(':')
            .unwrap()
            .1
            .trim()
            .to_owned()
    };
    assert_eq!(pretty().await, "stop after 30s");
    ok(&fake, &["service", "update", "-d", "--env-add", "A=1", "db"]).await;
    assert_eq!(pretty().await, "stop after 30s");
    ok(&fake, &["service", "update", "-d", "--on-disconnect", "keep", "db"]).await;
    assert_eq!(pretty().await, "keep");
    let ran = ctl(&fake, &["service", "update", "-d", "--disconnect-grace", "5s", "db"]).await;
    assert!(ran.err.contains("has no meaning with on-disconnect keep"), "{}", ran.err);
    ok(&fake, &["service", "update", "-d", "--on-disconnect", "auto", "db"]).await;
    assert_eq!(pretty().await, "stop after twice the time until a node is down (auto)");
    ok(&fake, &["service", "scale", "-d", "db=2"]).await;
    assert_eq!(pretty().await, "keep (auto)");
}
