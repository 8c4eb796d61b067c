//! How machines become nodes and stop being nodes: tokens good and bad, roles that change, leaving, being removed, and a
//! cluster that lost its majority for good.

use anyhow::{Context, Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// What a loaded two-core machine gets for something that takes seconds.
const SOON: Duration = Duration::from_secs(45);
const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

#[test]
fn nodes_join_change_roles_leave_and_are_removed() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "5", "--bare"])?;
    lab.load_on(&NODES, "busybox")?;
    type Chapter = fn(&Lab) -> Result<()>;
    let story: [(&str, Chapter); 10] = [
        ("a fresh node says what to do", fresh),
        ("a token that is none lets nobody in", wrong_tokens),
        ("nodes join by address and by multicast, once", joins),
        ("a rotated token lets nobody in any more", rotation),
        ("roles change, the leader's too", roles),
        ("what would lose the majority is refused", majority),
        ("a removed node is refused and stops its containers", removal),
        ("a worker and a manager leave", leaving),
        ("a cluster without majority goes on from one manager", force_new),
        ("the last manager leaves only by force", last),
    ];
    for (name, chapter) in story {
        let started = Instant::now();
        if let Err(error) = chapter(&lab) {
            lab.print_log_tails(30);
            return Err(error.context(name.to_owned()));
        }
        println!("chapter {name}: passed in {:.1} s", started.elapsed().as_secs_f32());
    }
    lab.down()
}

/// The command fails and says all of `words`.
fn refused(lab: &Lab, at: &str, command: &[&str], words: &[&str]) -> Result<()> {
    let ran = lab.exec(at, &[&["edgectl"], command].concat())?;
    ensure!(ran.code != Some(0), "`{}` on {at} was not refused: {ran:?}", command.join(" "));
    let missing: Vec<_> = words.iter().filter(|word| !ran.stderr.contains(**word)).collect();
    ensure!(missing.is_empty(), "`{}` on {at} is refused without {missing:?}: {}", command.join(" "), ran.stderr);
    Ok(())
}

fn token(lab: &Lab, at: &str, role: &str) -> Result<String> {
    Ok(lab.edgectl(at, &["cluster", "join-token", "--quiet", role])?.trim().to_owned())
}

fn ready(lab: &Lab, at: &str, names: &[&str]) -> Result<()> {
    wait_for(&format!("{names:?} to be all that is ready"), SOON, || lab.all_ready(at, names))
}

/// Runs so many containers that every node has some, and says which processes they are.
fn run_everywhere(lab: &Lab, at: &str) -> Result<()> {
    let quick = ["service", "create", "--quiet", "--no-resolve-image", "--update-monitor", "500ms", "--mode", "global"];
    let service = ["--name", "all", "--stop-grace-period", "1s", "busybox", "sleep", "5001"];
    lab.edgectl(at, &[&quick[..], &service].concat()).map(drop)
}

fn pids(lab: &Lab, node: &str) -> Result<BTreeSet<u32>> {
    Ok(lab.processes(node, &["sleep", "5001"])?.into_iter().collect())
}

fn stopped(lab: &Lab, node: &str) -> Result<()> {
    wait_for(&format!("the containers of {node} to end"), SOON, || {
        let left = pids(lab, node)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok::<_, anyhow::Error>(())
    })
}

fn fresh(lab: &Lab) -> Result<()> {
    refused(lab, "n1", &["node", "ls"], &["not a swarm manager", "edgectl cluster init"])?;
    refused(lab, "n1", &["cluster", "leave"], &["not part of a swarm"])?;
    let info = lab.get("n1", "/info")?;
    ensure!(info["Swarm"]["LocalNodeState"] == "inactive", "/info of a fresh node says {}", info["Swarm"]);
    lab.edgectl("n1", &["cluster", "init"])?;
    refused(lab, "n1", &["cluster", "init"], &["already part of a swarm"])?;
    ready(lab, "n1", &["n1"])
}

fn wrong_tokens(lab: &Lab) -> Result<()> {
    let good = token(lab, "n1", "worker")?;
    let join =
        |token: &str, words: &[&str]| refused(lab, "n2", &["cluster", "join", "--token", token, "10.99.0.1"], words);
    join("nonsense", &["invalid join token"])?;
    join(&good[..good.len() - 1], &["invalid join token"])?;
    join(&good.replacen("EDGE-1", "SWMTKN-1", 1), &["invalid join token", "docker"])?;
    // Another cluster's is well made, but not for this one.
    lab.edgectl("n5", &["cluster", "init"])?;
    let foreign = token(lab, "n5", "manager")?;
    lab.edgectl("n5", &["cluster", "leave", "--force"])?;
    join(&foreign, &["10.99.0.1", "another cluster"])?;
    // The right cluster's digest with a secret that is not its.
    let (head, _) = good.rsplit_once('-').context("a token has parts")?;
    let (_, secret) = foreign.rsplit_once('-').context("a token has parts")?;
    join(&format!("{head}-{secret}"), &["not valid", "edgectl cluster join-token"])?;
    ready(lab, "n1", &["n1"])
}

fn joins(lab: &Lab) -> Result<()> {
    let (manager, worker) = (token(lab, "n1", "manager")?, token(lab, "n1", "worker")?);
    let said = lab.edgectl("n2", &["cluster", "join", "--token", &manager, "10.99.0.1"])?;
    ensure!(said.contains("manager"), "joining as a manager says {said}");
    // A follower passes the request on, whichever port and address family it is asked by.
    lab.edgectl("n3", &["cluster", "join", "--token", &manager, "[fd99::2]:2377"])?;
    // Without an address managers are found by multicast.
    let said = lab.edgectl("n4", &["cluster", "join", "--token", &worker])?;
    ensure!(said.contains("worker"), "joining as a worker says {said}");
    refused(lab, "n4", &["cluster", "join", "--token", &worker, "10.99.0.1"], &["already part of a swarm"])?;
    refused(lab, "n4", &["cluster", "init"], &["already part of a swarm"])?;
    refused(lab, "n2", &["cluster", "init"], &["already part of a swarm"])?;
    ready(lab, "n1", &NODES[..4])?;
    let nodes = lab.nodes("n2")?;
    ensure!(nodes["n3"].role == "manager" && nodes["n4"].role == "worker", "roles by token: {nodes:?}");
    Ok(())
}

fn rotation(lab: &Lab) -> Result<()> {
    let old = token(lab, "n3", "worker")?;
    let manager = token(lab, "n1", "manager")?;
    let new = lab.edgectl("n3", &["cluster", "join-token", "--rotate", "--quiet", "worker"])?.trim().to_owned();
    ensure!(new != old && new == token(lab, "n1", "worker")?, "rotation made {new} of {old}");
    ensure!(manager == token(lab, "n1", "manager")?, "rotating the workers' token changed the managers'");
    refused(
        lab,
        "n5",
        &["cluster", "join", "--token", &old, "10.99.0.1"],
        &["not valid", "edgectl cluster join-token"],
    )?;
    // Nobody is at this address; multicast finds who is.
    lab.edgectl("n5", &["cluster", "join", "--token", &new, "10.99.0.77"])?;
    ready(lab, "n1", &NODES)
}

fn roles(lab: &Lab) -> Result<()> {
    run_everywhere(lab, "n1")?;
    let containers = || -> Result<Vec<BTreeSet<u32>>> { NODES.iter().map(|node| pids(lab, node)).collect() };
    let before = containers()?;
    ensure!(before.iter().all(|pids| pids.len() == 1), "a global service runs {before:?}");

    lab.edgectl("n2", &["node", "promote", "n4"])?;
    wait_for("n4 to answer as a manager", SOON, || lab.edgectl("n4", &["node", "ls"]))?;
    ready(lab, "n4", &NODES)?;
    let leader = lab.leader(&NODES[..4])?;
    lab.edgectl(&leader, &["node", "demote", &leader])?;
    let others: Vec<&str> = NODES[..4].iter().copied().filter(|name| *name != leader).collect();
    wait_for("another leader", SOON, || {
        let now = lab.leader(&others)?;
        ensure!(now != leader, "{now} leads");
        Ok::<_, anyhow::Error>(())
    })?;
    wait_for("the old leader to be a worker", SOON, || {
        let answer = lab.request(&leader, "GET", "/nodes", None)?;
        ensure!(answer.status == 503, "it answers {}", answer.status);
        let node = &lab.nodes(others[0])?[&leader];
        ensure!(node.role == "worker" && node.manager.is_empty() && node.state == "ready", "{node:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    // As a worker it gets work and stops it.
    lab.edgectl(others[0], &["node", "update", "--label-add", "old=leader", &leader])?;
    let after = containers()?;
    ensure!(after == before, "changes of roles touched containers: before {before:?}, after {after:?}");
    // Back to n1, n2 and n3.
    for (verb, node) in [("promote", &*leader), ("demote", "n4")] {
        lab.edgectl(others[0], &["node", verb, node])?;
    }
    wait_for("n4 to be a worker", SOON, || {
        let answer = lab.request("n4", "GET", "/nodes", None)?;
        ensure!(answer.status == 503, "it answers {}", answer.status);
        Ok::<_, anyhow::Error>(())
    })?;
    ready(lab, "n1", &NODES)?;
    ensure!(containers()? == before, "changes of roles touched containers");
    Ok(())
}

fn majority(lab: &Lab) -> Result<()> {
    refused(lab, "n4", &["node", "promote", "n5"], &["not a swarm manager"])?;
    refused(lab, "n1", &["cluster", "leave"], &["participating as a manager", "--force"])?;
    refused(lab, "n1", &["node", "rm", "n2"], &["manager"])?;
    refused(lab, "n1", &["node", "rm", "n4"], &["not down"])?;
    refused(lab, "n1", &["node", "rm", "nosuch"], &["nosuch", "not found"])?;
    lab.change(&["kill", "n3"])?;
    wait_for("n3 to be down", SOON, || {
        let node = &lab.nodes("n1")?["n3"];
        ensure!(node.state == "down", "{node:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    // Two managers of three are a majority; one of the two that would be left, with the other one dead, is not.
    refused(lab, "n1", &["node", "demote", "n2"], &["loss of quorum"])?;
    refused(lab, "n1", &["node", "demote", "n1"], &["loss of quorum"])?;
    lab.change(&["start", "n3"])?;
    ready(lab, "n1", &NODES)
}

fn removal(lab: &Lab) -> Result<()> {
    ensure!(pids(lab, "n5")?.len() == 1, "n5 runs nothing");
    lab.edgectl("n1", &["node", "rm", "--force", "n5"])?;
    stopped(lab, "n5")?;
    ready(lab, "n1", &NODES[..4])?;
    // Also a new start does not let it in, and it says why.
    lab.change(&["stop", "n5"])?;
    lab.change(&["start", "n5"])?;
    wait_for("n5 to say that it was removed", SOON, || {
        let info = lab.get("n5", "/info")?;
        let said = info["Swarm"]["Error"].as_str().unwrap_or_default().to_owned();
        ensure!(said.contains("removed"), "/info of a removed node says {}", info["Swarm"]);
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(!lab.nodes("n1")?.contains_key("n5"), "a removed node is back");
    // A new membership begins with a new key.
    lab.edgectl("n5", &["cluster", "leave", "--force"])?;
    lab.edgectl("n5", &["cluster", "join", "--token", &token(lab, "n1", "worker")?, "10.99.0.1"])?;
    ready(lab, "n1", &NODES)?;
    wait_for("the global service on n5", SOON, || {
        let pids = pids(lab, "n5")?;
        ensure!(pids.len() == 1, "{pids:?}");
        Ok::<_, anyhow::Error>(())
    })
}

fn leaving(lab: &Lab) -> Result<()> {
    lab.edgectl("n5", &["cluster", "leave"])?;
    ensure!(pids(lab, "n5")?.is_empty(), "a node that has left runs {:?}", pids(lab, "n5")?);
    wait_for("n5 to be down", SOON, || {
        let node = &lab.nodes("n1")?["n5"];
        ensure!(node.state == "down", "{node:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    lab.edgectl("n1", &["node", "rm", "n5"])?;
    // A manager that leaves by force counts no more for the majority once it has been demoted and removed.
    lab.edgectl("n3", &["cluster", "leave", "--force"])?;
    stopped(lab, "n3")?;
    wait_for("n3 to be gone", SOON, || {
        if lab.nodes("n1")?.contains_key("n3") {
            lab.edgectl("n1", &["node", "rm", "--force", "n3"])?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ready(lab, "n1", &["n1", "n2", "n4"])?;
    // Both return as what the token says.
    let manager = token(lab, "n2", "manager")?;
    lab.edgectl("n3", &["cluster", "join", "--token", &manager, "10.99.0.2"])?;
    lab.edgectl("n5", &["cluster", "join", "--token", &token(lab, "n2", "worker")?, "10.99.0.2"])?;
    ready(lab, "n1", &NODES)
}

fn force_new(lab: &Lab) -> Result<()> {
    wait_for("the global service everywhere", SOON, || {
        let counts = NODES.iter().map(|node| Ok(pids(lab, node)?.len())).collect::<Result<Vec<_>>>()?;
        ensure!(counts == [1; 5], "{counts:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let before = (pids(lab, "n2")?, pids(lab, "n4")?, pids(lab, "n5")?);
    lab.change(&["kill", "n1", "n3"])?;
    wait_for("writes to be refused", SOON, || {
        let write = lab.exec("n2", &["edgectl", "node", "update", "--label-add", "a=b", "n4"])?;
        ensure!(write.code != Some(0), "{write:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    lab.edgectl("n2", &["cluster", "init", "--force-new-cluster"])?;
    wait_for("n2 to lead", SOON, || {
        ensure!(lab.leader(&["n2"])? == "n2", "another one leads");
        Ok::<_, anyhow::Error>(())
    })?;
    wait_for("the workers to follow", SOON, || {
        let nodes = lab.nodes("n2")?;
        let states: Vec<&str> = ["n2", "n4", "n5"].iter().map(|name| &*nodes[*name].state).collect();
        ensure!(states == ["ready"; 3], "{nodes:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let services = lab.edgectl("n2", &["service", "ls", "--format", "{{.Name}}"])?;
    ensure!(services.trim() == "all", "the new cluster has services {services:?}");
    let after = (pids(lab, "n2")?, pids(lab, "n4")?, pids(lab, "n5")?);
    ensure!(before == after, "containers were touched: before {before:?}, after {after:?}");
    // The managers that were lost may come back as new ones.
    lab.edgectl("n2", &["node", "rm", "--force", "n1", "n3"])?;
    let manager = token(lab, "n2", "manager")?;
    for node in ["n1", "n3"] {
        // One after the other: together they would be the majority of the old cluster.
        lab.change(&["start", node])?;
        lab.edgectl(node, &["cluster", "leave", "--force"])?;
        ensure!(pids(lab, node)?.is_empty(), "{node} has left and runs {:?}", pids(lab, node)?);
        lab.edgectl(node, &["cluster", "join", "--token", &manager, "10.99.0.2"])?;
    }
    wait_for("three managers again", SOON, || {
        let nodes = lab.nodes("n2")?;
        let managers = nodes.values().filter(|node| ["leader", "reachable"].contains(&&*node.manager)).count();
        ensure!(managers == 3, "{nodes:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    lab.change(&["kill", "n2"])?;
    wait_for("a write without the first of the new cluster", SOON, || {
        lab.edgectl("n1", &["node", "update", "--label-add", "c=d", "n4"])
    })?;
    lab.change(&["start", "n2"])?;
    wait_for("n2 to return", SOON, || {
        ensure!(lab.nodes("n1")?["n2"].state == "ready", "it is not ready");
        Ok::<_, anyhow::Error>(())
    })
}

fn last(lab: &Lab) -> Result<()> {
    lab.edgectl("n1", &["service", "rm", "all"])?;
    for node in ["n4", "n5"] {
        lab.edgectl(node, &["cluster", "leave"])?;
    }
    for node in ["n3", "n2"] {
        lab.edgectl("n1", &["node", "demote", node])?;
        wait_for("a worker", SOON, || lab.edgectl(node, &["cluster", "leave"]))?;
    }
    refused(lab, "n1", &["node", "demote", "n1"], &["last manager"])?;
    refused(lab, "n1", &["cluster", "leave"], &["last manager", "--force"])?;
    lab.edgectl("n1", &["cluster", "leave", "--force"])?;
    refused(lab, "n1", &["node", "ls"], &["not a swarm manager", "edgectl cluster init"])?;
    // And begins anew.
    lab.edgectl("n1", &["cluster", "init"])?;
    ready(lab, "n1", &["n1"])
}
