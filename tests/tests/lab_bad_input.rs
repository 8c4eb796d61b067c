//! What cannot work is refused with one line that names the thing, or leaves a service whose tasks say why; nothing leaks.

use anyhow::{Context, Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for};
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

/// What a loaded two-core machine gets for something that takes a second. Names that no server resolves take longest.
const SOON: Duration = Duration::from_secs(45);

fn create<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["service", "create", "--detach", "--quiet", "--no-resolve-image"], rest].concat()
}

/// The command fails with one line in which all of `words` are.
fn refused(lab: &Lab, command: &[&str], words: &[&str]) -> Result<()> {
    let ran = lab.exec("n1", &[&["edgectl"], command].concat())?;
    let said = ran.stderr.trim_end();
    ensure!(ran.code != Some(0), "`{}` was not refused: {ran:?}", command.join(" "));
    ensure!(said.lines().count() == 1, "`{}` is refused with more than a line: {said}", command.join(" "));
    let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
    ensure!(missing.is_empty(), "`{}` is refused without {missing:?}: {said}", command.join(" "));
    Ok(())
}

/// A task of the service says all of `words`.
fn explained(lab: &Lab, service: &str, words: &[&str]) -> Result<()> {
    let command = ["service", "ps", "--no-trunc", "--format", "{{.CurrentState}}: {{.Error}}", service];
    wait_for(&format!("{words:?} in the tasks of {service}"), SOON, || match lab.edgectl("n1", &command) {
        Ok(tasks) if tasks.lines().any(|line| words.iter().all(|word| line.contains(word))) => Ok(()),
        Ok(tasks) => Err(tasks),
        Err(error) => Err(format!("{error:#}")),
    })
}

/// Directories, mounts, namespaces, links and cgroups of containers.
fn remains(lab: &Lab) -> Result<Vec<String>> {
    let state = lab.folder("n1").join("state");
    let find = format!(
        "ls {0}/containers {0}/logs /run/edged/n1/netns /run/edged/n1/rootfs | grep -E '^[0-9a-z]{{25}}$'; \
         mount | grep -E '/run/edged/n1/(rootfs|netns)/' ; ls /sys/class/net | grep ^ve; \
         find /sys/fs/cgroup -type d -path '*lab-n1/*' | grep -E '/[0-9a-z]{{25}}$'; true",
        state.display()
    );
    Ok(lab.ok("n1", &["sh", "-c", &find])?.lines().map(str::to_owned).collect())
}

#[test]
fn bad_input_is_explained_and_leaves_nothing() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "1"])?;
    lab.load("n1", "busybox")?;

    lab.edgectl("n1", &create(&["--name", "one", "--replicas", "0", "-p", "8080:80", "busybox"]))?;
    refused(&lab, &create(&["--name", "one", "busybox"]), &["one", "already exists"])?;
    refused(&lab, &create(&["--name", "two", "-p", "8080:80", "busybox"]), &["8080", "in use by service 'one'"])?;
    refused(&lab, &create(&["--name", "two", "--limit-memory", "1M", "busybox"]), &["memory", "minimum of 6MB"])?;
    refused(&lab, &create(&["--name", "two", "--replicas", "x", "busybox"]), &["--replicas", "--help"])?;
    refused(&lab, &create(&["--name", "two", "-p", "99999:80", "busybox"]), &["--publish", "1 to 65535"])?;
    refused(&lab, &create(&["--name", "two", "--mount", "what", "busybox"]), &["--mount", "what"])?;
    refused(&lab, &create(&["--name", "a b", "busybox"]), &["invalid name"])?;
    refused(&lab, &["image", "rm", "nosuch"], &["nosuch", "image ls"])?;

    let services = [
        ("command", &["busybox", "nosuch"][..], &["Rejected", "\"nosuch\"", "not found in $PATH"][..]),
        ("path", &["busybox", "/no/such"], &["Rejected", "/no/such"]),
        ("user", &["--user", "nosuch", "busybox", "sleep", "9"], &["Rejected", "unable to find user nosuch"]),
        ("bind", &["--mount", "type=bind,source=/no/such,target=/x", "busybox"], &["Rejected", "/no/such"]),
        ("down", &["10.99.0.254:5000/nosuch"], &["Rejected", "10.99.0.254:5000", "unreachable"]),
        ("name", &["nosuch"], &["Rejected", "docker.io", "unreachable", "nosuch"]),
    ];
    for (name, rest, _) in services {
        lab.edgectl("n1", &create(&[&["--name", name, "--restart-condition", "none"], rest].concat()))?;
    }
    for (name, _, words) in services {
        explained(&lab, name, words)?;
    }

    registry(&lab)?;
    let digest = format!("10.99.0.254:5000/nosuch@sha256:{}", "0".repeat(64));
    for (name, image) in [("tag", "10.99.0.254:5000/nosuch:1"), ("digest", &digest)] {
        lab.edgectl("n1", &create(&["--name", name, "--restart-condition", "none", image]))?;
        explained(&lab, name, &["Rejected", "nosuch", "not found", "10.99.0.254:5000"])?;
    }

    // A port that a process of the node holds is named with its holder, and taken once it is free.
    let mut holder = Command::new("nsenter");
    let edged = lab.pid("n1")?.to_string();
    holder.args(["--target", &edged, "--net", "busybox", "nc", "-l", "-p", "9090"]).stdin(Stdio::piped());
    let mut holder = holder.stdout(Stdio::null()).spawn().context("hold a port")?;
    wait_for("the port to be held", SOON, || match lab.ok("n1", &["ss", "-Hltn", "sport = :9090"]) {
        Ok(found) if !found.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let held = lab.edgectl("n1", &create(&["--name", "held", "-p", "9090:80", "busybox", "sleep", "3001"]));
    let told = held.and_then(|_| explained(&lab, "held", &["Pending", "9090/tcp", "busybox"]));
    holder.kill()?;
    holder.wait()?;
    told?;
    explained(&lab, "held", &["Running"])?;

    let all = lab.edgectl("n1", &["service", "ls", "--quiet"])?;
    lab.edgectl("n1", &[&["service", "rm"], &all.split_whitespace().collect::<Vec<_>>()[..]].concat())?;
    wait_for("nothing to be left of all services", SOON, || match remains(&lab) {
        Ok(left) if left.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.down()
}

/// Debian's registry, empty, beside the client; it ends with the lab.
fn registry(lab: &Lab) -> Result<()> {
    let home = lab.folder("client");
    fs::create_dir_all(&home)?;
    let config = home.join("registry.yml");
    let text = "version: 0.1\nlog: {level: warn}\nstorage: {inmemory: {}}\nhttp: {addr: '10.99.0.254:5000'}\n";
    fs::write(&config, text)?;
    let serve = format!("setsid docker-registry serve {} >/dev/null 2>&1 &", config.display());
    lab.ok("client", &["sh", "-c", &serve])?;
    wait_for("the registry", SOON, || {
        lab.ok("n1", &["curl", "-sf", "--max-time", "2", "http://10.99.0.254:5000/v2/"])
            .map_err(|error| format!("{error:#}"))
    })
    .map(drop)
}

#[test]
fn a_full_disk_is_named_and_the_node_goes_on_once_there_is_room() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "1"])?;
    let state = lab.folder("n1").join("state").to_string_lossy().into_owned();
    lab.change(&["stop", "n1"])?;
    lab.ok("n1", &["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", &state])?;
    lab.change(&["start", "n1"])?;
    lab.load("n1", "busybox")?;
    let archive = lab.folder("n1").join("../../images/nginx.tar").to_string_lossy().into_owned();
    orchestrator_tests::xtask(["images", "nginx"])?.success("images nginx")?;
    refused(&lab, &["image", "load", "--quiet", "--input", &archive], &["no space left", "edgectl image prune"])?;
    let images = lab.edgectl("n1", &["image", "ls", "--quiet"])?;
    ensure!(images.lines().count() == 1, "of an image without room something is listed: {images}");

    let filler = format!("{state}/filler");
    lab.exec("n1", &["dd", "if=/dev/zero", &format!("of={filler}"), "bs=64k"])?;
    lab.edgectl("n1", &create(&["--name", "full", "--replicas", "2", "busybox", "sleep", "3002"]))?;
    explained(&lab, "full", &["Rejected", "no space left", "edgectl image prune"])?;
    lab.ok("n1", &["rm", &filler])?;
    explained(&lab, "full", &["Running"])?;

    lab.edgectl("n1", &["service", "rm", "full"])?;
    wait_for("nothing to be left of the service", SOON, || match remains(&lab) {
        Ok(left) if left.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.change(&["stop", "n1"])?;
    lab.ok("n1", &["umount", &state])?;
    lab.down()
}
