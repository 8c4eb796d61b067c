//! The daemon is killed and restarted at bad moments: what it acknowledged is there, and containers are neither lost nor doubled.

use anyhow::{Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for};
use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// What a loaded two-core machine gets for something that takes a second.
const SOON: Duration = Duration::from_secs(30);

const CREATE: [&str; 6] = ["service", "create", "--detach", "--quiet", "--no-resolve-image", "--name"];

fn create(lab: &Lab, name: &str, rest: &[&str]) -> Result<String> {
    lab.edgectl("n1", &[&CREATE[..], &[name], rest].concat())
}

fn running(lab: &Lab, seconds: &str, count: usize) -> Result<Vec<u32>> {
    wait_for(&format!("{count} processes of sleep {seconds}"), SOON, || {
        match lab.processes("n1", &["sleep", seconds]) {
            Ok(pids) if pids.len() == count => Ok(pids),
            other => Err(format!("{other:?}")),
        }
    })
}

fn tasks(lab: &Lab, service: &str) -> Result<BTreeSet<String>> {
    let ids = lab.edgectl("n1", &["service", "ps", "--quiet", "--no-trunc", service])?;
    Ok(ids.lines().map(str::to_owned).collect())
}

#[test]
fn the_daemon_may_die_at_any_moment() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "1"])?;
    lab.load("n1", "busybox")?;

    // Twice while it makes containers: it goes on with the very tasks it had, and makes none of them twice.
    create(&lab, "many", &["--replicas", "12", "busybox", "sleep", "2001"])?;
    for _ in 0..2 {
        lab.change(&["kill", "n1"])?;
        lab.change(&["start", "n1"])?;
    }
    let before = running(&lab, "2001", 12)?;
    wait_for("12 of 12 replicas", SOON, || match lab.edgectl("n1", &["service", "ls", "--format", "{{.Replicas}}"]) {
        Ok(replicas) if replicas.trim() == "12/12" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let ids = tasks(&lab, "many")?;
    ensure!(ids.len() == 12, "a kill replaced tasks: {ids:?}");

    // By SIGTERM nothing changes either.
    lab.change(&["stop", "n1"])?;
    lab.change(&["start", "n1"])?;
    ensure!(tasks(&lab, "many")? == ids, "tasks changed by a restart");
    ensure!(running(&lab, "2001", 12)? == before, "a restart of the daemon restarted containers");

    // While it writes: every service that was acknowledged is there afterwards, with the last acknowledged change.
    let ended = AtomicBool::new(false);
    let (names, last) = std::thread::scope(|scope| -> Result<(BTreeSet<String>, u32)> {
        let writer = scope.spawn(|| {
            let (mut names, mut last, mut round) = (BTreeSet::new(), 0, 0);
            while !ended.load(Ordering::Relaxed) {
                round += 1;
                let name = format!("s{round}");
                if create(&lab, &name, &["--replicas", "0", "busybox"]).is_ok() {
                    names.insert(name);
                }
                let variable = format!("ROUND={round}");
                let update = ["service", "update", "--detach", "--quiet", "--env-add", &variable, "many"];
                // The replicas stay as they are: the update waits for its delay.
                if round == 1 {
                    let _ = lab.edgectl("n1", &["service", "scale", "--detach", "many=0"]);
                }
                if lab.edgectl("n1", &update).is_ok() {
                    last = round;
                }
            }
            (names, last)
        });
        let mut restarted = Ok(());
        for _ in 0..5 {
            restarted =
                restarted.and_then(|()| lab.change(&["kill", "n1"])).and_then(|()| lab.change(&["start", "n1"]));
        }
        ended.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer's thread does not panic");
        restarted.map(|()| written)
    })?;
    ensure!(!names.is_empty() && last > 0, "nothing was acknowledged between the kills");
    let listed = lab.edgectl("n1", &["service", "ls", "--format", "{{.Name}}"])?;
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let lost: Vec<_> = names.difference(&listed).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let env = lab
        .edgectl("n1", &["service", "inspect", "--format", "{{json .Spec.TaskTemplate.ContainerSpec.Env}}", "many"])?;
    let round = env.split("ROUND=").nth(1).and_then(|rest| rest.split('"').next()?.parse::<u32>().ok());
    // A change may be committed whose acknowledgement the kill swallowed.
    ensure!(round.is_some_and(|round| round >= last), "round {last} was acknowledged, but there is {env}");

    let log = fs::read_to_string(lab.folder("n1").join("edged.log"))?;
    let errors: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
    ensure!(errors.is_empty(), "errors were logged: {errors:#?}");

    // With the daemon and its shims dead, `lab down` still finds everything, or says what is left.
    create(&lab, "orphans", &["--replicas", "3", "busybox", "sleep", "2002"])?;
    running(&lab, "2002", 3)?;
    lab.change(&["kill", "n1"])?;
    let shims = shims()?;
    ensure!(shims.len() >= 3, "three containers have {} shims", shims.len());
    for pid in shims {
        lab.ok("client", &["kill", "-KILL", &pid.to_string()])?;
    }
    lab.down()
}

/// Shims of the lab's containers, by their command line and the lab's mark in their cgroup.
fn shims() -> Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(6).any(|at| at == b"\0shim\0"))
        })
        .filter(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains("lab-n1")))
        .collect())
}
