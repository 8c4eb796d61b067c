//! `/nodes`: list, inspect, update, remove.

use super::{objects as wire, view::View};
use crate::api::{
    App,
    error::ApiError,
    request::{JsonBody, Params},
};
use axum::{
    Json,
    extract::{Path, State},
};
use orchestrator_core::{
    find,
    intent::{self, NodeWish},
    model::{Availability, Role},
};

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<Vec<wire::Node>>, ApiError> {
    let filters = params.filters(&["id", "label", "membership", "name", "node.label", "role"])?;
    let state = app.read().await?;
    let (live, reasons, membership) = (app.cluster.live(), app.cluster.reasons(), app.cluster.membership());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let nodes = state.nodes.values().filter(|node| {
        let id = node.id.to_string();
        filters.any("id", |wanted| id.starts_with(wanted))
            && filters.any("name", |wanted| node.hostname.starts_with(wanted))
            && filters.any("role", |wanted| wanted == super::view::role(node.role))
            && filters.any("membership", |wanted| wanted == "accepted")
            && filters.labels("label", &node.description.labels)
            && filters.labels("node.label", &node.labels)
    });
    Ok(Json(nodes.map(|node| view.node(node, &membership, (app.now)())).collect()))
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<wire::Node>, ApiError> {
    let state = app.read().await?;
    let (live, reasons, membership) = (app.cluster.live(), app.cluster.reasons(), app.cluster.membership());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let id = find::find_node(&state, &id)?;
    let node = state.nodes.get(&id).ok_or_else(|| ApiError::not_found(format!("node {id} not found")))?;
    Ok(Json(view.node(node, &membership, (app.now)())))
}

pub(super) fn availability(text: &str) -> Result<Availability, ApiError> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(ApiError::invalid(format!("invalid Availability: {other:?} must be active, pause or drain"))),
    }
}

pub(super) async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(body): JsonBody<wire::NodeSpec>,
) -> Result<(), ApiError> {
    let version: u64 = params
        .number("version")?
        .ok_or_else(|| ApiError::invalid("invalid node version '': the number in Version.Index is required"))?;
    let wish = NodeWish {
        role: match body.role.as_str() {
            "worker" => Role::Worker,
            "manager" => Role::Manager,
            other => return Err(ApiError::invalid(format!("invalid Role: {other:?} must be worker or manager"))),
        },
        availability: availability(&body.availability)?,
        labels: body.labels,
    };
    let live = app.cluster.live();
    app.change(|state, now| {
        let id = find::find_node(state, &id)?;
        Ok(((), intent::update_node(state, &live, id, version, wish.clone(), now)?))
    })
    .await?;
    tracing::info!(node = %id, "node updated");
    Ok(())
}

pub(super) async fn remove(State(app): State<App>, Path(id): Path<String>, params: Params) -> Result<(), ApiError> {
    let force = params.flag("force");
    let live = app.cluster.live();
    app.change(|state, now| {
        let id = find::find_node(state, &id)?;
        Ok(((), intent::remove_node(state, &live, id, force, now)?))
    })
    .await?;
    tracing::info!(node = %id, "node removed");
    Ok(())
}
