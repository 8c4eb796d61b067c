//! `/edge/v1`: what Docker has no words for. JSON in snake case; times as RFC 3339.

use super::{
    App,
    error::ApiError,
    node::{Finding, Interface, Reasons},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use orchestrator_core::{
    find,
    model::{Desired, Mode, TaskId},
    state::State as Cluster,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/doctor", get(doctor))
        .route("/interfaces", get(interfaces))
        .route("/containers/{task}/lines", get(super::docker::lines::of_task_here))
        .route("/services/{id}/explain", get(explain))
}

async fn doctor(State(app): State<App>) -> Json<Vec<Finding>> {
    Json(app.node.doctor().await)
}

async fn interfaces(State(app): State<App>) -> Result<Json<Vec<Interface>>, ApiError> {
    Ok(Json(app.node.interfaces().await?))
}

/// Why a service is as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Id of the service.
    pub id: String,
    /// Name of the service.
    pub name: String,
    /// `replicated` or `global`.
    pub mode: String,
    /// Tasks wanted; for a global service those that exist.
    pub desired: u64,
    /// Tasks that run.
    pub running: u64,
    /// What holds for the service as a whole.
    pub reasons: Vec<String>,
    /// Tasks that are wanted and do not run, and the last ones that ended badly.
    pub tasks: Vec<ExplainedTask>,
}

/// Why a task is as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedTask {
    /// Id of the task.
    pub id: String,
    /// For example `web.1`.
    pub name: String,
    /// Host name of its node; empty if it has none.
    pub node: String,
    /// How far it is.
    pub state: String,
    /// What it is doing.
    pub message: String,
    /// What went wrong, or why it waits.
    pub reasons: Vec<String>,
    /// Why each node refuses it, if all do: by host name and id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub nodes: BTreeMap<String, String>,
}

/// Why each node refuses a task. Nodes that share their host name are told apart by their id.
fn refusals(state: &Cluster, reasons: &Reasons, task: TaskId) -> BTreeMap<String, String> {
    let Some(nodes) = reasons.refusals.get(&task) else { return BTreeMap::new() };
    let mut named = BTreeMap::new();
    for (id, why) in nodes.iter() {
        let hostname = state.nodes.get(id).map_or_else(|| id.to_string(), |node| node.hostname.clone());
        let name = if named.contains_key(&hostname) { format!("{hostname} ({id})") } else { hostname };
        named.insert(name, why.to_string());
    }
    named
}

async fn explain(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Explanation>, ApiError> {
    let state = app.read().await?;
    let id = find::find_service(&state, &id)?;
    let (live, reasons) = (app.cluster.live(), app.cluster.reasons());
    let service = state.services.get(&id).ok_or_else(|| ApiError::not_found(format!("service {id} not found")))?;
    let mode = state.current_spec(service).map(|version| version.value.spec.mode);
    let mut out = Explanation { id: id.to_string(), name: service.name.to_string(), ..Explanation::default() };
    out.reasons = reasons.services.get(&id).cloned().unwrap_or_default();
    if let Some(update) = &service.update
        && !update.message.is_empty()
    {
        out.reasons.push(format!("update: {}", update.message));
    }
    for task in state.tasks.values().filter(|task| task.service == id) {
        let progress = super::docker::progress(&state, &live, &reasons, task);
        let wanted = task.desired == Desired::Run && task.outcome.is_none();
        out.desired += u64::from(wanted);
        if progress.0 == "running" && wanted {
            out.running += 1;
            continue;
        }
        let mut why = reasons.tasks.get(&task.id).cloned().unwrap_or_default();
        if why.is_empty() && !progress.2.is_empty() {
            why.push(progress.2);
        }
        if !wanted && why.is_empty() {
            continue;
        }
        let node = task.placed.as_ref().and_then(|placed| state.nodes.get(&placed.node));
        out.tasks.push(ExplainedTask {
            id: task.id.to_string(),
            name: state.task_name(task),
            node: node.map(|node| node.hostname.clone()).unwrap_or_default(),
            state: progress.0.into(),
            message: progress.1,
            reasons: why,
            nodes: refusals(&state, &reasons, task.id),
        });
    }
    match mode {
        Some(Mode::Replicated { replicas }) => {
            out.mode = "replicated".into();
            out.desired = u64::from(replicas);
        }
        _ => out.mode = "global".into(),
    }
    Ok(Json(out))
}
