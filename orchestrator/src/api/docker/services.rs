//! `/services`: list, create, inspect, update, roll back, remove.

use super::{convert, objects as wire, spec::ServiceSpec, view::View};
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
    find::{self, FindError},
    intent::{self, Refusal},
    model::Mode,
};

impl From<FindError> for ApiError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::NotFound { .. } => Self::not_found(error.to_string()),
            FindError::Ambiguous { .. } => Self::invalid(error.to_string()),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Invalid(_) | Refusal::PortTaken { .. } | Refusal::OutOfSequence | Refusal::Precondition(_) => {
                Self::invalid(message)
            }
            Refusal::Find(error) => error.into(),
            Refusal::NameTaken { .. } => Self::conflict(message),
            Refusal::Unsupported(_) => Self::unsupported(message),
            Refusal::NoCluster => Self::new(StatusCode::SERVICE_UNAVAILABLE, message),
            Refusal::Removed(_) => Self::new(StatusCode::FORBIDDEN, message),
        }
    }
}

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<Vec<wire::Service>>, ApiError> {
    let filters = params.filters(&["id", "label", "mode", "name", "runtime"])?;
    let with_status = params.flag("status");
    let state = app.read().await?;
    let (live, reasons) = (app.cluster.live(), app.cluster.reasons());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let services = state.services.values().filter(|service| !service.removed).filter(|service| {
        let Some(version) = state.current_spec(service) else { return false };
        let mode = match version.value.spec.mode {
            Mode::Replicated { .. } => "replicated",
            Mode::Global => "global",
        };
        let id = service.id.to_string();
        filters.any("id", |wanted| id.starts_with(wanted))
            && filters.any("name", |wanted| service.name.as_str().starts_with(wanted))
            && filters.any("mode", |wanted| wanted == mode)
            && filters.any("runtime", |wanted| wanted == "container")
            && filters.labels("label", &version.value.spec.labels)
    });
    Ok(Json(services.map(|service| view.service(service, with_status)).collect()))
}

pub(super) async fn create(
    State(app): State<App>,
    JsonBody(body): JsonBody<ServiceSpec>,
) -> Result<(StatusCode, Json<wire::ServiceCreated>), ApiError> {
    let id = app
        .change(|state, now| {
            let mut body = body.clone();
            if body.name.is_empty() {
                body.name = free_name(state);
            }
            Ok(intent::create_service(state, convert::service_spec(&body, None)?, now)?)
        })
        .await?;
    tracing::info!(service = %id, name = body.name, "service created");
    Ok((StatusCode::CREATED, Json(wire::ServiceCreated { id: id.to_string(), warnings: Vec::new() })))
}

const ADJECTIVES: [&str; 16] = [
    "bold", "brave", "bright", "calm", "clever", "eager", "gentle", "happy", "keen", "kind", "lively", "proud",
    "quiet", "swift", "warm", "wise",
];
const NOUNS: [&str; 16] = [
    "badger", "beaver", "crane", "falcon", "finch", "heron", "ibex", "lynx", "marten", "otter", "owl", "plover",
    "raven", "seal", "stoat", "wren",
];

/// A name for a service whose user gave none, as Docker's daemon does.
fn free_name(state: &orchestrator_core::state::State) -> String {
    let taken = |name: &str| state.services.values().any(|service| service.name.as_str() == name);
    let start = usize::try_from(state.revision).unwrap_or(0);
    // The step is odd and so visits all 256 pairs before it comes round; a number follows when all are taken.
    let candidates = (0..).map(|round: usize| {
        let at = start.wrapping_add(round).wrapping_mul(167) % (ADJECTIVES.len() * NOUNS.len());
        let name = format!("{}_{}", ADJECTIVES[at % ADJECTIVES.len()], NOUNS[at / ADJECTIVES.len()]);
        if round < ADJECTIVES.len() * NOUNS.len() { name } else { format!("{name}{round}") }
    });
    let mut free = candidates.filter(|name| !taken(name));
    free.next().expect("there are more names than services")
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<wire::Service>, ApiError> {
    let state = app.read().await?;
    let id = find::find_service(&state, &id)?;
    let (live, reasons) = (app.cluster.live(), app.cluster.reasons());
    let view = View { state: &state, live: &live, reasons: &reasons };
    let service = state.services.get(&id).ok_or_else(|| ApiError::not_found(format!("service {id} not found")))?;
    Ok(Json(view.service(service, false)))
}

pub(super) async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(body): JsonBody<ServiceSpec>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let version: u64 = params
        .number("version")?
        .ok_or_else(|| ApiError::invalid("invalid service version '': the number in Version.Index is required"))?;
    let rollback = match params.text("rollback") {
        None => false,
        Some("previous") => true,
        Some(other) => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    };
    app.change(|state, now| {
        let id = find::find_service(state, &id)?;
        if rollback {
            return Ok(((), intent::rollback_service(state, id, version, now)?));
        }
        let before = state.services.get(&id).and_then(|service| state.current_spec(service));
        let spec = convert::service_spec(&body, before.map(|version| &*version.value.spec))?;
        Ok(((), intent::update_service(state, id, version, spec, now)?))
    })
    .await?;
    tracing::info!(service = %id, rollback, "service updated");
    Ok(Json(serde_json::json!({ "Warnings": null })))
}

pub(super) async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<(), ApiError> {
    app.change(|state, now| {
        let id = find::find_service(state, &id)?;
        Ok(((), intent::remove_service(state, id, now)?))
    })
    .await?;
    tracing::info!(service = %id, "service removed");
    Ok(())
}
