//! Services on one node as a user meets them: real images, real containers, a client in another network namespace.

use anyhow::{Context, Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};

/// What a loaded two-core machine gets for something that takes a second.
const SOON: Duration = Duration::from_secs(30);
const URL: &str = "http://10.99.0.1:8080/";
const CLIENT: &str = "10.99.0.254";

fn one_node() -> Result<Lab> {
    Lab::up(&["--nodes", "1"])
}

/// Creates a service of an image that is on the node and waits until it is stable.
fn create(lab: &Lab, name: &str, rest: &[&str]) -> Result<String> {
    let quick = ["service", "create", "--quiet", "--no-resolve-image", "--update-monitor", "500ms", "--name", name];
    lab.edgectl("n1", &[&quick, rest].concat())
}

fn curl(lab: &Lab, url: &str) -> Result<String> {
    lab.ok("client", &["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url])
}

/// The value of a line `name: value` in whoami's answer.
fn field<'a>(answer: &'a str, name: &str) -> Result<&'a str> {
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.with_context(|| format!("the answer has no {name}: {answer}"))
}

/// Sends a signal to a process by its id.
fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status()?;
    ensure!(status.success(), "kill -{name} {pid} ended with {status}");
    Ok(())
}

#[test]
fn requests_spread_over_all_replicas_and_each_sees_the_client() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "whoami")?;
    create(&lab, "whoami", &["--replicas", "3", "-p", "8080:80", "whoami"])?;
    let mut answers = BTreeMap::<String, usize>::new();
    for _ in 0..60 {
        let answer = curl(&lab, URL)?;
        let client = field(&answer, "client")?;
        ensure!(client.starts_with(&format!("{CLIENT} ")), "a replica saw {client}, not {CLIENT}");
        *answers.entry(field(&answer, "hostname")?.to_owned()).or_default() += 1;
    }
    ensure!(answers.len() == 3, "60 requests met {answers:?}");
    // From the node itself, by its own address and by the loopback's.
    for address in ["10.99.0.1", "127.0.0.1"] {
        lab.ok(
            "n1",
            &["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &format!("http://{address}:8080/")],
        )?;
    }
    lab.down()
}

#[test]
fn datagrams_reach_the_replicas_and_each_sees_the_client() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "whoami")?;
    create(&lab, "whoami", &["--replicas", "2", "-p", "8053:80/udp", "whoami"])?;
    // bash makes the socket; dd takes one whole datagram from it. One may be lost, so ask again.
    let ask = |address: &str| {
        let question = format!("exec 3<>/dev/udp/{address}/8053 && echo who >&3");
        let script = format!("{question} && timeout 2 dd bs=2048 count=1 status=none <&3 | grep .");
        wait_for("an answer to a datagram", SOON, || lab.ok("client", &["bash", "-c", &script]))
    };
    let mut answers = BTreeSet::new();
    for _ in 0..40 {
        let answer = ask("10.99.0.1")?;
        let client = field(&answer, "client")?;
        ensure!(client.starts_with(&format!("{CLIENT} ")), "a replica saw {client}, not {CLIENT}");
        answers.insert(field(&answer, "hostname")?.to_owned());
    }
    ensure!(answers.len() == 2, "40 datagrams met {answers:?}");
    let answer = ask("fd99::1")?;
    ensure!(field(&answer, "client")?.starts_with("fd99::fe "), "the client's IPv6 address is not kept: {answer}");
    lab.down()
}

#[test]
fn nginx_redis_and_postgres_from_debian_packages_serve() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    for (image, publish) in [("nginx", "8080:80"), ("redis", "6379:6379"), ("postgres", "5432:5432")] {
        lab.load("n1", image)?;
        create(&lab, image, &["-p", publish, image])?;
    }
    let page = curl(&lab, URL)?;
    ensure!(page.contains("nginx from Debian's package answers"), "nginx answers {page}");
    // Redis' protocol in its inline form: a line in, a line out.
    let pong = "printf 'PING\\r\\nQUIT\\r\\n' | busybox nc -w 5 10.99.0.1 6379";
    let said = wait_for("redis' answer", SOON, || match lab.ok("client", &["sh", "-c", pong]) {
        Ok(said) if said.starts_with("+PONG") => Ok(said),
        Ok(said) => Err(format!("it says {said:?}")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    ensure!(said.starts_with("+PONG"), "redis says {said:?}");
    wait_for("a row from postgres", SOON, || {
        let query = ["exec", "postgres.1", "psql", "-U", "postgres", "-h", "127.0.0.1", "-tA", "-c", "select 6 * 7"];
        match lab.edgectl("n1", &query) {
            Ok(row) if row.trim() == "42" => Ok(()),
            Ok(row) => Err(format!("it says {row:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })?;
    lab.down()
}

#[test]
fn killing_the_daemon_under_load_fails_no_request_and_restarts_no_container() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "whoami")?;
    create(&lab, "whoami", &["--replicas", "3", "-p", "8080:80", "whoami"])?;
    let tasks = || -> Result<BTreeSet<String>> {
        let ids = lab.edgectl("n1", &["service", "ps", "--quiet", "--no-trunc", "whoami"])?;
        Ok(ids.lines().map(str::to_owned).collect())
    };
    let before = (tasks()?, lab.processes("n1", &["/whoami"])?);
    ensure!(before.1.len() == 3, "three replicas are not three processes: {before:?}");

    // Requests one after the other on connections of their own, until the file is there; the exit code tells failures.
    let stop = lab.folder("n1").join("stop-requests");
    let script = format!(
        "n=0; while [ ! -e {} ]; do curl -sf --max-time 5 -o /dev/null {URL} || exit 1; n=$((n+1)); done; echo $n",
        stop.display()
    );
    let requests = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| lab.ok("client", &["sh", "-c", &script]));
        let changed = lab.change(&["kill", "n1"]).and_then(|()| lab.change(&["start", "n1"]));
        // The load ends in any case, or the scope would wait for it forever.
        std::fs::write(&stop, "")?;
        let requests = load.join().expect("the load's thread does not panic")?;
        changed.map(|()| requests)
    })?;
    ensure!(requests.trim().parse::<u32>()? > 0, "no request was made while the daemon was away");
    wait_for("the same tasks after the restart", SOON, || {
        let after =
            (tasks().map_err(|error| format!("{error:#}"))?, lab.processes("n1", &["/whoami"]).unwrap_or_default());
        if after == before { Ok(()) } else { Err(format!("before {before:?}, after {after:?}")) }
    })?;
    curl(&lab, URL)?;
    lab.down()
}

#[test]
fn requests_are_served_through_update_scale_and_rollback() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "whoami")?;
    create(&lab, "whoami", &["--replicas", "2", "--update-delay", "0s", "-p", "8080:80", "whoami"])?;
    let in_use = lab.exec("n1", &["edgectl", "image", "rm", "whoami"])?;
    ensure!(in_use.code != Some(0) && in_use.stderr.contains("in use"), "an image in use was removed: {in_use:?}");
    let stop = lab.folder("n1").join("stop-requests");
    let script = format!(
        "n=0; while [ ! -e {} ]; do curl -sf --max-time 5 -o /dev/null {URL} || exit 1; n=$((n+1)); done; echo $n",
        stop.display()
    );
    let env = || {
        lab.edgectl(
            "n1",
            &["service", "inspect", "--format", "{{json .Spec.TaskTemplate.ContainerSpec.Env}}", "whoami"],
        )
    };
    let changes = || -> Result<()> {
        let update = ["service", "update", "--quiet", "--no-resolve-image", "--update-order", "start-first"];
        lab.edgectl("n1", &[&update[..], &["--env-add", "A=1", "whoami"]].concat())?;
        ensure!(env()?.contains("A=1"), "the update is not in the spec");
        // The other order empties one slot at a time; the other replica answers.
        lab.edgectl(
            "n1",
            &["service", "update", "--quiet", "--update-order", "stop-first", "--env-add", "A=2", "whoami"],
        )?;
        lab.edgectl("n1", &["service", "rollback", "--quiet", "whoami"])?;
        ensure!(env()?.contains("A=1"), "the rollback is not in the spec");
        for replicas in ["whoami=6", "whoami=1"] {
            lab.edgectl("n1", &["service", "scale", replicas])?;
        }
        Ok(())
    };
    let requests = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| lab.ok("client", &["sh", "-c", &script]));
        let changed = changes();
        std::fs::write(&stop, "")?;
        let requests = load.join().expect("the load's thread does not panic");
        changed.and(requests)
    })?;
    ensure!(requests.trim().parse::<u32>()? > 0, "no request was made meanwhile");
    let left = || lab.processes("n1", &["/whoami"]).map_or_else(|_| usize::MAX, |pids| pids.len());
    wait_for("one process of one replica", SOON, || if left() == 1 { Ok(()) } else { Err(left().to_string()) })?;

    // Removed while it is made: nothing comes up afterwards.
    lab.edgectl(
        "n1",
        &["service", "create", "--detach", "--no-resolve-image", "--name", "brief", "--replicas", "9", "whoami"],
    )?;
    lab.edgectl("n1", &["service", "rm", "brief", "whoami"])?;
    wait_for("no container", SOON, || match lab.edgectl("n1", &["ps", "--quiet"]) {
        Ok(ids) if ids.is_empty() && left() == 0 => Ok(()),
        other => Err(format!("{other:?}, {} processes", left())),
    })?;
    lab.down()
}

#[test]
fn a_killed_container_is_replaced_unless_the_restart_condition_says_no() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "busybox")?;
    create(&lab, "again", &["--restart-delay", "1s", "busybox", "sleep", "1001"])?;
    create(&lab, "once", &["--restart-condition", "none", "busybox", "sleep", "1002"])?;
    let of = |seconds: &str| lab.processes("n1", &["sleep", seconds]);
    let (again, once) = (of("1001")?, of("1002")?);
    ensure!(again.len() == 1 && once.len() == 1, "two services are not two processes: {again:?} {once:?}");
    signal(once[0], "KILL")?;
    signal(again[0], "KILL")?;
    wait_for("a new process of the service that restarts", SOON, || match of("1001") {
        Ok(pids) if pids.len() == 1 && pids != again => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(of("1002")?.is_empty(), "a task with restart condition none came back");
    lab.down()
}

#[test]
fn a_failing_health_check_replaces_the_task() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "busybox")?;
    let check = ["--health-cmd", "test ! -e /sick", "--health-interval", "500ms", "--health-retries", "2"];
    create(&lab, "checked", &[&["--restart-delay", "500ms"], &check[..], &["busybox", "sleep", "1003"]].concat())?;
    let before = lab.processes("n1", &["sleep", "1003"])?;
    ensure!(before.len() == 1, "one replica is not one process: {before:?}");
    std::fs::write(format!("/proc/{}/root/sick", before[0]), "").context("make the container sick")?;
    wait_for("a new process in place of the sick one", SOON, || match lab.processes("n1", &["sleep", "1003"]) {
        Ok(pids) if pids.len() == 1 && pids != before => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.down()
}

#[test]
fn service_logs_show_every_replica_by_its_tasks_name() -> Result<()> {
    skip_without_lab!();
    let lab = one_node()?;
    lab.load("n1", "busybox")?;
    let say = "while true; do echo tick; sleep 0.2; done";
    create(&lab, "talk", &["--replicas", "2", "busybox", "sh", "-c", say])?;
    // --follow never ends by itself; its reader leaves after a third replica has been heard, which is made meanwhile.
    let follow = "timeout 20 edgectl service logs --follow talk 2>&1 | \
        awk '{ if (!seen[$1]++) { n++; if (n == 2) system(\"edgectl service scale -d talk=3 >&2\") } print; if (n == 3) exit }'";
    let said = lab.ok("n1", &["sh", "-c", follow])?;
    for task in ["talk.1", "talk.2", "talk.3"] {
        ensure!(
            said.lines().any(|line| line.starts_with(task) && line.contains("tick")),
            "no line of {task} in {said}"
        );
    }
    lab.down()
}
