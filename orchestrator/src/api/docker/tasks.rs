//! `/tasks`: list and inspect.

use super::{objects as wire, view::View};
use crate::api::{App, error::ApiError, request::Params};
use axum::{
    Json,
    extract::{Path, State},
};
use orchestrator_core::{
    find,
    model::{NodeId, ServiceId},
};
use std::collections::BTreeSet;

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<Vec<wire::Task>>, ApiError> {
    let filters =
        params.filters(&["id", "label", "name", "node", "service", "desired-state", "runtime", "_up-to-date"])?;
    let state = app.read().await?;
    let (live, reasons) = (app.cluster.live(), app.cluster.reasons());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let services: BTreeSet<ServiceId> =
        filters.get("service").iter().filter_map(|text| find::find_service(&state, text).ok()).collect();
    if let Some(unknown) = filters.get("service").iter().find(|text| find::find_service(&state, text).is_err()) {
        return Err(ApiError::not_found(format!("service {unknown} not found")));
    }
    let nodes: BTreeSet<NodeId> =
        filters.get("node").iter().map(|text| find::find_node(&state, text)).collect::<Result<_, _>>()?;
    if let Some(wrong) = filters.get("desired-state").iter().find(|text| {
        !["running", "shutdown", "accepted", "ready", "remove", "complete"].contains(&text.to_lowercase().as_str())
    }) {
        return Err(ApiError::invalid(format!("invalid filter 'desired-state={wrong}'")));
    }
    let up_to_date = !filters.get("_up-to-date").is_empty();
    let mut tasks = Vec::new();
    for task in state.tasks.values() {
        let id = task.id.to_string();
        let placed = task.placed.as_ref().map(|placed| placed.node);
        let service = state.services.get(&task.service);
        let keep = (services.is_empty() || services.contains(&task.service))
            && (nodes.is_empty() || placed.is_some_and(|node| nodes.contains(&node)))
            && filters.any("id", |wanted| id.starts_with(wanted))
            && filters.any("runtime", |wanted| wanted == "container")
            && filters.any("name", |wanted| format!("{}.{id}", state.task_name(task)).starts_with(wanted))
            && filters.labels("label", &Default::default())
            && (!up_to_date || service.is_some_and(|service| service.current == task.version));
        if !keep {
            continue;
        }
        let shown = view.task(task);
        if filters.any("desired-state", |wanted| {
            let wanted = wanted.to_lowercase();
            shown.desired_state == wanted || (wanted == "shutdown" && shown.desired_state == "complete")
        }) {
            tasks.push(shown);
        }
    }
    Ok(Json(tasks))
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<wire::Task>, ApiError> {
    let state = app.read().await?;
    let id = find::find_task(&state, &id)?;
    let (live, reasons) = (app.cluster.live(), app.cluster.reasons());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let task = state.tasks.get(&id).ok_or_else(|| ApiError::not_found(format!("task {id} not found")))?;
    Ok(Json(view.task(task)))
}
