//! Scenarios that share one cluster: each starts from a whole cluster without services, and one that fails does not keep
//! the others from running.
//!
//! Comes in: a lab and scenarios by name. Goes out: the failures of all. `EDGED_SCENARIO=word` runs only those whose name
//! contains the word.

use crate::{Lab, wait_for};
use anyhow::{Result, bail, ensure};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Whatever a scenario has done to the cluster, it is whole again by then.
const WHOLE_AGAIN: Duration = Duration::from_secs(60);
/// As much of each daemon's log is printed after a failure.
const LOG_LINES: usize = 30;
/// So much of a line says what went wrong.
const LOG_WIDTH: usize = 300;

/// Runs scenarios one after the other.
pub struct Scenarios<'a> {
    lab: &'a Lab,
    managers: &'a [&'a str],
    nodes: &'a [&'a str],
    failures: Vec<String>,
    broken: bool,
}

impl<'a> Scenarios<'a> {
    /// For a lab whose cluster has these managers and, all in all, these nodes.
    pub fn new(lab: &'a Lab, managers: &'a [&'a str], nodes: &'a [&'a str]) -> Self {
        Self { lab, managers, nodes, failures: Vec::new(), broken: false }
    }

    /// Runs one.
    pub fn run(&mut self, name: &str, scenario: impl FnOnce(&Lab) -> Result<()>) {
        if self.broken || !is_wanted(name) {
            return;
        }
        let started = Instant::now();
        let ended = scenario(self.lab);
        let seconds = started.elapsed().as_secs_f32();
        match &ended {
            Ok(()) => println!("scenario {name}: passed in {seconds:.1} s"),
            Err(error) => {
                println!("scenario {name}: FAILED after {seconds:.1} s: {error:#}");
                self.lab.print_log_tails(LOG_LINES);
                self.failures.push(format!("{name}: {error:#}"));
            }
        }
        if let Err(error) = self.make_whole() {
            self.broken = true;
            println!("the cluster does not get whole again after `{name}`: {error:#}");
            self.lab.print_log_tails(LOG_LINES);
            self.failures.push(format!("the cluster after `{name}`: {error:#}"));
        }
    }

    /// No cuts, all daemons, all nodes ready and active, no services.
    fn make_whole(&self) -> Result<()> {
        self.lab.change(&["heal"])?;
        self.lab.change(&[&["start"], self.nodes].concat())?;
        wait_for("the cluster to be whole", WHOLE_AGAIN, || {
            let at = self.managers[0];
            self.lab.all_ready(at, self.nodes)?;
            for (name, node) in self.lab.nodes(at)? {
                let spec = self.lab.get(at, &format!("/nodes/{}", node.id))?;
                if spec["Spec"]["Availability"] != "active" {
                    self.lab.edgectl(at, &["node", "update", "--availability", "active", &name])?;
                }
            }
            self.lab.remove_services(at)
        })?;
        wait_for("all containers to be gone", WHOLE_AGAIN, || {
            let left = self.lab.containers()?;
            ensure!(left.is_empty(), "processes of containers: {left:?}");
            Ok::<_, anyhow::Error>(())
        })
    }

    /// The result of all.
    ///
    /// # Errors
    /// When any failed: all of them.
    pub fn end(self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        bail!("{} scenarios failed:\n  {}", self.failures.len(), self.failures.join("\n  "))
    }
}

/// Whether `EDGED_SCENARIO` leaves it in.
fn is_wanted(name: &str) -> bool {
    std::env::var("EDGED_SCENARIO").map_or(true, |word| name.contains(&word))
}

impl Lab {
    /// Removes every service, as a manager sees them.
    ///
    /// # Errors
    /// When one is left.
    pub fn remove_services(&self, at: &str) -> Result<()> {
        let services = self.get(at, "/services")?;
        let ids = services.as_array().into_iter().flatten().filter_map(|service| service["ID"].as_str());
        for id in ids {
            let answer = self.request(at, "DELETE", &format!("/services/{id}"), None)?;
            ensure!(answer.status == 200, "DELETE /services/{id} answers {}: {}", answer.status, answer.body);
        }
        Ok(())
    }

    /// Prints the end of every daemon's log.
    pub fn print_log_tails(&self, count: usize) {
        let folders = fs::read_dir(self.folder("")).into_iter().flatten().flatten();
        for log in folders.map(|entry| entry.path().join("edged.log")).filter(|log| log.is_file()) {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<String> = text.lines().map(|line| line.chars().take(LOG_WIDTH).collect()).collect();
            println!("--- {}\n{}", log.display(), lines[lines.len().saturating_sub(count)..].join("\n"));
        }
    }
}
