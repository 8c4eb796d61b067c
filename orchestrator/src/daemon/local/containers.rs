//! Containers of this node for the API.

use super::failure;
use crate::{
    agent::task_name,
    api::node::{
        BoxStream, Container, ContainerPort, ContainerState, Failure, Health, LogLine, LogQuery, NetworkStats, Stats,
        Stdio,
    },
    clock,
    daemon::Daemon,
    image::manifest::RunConfig,
    runtime::{self, RuntimeError, Stream},
};
use futures_util::StreamExt;
use orchestrator_core::{
    assignment::{AssignedTask, Assignment},
    model::{ContainerSpec, Millis, Signal, TaskId, UnixMillis},
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Nanoseconds of a millisecond.
const NANOS: u64 = 1_000_000;

impl Daemon {
    pub(super) async fn list_containers(&self) -> anyhow::Result<Vec<Container>> {
        let statuses = self.drivers.runtime.observe().await?;
        let links = self.drivers.network.observe().await?.attached;
        // What the agent works by: it is there on workers, too, and without any manager.
        let view = self.base.agent_view.borrow().clone();
        let Some(assignment) = view.assignment else { return Ok(Vec::new()) };
        let mut out = Vec::new();
        for (id, status) in statuses {
            // A container without a task is a left-over that the agent is about to remove.
            let Some(task) = assignment.tasks.get(&id) else { continue };
            let begun = view.observed.tasks.get(&id).and_then(|seen| seen.begun).unwrap_or_default();
            let addresses = links.get(&id.to_string()).map_or_else(Vec::new, |link| {
                std::iter::once(IpAddr::V4(link.v4)).chain(link.v6.map(IpAddr::V6)).collect()
            });
            out.push(self.describe(&assignment, (id, task, begun), status, addresses));
        }
        Ok(out)
    }

    fn describe(
        &self,
        assignment: &Assignment,
        (id, task, begun): (TaskId, &AssignedTask, UnixMillis),
        status: runtime::ContainerStatus,
        addresses: Vec<IpAddr>,
    ) -> Container {
        let spec = &task.spec.container;
        let image = self.drivers.images.get(spec.image.as_str()).ok();
        let defaults = image.as_ref().map(|image| image.config.config.clone()).unwrap_or_default();
        let key = id.to_string();
        let nanos = |at: UnixMillis| at.0 * NANOS;
        let (how_far, pid, started, finished, exit_code, oom_killed, error) = match status.state {
            runtime::ContainerState::Creating => {
                (ContainerState::Created, None, None, None, None, false, String::new())
            }
            runtime::ContainerState::Created { pid } => {
                (ContainerState::Created, Some(pid), None, None, None, false, String::new())
            }
            runtime::ContainerState::Running { pid, started_at } => {
                (ContainerState::Running, Some(pid), Some(started_at), None, None, false, String::new())
            }
            runtime::ContainerState::Exited { code, oom, started_at, finished_at, .. } => {
                (ContainerState::Exited, None, started_at, Some(finished_at), Some(code), oom, String::new())
            }
            runtime::ContainerState::Broken { why, pid } => (ContainerState::Exited, pid, None, None, None, false, why),
        };
        let service = assignment.services.get(&task.service);
        let ports = service.iter().flat_map(|service| &service.ports).map(|port| ContainerPort {
            protocol: port.protocol,
            target: port.target,
            published: Some(port.published).filter(|port| *port != 0),
        });
        Container {
            task: id,
            name: task_name(task, id),
            service: task.service,
            service_name: task.service_name.clone(),
            image: spec.image.to_string(),
            image_id: image.map_or_else(String::new, |image| image.id.to_string()),
            command: command(spec, &defaults),
            state: how_far,
            pid,
            created: nanos(begun),
            started: started.map(nanos),
            finished: finished.map(nanos),
            exit_code,
            oom_killed,
            health: status.health.map(|health| match health.status {
                runtime::HealthStatus::Starting => Health::Starting,
                runtime::HealthStatus::Healthy => Health::Healthy,
                runtime::HealthStatus::Unhealthy => Health::Unhealthy,
            }),
            addresses,
            ports: ports.collect(),
            env: defaults.env.iter().chain(&spec.env).cloned().collect(),
            workdir: spec.workdir.clone().unwrap_or(defaults.working_dir),
            user: spec.user.clone().unwrap_or(defaults.user),
            hostname: spec.hostname.clone().unwrap_or_else(|| key[..12].to_owned()),
            tty: spec.tty,
            labels: spec.labels.clone(),
            error,
        }
    }

    pub(super) async fn read_logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<Result<LogLine, Failure>>, Failure> {
        let query = runtime::LogQuery {
            stdout: query.stdout,
            stderr: query.stderr,
            since_nanos: query.since,
            until_nanos: query.until,
            tail: query.tail,
            follow: query.follow,
        };
        let logs = self.drivers.runtime.logs(task, query).await.map_err(of_runtime)?;
        let lines = futures_util::stream::unfold(logs, |mut logs| async move {
            let line = logs.next().await?;
            let line = line.map_err(of_runtime).map(|line| LogLine {
                at: line.unix_nanos,
                stream: if line.stream == Stream::Stderr { Stdio::Err } else { Stdio::Out },
                bytes: line.bytes.into(),
            });
            Some((line, logs))
        });
        Ok(lines.boxed())
    }

    pub(super) async fn read_stats(&self, task: TaskId) -> Result<Stats, Failure> {
        let read = self.drivers.runtime.stats(task).await.map_err(of_runtime)?;
        let pid = match self.drivers.runtime.observe().await.map_err(of_runtime)?.remove(&task).map(|s| s.state) {
            Some(runtime::ContainerState::Running { pid, .. }) => Some(pid),
            _ => None,
        };
        Ok(Stats {
            at: clock::now().0 * NANOS,
            cpu_nanos: read.cpu_nanos,
            cpu_user_nanos: read.cpu_user_nanos,
            cpu_system_nanos: read.cpu_system_nanos,
            machine_cpu_nanos: read.machine_cpu_nanos,
            online_cpus: read.machine_cpus,
            memory_bytes: read.memory_bytes,
            memory_inactive_file_bytes: read.memory_cache_bytes,
            memory_limit_bytes: read.memory_limit_bytes.unwrap_or(self.machine.memory_bytes),
            pids: read.pids,
            pids_limit: read.pids_limit.unwrap_or(0),
            networks: pid.map_or_else(BTreeMap::new, network_counters),
            block_read_bytes: read.read_bytes,
            block_write_bytes: read.write_bytes,
        })
    }

    /// Ends a container by hand; its service replaces the task.
    pub(super) async fn stop_container(
        &self,
        task: TaskId,
        signal: Option<Signal>,
        grace: Option<Millis>,
    ) -> Result<(), Failure> {
        let assignment = self.base.agent_view.borrow().assignment.clone();
        let spec = assignment.as_ref().and_then(|assignment| Some(&assignment.tasks.get(&task)?.spec));
        let signal = signal.or_else(|| spec?.container.stop_signal).unwrap_or(Signal::TERM);
        let grace = grace.or_else(|| Some(spec?.container.stop_grace)).unwrap_or(ContainerSpec::STOP_GRACE);
        let runtime = &self.drivers.runtime;
        let mut changes = runtime.changes();
        runtime.signal(task, signal).await.map_err(of_runtime)?;
        let ended = async {
            loop {
                changes.mark_unchanged();
                let all = runtime.observe().await.map_err(of_runtime)?;
                if !matches!(all.get(&task).map(|s| &s.state), Some(runtime::ContainerState::Running { .. })) {
                    return Ok(());
                }
                // The sender lives as long as `runtime`.
                let _alive = changes.changed().await;
            }
        };
        match tokio::time::timeout(Duration::from_millis(grace.0), ended).await {
            Ok(ended) => ended,
            Err(_) => runtime.signal(task, Signal::KILL).await.map_err(of_runtime),
        }
    }
}

/// The whole command line, as the runtime puts it together.
fn command(spec: &ContainerSpec, image: &RunConfig) -> Vec<String> {
    let entrypoint = spec.command.as_ref().unwrap_or(&image.entrypoint);
    let no_args = Vec::new();
    let from_image = if spec.command.is_some() { &no_args } else { &image.cmd };
    entrypoint.iter().chain(spec.args.as_ref().unwrap_or(from_image)).cloned().collect()
}

/// Counters of the interfaces that the process sees (proc(5) `net/dev`), without loopback.
fn network_counters(pid: u32) -> BTreeMap<String, NetworkStats> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let numbers = counters.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0)).collect::<Vec<u64>>();
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let stats = NetworkStats { rx_bytes: at(0), rx_packets: at(1), tx_bytes: at(8), tx_packets: at(9) };
        Some((name.trim().to_owned(), stats))
    };
    text.lines().skip(2).filter_map(interface).filter(|(name, _)| name != "lo").collect()
}

/// What the caller of the API can do about a runtime error.
pub(super) fn of_runtime(error: RuntimeError) -> Failure {
    let text = failure::text(&error);
    match error {
        RuntimeError::NotFound(_) => Failure::NotFound(text),
        RuntimeError::NotRunning(_) | RuntimeError::AlreadyExists(_) => Failure::Conflict(text),
        RuntimeError::NoSuchCommand { .. }
        | RuntimeError::BadMount { .. }
        | RuntimeError::BadUser { .. }
        | RuntimeError::BadRequest { .. } => Failure::Invalid(text),
        other => Failure::Internal { what: "container".into(), cause: Box::new(other) },
    }
}
