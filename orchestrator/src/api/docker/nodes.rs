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
    http::StatusCode,
};
use orchestrator_core::{
    find,
    intent::{self, NodeWish},
    model::{Availability, Live, NodeId, Role},
    state::{Action, Change, Entry, Key},
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
    Ok(Json(nodes.map(|node| view.node(node, &membership)).collect()))
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<wire::Node>, ApiError> {
    let state = app.read().await?;
    let (live, reasons, membership) = (app.cluster.live(), app.cluster.reasons(), app.cluster.membership());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let id = find::find_node(&state, &id)?;
    let node = state.nodes.get(&id).ok_or_else(|| ApiError::not_found(format!("node {id} not found")))?;
    Ok(Json(view.node(node, &membership)))
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
    let (own, live) = (app.cluster.membership().node, app.cluster.live());
    app.change(|state, now| {
        let id = find::find_node(state, &id)?;
        check_removable(state, &live, own, id, force)?;
        let change = Change { expect: state.revision_of(Key::Node(id)), action: Action::Delete(Key::Node(id)) };
        Ok(((), Entry { at: now, reads: Vec::new(), changes: vec![change] }))
    })
    .await?;
    tracing::info!(node = %id, "node removed");
    Ok(())
}

fn check_removable(
    state: &orchestrator_core::state::State,
    live: &Live,
    own: Option<NodeId>,
    id: NodeId,
    force: bool,
) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::new(StatusCode::BAD_REQUEST, format!("node {id} {why}")));
    let is_manager = state.nodes.get(&id).is_some_and(|node| node.role == Role::Manager);
    if own == Some(id) || is_manager {
        return refuse(
            "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
        );
    }
    if !force && live.nodes.get(&id).is_some_and(|node| node.ready) {
        return refuse("is not down and can't be removed");
    }
    Ok(())
}
