//! Three managers under a stream of writes while leaders are killed and cut off, disks fill up, logs rot and strangers shout:
//! what was acknowledged stays, and the cluster serves again.

use anyhow::{Context, Result, bail, ensure};
use orchestrator_tests::{
    Lab, Scenarios, skip_without_lab, wait_for,
    writers::{self, Writers},
};
use std::{
    fs,
    net::UdpSocket,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

const MANAGERS: [&str; 3] = ["n1", "n2", "n3"];
/// Leaders that are killed under writes.
const ROUNDS: usize = 20;
/// What a loaded two-core machine gets for something that takes seconds.
const SOON: Duration = Duration::from_secs(45);

#[test]
fn acknowledged_writes_survive_whatever_happens_to_the_managers() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "3", "--managers", "3"])?;
    lab.load_on(&MANAGERS, "busybox")?;
    let mut scenarios = Scenarios::new(&lab, &MANAGERS, &MANAGERS);
    scenarios.run("garbage at the control port stops nothing", garbage);
    scenarios.run("twenty leaders are killed under writes", killed_leaders);
    scenarios.run("all managers are killed at once", all_killed);
    scenarios.run("a leader that is cut off neither writes nor reads", cut_leader);
    scenarios.run("a log that rotted in the middle is set aside", rotten_log);
    scenarios.run("a leader whose disk is full hands over and recovers", full_disk);
    scenarios.end()?;
    lab.down()
}

/// The managers besides one.
fn others(name: &str) -> Vec<&'static str> {
    MANAGERS.into_iter().filter(|other| *other != name).collect()
}

/// Waits until a manager's client gets a write acknowledged that it asked for after `from`.
fn writes_again(writers: &Writers, at: &str, from: Instant) -> Result<Instant> {
    wait_for(&format!("a write at {at}"), SOON, || writers.acknowledged(at, from))
}

fn killed_leaders(lab: &Lab) -> Result<()> {
    let writers = Writers::start(lab, "kill", &MANAGERS);
    let mut first = Vec::new();
    let mut every = Vec::new();
    for round in 0..ROUNDS {
        wait_for("three managers", SOON, || lab.all_ready(MANAGERS[round % 3], &MANAGERS))?;
        let leader = wait_for("a leader", SOON, || lab.leader(&MANAGERS))?;
        lab.sigkill(&leader)?;
        let killed = Instant::now();
        let mut took = Vec::new();
        for at in others(&leader) {
            took.push(writes_again(&writers, at, killed)? - killed);
        }
        first.extend(took.iter().min());
        every.extend(took.iter().max());
        lab.change(&["start", &leader])?;
        writes_again(&writers, &leader, Instant::now())?;
    }
    let record = writers.end();
    for at in MANAGERS {
        writers::check(lab, at, &record)?;
    }
    let acknowledged = record.iter().filter(|write| write.acknowledged.is_some()).count();
    println!("{ROUNDS} leaders killed under writes: {acknowledged} of {} acknowledged, none lost", record.len());
    println!("until the first manager acknowledges a write again: {}", percentiles(first));
    println!("until every remaining manager does: {}", percentiles(every));
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1].as_secs_f32();
    format!("p50 {:.2} s, p99 {:.2} s", at(50), at(99))
}

fn all_killed(lab: &Lab) -> Result<()> {
    let quick = ["service", "create", "--quiet", "--no-resolve-image", "--update-monitor", "500ms"];
    let service = ["--name", "stay", "--replicas", "6", "--stop-grace-period", "1s", "busybox", "sleep", "4001"];
    lab.edgectl("n1", &[&quick[..], &service].concat())?;
    let pids = || -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for node in MANAGERS {
            all.extend(lab.processes(node, &["sleep", "4001"])?);
        }
        Ok(all)
    };
    let before = pids()?;
    ensure!(before.len() == 6, "six replicas are {before:?}");
    let writers = Writers::start(lab, "all", &MANAGERS);
    for at in MANAGERS {
        writes_again(&writers, at, Instant::now())?;
    }
    lab.change(&["kill", "n1", "n2", "n3"])?;
    let started = Instant::now();
    lab.change(&["start", "n1", "n2", "n3"])?;
    for at in MANAGERS {
        writes_again(&writers, at, started)?;
    }
    println!(
        "all managers killed: every one acknowledges writes {:.1} s after the restart",
        started.elapsed().as_secs_f32()
    );
    writers::check(lab, "n1", &writers.end())?;
    wait_for("all to be ready", SOON, || lab.all_ready("n1", &MANAGERS))?;
    wait_for("six running tasks", SOON, || {
        let running = lab.running("n2", "stay")?;
        ensure!(running.values().sum::<usize>() == 6, "{running:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let after = pids()?;
    ensure!(before == after, "containers were stopped or started: before {before:?}, after {after:?}");
    Ok(())
}

fn cut_leader(lab: &Lab) -> Result<()> {
    let leader = lab.leader(&MANAGERS)?;
    let followers = others(&leader);
    let writers = Writers::start(lab, "cut", &followers);
    lab.change(&["cut", &leader])?;
    let cut = Instant::now();
    let refused = |method: &str, path: &str| -> Result<Duration> {
        let body = writers::service("behind-the-cut");
        loop {
            let answer = lab.request(&leader, method, path, (method == "POST").then_some(&body))?;
            match answer.status {
                503 | 500 => return Ok(cut.elapsed()),
                // Before it has noticed it may still answer reads from its lease, but acknowledge nothing.
                200 if method == "GET" && cut.elapsed() < Duration::from_secs(10) => {}
                status => bail!("the leader that is cut off answers {method} {path} with {status}: {}", answer.body),
            }
        }
    };
    let (write, read) = thread::scope(|scope| {
        let write = scope.spawn(|| refused("POST", "/services/create"));
        let read = scope.spawn(|| refused("GET", "/services"));
        (write.join().expect("asking does not panic"), read.join().expect("asking does not panic"))
    });
    println!(
        "a leader that is cut off refuses a write after {:.1} s and a read after {:.1} s",
        write?.as_secs_f32(),
        read?.as_secs_f32()
    );
    for at in &followers {
        writes_again(&writers, at, cut)?;
    }
    println!("the others acknowledge writes {:.1} s after the cut", cut.elapsed().as_secs_f32());
    let new = lab.leader(&followers)?;
    ensure!(new != leader, "{new} leads behind a cut");
    lab.change(&["heal"])?;
    let healed = Instant::now();
    wait_for("three managers", SOON, || lab.all_ready(&leader, &MANAGERS))?;
    println!("healed after {:.1} s", healed.elapsed().as_secs_f32());
    let record = writers.end();
    let list = |at: &str| lab.edgectl(at, &["service", "ls", "--format", "{{.ID}} {{.Name}}"]);
    for at in MANAGERS {
        writers::check(lab, at, &record)?;
        ensure!(list(at)? == list(&leader)?, "{at} and {leader} list different services");
    }
    Ok(())
}

/// Ten thousand datagrams at every manager's control port, a second's worth each: noise, and what looks like the first
/// packet of a connection.
fn garbage(lab: &Lab) -> Result<()> {
    const DATAGRAMS: usize = 10_000;
    let leader = lab.leader(&MANAGERS)?;
    let writers = Writers::start(lab, "noise", &MANAGERS);
    let client = fs::File::open(lab.folder("ns").join("client/net")).context("open the client's network namespace")?;
    let sent = thread::spawn(move || -> Result<()> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(client.as_fd(), Some(LinkNameSpaceType::Network)).context("enter the client")?;
        let socket = UdpSocket::bind("10.99.0.254:0")?;
        // xorshift64 of Marsaglia, "Xorshift RNGs", 2003: the same noise every time.
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for number in 0..3 * DATAGRAMS {
            let mut datagram: Vec<u8> = (0..150).flat_map(|_| next().to_le_bytes()).collect();
            if number % 2 == 0 {
                // RFC 9000 section 17.2.2: a long header of type Initial, version 1, two connection ids of eight bytes.
                datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
                datagram[14] = 8;
            }
            // A full socket buffer is no reason to end.
            let _ = socket.send_to(&datagram, format!("10.99.0.{}:2377", number % 3 + 1));
        }
        Ok(())
    });
    sent.join().expect("sending does not panic")?;
    let after = Instant::now();
    for at in MANAGERS {
        writes_again(&writers, at, after)?;
    }
    let record = writers.end();
    let slowest = record.iter().filter_map(|write| Some(write.acknowledged? - write.asked)).max().unwrap_or_default();
    println!("under {} datagrams the slowest write took {:.2} s", 3 * DATAGRAMS, slowest.as_secs_f32());
    writers::check(lab, "n1", &record)?;
    ensure!(lab.leader(&MANAGERS)? == leader, "garbage made another manager leader");
    lab.all_ready("n1", &MANAGERS)
}

/// A manager's present store: the folder and the number it has in raft.
fn store(lab: &Lab, node: &str) -> Result<(std::path::PathBuf, u64)> {
    let entries = fs::read_dir(lab.folder(node).join("state"))?.flatten().map(|entry| entry.path());
    let number = |path: &std::path::Path| path.file_name()?.to_str()?.strip_prefix("raft-")?.parse::<u64>().ok();
    let mut stores: Vec<_> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    stores.sort();
    let (number, path) = stores.pop().with_context(|| format!("{node} has no store"))?;
    Ok((path, number))
}

fn rotten_log(lab: &Lab) -> Result<()> {
    let leader = lab.leader(&MANAGERS)?;
    let victim = others(&leader)[0];
    let writers = Writers::start(lab, "rot", &[&leader]);
    wait_for("a hundred writes", SOON, || {
        let acknowledged = writers.record().iter().filter(|write| write.acknowledged.is_some()).count();
        ensure!(acknowledged >= 100, "{acknowledged}");
        Ok::<_, anyhow::Error>(())
    })?;
    lab.change(&["stop", victim])?;
    let (folder, number) = store(lab, victim)?;
    let mut logs: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
    logs.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-")));
    logs.sort();
    let log = logs.first().context("the store has no log")?;
    let mut bytes = fs::read(log)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).context("the log is empty")?;
    bytes[written / 2] ^= 0xff;
    fs::write(log, &bytes)?;
    lab.change(&["start", victim])?;
    wait_for("another store under a new number", SOON, || {
        lab.all_ready(&leader, &MANAGERS)?;
        let (_, new) = store(lab, victim)?;
        ensure!(new > number, "the store of {victim} has still number {new}");
        Ok::<_, anyhow::Error>(())
    })?;
    let text = String::from_utf8_lossy(&fs::read(lab.folder(victim).join("edged.log"))?).into_owned();
    ensure!(text.contains("set aside") && text.contains("is damaged"), "the log of {victim} does not tell");
    // It votes again: with another manager gone the rest is a majority only with it.
    let third = *others(&leader).last().context("a third manager")?;
    lab.change(&["kill", third])?;
    let from = Instant::now();
    writes_again(&writers, &leader, from)?;
    lab.change(&["start", third])?;
    writers::check(lab, victim, &writers.end())
}

/// The managers' state lies on file systems of a few megabytes each; that of the leader is filled.
fn full_disk(lab: &Lab) -> Result<()> {
    for node in MANAGERS {
        let state = lab.folder(node).join("state").to_string_lossy().into_owned();
        lab.change(&["stop", node])?;
        let small = format!(
            "mkdir {0}.small && mount -t tmpfs -o size=48m,mode=0700 tmpfs {0}.small && cp -a {0}/. {0}.small/ && \
             mount --move {0}.small {0} && rmdir {0}.small",
            state
        );
        lab.ok(node, &["sh", "-c", &small])?;
        lab.change(&["start", node])?;
        wait_for("three managers", SOON, || lab.all_ready(node, &MANAGERS))?;
    }
    let leader = lab.leader(&MANAGERS)?;
    let writers = Writers::start(lab, "full", &others(&leader));
    let filler = format!("{}/filler", lab.folder(&leader).join("state").display());
    lab.exec(&leader, &["dd", "if=/dev/zero", &format!("of={filler}"), "bs=64k"])?;
    lab.exec(&leader, &["dd", "if=/dev/zero", &format!("of={filler}2"), "bs=1"])?;
    let result = full_disk_then(lab, &leader, &filler, writers);
    // Whatever came of it, the state gets back to where the lab looks for it.
    for node in MANAGERS {
        let state = lab.folder(node).join("state").to_string_lossy().into_owned();
        lab.exec(node, &["rm", "-f", &filler, &format!("{filler}2")])?;
        lab.change(&["stop", node])?;
        let back = format!(
            "mkdir {0}.disk && mount -t tmpfs tmpfs {0}.disk && cp -a {0}/. {0}.disk/ && umount {0} && \
             find {0} -mindepth 1 -delete; cp -a {0}.disk/. {0}/ && umount {0}.disk && rmdir {0}.disk",
            state
        );
        lab.ok(node, &["sh", "-c", &back])?;
        lab.change(&["start", node])?;
        wait_for("three managers", SOON, || lab.all_ready(node, &MANAGERS))?;
    }
    result
}

fn full_disk_then(lab: &Lab, leader: &str, filler: &str, writers: Writers) -> Result<()> {
    // Small writes fit into what is preallocated; a service with a large label does not for long.
    let mut large = writers::service("large");
    large["Labels"] = serde_json::json!({ "fill": "x".repeat(200_000) });
    let followers = others(leader);
    let filled = Instant::now();
    let mut number = 0;
    wait_for("another leader", SOON, || {
        number += 1;
        large["Name"] = format!("large-{number}").into();
        // Refusals are what this waits for.
        let _ = lab.request(followers[0], "POST", "/services/create", Some(&large));
        let now = lab.leader(&followers)?;
        ensure!(now != leader, "{now} leads with a full disk");
        Ok::<_, anyhow::Error>(())
    })?;
    println!("a leader with a full disk had handed over after {:.1} s", filled.elapsed().as_secs_f32());
    let from = Instant::now();
    for at in &followers {
        writes_again(&writers, at, from)?;
    }
    let text = String::from_utf8_lossy(&fs::read(lab.folder(leader).join("edged.log"))?).to_lowercase();
    ensure!(text.contains("no space left"), "the log of {leader} does not name the full disk");
    lab.ok(leader, &["rm", "-f", filler, &format!("{filler}2")])?;
    wait_for("three managers", SOON, || lab.all_ready(leader, &MANAGERS))?;
    // It votes again.
    lab.change(&["kill", followers[1]])?;
    writes_again(&writers, followers[0], Instant::now())?;
    lab.change(&["start", followers[1]])?;
    writers::check(lab, leader, &writers.end())
}
