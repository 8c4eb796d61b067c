//! This machine for the API: containers, images, facts. Composes the drivers' words into the API's.

mod containers;
pub(super) mod events;
mod execs;
pub(super) mod failure;
mod images;

pub(super) use execs::Execs;

use super::Daemon;
use crate::api::node::{
    BoxStream, Container, Credentials, DiskUsage, Event, ExecIo, ExecSpec, ExecState, Failure, Finding, Image,
    ImagePruned, ImageRemoved, Interface, LocalNode, LogLine, LogQuery, MachineInfo, Progress, PullRequest, Resolved,
    Stats, TerminalSize,
};
use async_trait::async_trait;
use bytes::Bytes;
use orchestrator_core::model::{Millis, Signal, TaskId};
use std::{collections::BTreeMap, io, path::Path};
use tokio::sync::broadcast;

#[async_trait]
impl LocalNode for Daemon {
    async fn info(&self) -> Result<MachineInfo, Failure> {
        let machine = &self.machine;
        Ok(MachineInfo {
            hostname: self.hostname.clone(),
            cpus: machine.cpus,
            memory_bytes: machine.memory_bytes,
            kernel: machine.kernel.clone(),
            os_name: machine.os_name.clone(),
            os_version: machine.os_version.clone(),
            platform: machine.platform.clone(),
            cgroup_version: machine.cgroup_version,
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("EDGED_COMMIT").unwrap_or_default().into(),
            data_dir: self.config.state_dir.display().to_string(),
            labels: self.config.labels.clone(),
            warnings: Vec::new(),
        })
    }

    async fn doctor(&self) -> Vec<Finding> {
        self.examine().await
    }

    async fn interfaces(&self) -> Result<Vec<Interface>, Failure> {
        self.list_interfaces().await.map_err(internal("reading the network interfaces"))
    }

    async fn disk_usage(&self) -> Result<DiskUsage, Failure> {
        self.measure_disk().await.map_err(internal("measuring the disk usage"))
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn containers(&self) -> Result<Vec<Container>, Failure> {
        self.list_containers().await.map_err(internal("looking at containers"))
    }

    async fn logs(&self, task: TaskId, query: LogQuery) -> Result<BoxStream<Result<LogLine, Failure>>, Failure> {
        self.read_logs(task, query).await
    }

    async fn stats(&self, task: TaskId) -> Result<Stats, Failure> {
        self.read_stats(task).await
    }

    async fn stop(&self, task: TaskId, signal: Option<Signal>, grace: Option<Millis>) -> Result<(), Failure> {
        self.stop_container(task, signal, grace).await
    }

    async fn kill(&self, task: TaskId, signal: Signal) -> Result<(), Failure> {
        self.drivers.runtime.signal(task, signal).await.map_err(containers::of_runtime)
    }

    async fn exec_create(&self, task: TaskId, spec: ExecSpec) -> Result<String, Failure> {
        self.execs.create(task, spec)
    }

    async fn exec_start(&self, id: &str, size: Option<TerminalSize>) -> Result<ExecIo, Failure> {
        self.execs.start(&self.drivers.runtime, id, size).await
    }

    async fn exec_resize(&self, id: &str, size: TerminalSize) -> Result<(), Failure> {
        self.execs.resize(id, size).await
    }

    async fn exec_inspect(&self, id: &str) -> Result<ExecState, Failure> {
        self.execs.inspect(id)
    }

    async fn images(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.list_images())
    }

    async fn image(&self, name: &str) -> Result<Image, Failure> {
        self.one_image(name)
    }

    async fn image_pull(&self, request: PullRequest) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        self.pull(request)
    }

    async fn image_push(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        self.push(name, credentials)
    }

    async fn image_load(
        &self,
        archive: BoxStream<io::Result<Bytes>>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        self.load(archive)
    }

    async fn image_save(&self, names: Vec<String>) -> Result<BoxStream<io::Result<Bytes>>, Failure> {
        self.save(&names)
    }

    async fn image_remove(&self, name: &str, force: bool) -> Result<Vec<ImageRemoved>, Failure> {
        self.remove_image(name, force).await
    }

    async fn image_prune(&self, all: bool) -> Result<ImagePruned, Failure> {
        self.prune_images(all).await
    }

    async fn image_tag(&self, name: &str, new_name: &str) -> Result<(), Failure> {
        self.tag_image(name, new_name).await
    }

    async fn resolve(&self, name: &str, credentials: Option<Credentials>) -> Result<Resolved, Failure> {
        self.resolve_image(name, credentials).await
    }

    async fn login(&self, credentials: Credentials) -> Result<(), Failure> {
        self.log_in(&credentials).await
    }
}

impl Daemon {
    async fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.drivers.network.doctor().await {
            Ok(facts) => findings.extend(facts.into_iter().map(of_network)),
            Err(error) => findings.push(Finding {
                what: "network".into(),
                ok: false,
                why: failure::text(&error),
                fix: "run edged as root".into(),
            }),
        }
        findings.extend(crate::runtime::host::facts().into_iter().map(|fact| Finding {
            what: fact.name.into(),
            ok: fact.ok,
            why: fact.found,
            fix: if fact.ok { String::new() } else { fact.remedy },
        }));
        findings
    }

    async fn list_interfaces(&self) -> anyhow::Result<Vec<Interface>> {
        let reports = crate::agent::locked(&self.drivers.dataplane).interfaces().to_vec();
        let addresses = self.drivers.network.uplinks().await?.addresses;
        Ok(reports
            .into_iter()
            .map(|report| Interface {
                addresses: addresses
                    .iter()
                    .filter(|own| own.interface == report.name)
                    .map(|own| format!("{}/{}", own.address, own.prefix))
                    .collect(),
                attachment: report.mode.map_or("none", |mode| mode.as_str()).into(),
                why: report.why,
                driver: String::new(),
                name: report.name,
            })
            .collect())
    }

    async fn measure_disk(&self) -> anyhow::Result<DiskUsage> {
        let images = self.drivers.images.usage().await?;
        let volumes = self.drivers.volumes.list()?;
        let state_dir = self.config.state_dir.clone();
        tokio::task::spawn_blocking(move || {
            Ok(DiskUsage {
                images_bytes: images.blobs + images.layers,
                images_reclaimable_bytes: images.reclaimable,
                containers_bytes: tree_bytes(&state_dir.join("containers")),
                logs_bytes: tree_bytes(&crate::agent::logs_dir(&state_dir)),
                volumes: volumes
                    .iter()
                    .map(|(name, path)| (name.clone(), tree_bytes(path)))
                    .collect::<BTreeMap<_, _>>(),
                state_bytes: tree_bytes(&state_dir.join("raft")) + tree_bytes(&state_dir.join("ledger")),
            })
        })
        .await?
    }
}

/// Bytes that a tree takes on disk; what vanishes meanwhile counts nothing.
fn tree_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let below = if meta.is_dir() {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| tree_bytes(&entry.path())).sum()
    } else {
        0
    };
    // st_blocks counts 512-byte units whatever the file system's block size (stat(2)).
    meta.blocks() * 512 + below
}

fn of_network(fact: crate::network::doctor::Fact) -> Finding {
    use crate::network::doctor::State;
    let (ok, why, fix) = match fact.state {
        State::Good => (true, "found".into(), String::new()),
        State::Degraded { found, remedy } | State::Missing { found, remedy } => (false, found, remedy),
    };
    Finding { what: fact.name.into(), ok, why, fix }
}

fn internal(what: &'static str) -> impl Fn(anyhow::Error) -> Failure {
    move |cause| Failure::Internal { what: what.into(), cause: cause.into() }
}
