//! Carries out the steps of one task with the drivers, in order, until one fails. Each step asks first whether it is so already.

use super::{Drivers, Memory};
use crate::{
    image::manifest::{Healthcheck, RunConfig},
    network::{
        self,
        dns::{ResolvConf, container_resolv_conf},
    },
    runtime::{ContainerConfig, ImageDefaults},
};
use anyhow::{Context, anyhow};
use orchestrator_core::{
    assignment::{AssignedTask, Assignment},
    model::{DnsConfig, HealthCheck, HealthTest, Millis, Mount, MountSource, Signal, Slot, TaskId},
    node::Op,
};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The host's resolver configuration (resolv.conf(5)).
pub(super) const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Time between two tries of a repair.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

/// The steps of one task, under way.
pub(super) struct Chain {
    drivers: Drivers,
    memory: Arc<Memory>,
    assignment: Arc<Assignment>,
    task: TaskId,
}

impl Chain {
    pub(super) fn new(drivers: &Drivers, memory: &Arc<Memory>, assignment: &Arc<Assignment>, task: TaskId) -> Self {
        Self { drivers: drivers.clone(), memory: memory.clone(), assignment: assignment.clone(), task }
    }

    /// Carries out `ops`. A failure on the way up ends the task; on the way down, the next step is tried all the same and
    /// what is left is tried again at the next look.
    pub(super) async fn run(self, ops: Vec<Op>) {
        // A running task that only lost its interface is never ended for it: the next look tries again.
        let repairs = matches!(ops.as_slice(), [Op::Attach(_)]);
        let mut failure = None;
        for op in ops {
            let down = matches!(op, Op::Stop | Op::Kill | Op::Delete | Op::Unmount | Op::Detach | Op::Forget);
            if let Err(error) = self.carry_out(&op).await {
                let message = format!("{error:#}");
                tracing::warn!(task = %self.task, step = ?op, error = message, "a step failed");
                if repairs {
                    tokio::time::sleep(REPAIR_PAUSE).await;
                } else if !down {
                    failure = Some(message);
                    break;
                }
            }
        }
        self.memory.end(self.task, failure);
    }

    async fn carry_out(&self, op: &Op) -> anyhow::Result<()> {
        let Self { drivers, memory, task, .. } = self;
        let key = task.to_string();
        match op {
            Op::Fetch(image) => {
                memory.fetching(*task, true);
                memory.activity(*task, format!("pulling {image}"));
                let done = drivers.fetch(image.as_str()).await;
                memory.fetching(*task, false);
                done?;
            }
            Op::Attach(index) => {
                memory.activity(*task, "setting up the network".into());
                drivers.attach(&key, *index).await?;
            }
            Op::Mount => {
                memory.activity(*task, "mounting the root file system".into());
                drivers.mount(self.assigned()?.spec.container.image.as_str(), &key).await?;
            }
            Op::Create => {
                memory.activity(*task, "creating the container".into());
                let config = self.container().await?;
                drivers.runtime.create(&config).await?;
            }
            Op::Start => drivers.runtime.start(*task).await?,
            Op::Stop => {
                memory.stopping(*task, false);
                drivers.runtime.stop(*task).await?;
            }
            Op::Kill => {
                drivers.runtime.signal(*task, Signal::KILL).await?;
                memory.stopping(*task, true);
            }
            Op::Delete => drivers.runtime.delete(*task).await?,
            Op::Unmount => drivers.unmount(&key).await?,
            Op::Detach => drivers.detach(&key).await?,
            Op::Forget => {
                drivers.runtime.forget(*task).await?;
                drivers.images.discard(&key).await?;
                drivers.volumes.forget(*task)?;
            }
        }
        Ok(())
    }

    fn assigned(&self) -> anyhow::Result<&AssignedTask> {
        self.assignment.tasks.get(&self.task).ok_or_else(|| anyhow!("the task is not assigned to this node any more"))
    }

    /// Everything that makes the container, from the assignment, the image and the node.
    async fn container(&self) -> anyhow::Result<ContainerConfig> {
        let assigned = self.assigned()?;
        let spec = &assigned.spec.container;
        let key = self.task.to_string();
        let image = self.drivers.image(spec.image.as_str());
        let image = image.ok_or_else(|| anyhow!("No such image: {}", spec.image))?;
        let defaults = of_image(&image.config.config).with_context(|| format!("image {}", spec.image))?;
        let hostname = spec.hostname.clone().unwrap_or_else(|| key[..12].to_owned());
        let attached = self.drivers.network.observe().await?.attached.remove(&key);
        let attached = attached.ok_or_else(|| anyhow!("the network interface of the container is gone"))?;
        let rootfs = self.drivers.rootfs(&key);
        let volumes = self.volumes(spec.mounts.clone(), &defaults.volumes, &rootfs).await?;
        Ok(ContainerConfig {
            task: self.task,
            name: task_name(assigned, self.task),
            hosts: hosts(&hostname, &spec.hosts, &attached),
            resolv_conf: self.resolv_conf(assigned).await,
            spec: spec.clone(),
            resources: assigned.spec.resources,
            image: defaults,
            rootfs,
            netns: Some(attached.netns),
            hostname,
            volumes,
        })
    }

    /// Directories of all volumes by mount target; new ones are filled with what the image has there.
    async fn volumes(
        &self,
        mounts: Vec<Mount>,
        of_image: &[String],
        rootfs: &Path,
    ) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let from_image =
            of_image.iter().filter(|path| !mounts.iter().any(|mount| mount.target == **path)).map(|path| {
                let source = MountSource::Volume { name: None, no_copy: false, labels: BTreeMap::new(), subpath: None };
                Mount { target: path.clone(), read_only: false, source }
            });
        let wanted = mounts.iter().cloned().chain(from_image).collect::<Vec<_>>();
        let (volumes, task, rootfs) = (self.drivers.volumes.clone(), self.task, rootfs.to_owned());
        let resolve = move || -> anyhow::Result<BTreeMap<String, PathBuf>> {
            let mut out = BTreeMap::new();
            for mount in wanted {
                if let Some(path) = volumes.resolve(task, &mount, &rootfs)? {
                    out.insert(mount.target, path);
                }
            }
            Ok(out)
        };
        tokio::task::spawn_blocking(resolve).await?
    }

    async fn resolv_conf(&self, assigned: &AssignedTask) -> String {
        let dns = &assigned.spec.container.dns;
        if *dns == DnsConfig::default() {
            let search = ResolvConf::read(Path::new(HOST_RESOLV_CONF)).await.search;
            return container_resolv_conf(&self.drivers.network.gateways(), &search);
        }
        let own = self.drivers.network.gateways().into_iter().map(|address| address.to_string());
        let servers = if dns.servers.is_empty() { own.collect() } else { dns.servers.clone() };
        let mut text = String::new();
        for server in servers {
            let _infallible = writeln!(text, "nameserver {server}");
        }
        if !dns.search.is_empty() {
            let _infallible = writeln!(text, "search {}", dns.search.join(" "));
        }
        if !dns.options.is_empty() {
            let _infallible = writeln!(text, "options {}", dns.options.join(" "));
        }
        text
    }
}

/// The name that users know a task by: `web.1.<id>`, or `web.<node>.<id>` for a global service.
#[must_use]
pub fn task_name(assigned: &AssignedTask, task: TaskId) -> String {
    match assigned.slot {
        Slot::Replica(slot) => format!("{}.{slot}.{task}", assigned.service_name),
        Slot::Node(node) => format!("{}.{node}.{task}", assigned.service_name),
    }
}

/// Content of `/etc/hosts` (hosts(5)).
fn hosts(hostname: &str, extra: &[(String, String)], attached: &network::Attached) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let _infallible = writeln!(text, "{}\t{hostname}", attached.v4);
    if let Some(v6) = attached.v6 {
        let _infallible = writeln!(text, "{v6}\t{hostname}");
    }
    for (name, address) in extra {
        let _infallible = writeln!(text, "{address}\t{name}");
    }
    text
}

/// What the image says about running it, in the runtime's words.
fn of_image(config: &RunConfig) -> anyhow::Result<ImageDefaults> {
    Ok(ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        workdir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.as_deref().map(Signal::parse).transpose()?,
        health: config.healthcheck.as_ref().and_then(health),
        volumes: config.volumes.iter().cloned().collect(),
    })
}

/// Docker's extension of the image configuration: `NONE`, `CMD` or `CMD-SHELL`, times in nanoseconds, 0 for the default.
fn health(check: &Healthcheck) -> Option<HealthCheck> {
    let (kind, words) = check.test.split_first()?;
    let test = match kind.as_str() {
        "CMD" if !words.is_empty() => HealthTest::Exec(words.to_vec()),
        "CMD-SHELL" if !words.is_empty() => HealthTest::Shell(words.join(" ")),
        "NONE" => HealthTest::None,
        _ => return None,
    };
    let defaults = HealthCheck::new(test);
    let length = |nanos: i64, default: Millis| match u64::try_from(nanos) {
        Ok(0) | Err(_) => default,
        Ok(nanos) => Millis((nanos / 1_000_000).max(1)),
    };
    Some(HealthCheck {
        interval: length(check.interval, defaults.interval),
        timeout: length(check.timeout, defaults.timeout),
        retries: u32::try_from(check.retries).ok().filter(|retries| *retries > 0).unwrap_or(defaults.retries),
        start_period: length(check.start_period, defaults.start_period),
        start_interval: length(check.start_interval, defaults.start_interval),
        ..defaults
    })
}
