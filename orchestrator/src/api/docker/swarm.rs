//! `/swarm`: the cluster itself: making it, joining and leaving it, its settings and its join tokens.

use super::objects as wire;
use crate::{
    api::{
        App,
        error::ApiError,
        node::{Failure, InitRequest, JoinRequest, ManagerPeer, Membership, ProposeError, SettingsWish},
        proxy,
        request::{JsonBody, Params},
        time::rfc3339_millis,
    },
    pki::{CaDigest, Token},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use orchestrator_core::{
    intent,
    model::{Cluster, Millis, Role, Secret16},
    state::Stored,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Docker waits this long for a join before it tells that it goes on by itself.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// Docker's only name for a cluster.
const NAME: &str = "default";
const NANOS_PER_MILLI: u64 = 1_000_000;

/// The cluster in Docker's form, without what only managers' users may see.
pub(super) fn info(cluster: &Stored<Cluster>) -> Value {
    let at = rfc3339_millis(cluster.created_at);
    let settings = &cluster.settings;
    json!({
        "ID": cluster.id.to_string(),
        "Version": { "Index": cluster.revision },
        "CreatedAt": at,
        "UpdatedAt": at,
        "Spec": {
            "Name": NAME,
            "Labels": settings.labels,
            "Orchestration": { "TaskHistoryRetentionLimit": settings.task_history },
            "Raft": {},
            "Dispatcher": { "HeartbeatPeriod": settings.heartbeat.0.saturating_mul(NANOS_PER_MILLI) },
            "CAConfig": { "NodeCertExpiry": settings.cert_validity.0.saturating_mul(NANOS_PER_MILLI) },
            "TaskDefaults": {},
            "EncryptionConfig": { "AutoLockManagers": false },
        },
        "TLSInfo": tls_info(cluster),
        "RootRotationInProgress": false,
        "DataPathPort": 4789,
        "DefaultAddrPool": null,
        "SubnetSize": 24,
    })
}

/// The cluster's authority: its certificate as PEM, its name and public key as base64 of their DER.
pub(super) fn tls_info(cluster: &Cluster) -> wire::TlsInfo {
    let der = &cluster.ca.certificate;
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return wire::TlsInfo::default() };
    let lines: Vec<String> =
        STANDARD.encode(der).as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into()).collect();
    wire::TlsInfo {
        trust_root: format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")),
        cert_issuer_subject: STANDARD.encode(parsed.subject().as_raw()),
        cert_issuer_public_key: STANDARD.encode(parsed.public_key().raw),
    }
}

fn join_token(cluster: &Cluster, secret: Secret16) -> String {
    Token { digest: CaDigest::of(&cluster.ca.certificate), secret: secret.0 }.to_string()
}

pub(super) async fn inspect(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let state = app.read().await?;
    let cluster = state.cluster.as_ref().ok_or(ProposeError::NoCluster)?;
    let mut answer = info(cluster);
    answer["JoinTokens"] = json!({
        "Worker": join_token(cluster, cluster.tokens.worker),
        "Manager": join_token(cluster, cluster.tokens.manager),
    });
    Ok(Json(answer))
}

/// Settings that a spec asks for; what this version does not have is refused by name.
fn wish(spec: wire::SwarmSpec) -> Result<SettingsWish, ApiError> {
    if !matches!(spec.name.as_str(), "" | NAME) {
        return Err(ApiError::invalid("invalid Spec.Name: swarm spec must be named \"default\""));
    }
    if spec.encryption_config.auto_lock_managers {
        return Err(ApiError::unsupported("invalid EncryptionConfig.AutoLockManagers: not supported yet"));
    }
    let millis = |nanos: u64| (nanos > 0).then(|| Millis(nanos.div_ceil(NANOS_PER_MILLI)));
    Ok(SettingsWish {
        task_history: spec.orchestration.task_history_retention_limit,
        heartbeat: millis(spec.dispatcher.heartbeat_period),
        cert_validity: millis(spec.ca_config.node_cert_expiry),
        labels: spec.labels,
    })
}

fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn data_path(address: &str) -> Result<(), ApiError> {
    match address {
        "" => Ok(()),
        _ => Err(ApiError::unsupported("invalid DataPathAddr: not supported yet")),
    }
}

/// Refuses when this node is part of a cluster or about to be.
fn check_outside(membership: &Membership) -> Result<(), ApiError> {
    let refuse = |text: &str| Err(Failure::Unavailable(text.into()).into());
    if membership.joining {
        return refuse("This node is just joining a swarm: see \"edgectl info\" for how far it is");
    }
    if membership.cluster.is_some() {
        return refuse(
            "This node is already part of a swarm. Use \"docker swarm leave\" (or \"edgectl cluster leave\") to leave this \
             swarm and join another one.",
        );
    }
    Ok(())
}

pub(super) async fn init(
    State(app): State<App>,
    JsonBody(body): JsonBody<wire::SwarmInit>,
) -> Result<Json<String>, ApiError> {
    if body.auto_lock_managers {
        return Err(ApiError::unsupported("invalid AutoLockManagers: not supported yet"));
    }
    data_path(&body.data_path_addr)?;
    if !matches!(body.data_path_port, 0 | 4789) {
        return Err(ApiError::unsupported("invalid DataPathPort: not supported yet"));
    }
    let membership = app.cluster.membership();
    match (body.force_new_cluster, membership.role) {
        (true, Some(Role::Worker)) => return Err(proxy::not_manager(&app)),
        (true, Some(Role::Manager)) => {}
        _ => check_outside(&membership)?,
    }
    let request = InitRequest {
        advertise_addr: text(body.advertise_addr),
        listen_addr: text(body.listen_addr),
        availability: text(body.availability).map(|text| super::nodes::availability(&text)).transpose()?,
        settings: wish(body.spec)?,
        force_new_cluster: body.force_new_cluster && membership.cluster.is_some(),
    };
    let id = app.cluster.init(request).await?;
    tracing::info!(node = %id, "cluster initialised");
    Ok(Json(id.to_string()))
}

pub(super) async fn join(State(app): State<App>, JsonBody(body): JsonBody<wire::SwarmJoin>) -> Result<(), ApiError> {
    data_path(&body.data_path_addr)?;
    check_outside(&app.cluster.membership())?;
    let request = JoinRequest {
        token: body.join_token.trim().into(),
        addresses: body.remote_addrs,
        advertise_addr: text(body.advertise_addr),
        listen_addr: text(body.listen_addr),
        availability: text(body.availability).map(|text| super::nodes::availability(&text)).transpose()?,
    };
    // Goes on when the client gives up or the time is over.
    let cluster = Arc::clone(&app.cluster);
    let joining = tokio::spawn(async move { cluster.join(request).await });
    match tokio::time::timeout(JOIN_PATIENCE, joining).await {
        Ok(Ok(joined)) => {
            let node = joined?;
            tracing::info!(%node, "joined a cluster");
            Ok(())
        }
        Ok(Err(broken)) => Err(Failure::Internal { what: "joining".into(), cause: broken.into() }.into()),
        Err(_) => Err(Failure::Unavailable(
            "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \
             \"docker info\" (or \"edgectl info\") command to see the current swarm status of your node."
                .into(),
        )
        .into()),
    }
}

pub(super) async fn leave(State(app): State<App>, params: Params) -> Result<(), ApiError> {
    let force = params.flag("force");
    let membership = app.cluster.membership();
    if membership.cluster.is_none() && !membership.joining {
        return Err(Failure::Unavailable("This node is not part of a swarm".into()).into());
    }
    if membership.role == Some(Role::Manager) && !force {
        return Err(Failure::Unavailable(why_managers_stay(&membership)).into());
    }
    app.cluster.leave(force).await?;
    tracing::info!("left the cluster");
    Ok(())
}

/// What a cluster loses with this manager, in Docker's words.
fn why_managers_stay(membership: &Membership) -> String {
    let others: Vec<&ManagerPeer> =
        membership.managers.iter().filter(|(id, _)| Some(**id) != membership.node).map(|(_, peer)| peer).collect();
    let reachable = others.iter().filter(|peer| peer.reachable != Some(false)).count();
    let start = "You are attempting to leave the swarm on a node that is participating as a manager.";
    if others.is_empty() {
        return format!(
            "{start} Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
        );
    }
    if reachable <= others.len().div_ceil(2) {
        return format!(
            "{start} Removing this node leaves {reachable} managers out of {}. Without a Raft quorum your swarm will be \
             inaccessible. The only way to restore a swarm that has lost consensus is to reinitialize it with \
             `--force-new-cluster`. Use `--force` to suppress this message.",
            others.len() + 1
        );
    }
    format!(
        "{start} Demote it first (\"edgectl node demote self\" or \"docker node demote\"), or use `--force`: it then counts as a \
         manager that is down, of {} in all, until it is demoted and removed.",
        others.len() + 1
    )
}

pub(super) async fn update(
    State(app): State<App>,
    params: Params,
    JsonBody(body): JsonBody<wire::SwarmSpec>,
) -> Result<(), ApiError> {
    let version: u64 = params
        .number("version")?
        .ok_or_else(|| ApiError::invalid("invalid swarm version '': the number in Version.Index is required"))?;
    if params.flag("rotateManagerUnlockKey") {
        return Err(ApiError::unsupported("rotating the unlock key: autolock is not supported yet"));
    }
    let wish = wish(body)?;
    app.change(|state, now| {
        let settings = state.cluster.as_ref().map(|cluster| cluster.settings.clone()).unwrap_or_default();
        Ok(((), intent::update_cluster(state, version, wish.clone().over(settings), now)?))
    })
    .await?;
    for (flag, role) in [("rotateWorkerToken", Role::Worker), ("rotateManagerToken", Role::Manager)] {
        if params.flag(flag) {
            let mut secret = [0; 16];
            rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| Failure::Internal { what: "making a token".into(), cause: error.into() })?;
            app.change(|state, now| Ok(((), intent::rotate_token(state, role, Secret16(secret), now)?))).await?;
            tracing::info!(?role, "join token rotated");
        }
    }
    Ok(())
}

/// There is none: the cluster's keys are not locked.
pub(super) async fn unlock_key(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    app.read().await?;
    Ok(Json(json!({ "UnlockKey": "" })))
}

pub(super) async fn unlock(State(app): State<App>) -> ApiError {
    match app.cluster.membership().cluster {
        Some(_) => ApiError::conflict("swarm is not locked"),
        None => ProposeError::NoCluster.into(),
    }
}

pub(super) async fn unknown(Path(verb): Path<String>) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("page not found: /swarm/{verb}"))
}
