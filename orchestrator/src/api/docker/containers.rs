//! `/containers`: the containers of this node. They belong to tasks: they can be looked at, stopped and entered, but not
//! made or removed by hand.

use super::{frames, view::or_zero};
use crate::api::{
    App,
    error::ApiError,
    node::{Container, ContainerState, Failure, Health, Stats},
    request::Params,
    time,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use orchestrator_core::model::{Millis, Signal};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Time between two readings of a stats stream, Docker's.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// The container with this id, name or start of an id.
pub(super) async fn find(app: &App, text: &str) -> Result<Container, ApiError> {
    let name = text.trim_start_matches('/');
    let mut found = Vec::new();
    let mut containers = app.node.containers().await?;
    // `web.1` alone means the container that runs now.
    containers.sort_by_key(|container| container.state != ContainerState::Running);
    for container in containers {
        let id = container.task.to_string();
        let full = full_name(&container);
        if [id.as_str(), full.as_str()].contains(&name) || full.strip_suffix(&format!(".{id}")) == Some(name) {
            return Ok(container);
        }
        if !name.is_empty() && id.starts_with(name) {
            found.push(container);
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {name}"))),
        (None, _) => Err(ApiError::not_found(format!("No such container: {name}"))),
    }
}

/// The name with the task's id: `web.1.<task id>`.
fn full_name(container: &Container) -> String {
    let id = container.task.to_string();
    if container.name.ends_with(&id) { container.name.clone() } else { format!("{}.{id}", container.name) }
}

fn labels(container: &Container) -> BTreeMap<String, String> {
    let mut labels = container.labels.clone();
    let task = container.task.to_string();
    for (key, value) in [
        ("com.docker.swarm.service.id", container.service.to_string()),
        ("com.docker.swarm.service.name", container.service_name.clone()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task),
        ("com.docker.swarm.task.name", full_name(container)),
    ] {
        labels.entry(key.into()).or_insert(value);
    }
    labels
}

fn state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

fn status(container: &Container) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    let ago = |at: Option<u64>| time::human(now.saturating_sub(at.unwrap_or(now)));
    match container.state {
        ContainerState::Created => "Created".into(),
        ContainerState::Running => match container.health {
            None => format!("Up {}", ago(container.started)),
            Some(Health::Starting) => format!("Up {} (health: starting)", ago(container.started)),
            Some(known) => format!("Up {} ({})", ago(container.started), health(known)),
        },
        ContainerState::Exited => {
            format!("Exited ({}) {} ago", container.exit_code.unwrap_or(0), ago(container.finished))
        }
    }
}

/// A line of `docker ps`.
pub(super) fn summary(container: &Container) -> Value {
    let ports = container.ports.iter().map(|port| {
        let mut value = json!({ "PrivatePort": port.target, "Type": port.protocol.as_str() });
        if let (Some(published), Some(map)) = (port.published, value.as_object_mut()) {
            map.insert("PublicPort".into(), published.into());
            map.insert("IP".into(), "0.0.0.0".into());
        }
        value
    });
    json!({
        "Id": container.task.to_string(),
        "Names": [format!("/{}", full_name(container))],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": container.command.join(" "),
        "Created": container.created / 1_000_000_000,
        "Ports": ports.collect::<Vec<_>>(),
        "Labels": labels(container),
        "State": state(container.state),
        "Status": status(container),
        "HostConfig": { "NetworkMode": "default" },
        "NetworkSettings": { "Networks": networks(container) },
        "Mounts": [],
    })
}

fn networks(container: &Container) -> Value {
    let address = container.addresses.first().map(ToString::to_string).unwrap_or_default();
    json!({ "local": { "IPAddress": address, "NetworkID": "", "EndpointID": "", "Gateway": "", "MacAddress": "" } })
}

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters =
        params.filters(&["id", "name", "label", "status", "ancestor", "health", "exited", "is-task", "service"])?;
    let limited = params.number::<i64>("limit")?.is_some_and(|n| n > 0);
    let all = limited || params.flag("all") || !filters.get("status").is_empty() || !filters.get("exited").is_empty();
    let limit: usize =
        params.number::<i64>("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(usize::MAX);
    let mut containers = app.node.containers().await?;
    containers.sort_by_key(|container| (std::cmp::Reverse(container.created), container.task));
    let kept = containers.iter().filter(|container| {
        let id = container.task.to_string();
        let code = container.exit_code.map(|code| code.to_string());
        (all || container.state == ContainerState::Running)
            && filters.any("id", |wanted| id.starts_with(wanted))
            && filters.any("name", |wanted| name_matches(&full_name(container), wanted))
            && filters.any("service", |wanted| container.service_name == wanted)
            && filters.any("status", |wanted| wanted == state(container.state))
            && filters.any("health", |wanted| wanted == container.health.map_or("none", health))
            && filters.any("exited", |wanted| code.as_deref() == Some(wanted))
            && filters.any("is-task", |wanted| wanted == "true")
            && filters.any("ancestor", |wanted| {
                let image = container.image.as_str();
                let bare = image.split_once('@').map_or(image, |(name, _)| name);
                [image, bare, container.image_id.as_str()].contains(&wanted)
                    || bare.rsplit_once(':').is_some_and(|(name, _)| name == wanted)
            })
            && filters.labels("label", &labels(container))
    });
    Ok(Json(kept.take(limit).map(summary).collect()))
}

/// Docker matches names by regular expression; what people write is a part of the name, perhaps anchored.
fn name_matches(name: &str, wanted: &str) -> bool {
    let wanted = wanted.replace("^/", "^");
    match (wanted.strip_prefix('^'), wanted.strip_suffix('$')) {
        (Some(rest), Some(_)) => name == rest.trim_end_matches('$'),
        (Some(start), None) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end),
        (None, None) => name.contains(wanted.as_str()),
    }
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let container = find(&app, &id).await?;
    let running = container.state == ContainerState::Running;
    let mut ports = Map::new();
    for port in &container.ports {
        let bound = port.published.map(|published| json!([{ "HostIp": "0.0.0.0", "HostPort": published.to_string() }]));
        ports.insert(format!("{}/{}", port.target, port.protocol.as_str()), bound.unwrap_or(Value::Null));
    }
    let mut status = json!({
        "Status": state(container.state),
        "Running": running,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": container.oom_killed,
        "Dead": false,
        "Pid": container.pid.unwrap_or(0),
        "ExitCode": container.exit_code.unwrap_or(0),
        "Error": container.error,
        "StartedAt": or_zero(container.started),
        "FinishedAt": or_zero(container.finished),
    });
    if let (Some(known), Some(map)) = (container.health, status.as_object_mut()) {
        map.insert("Health".into(), json!({ "Status": health(known), "FailingStreak": 0, "Log": [] }));
    }
    Ok(Json(json!({
        "Id": container.task.to_string(),
        "Created": time::rfc3339(container.created),
        "Path": container.command.first().cloned().unwrap_or_default(),
        "Args": container.command.iter().skip(1).collect::<Vec<_>>(),
        "State": status,
        "Image": container.image_id,
        "Name": format!("/{}", full_name(&container)),
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "Mounts": [],
        "Config": {
            "Hostname": container.hostname,
            "Domainname": "",
            "User": container.user,
            "Tty": container.tty,
            "OpenStdin": false,
            "Env": container.env,
            "Cmd": container.command,
            "Image": container.image,
            "WorkingDir": container.workdir,
            "Entrypoint": null,
            "Labels": labels(&container),
        },
        "HostConfig": { "NetworkMode": "default", "LogConfig": { "Type": "json-file", "Config": {} } },
        "NetworkSettings": {
            "Ports": ports,
            "IPAddress": container.addresses.first().map(ToString::to_string).unwrap_or_default(),
            "Networks": networks(&container),
        },
    })))
}

pub(super) async fn stop(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let container = find(&app, &id).await?;
    let signal = params.text("signal").map(Signal::parse).transpose()?;
    let grace = params.number::<i64>("t")?.and_then(|secs| u64::try_from(secs).ok()).map(Millis::from_secs);
    if container.state != ContainerState::Running {
        return Ok(StatusCode::NOT_MODIFIED);
    }
    app.node.stop(container.task, signal, grace).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn kill(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let container = find(&app, &id).await?;
    let signal = params.text("signal").map(Signal::parse).transpose()?.unwrap_or(Signal::KILL);
    if container.state != ContainerState::Running {
        return Err(ApiError::conflict(format!("container {} is not running", container.task)));
    }
    app.node.kill(container.task, signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn create() -> ApiError {
    ApiError::unsupported(
        "containers outside of services are not supported yet: use \"docker service create\" or \"edgectl service create\"",
    )
}

/// What a container's service decides.
const LIFE: [&str; 7] = ["start", "restart", "pause", "unpause", "rename", "update", "removing it"];

pub(super) async fn not_alone(State(app): State<App>, request: axum::extract::Request) -> ApiError {
    let path = request.uri().path().trim_start_matches("/containers/");
    let (id, verb) = path.split_once('/').unwrap_or((path, "removing it"));
    match find(&app, id).await {
        Err(error) => error,
        Ok(container) if LIFE.contains(&verb) => ApiError::unsupported(format!(
            "{verb} is not supported for container {}: it belongs to service {}, change that instead",
            container.name, container.service_name
        )),
        Ok(_) => ApiError::unsupported(format!("{verb} is not supported for containers yet")),
    }
}

pub(super) async fn stats(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let container = find(&app, &id).await?;
    let task = container.task;
    let stream = params.text("stream").is_none() || params.flag("stream");
    let one_shot = params.flag("one-shot");
    if container.state != ContainerState::Running {
        return Ok(Json(stats_json(&container, &Stats::default(), None)).into_response());
    }
    let first = app.node.stats(task).await?;
    if !stream {
        if one_shot {
            return Ok(Json(stats_json(&container, &first, None)).into_response());
        }
        tokio::time::sleep(STATS_INTERVAL).await;
        let second = app.node.stats(task).await?;
        return Ok(Json(stats_json(&container, &second, Some(&first))).into_response());
    }
    let readings = futures_util::stream::unfold(
        (app.clone(), container, None::<Stats>, Some(first)),
        |(app, container, before, next)| async move {
            let reading = match next {
                Some(first) => first,
                None => {
                    tokio::time::sleep(STATS_INTERVAL).await;
                    match app.node.stats(container.task).await {
                        Ok(reading) => reading,
                        Err(Failure::NotFound(_) | Failure::Conflict(_)) => return None,
                        Err(failure) => {
                            tracing::debug!(error = %failure, "a stats stream ends");
                            return None;
                        }
                    }
                }
            };
            let line = Bytes::from(format!("{}\n", stats_json(&container, &reading, before.as_ref())));
            Some((Ok(line), (app, container, Some(reading), None)))
        },
    );
    Ok(frames::body(&app, "application/json", readings))
}

fn stats_json(container: &Container, now: &Stats, before: Option<&Stats>) -> Value {
    let cpu = |stats: &Stats| {
        json!({
            "cpu_usage": {
                "total_usage": stats.cpu_nanos,
                "usage_in_kernelmode": stats.cpu_system_nanos,
                "usage_in_usermode": stats.cpu_user_nanos,
            },
            "system_cpu_usage": stats.machine_cpu_nanos,
            "online_cpus": stats.online_cpus,
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
        })
    };
    let networks: Map<String, Value> = now
        .networks
        .iter()
        .map(|(name, n)| {
            let counters = json!({
                "rx_bytes": n.rx_bytes, "rx_packets": n.rx_packets, "rx_errors": 0, "rx_dropped": 0,
                "tx_bytes": n.tx_bytes, "tx_packets": n.tx_packets, "tx_errors": 0, "tx_dropped": 0,
            });
            (name.clone(), counters)
        })
        .collect();
    json!({
        "name": format!("/{}", full_name(container)),
        "id": container.task.to_string(),
        "read": or_zero(Some(now.at).filter(|at| *at != 0)),
        "preread": or_zero(before.map(|before| before.at)),
        "num_procs": 0,
        "pids_stats": { "current": now.pids, "limit": now.pids_limit },
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before.unwrap_or(&Stats::default())),
        "memory_stats": {
            "usage": now.memory_bytes,
            "limit": now.memory_limit_bytes,
            "stats": { "inactive_file": now.memory_inactive_file_bytes, "total_inactive_file": now.memory_inactive_file_bytes },
        },
        "networks": networks,
        "blkio_stats": { "io_service_bytes_recursive": [
            { "major": 0, "minor": 0, "op": "read", "value": now.block_read_bytes },
            { "major": 0, "minor": 0, "op": "write", "value": now.block_write_bytes },
        ] },
    })
}
