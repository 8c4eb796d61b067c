//! Clients that write without pause and keep a record, so that a test can tell what was promised from what is there.
//!
//! Comes in: the managers to write to. Goes out: every write with its times and whether it was acknowledged.

use crate::{Lab, api};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

/// Between two writes of one client: enough that the record of a minute stays below what one cluster is made for.
const PAUSE: Duration = Duration::from_millis(100);
/// A client gives up a request after this and makes the next one.
const PATIENCE: Duration = Duration::from_secs(20);

/// One write: a service of this name, without replicas.
#[derive(Debug, Clone)]
pub struct Write {
    /// The name of the service.
    pub name: String,
    /// The manager that was asked.
    pub at: String,
    /// When it was asked.
    pub asked: Instant,
    /// When it acknowledged the write; none if it refused or did not answer.
    pub acknowledged: Option<Instant>,
    /// What it said, if it refused.
    pub refusal: String,
}

/// Running clients, one per manager; they end when this is dropped.
pub struct Writers {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Vec<Write>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts a client at each of these managers. `prefix` tells the names from other writers'.
    pub fn start(lab: &Lab, prefix: &str, managers: &[&str]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let record = Arc::<Mutex<Vec<Write>>>::default();
        let client = |at: &&str| {
            let (stop, record, at, prefix) = (stop.clone(), record.clone(), (*at).to_owned(), prefix.to_owned());
            let socket = lab.folder(&at).join("docker.sock");
            spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let write = write(&socket, &at, format!("{prefix}-{at}-{number}"));
                    record.lock().unwrap_or_else(PoisonError::into_inner).push(write);
                    // The load is a steady stream, not as much as goes in.
                    sleep(PAUSE);
                }
            })
        };
        let threads = managers.iter().map(client).collect();
        Self { stop, record, threads }
    }

    /// The writes that were answered, refused or given up so far.
    pub fn record(&self) -> Vec<Write> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When a write that was asked of `at` after `from` was first acknowledged.
    ///
    /// # Errors
    /// When none was yet: what was said last.
    pub fn acknowledged(&self, at: &str, from: Instant) -> Result<Instant> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = record.iter().filter(|write| write.at == at && write.asked >= from);
        let first = after.clone().find_map(|write| write.acknowledged);
        first.with_context(|| format!("no write at {at} was acknowledged; the last: {:?}", after.next_back()))
    }

    /// Ends the clients and returns everything they did.
    pub fn end(mut self) -> Vec<Write> {
        self.join();
        self.record()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A client that panicked has written less; the record shows it.
            let _ = thread.join();
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.join();
    }
}

/// Makes a service without replicas.
fn write(socket: &Path, at: &str, name: String) -> Write {
    let spec = service(&name);
    let asked = Instant::now();
    let (acknowledged, refusal) = match api::request(socket, "POST", "/services/create", Some(&spec), PATIENCE) {
        Ok(answer) if answer.status == 201 => (Some(Instant::now()), String::new()),
        Ok(answer) => (None, format!("{}: {}", answer.status, answer.body["message"])),
        Err(error) => (None, format!("{error:#}")),
    };
    Write { name, at: at.to_owned(), asked, acknowledged, refusal }
}

/// The body that creates a service without replicas.
pub fn service(name: &str) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } },
        "Mode": { "Replicated": { "Replicas": 0 } },
    })
}

/// Every acknowledged write is there, and nothing is there twice; as a manager sees it.
///
/// # Errors
/// When it is not so: what is missing or doubled.
pub fn check(lab: &Lab, at: &str, record: &[Write]) -> Result<()> {
    let services = lab.get(at, "/services")?;
    let names: Vec<&str> = services.as_array().context("/services is no list")?.iter().filter_map(name_of).collect();
    let there: BTreeSet<&str> = names.iter().copied().collect();
    ensure!(there.len() == names.len(), "{} services have only {} names", names.len(), there.len());
    let promised = record.iter().filter(|write| write.acknowledged.is_some());
    let lost: Vec<&Write> = promised.filter(|write| !there.contains(&*write.name)).collect();
    ensure!(lost.is_empty(), "{} acknowledged writes are lost as {at} sees it: {lost:?}", lost.len());
    Ok(())
}

fn name_of(service: &Value) -> Option<&str> {
    service["Spec"]["Name"].as_str()
}
