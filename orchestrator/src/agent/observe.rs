//! One look at the node: what containers, interfaces, mounts, images and forwarding there are, read from the drivers, which
//! read it from the kernel.

use super::{Drivers, drivers};
use crate::{
    network::ports,
    runtime::{ContainerState, ContainerStatus, HealthStatus},
};
use anyhow::Context;
use orchestrator_core::{
    assignment::Assignment,
    forwarding::Table,
    model::{HeldPort, Protocol, TaskId},
    node::{Attached, Container, Health, Observed, Phase, TaskObserved},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// First port that the kernel hands out by itself (`net.ipv4.ip_local_port_range`'s default).
const FIRST_EPHEMERAL: u16 = 32_768;

/// What one look has seen.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// For the decision.
    pub(super) observed: Observed,
    /// The forwarding tables as the kernel has them.
    pub(super) table: Table,
    /// Ports of the host, for the report.
    pub(super) held_ports: Vec<HeldPort>,
    /// Remains of interfaces that belong to no task.
    pub(super) strays: Vec<String>,
}

/// Reads everything.
pub(super) async fn look(drivers: &Drivers, assignment: &Assignment) -> anyhow::Result<Look> {
    let containers = drivers.runtime.observe().await.context("looking at containers")?;
    let links = drivers.network.observe().await.context("looking at network interfaces")?;
    let dataplane = drivers.dataplane.clone();
    let (wanted, own) = (published(assignment), drivers.network.gateways());
    let (table, held_ports) = tokio::task::spawn_blocking(move || {
        let table = drivers::locked(&dataplane).observe().context("reading the forwarding tables");
        (table, held(&wanted, &own))
    })
    .await?;
    let (table, held_ports) = (table?, held_ports?);
    let mounted = drivers.images.mounted().await.context("looking at mounts")?;
    let layers = drivers.images.tasks().await.context("looking at writable layers")?;

    let mut tasks: BTreeMap<TaskId, TaskObserved> = BTreeMap::new();
    for (task, status) in containers {
        tasks.entry(task).or_default().container = Some(container(status));
    }
    for (key, link) in &links.attached {
        if let Ok(task) = key.parse() {
            let attached = Attached { v4: link.v4, v6: link.v6, ifindex: link.host_ifindex };
            tasks.entry(task).or_default().attached = Some(attached);
        }
    }
    let mut strays = Vec::new();
    for key in links.partial {
        match key.parse() {
            Ok(task) => tasks.entry(task).or_default().damaged_link = true,
            Err(_) => strays.push(key),
        }
    }
    for root in mounted {
        if let Ok(task) = root.task.parse() {
            tasks.entry(task).or_default().mounted = true;
        }
    }
    let logs = drivers.runtime.traces().await.context("looking at logs")?;
    for task in layers.iter().filter_map(|key| key.parse().ok()).chain(logs) {
        tasks.entry(task).or_default().traces = true;
    }
    let wanted_images = assignment.tasks.values().map(|task| &task.spec.container.image).collect::<BTreeSet<_>>();
    let mut images = BTreeSet::new();
    for image in wanted_images {
        if drivers.image(image.as_str()).is_some() {
            images.insert(image.clone());
        }
    }
    let serving = table.serving();
    Ok(Look { observed: Observed { images, tasks, serving, cut_off_since: None }, table, held_ports, strays })
}

/// Published ports of services that this node should forward.
fn published(assignment: &Assignment) -> BTreeSet<(Protocol, u16)> {
    let ports = assignment.services.values().flat_map(|service| &service.ports);
    ports.map(|port| (port.protocol, port.published)).collect()
}

/// Ports that processes of the host hold. Only listeners and low UDP ports: ephemeral ones come and go with every client.
/// Holders are looked up where a published port is concerned, as that scans all processes.
fn held(wanted: &BTreeSet<(Protocol, u16)>, own: &[IpAddr]) -> anyhow::Result<Vec<HeldPort>> {
    let held = ports::held_ports().context("reading the ports that are held")?;
    let of = |protocol| match protocol {
        ports::Protocol::Tcp => Protocol::Tcp,
        ports::Protocol::Udp => Protocol::Udp,
    };
    let (mut conflicts, others): (Vec<_>, Vec<_>) = held
        .into_iter()
        .filter(|held| held.protocol == ports::Protocol::Tcp || held.port < FIRST_EPHEMERAL)
        .filter(|held| !own.contains(&held.address))
        .partition(|held| wanted.contains(&(of(held.protocol), held.port)));
    if !conflicts.is_empty() {
        ports::name_holders(&mut conflicts);
    }
    let mut out = conflicts
        .into_iter()
        .chain(others)
        .map(|held| HeldPort {
            protocol: of(held.protocol),
            port: held.port,
            holder: held.holder.map_or_else(String::new, |holder| format!("{} (pid {})", holder.comm, holder.pid)),
        })
        .collect::<Vec<_>>();
    out.sort();
    out.dedup_by_key(|held| (held.protocol, held.port));
    Ok(out)
}

/// The runtime's words in those of the decision.
fn container(status: ContainerStatus) -> Container {
    let phase = match status.state {
        ContainerState::Creating => Phase::Creating,
        ContainerState::Created { .. } => Phase::Created,
        ContainerState::Running { pid, started_at } => Phase::Running { pid, since: started_at },
        ContainerState::Exited { code, oom, finished_at, .. } => Phase::Exited { code, oom, at: finished_at },
        ContainerState::Broken { why, .. } => Phase::Broken { why },
    };
    let health = status.health.map(|health| match health.status {
        HealthStatus::Starting => Health::Starting,
        HealthStatus::Healthy => Health::Healthy,
        HealthStatus::Unhealthy => {
            Health::Unhealthy(health.log.last().map_or_else(String::new, |last| last.output.clone()))
        }
    });
    Container { phase, health }
}
