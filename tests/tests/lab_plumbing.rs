//! The lab itself: places reach each other, partitions hold, commands behave, and nothing is left behind.

use anyhow::{Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for, xtask};
use std::time::Duration;

fn reaches(lab: &Lab, from: &str, address: &str) -> Result<bool> {
    Ok(lab.exec(from, &["busybox", "ping", "-c", "1", "-W", "1", address])?.code == Some(0))
}

#[test]
fn places_reach_each_other_by_both_families_and_a_cut_parts_only_its_two() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--empty", "--nodes", "3"])?;
    for (from, to) in [("n1", "10.99.0.2"), ("n3", "fd99::1"), ("client", "10.99.0.3"), ("n2", "fd99::fe")] {
        ensure!(reaches(&lab, from, to)?, "{from} does not reach {to}");
    }
    lab.change(&["cut", "n1", "n2"])?;
    ensure!(!reaches(&lab, "n1", "10.99.0.2")?, "n1 reaches n2 through a cut");
    ensure!(!reaches(&lab, "n2", "fd99::1")?, "n2 reaches n1 through a cut");
    ensure!(reaches(&lab, "n3", "10.99.0.2")?, "a cut between n1 and n2 parts n3 from n2");
    lab.change(&["heal"])?;
    ensure!(reaches(&lab, "n1", "10.99.0.2")?, "n1 does not reach n2 after heal");
    lab.down()
}

#[test]
fn a_command_keeps_its_folder_and_exit_code_and_sees_its_own_machine() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--empty", "--nodes", "2"])?;
    assert_eq!(lab.exec("n2", &["sh", "-c", "exit 7"])?.code, Some(7));
    assert_eq!(lab.exec("n2", &["no-such-program"])?.code, Some(127));
    let here = std::env::current_dir()?;
    assert_eq!(lab.ok("n2", &["pwd"])?.trim(), here.to_string_lossy());
    assert_eq!(lab.ok("n2", &["hostname"])?.trim(), "n2");
    assert_eq!(lab.ok("n2", &["ls", "/sys/class/net"])?.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    let host = lab.ok("n2", &["sh", "-c", "echo $EDGE_HOST $DOCKER_HOST"])?;
    let socket = format!("unix://{}", lab.folder("n2").join("docker.sock").display());
    assert_eq!(host.trim(), format!("{socket} {socket}"));
    lab.down()
}

#[test]
fn down_ends_what_exec_started_and_a_second_down_finds_nothing() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--empty", "--nodes", "1"])?;
    // A daemon of its own session, as a registry or a forgotten shell would be.
    let pid = lab.ok("client", &["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])?;
    lab.down()?;
    let process = format!("/proc/{}", pid.trim());
    wait_for("the end of a process in the client", Duration::from_secs(5), || {
        if std::path::Path::new(&process).exists() { Err(format!("{process} exists")) } else { Ok(()) }
    })?;
    let again = std::process::Command::new(env!("CARGO")).args(["xtask", "lab", "down"]).output()?;
    ensure!(again.status.success(), "a second down fails: {again:?}");
    Ok(())
}

#[test]
fn a_second_lab_is_refused() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--empty", "--nodes", "1"])?;
    let second = xtask(["lab", "up", "--empty", "--nodes", "1"])?;
    ensure!(
        second.code == Some(1) && second.stderr.contains("a lab is up"),
        "a second lab was not refused: {second:?}"
    );
    lab.down()
}
