//! What the node is: `_ping`, `version`, `info`, `system/df`, `auth`.

use super::view::kernel_arch;
use crate::api::{
    App,
    error::ApiError,
    node::{Container, ContainerState, Credentials, MachineInfo, Membership},
    request::JsonBody,
    server::{API_VERSION, MIN_API_VERSION},
    time,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, Method, header},
    response::{IntoResponse, Response},
};
use orchestrator_core::model::Role;
use serde_json::{Value, json};

/// Docker's words for how a node takes part in a cluster.
fn local_state(membership: &Membership) -> &'static str {
    match (&membership.error, membership.cluster) {
        (Some(_), _) => "error",
        (None, _) if membership.joining => "pending",
        (None, Some(_)) => "active",
        (None, None) => "inactive",
    }
}

pub(super) async fn ping(State(app): State<App>, method: Method) -> Response {
    let membership = app.cluster.membership();
    let swarm = match (local_state(&membership), membership.role) {
        ("active", Some(Role::Manager)) => "active/manager",
        ("active", _) => "active/worker",
        (other, _) => other,
    };
    let mut response = if method == Method::HEAD { "".into_response() } else { "OK".into_response() };
    let headers = response.headers_mut();
    let fixed = [
        ("api-version", API_VERSION),
        ("ostype", "linux"),
        ("docker-experimental", "false"),
        ("builder-version", "1"),
        ("swarm", swarm),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::SERVER, HeaderValue::from_static(concat!("edged/", env!("CARGO_PKG_VERSION"))));
    response
}

pub(super) async fn version(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let info = app.node.info().await?;
    Ok(Json(json!({
        "Platform": { "Name": "edged" },
        "Components": [{
            "Name": "Engine",
            "Version": info.version,
            "Details": {
                "ApiVersion": API_VERSION,
                "MinAPIVersion": MIN_API_VERSION,
                "Arch": info.platform.arch,
                "Os": info.platform.os,
                "KernelVersion": info.kernel,
                "GitCommit": info.commit,
                "Experimental": "false",
            },
        }],
        "Version": info.version,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "GitCommit": info.commit,
        "Os": info.platform.os,
        "Arch": info.platform.arch,
        "KernelVersion": info.kernel,
    })))
}

pub(super) async fn info(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let info = app.node.info().await?;
    let containers = app.node.containers().await?;
    let images = app.node.images().await?.len();
    let count = |state| containers.iter().filter(|container: &&Container| container.state == state).count();
    let running = count(ContainerState::Running);
    let membership = app.cluster.membership();
    let mut answer = json!({
        "ID": membership.node.map(|id| id.to_string()).unwrap_or_default(),
        "Name": info.hostname,
        "ServerVersion": info.version,
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.len() - running,
        "Images": images,
        "Driver": "overlay2",
        "DriverStatus": [],
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": info.cgroup_version.to_string(),
        "Plugins": { "Volume": ["local"], "Network": [], "Authorization": null, "Log": ["json-file", "local"] },
    });
    let kernel = json!({
        "MemoryLimit": true,
        "SwapLimit": false,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "OomKillDisable": false,
    });
    let machine = json!({
        "Debug": false,
        "SystemTime": time::rfc3339_millis((app.now)()),
        "KernelVersion": info.kernel,
        "OperatingSystem": info.os_name,
        "OSVersion": info.os_version,
        "OSType": info.platform.os,
        "Architecture": kernel_arch(&info.platform.arch),
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "DockerRootDir": info.data_dir,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": { "IndexConfigs": {}, "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"], "Mirrors": [] },
        "Labels": info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(),
        "ExperimentalBuild": false,
        "LiveRestoreEnabled": true,
        "DefaultRuntime": "libcontainer",
        "Runtimes": { "libcontainer": { "path": "edged" } },
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": info.warnings,
        "Swarm": swarm_info(&app, &membership, &info),
    });
    for part in [kernel, machine] {
        if let (Value::Object(all), Value::Object(part)) = (&mut answer, part) {
            all.extend(part);
        }
    }
    Ok(Json(answer))
}

fn swarm_info(app: &App, membership: &Membership, info: &MachineInfo) -> Value {
    let state = app.cluster.state();
    let address = if membership.address.is_empty() { &info.hostname } else { &membership.address };
    let managers: Vec<Value> = membership
        .managers
        .iter()
        .map(|(id, peer)| json!({ "NodeID": id.to_string(), "Addr": peer.address }))
        .collect();
    let manager = membership.cluster.is_some() && membership.role == Some(Role::Manager);
    let mut swarm = json!({
        "NodeID": membership.node.filter(|_| membership.cluster.is_some()).map(|id| id.to_string()).unwrap_or_default(),
        "NodeAddr": if membership.cluster.is_some() { address.as_str() } else { "" },
        "LocalNodeState": local_state(membership),
        "ControlAvailable": manager,
        "Error": membership.error.clone().unwrap_or_default(),
        "RemoteManagers": managers,
    });
    if let (true, Some(cluster), Some(map)) = (manager, &state.cluster, swarm.as_object_mut()) {
        let count = state.nodes.values().filter(|node| node.role == Role::Manager).count();
        map.insert("Nodes".into(), state.nodes.len().into());
        map.insert("Managers".into(), count.into());
        map.insert("Cluster".into(), super::swarm::info(cluster));
    }
    swarm
}

pub(super) async fn disk_usage(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let usage = app.node.disk_usage().await?;
    let images = app.node.images().await?;
    let containers = app.node.containers().await?;
    Ok(Json(json!({
        "LayersSize": usage.images_bytes,
        "Images": images.iter().map(super::images::summary).collect::<Vec<_>>(),
        "Containers": containers.iter().map(super::containers::summary).collect::<Vec<_>>(),
        "Volumes": usage.volumes.iter().map(|(name, bytes)| json!({
            "Name": name, "Driver": "local", "Mountpoint": "", "Scope": "local", "Labels": {}, "Options": {},
            "UsageData": { "Size": bytes, "RefCount": -1 },
        })).collect::<Vec<_>>(),
        "BuildCache": [],
        "BuilderSize": 0,
        // Ours: what Docker has no words for.
        "Edge": {
            "ImagesReclaimable": usage.images_reclaimable_bytes,
            "Containers": usage.containers_bytes,
            "Logs": usage.logs_bytes,
            "State": usage.state_bytes,
        },
    })))
}

pub(super) async fn auth(
    State(app): State<App>,
    JsonBody(credentials): JsonBody<Credentials>,
) -> Result<Json<Value>, ApiError> {
    app.node.login(credentials).await?;
    Ok(Json(json!({ "Status": "Login Succeeded", "IdentityToken": "" })))
}
