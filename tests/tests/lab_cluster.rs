//! Five nodes, three of them managers, as users and their applications meet them: services spread over all, any manager
//! answers, nodes go and come back, are drained, cut off and readdressed.

use anyhow::{Context, Result, ensure};
use orchestrator_tests::{Lab, Process, Scenarios, skip_without_lab, wait_for};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const MANAGERS: [&str; 3] = ["n1", "n2", "n3"];
/// What a loaded two-core machine gets for something that takes seconds.
const SOON: Duration = Duration::from_secs(45);

#[test]
fn a_cluster_of_five_serves_its_users_through_whatever_happens_to_its_nodes() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "5", "--managers", "3"])?;
    for image in ["busybox", "whoami"] {
        lab.load_on(&NODES, image)?;
    }
    let mut scenarios = Scenarios::new(&lab, &MANAGERS, &NODES);
    scenarios.run("all five are ready and ten replicas spread evenly", spread);
    scenarios.run("any manager answers everything", any_manager);
    scenarios.run("a worker says in Docker's words that it cannot", worker_refuses);
    scenarios.run("a killed worker is replaced and returns without duplicates", killed_worker);
    scenarios.run("drain empties a node and the service never drops below its count", drain);
    scenarios.run("a short cut changes nothing", short_cut);
    scenarios.run("a worker without managers comes back by itself after a power cut", power_cut);
    scenarios.run("a service of one replica does not run twice for long, unless it says so", singleton);
    scenarios.run("a worker gets another address while it runs", readdressed_worker);
    scenarios.run("a manager restarts with another address", readdressed_manager);
    scenarios.run("all managers restart with other addresses at once", readdressed_managers);
    scenarios.end()?;
    lab.down()
}

/// Creates a service of an image that all nodes have and waits until it is stable.
fn create(lab: &Lab, at: &str, name: &str, rest: &[&str]) -> Result<String> {
    let quick = ["service", "create", "--quiet", "--no-resolve-image", "--update-monitor", "500ms", "--name", name];
    // The first process of a container does not end by SIGTERM unless it says so.
    lab.edgectl(at, &[&quick[..], &["--stop-grace-period", "1s"], rest].concat())
}

/// The processes of a service by node, told by their command line.
fn processes(lab: &Lab, command: &str) -> Result<BTreeMap<String, BTreeSet<u32>>> {
    let mut found = BTreeMap::<String, BTreeSet<u32>>::new();
    for Process { node, pid, .. } in lab.containers()?.into_iter().filter(|process| process.command == command) {
        found.entry(node).or_default().insert(pid);
    }
    Ok(found)
}

/// Waits until so many processes run, and says where.
fn count(lab: &Lab, command: &str, want: usize) -> Result<BTreeMap<String, BTreeSet<u32>>> {
    wait_for(&format!("{want} processes `{command}`"), SOON, || {
        let found = processes(lab, command)?;
        ensure!(found.values().map(BTreeSet::len).sum::<usize>() == want, "there are {found:?}");
        Ok::<_, anyhow::Error>(found)
    })
}

fn spread(lab: &Lab) -> Result<()> {
    lab.all_ready("n1", &NODES)?;
    create(lab, "n1", "spread", &["--replicas", "10", "busybox", "sleep", "3001"])?;
    let on_nodes: Vec<usize> = lab.running("n1", "spread")?.into_values().collect();
    ensure!(on_nodes == [2; 5], "ten replicas are spread {on_nodes:?}");
    let found = count(lab, "sleep 3001", 10)?;
    ensure!(found.len() == 5, "the processes of ten replicas are on {found:?}");
    Ok(())
}

fn any_manager(lab: &Lab) -> Result<()> {
    let leader = lab.leader(&MANAGERS)?;
    let follower = MANAGERS.into_iter().find(|name| *name != leader).context("three managers")?;
    // Through a follower from the beginning.
    let say = "while true; do echo tick; sleep 0.2; done";
    create(lab, follower, "talk", &["--replicas", "5", "busybox", "sh", "-c", say])?;
    let name = ["--format", "{{.Spec.Name}}"];
    for at in MANAGERS {
        let services = lab.edgectl(at, &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        ensure!(services.trim() == "talk 5/5", "{at} lists {services:?}");
        let tasks = lab.edgectl(at, &["service", "ps", "--format", "{{.Name}} {{.Node}}", "talk"])?;
        let on: BTreeSet<&str> = tasks.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        ensure!(on == BTreeSet::from(NODES), "{at} lists tasks on {on:?}");
        let inspected = lab.edgectl(at, &[&["service", "inspect"], &name[..], &["talk"]].concat())?;
        ensure!(inspected.trim() == "talk", "{at} inspects {inspected:?}");
        let nodes = lab.edgectl(at, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(nodes.lines().filter(|line| line.ends_with("Ready")).count() == 5, "{at} lists {nodes}");
        let logs = lab.edgectl(at, &["service", "logs", "--tail", "1", "talk"])?;
        for task in 1..=5 {
            ensure!(logs.contains(&format!("talk.{task}")), "{at} has no logs of task {task}: {logs}");
        }
    }
    // Docker's own program, where it is installed, against a manager that does not lead.
    if lab.exec(follower, &["docker", "--version"])?.code == Some(0) {
        let services = lab.ok(follower, &["docker", "service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        ensure!(services.trim() == "talk 5/5", "docker lists {services:?}");
        let nodes = lab.ok(follower, &["docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(nodes.lines().filter(|line| line.ends_with("Ready")).count() == 5, "docker lists {nodes}");
        let tasks = lab.ok(follower, &["docker", "service", "ps", "--quiet", "talk"])?;
        ensure!(tasks.lines().count() == 5, "docker lists {tasks}");
        lab.ok(follower, &["docker", "service", "scale", "--detach", "talk=6"])?;
        lab.ok(follower, &["docker", "service", "inspect", "talk"])?;
        lab.ok(follower, &["docker", "service", "rm", "talk"])?;
    }
    Ok(())
}

fn worker_refuses(lab: &Lab) -> Result<()> {
    const WORDS: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state.";
    for (method, path) in [("GET", "/services"), ("GET", "/nodes"), ("GET", "/tasks"), ("POST", "/services/create")] {
        let body = orchestrator_tests::writers::service("refused");
        let answer = lab.request("n4", method, path, (method == "POST").then_some(&body))?;
        let said = answer.body["message"].as_str().unwrap_or_default();
        ensure!(answer.status == 503 && said.starts_with(WORDS), "a worker answers {method} {path}: {answer:?}");
    }
    let edgectl = lab.exec("n4", &["edgectl", "node", "ls"])?;
    ensure!(edgectl.code == Some(1) && edgectl.stderr.contains(WORDS), "edgectl on a worker: {edgectl:?}");
    // What is its own it answers.
    lab.edgectl("n4", &["ps"])?;
    lab.edgectl("n4", &["image", "ls"])?;
    let info = lab.get("n4", "/info")?;
    ensure!(info["Swarm"]["LocalNodeState"] == "active", "a worker's /info says {}", info["Swarm"]);
    ensure!(info["Swarm"]["ControlAvailable"] == false, "a worker's /info says {}", info["Swarm"]);
    Ok(())
}

fn killed_worker(lab: &Lab) -> Result<()> {
    create(lab, "n1", "ten", &["--replicas", "10", "busybox", "sleep", "3002"])?;
    let started = Instant::now();
    lab.change(&["kill", "n5"])?;
    wait_for("ten running elsewhere", SOON, || {
        let running = lab.running("n1", "ten")?;
        ensure!(!running.contains_key("n5") && running.values().sum::<usize>() == 10, "{running:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    println!("replacements of a killed worker's tasks ran after {:.1} s", started.elapsed().as_secs_f32());
    ensure!(lab.nodes("n1")?["n5"].state == "down", "the killed worker is not down: {:?}", lab.nodes("n1")?["n5"]);
    // Its containers went on without its daemon.
    let found = count(lab, "sleep 3002", 12)?;
    let elsewhere: BTreeMap<_, _> = found.into_iter().filter(|(node, _)| node != "n5").collect();
    let started = Instant::now();
    lab.change(&["start", "n5"])?;
    let after = count(lab, "sleep 3002", 10)?;
    println!("duplicates of a returned worker were gone after {:.1} s", started.elapsed().as_secs_f32());
    ensure!(after == elsewhere, "replacements were touched: before {elsewhere:?}, after {after:?}");
    Ok(())
}

fn drain(lab: &Lab) -> Result<()> {
    let start_first = ["--replicas", "5", "--update-order", "start-first", "busybox", "sleep", "3003"];
    create(lab, "n1", "five", &start_first)?;
    let all = || -> Result<usize> { Ok(processes(lab, "sleep 3003")?.values().map(BTreeSet::len).sum()) };
    let done = AtomicBool::new(false);
    let lowest = thread::scope(|scope| -> Result<usize> {
        let watch = scope.spawn(|| -> Result<usize> {
            let mut lowest = usize::MAX;
            while !done.load(Ordering::Relaxed) {
                // One look at /proc takes its time and may miss a process that starts meanwhile; a gap would last longer.
                lowest = lowest.min(all()?.max(all()?));
            }
            Ok(lowest)
        });
        let drained = lab.edgectl("n1", &["node", "update", "--availability", "drain", "n4"]).and_then(|_| {
            wait_for("n4 to be empty", SOON, || {
                let (found, running) = (processes(lab, "sleep 3003")?, lab.running("n1", "five")?);
                ensure!(!found.contains_key("n4") && !running.contains_key("n4"), "{found:?} {running:?}");
                ensure!(running.values().sum::<usize>() == 5, "{running:?}");
                Ok::<_, anyhow::Error>(())
            })
        });
        done.store(true, Ordering::Relaxed);
        let lowest = watch.join().expect("the watch does not panic");
        drained.and(lowest)
    })?;
    ensure!(lowest >= 5, "while a node was drained only {lowest} of 5 replicas ran");
    count(lab, "sleep 3003", 5)?;
    let only = ["--detach", "--quiet", "--no-resolve-image", "--constraint", "node.hostname==n4", "busybox"];
    lab.edgectl("n1", &[&["service", "create", "--name", "nowhere"], &only[..]].concat())?;
    wait_for("an explanation that names the drained node", SOON, || {
        let explained = lab.edgectl("n1", &["service", "explain", "nowhere"])?;
        ensure!(explained.contains("1 node not available for new tasks"), "{explained}");
        Ok::<_, anyhow::Error>(())
    })
}

fn short_cut(lab: &Lab) -> Result<()> {
    create(lab, "n1", "stay", &["--replicas", "5", "busybox", "sleep", "3004"])?;
    let before = count(lab, "sleep 3004", 5)?;
    let leader = lab.leader(&MANAGERS)?;
    let cut = Instant::now();
    lab.change(&["cut", "n4", &leader])?;
    // Another manager is no help to a node that the leader does not hear, so this must end before it counts as down.
    wait_for("two heartbeats to be missed", SOON, || {
        let since = cut.elapsed();
        ensure!(since > Duration::from_secs(2), "{since:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    lab.change(&["heal"])?;
    wait_for("the node to be ready", SOON, || lab.all_ready("n1", &NODES))?;
    let after = count(lab, "sleep 3004", 5)?;
    ensure!(after == before, "a short cut moved tasks: before {before:?}, after {after:?}");
    Ok(())
}

fn whoami(lab: &Lab, address: &str) -> Result<String> {
    let url = format!("http://{address}:8080/");
    lab.ok("client", &["curl", "--silent", "--show-error", "--fail", "--max-time", "2", &url])
}

fn power_cut(lab: &Lab) -> Result<()> {
    create(lab, "n1", "web", &["--replicas", "5", "-p", "8080:80", "whoami"])?;
    create(lab, "n1", "probe", &["--replicas", "5", "busybox", "sleep", "3005"])?;
    let web = count(lab, "/whoami", 5)?;
    ensure!(web.len() == 5, "five replicas of web are on {web:?}");
    whoami(lab, "10.99.0.4")?;

    lab.change(&["cut", "n4", "n1", "n2", "n3"])?;
    lab.change(&["kill", "n4"])?;
    let of_n4: Vec<Process> = lab.of_nodes()?.into_iter().filter(|process| process.node == "n4").collect();
    ensure!(of_n4.len() >= 4, "n4 has two containers and two shims at least: {of_n4:?}");
    for process in &of_n4 {
        // Shims end with their containers; whoever is gone already is.
        let _ = std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]).output();
    }
    wait_for("the end of all of n4", SOON, || {
        let left: Vec<_> = lab.of_nodes()?.into_iter().filter(|process| process.node == "n4").collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok::<_, anyhow::Error>(())
    })?;

    lab.change(&["start", "n4"])?;
    wait_for("both containers of n4 to be back", SOON, || {
        let (web, probe) = (processes(lab, "/whoami")?, processes(lab, "sleep 3005")?);
        let on = |found: &BTreeMap<String, BTreeSet<u32>>| found.get("n4").map_or(0, BTreeSet::len);
        ensure!(on(&web) == 1 && on(&probe) == 1, "web: {web:?}, probe: {probe:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    wait_for("the published port of n4", SOON, || whoami(lab, "10.99.0.4"))?;
    let names = lab.edgectl("n4", &["ps", "--format", "{{.Names}}"])?;
    let probe = names.lines().find(|name| name.starts_with("probe.")).context("n4 lists no probe")?;
    wait_for("the service's name on n4", SOON, || {
        lab.edgectl("n4", &["exec", probe, "wget", "-q", "-O", "-", "http://web/"])
    })?;

    lab.change(&["heal"])?;
    wait_for("the node to be ready", SOON, || lab.all_ready("n1", &NODES))?;
    count(lab, "/whoami", 5)?;
    count(lab, "sleep 3005", 5)?;
    Ok(())
}

fn singleton(lab: &Lab) -> Result<()> {
    // Both on one node, which the scenario then cuts off from all managers.
    let one = ["--replicas", "1", "--constraint", "node.role==worker", "busybox", "sleep"];
    create(lab, "n1", "once", &[&one[..], &["3008"]].concat())?;
    let (node, _) = count(lab, "sleep 3008", 1)?.pop_first().context("one replica is somewhere")?;
    let there = format!("node.hostname=={node}");
    let keep = ["--replicas", "1", "--on-disconnect", "keep", "--constraint", &there, "busybox", "sleep", "3009"];
    create(lab, "n1", "kept", &keep)?;
    let kept = count(lab, "sleep 3009", 1)?;
    lab.change(&["cut", &node, "n1", "n2", "n3"])?;
    let cut = Instant::now();
    let mut twice = None;
    wait_for("the replica to run elsewhere and no longer here", SOON, || {
        let found = processes(lab, "sleep 3008")?;
        if found.len() == 2 {
            twice.get_or_insert_with(Instant::now);
        }
        ensure!(found.len() == 1 && !found.contains_key(&node), "{found:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let twice = twice.map_or(Duration::ZERO, |from| from.elapsed());
    println!(
        "a single replica ran elsewhere only, {:.1} s after its node was cut off; twice for {:.1} s",
        cut.elapsed().as_secs_f32(),
        twice.as_secs_f32()
    );
    ensure!(count(lab, "sleep 3009", 1)? == kept, "a service that is kept when cut off was touched");
    lab.change(&["heal"])?;
    wait_for("the node to be ready", SOON, || lab.all_ready("n1", &NODES))?;
    count(lab, "sleep 3008", 1)?;
    count(lab, "sleep 3009", 1).map(drop)
}

/// Whether the cluster knows a node by this address and finds it ready.
fn known_by(lab: &Lab, at: &str, node: &str, address: &str) -> Result<()> {
    wait_for(&format!("{node} to be known by {address}"), SOON, || {
        lab.all_ready(at, &NODES)?;
        let known = &lab.nodes(at)?[node];
        ensure!(known.address == address, "it is known as {known:?}");
        Ok::<_, anyhow::Error>(())
    })
}

fn readdressed_worker(lab: &Lab) -> Result<()> {
    create(lab, "n1", "web", &["--replicas", "5", "-p", "8080:80", "whoami"])?;
    let before = count(lab, "/whoami", 5)?;
    lab.change(&["readdress", "n5", "10.99.0.105"])?;
    known_by(lab, "n1", "n5", "10.99.0.105")?;
    wait_for("the port at the new address", SOON, || whoami(lab, "10.99.0.105"))?;
    wait_for("the port at the new IPv6 address", SOON, || whoami(lab, "[fd99::69]"))?;
    let after = count(lab, "/whoami", 5)?;
    ensure!(after == before, "another address moved tasks: before {before:?}, after {after:?}");
    Ok(())
}

fn readdressed_manager(lab: &Lab) -> Result<()> {
    create(lab, "n1", "stay", &["--replicas", "5", "busybox", "sleep", "3006"])?;
    let before = count(lab, "sleep 3006", 5)?;
    lab.change(&["readdress", "n2", "10.99.0.102", "--restart"])?;
    known_by(lab, "n1", "n2", "10.99.0.102")?;
    // It is a voter again, not only seen: with another manager gone its vote is needed.
    lab.change(&["kill", "n3"])?;
    wait_for("a write with the help of the readdressed manager", SOON, || {
        lab.edgectl("n2", &["node", "update", "--label-add", "seen=yes", "n2"])
    })?;
    lab.change(&["start", "n3"])?;
    wait_for("all to be ready", SOON, || lab.all_ready("n1", &NODES))?;
    let after = count(lab, "sleep 3006", 5)?;
    ensure!(after == before, "another address moved tasks: before {before:?}, after {after:?}");
    Ok(())
}

fn readdressed_managers(lab: &Lab) -> Result<()> {
    create(lab, "n1", "stay", &["--replicas", "5", "busybox", "sleep", "3007"])?;
    count(lab, "sleep 3007", 5)?;
    lab.change(&["stop", "n1", "n2", "n3"])?;
    for (node, address) in [("n1", "10.99.0.111"), ("n2", "10.99.0.112"), ("n3", "10.99.0.113")] {
        lab.change(&["readdress", node, address])?;
    }
    lab.change(&["start", "n1", "n2", "n3"])?;
    for (node, address) in [("n1", "10.99.0.111"), ("n2", "10.99.0.112"), ("n3", "10.99.0.113")] {
        known_by(lab, "n1", node, address)?;
    }
    count(lab, "sleep 3007", 5).map(drop)
}
