//! Certificates and clocks: renewal when it is time, refusal once time has run out, and nodes whose clock is wrong.

use anyhow::{Result, ensure};
use orchestrator_tests::{Lab, skip_without_lab, wait_for};
use std::time::Duration;

/// What a loaded two-core machine gets for something that takes seconds; a node asks again for a certificate after ten.
const SOON: Duration = Duration::from_secs(45);

#[test]
fn certificates_are_renewed_and_run_out_by_the_clock() -> Result<()> {
    skip_without_lab!();
    let lab = Lab::up(&["--nodes", "2", "--managers", "1"])?;
    let told = story(&lab);
    if told.is_err() {
        lab.print_log_tails(30);
    }
    told?;
    lab.down()
}

fn story(lab: &Lab) -> Result<()> {
    let first = certificate(lab)?;
    lab.edgectl("n1", &["cluster", "update", "--cert-expiry", "1h"])?;

    // Of the 90 days that its certificate is for, 80 have passed by the worker's clock.
    restart(lab, "n2", Some("+80d"))?;
    wait_for("the worker to have a new certificate", SOON, || changed(lab, &first))?;
    let hour = certificate(lab)?;
    ready(lab, &["n1", "n2"])?;

    // To a clock that is so far ahead every certificate looks old; one renewal has to do.
    restart(lab, "n2", None)?;
    ready(lab, &["n1", "n2"])?;
    ensure!(certificate(lab)? == hour, "a fresh certificate was renewed at once");

    // Two hours on, by the manager's clock, the worker's hour is over: it is refused, and is told why.
    restart(lab, "n1", Some("+2h"))?;
    wait_for("the worker to be told that its certificate has run out", SOON, || {
        let info = lab.edgectl("n2", &["info"])?;
        ensure!(info.contains("ran out on"), "it says:\n{info}");
        Ok(())
    })?;
    wait_for("the worker to be down", SOON, || {
        let nodes = lab.edgectl("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(nodes.contains("n2 Down"), "{nodes}");
        Ok(())
    })?;

    // The clock was wrong, and is right again: so is the certificate.
    restart(lab, "n1", None)?;
    ready(lab, &["n1", "n2"])?;

    // A board without a clock of its own boots decades ago.
    restart(lab, "n2", Some("-20y"))?;
    ready(lab, &["n1", "n2"])
}

/// Key, certificate and CA of the worker, as they lie on its disk.
fn certificate(lab: &Lab) -> Result<String> {
    Ok(std::fs::read_to_string(lab.folder("n2").join("state/pki/node.pem"))?)
}

fn changed(lab: &Lab, before: &str) -> Result<()> {
    ensure!(certificate(lab)? != before, "it has the one from before");
    Ok(())
}

fn restart(lab: &Lab, node: &str, clock: Option<&str>) -> Result<()> {
    lab.change(&["kill", node])?;
    let clock: Vec<&str> = clock.into_iter().flat_map(|clock| ["--clock", clock]).collect();
    lab.change(&[&["start", node], &clock[..]].concat())
}

fn ready(lab: &Lab, names: &[&str]) -> Result<()> {
    wait_for(&format!("{names:?} to be all that is ready"), SOON, || lab.all_ready("n1", names))
}
