//! `/swarm`: the cluster itself.

use super::objects::SwarmInit;
use crate::api::{App, error::ApiError, node::InitRequest, request::JsonBody, time::rfc3339_millis};
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

pub(super) async fn inspect(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let state = app.read().await?;
    let Some(cluster) = &state.cluster else {
        return Err(crate::api::node::ProposeError::NoCluster.into());
    };
    let at = rfc3339_millis(cluster.created_at);
    Ok(Json(json!({
        "ID": cluster.id.to_string(),
        "Version": { "Index": cluster.revision },
        "CreatedAt": at,
        "UpdatedAt": at,
        "Spec": {
            "Name": "default",
            "Labels": {},
            "Orchestration": { "TaskHistoryRetentionLimit": cluster.settings.task_history },
            "Raft": {},
            "Dispatcher": {},
            "CAConfig": {},
            "TaskDefaults": {},
            "EncryptionConfig": { "AutoLockManagers": false },
        },
        "TLSInfo": {},
        "RootRotationInProgress": false,
        "DataPathPort": 4789,
        "DefaultAddrPool": null,
        "SubnetSize": 24,
        "JoinTokens": { "Worker": "", "Manager": "" },
    })))
}

pub(super) async fn init(
    State(app): State<App>,
    JsonBody(body): JsonBody<SwarmInit>,
) -> Result<Json<String>, ApiError> {
    if body.force_new_cluster {
        return Err(ApiError::unsupported("invalid ForceNewCluster: not supported yet"));
    }
    if body.auto_lock_managers {
        return Err(ApiError::unsupported("invalid AutoLockManagers: not supported yet"));
    }
    if !body.data_path_addr.is_empty() {
        return Err(ApiError::unsupported("invalid DataPathAddr: not supported yet"));
    }
    if !matches!(body.data_path_port, 0 | 4789) {
        return Err(ApiError::unsupported("invalid DataPathPort: not supported yet"));
    }
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let request = InitRequest {
        advertise_addr: text(body.advertise_addr),
        listen_addr: text(body.listen_addr),
        availability: text(body.availability).map(|text| super::nodes::availability(&text)).transpose()?,
        task_history: body.spec.orchestration.task_history_retention_limit,
    };
    let id = app.cluster.init(request).await?;
    tracing::info!(node = %id, "cluster initialised");
    Ok(Json(id.to_string()))
}

pub(super) async fn not_yet(Path(verb): Path<String>) -> ApiError {
    match verb.as_str() {
        "join" | "leave" | "update" | "unlock" | "unlockkey" => {
            ApiError::unsupported(format!("swarm {verb} is not supported yet: this version runs clusters of one node"))
        }
        _ => ApiError::not_found("page not found"),
    }
}
