//! Docker's picture of our objects: replicated facts, with what nodes report laid over them where this node leads.

use super::{
    convert::{to_port, to_service_spec, to_task_spec},
    objects as wire,
    spec::Platform,
};
use crate::api::{
    node::{Membership, Reasons},
    time::{ZERO, rfc3339_millis},
};
use orchestrator_core::{
    model::{
        Availability, Desired, End, Live, Mode, Node, PublishMode, Role, Service, Slot, Task, TaskReport, TaskState,
        UnixMillis, UpdateState,
    },
    state::{State, Stored},
};

/// The three sources of a picture.
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) live: &'a Live,
    pub(super) reasons: &'a Reasons,
}

/// How far a task is, from its outcome, its node's report, or its placement, whichever says most.
pub(super) struct Progress<'a> {
    pub(super) state: TaskState,
    pub(super) at: UnixMillis,
    pub(super) message: String,
    pub(super) error: String,
    pub(super) report: Option<&'a TaskReport>,
}

impl<'a> View<'a> {
    pub(super) fn progress(&self, task: &Task) -> Progress<'a> {
        let report = task
            .placed
            .as_ref()
            .and_then(|placed| self.live.nodes.get(&placed.node))
            .and_then(|node| node.report.tasks.get(&task.id));
        if let Some(outcome) = &task.outcome {
            let (state, message) = match outcome.end {
                End::Complete => (TaskState::Complete, "finished"),
                End::Shutdown => (TaskState::Shutdown, "shutdown"),
                End::Failed => (TaskState::Failed, "started"),
                End::Rejected => (TaskState::Rejected, "preparing"),
                End::Orphaned => (TaskState::Orphaned, "node is gone"),
            };
            return Progress { state, at: outcome.at, message: message.into(), error: outcome.message.clone(), report };
        }
        if let Some(known) = report {
            let failed = matches!(known.state, TaskState::Failed | TaskState::Rejected);
            let (message, error) = match failed {
                true => (known.state.as_str().to_owned(), known.message.clone()),
                false if known.message.is_empty() => (known.state.as_str().to_owned(), String::new()),
                false => (known.message.clone(), String::new()),
            };
            return Progress { state: known.state, at: known.since, message, error, report };
        }
        let (state, message, error) = match task.placed {
            Some(_) => (TaskState::Assigned, "scheduler assigned task to node", String::new()),
            None => {
                let why = self.reasons.tasks.get(&task.id).map(|lines| lines.join("; ")).unwrap_or_default();
                (TaskState::Pending, "pending task scheduling", why)
            }
        };
        Progress { state, at: task.created_at, message: message.into(), error, report: None }
    }

    pub(super) fn task(&self, task: &Stored<Task>) -> wire::Task {
        let spec = self.state.spec_of(task);
        let progress = self.progress(task);
        let exit_code = task.outcome.as_ref().map_or(progress.report.and_then(|r| r.exit_code), |o| o.exit_code);
        let started = progress.report.is_some() || (task.placed.is_some() && task.outcome.is_some());
        let host_ports = spec.map_or(Vec::new(), |spec| {
            spec.value.spec.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Host).map(to_port).collect()
        });
        wire::Task {
            id: task.id.to_string(),
            version: wire::Version { index: task.revision },
            created_at: rfc3339_millis(task.created_at),
            updated_at: rfc3339_millis(progress.at),
            labels: Default::default(),
            spec: spec.map(|spec| to_task_spec(&spec.value.spec.task)).unwrap_or_default(),
            service_id: task.service.to_string(),
            slot: match task.slot {
                Slot::Replica(number) => number,
                Slot::Node(_) => 0,
            },
            node_id: task.placed.as_ref().map(|placed| placed.node.to_string()).unwrap_or_default(),
            status: wire::TaskStatus {
                timestamp: rfc3339_millis(progress.at),
                state: progress.state.as_str().into(),
                message: progress.message,
                err: progress.error,
                container_status: started.then(|| wire::ContainerStatus {
                    container_id: task.id.to_string(),
                    pid: progress.report.and_then(|report| report.pid).unwrap_or(0),
                    exit_code: exit_code.unwrap_or(0),
                }),
                port_status: wire::PortStatus { ports: host_ports },
            },
            desired_state: match (task.desired, &task.outcome) {
                (Desired::Run, None) => "running",
                (Desired::Run, Some(outcome)) if outcome.end == End::Complete => "complete",
                (Desired::Remove, _) => "remove",
                (Desired::Run, Some(_)) | (Desired::Shutdown, _) => "shutdown",
            }
            .into(),
        }
    }

    pub(super) fn service(&self, service: &Stored<Service>, with_status: bool) -> wire::Service {
        let state = self.state;
        let spec = state.current_spec(service).map(|version| to_service_spec(&version.value.spec));
        let spec = spec.unwrap_or_default();
        let previous = service.previous.and_then(|number| state.specs.get(&(service.id, number)));
        wire::Service {
            id: service.id.to_string(),
            version: wire::Version { index: service.revision },
            created_at: rfc3339_millis(service.created_at),
            updated_at: rfc3339_millis(service.updated_at),
            previous_spec: previous.map(|version| to_service_spec(&version.value.spec)),
            endpoint: wire::Endpoint {
                spec: spec.endpoint_spec.clone().unwrap_or_default(),
                ports: service.ports.iter().map(to_port).collect(),
            },
            update_status: service.update.as_ref().map(|update| wire::UpdateStatus {
                state: match update.state {
                    UpdateState::Updating => "updating",
                    UpdateState::Paused => "paused",
                    UpdateState::Completed => "completed",
                    UpdateState::RollbackStarted => "rollback_started",
                    UpdateState::RollbackPaused => "rollback_paused",
                    UpdateState::RollbackCompleted => "rollback_completed",
                }
                .into(),
                started_at: Some(rfc3339_millis(update.started_at)),
                completed_at: update.completed_at.map(rfc3339_millis),
                message: update.message.clone(),
            }),
            service_status: with_status.then(|| self.service_status(service)),
            spec,
        }
    }

    fn service_status(&self, service: &Service) -> wire::ServiceStatus {
        let mode = self.state.current_spec(service).map(|version| version.value.spec.mode);
        let mut status = wire::ServiceStatus::default();
        let mut wanted = 0;
        for task in self.state.tasks.values().filter(|task| task.service == service.id) {
            if task.desired == Desired::Run && task.outcome.is_none() {
                wanted += 1;
                status.running_tasks += u64::from(self.progress(task).state == TaskState::Running);
            }
            status.completed_tasks += u64::from(task.outcome.as_ref().is_some_and(|o| o.end == End::Complete));
        }
        status.desired_tasks = match mode {
            Some(Mode::Replicated { replicas }) => u64::from(replicas),
            _ => wanted,
        };
        status
    }

    pub(super) fn node(&self, node: &Stored<Node>, membership: &Membership, now: UnixMillis) -> wire::Node {
        let description = &node.description;
        let platform = description.platform.as_ref();
        let live = self.live.nodes.get(&node.id);
        let own = membership.node == Some(node.id);
        let state = match live {
            Some(live) if live.ready => "ready",
            Some(_) => "down",
            None if own => "ready",
            None if now >= self.live.down_after => "down",
            None => "unknown",
        };
        let peer = membership.managers.get(&node.id);
        wire::Node {
            id: node.id.to_string(),
            version: wire::Version { index: node.revision },
            created_at: rfc3339_millis(node.created_at),
            updated_at: live.map_or_else(|| rfc3339_millis(node.created_at), |live| rfc3339_millis(live.since)),
            spec: wire::NodeSpec {
                name: String::new(),
                labels: node.labels.clone(),
                role: role(node.role).into(),
                availability: match node.availability {
                    Availability::Active => "active",
                    Availability::Pause => "pause",
                    Availability::Drain => "drain",
                }
                .into(),
            },
            description: wire::NodeDescription {
                hostname: node.hostname.clone(),
                platform: Platform {
                    architecture: platform.map(|p| kernel_arch(&p.arch)).unwrap_or_default(),
                    os: platform.map(|p| p.os.clone()).unwrap_or_default(),
                    variant: String::new(),
                },
                resources: wire::NodeResources {
                    nano_cpus: description.nano_cpus,
                    memory_bytes: description.memory_bytes,
                },
                engine: wire::Engine {
                    engine_version: description.version.clone(),
                    labels: description.labels.clone(),
                },
                tls_info: self
                    .state
                    .cluster
                    .as_ref()
                    .map(|cluster| super::swarm::tls_info(cluster))
                    .unwrap_or_default(),
            },
            status: wire::NodeStatus { state: state.into(), message: String::new(), addr: description.address.clone() },
            manager_status: (node.role == Role::Manager).then(|| wire::ManagerStatus {
                leader: membership.leader == Some(node.id),
                reachability: match peer.and_then(|peer| peer.reachable) {
                    Some(true) => "reachable",
                    Some(false) => "unreachable",
                    None => "unknown",
                }
                .into(),
                addr: peer.map(|peer| peer.address.clone()).or_else(|| description.control()).unwrap_or_default(),
            }),
        }
    }
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

/// The kernel's word for an architecture (uname(2)), which Docker shows for nodes.
pub(super) fn kernel_arch(arch: &str) -> String {
    match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
    .into()
}

/// A time that may not have come.
pub(super) fn or_zero(at: Option<u64>) -> String {
    at.map_or_else(|| ZERO.into(), crate::api::time::rfc3339)
}
