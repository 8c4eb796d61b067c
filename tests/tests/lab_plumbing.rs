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
    lab.change(&["cut", "n3"])?;
    for (from, to) in [("n3", "10.99.0.1"), ("n2", "10.99.0.3"), ("n3", "10.99.0.254")] {
        ensure!(!reaches(&lab, from, to)?, "{from} reaches {to} through the cut of n3 from all");
    }
    ensure!(reaches(&lab, "n1", "10.99.0.2")?, "a cut of n3 parts n1 from n2");
    lab.down()
}

#[test]
fn a_readdressed_node_is_reached_by_its_new_addresses_only() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--empty", "--nodes", "2"])?;
    let refused = xtask(["lab", "readdress", "n2", "10.99.0.1"])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("n1"), "n1's address was given to n2: {refused:?}");
    lab.change(&["readdress", "n2", "10.99.0.102"])?;
    for address in ["10.99.0.102", "fd99::66"] {
        ensure!(reaches(&lab, "n1", address)?, "n1 does not reach n2 by {address}");
    }
    for address in ["10.99.0.2", "fd99::2"] {
        ensure!(!reaches(&lab, "n1", address)?, "n1 reaches n2 by {address}, which it gave up");
    }
    let routes = lab.ok("n2", &["sh", "-c", "ip route; ip -6 route"])?;
    ensure!(routes.matches("default via").count() == 2, "n2 lost its way out: {routes}");
    let status = xtask(["lab", "status"])?.success("lab status")?;
    ensure!(status.contains("10.99.0.102"), "the new address is not in the status: {status}");
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
    let again = xtask(["lab", "down"])?;
    ensure!(again.code == Some(0), "a second down fails: {again:?}");
    let lock = std::path::Path::new("/run/edged-lab.lock");
    ensure!(!lock.exists(), "{} is left", lock.display());
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
