//! Docker's Engine API (v1.47), as far as cluster and node objects go. Shapes and words are Docker's; a wish that this
//! version cannot fulfil is refused by name, never dropped in silence. One file per family of routes.

pub mod convert;
pub mod events;
pub mod objects;
pub mod spec;

mod containers;
mod exec;
pub(crate) mod frames;
mod images;
pub(super) mod lines;
mod logs;
mod nodes;
mod services;
mod swarm;
mod system;
mod tasks;
mod view;

use super::{App, error::ApiError};
use axum::{
    Router,
    http::Request,
    routing::{any, delete, get, post},
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/auth", post(system::auth))
        .route("/events", get(events::stream))
        .route("/system/df", get(system::disk_usage))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/unlock", post(swarm::unlock))
        .route("/swarm/{verb}", any(swarm::unknown))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::of_service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/{id}", delete(containers::not_alone))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/logs", get(logs::of_container))
        .route("/containers/{id}/stats", get(containers::stats))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/containers/{id}/{verb}", any(containers::not_alone))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::pull))
        .route("/images/load", post(images::load))
        .route("/images/prune", post(images::prune))
        .route("/images/get", get(images::save))
        .route("/images/{*name}", get(images::get).post(images::post).delete(images::remove))
        .route("/distribution/{*name}", get(images::distribution))
        .merge(absent())
}

/// Kinds of objects that this version does not have. Their lists are empty and looking one up finds nothing, which is the
/// truth and lets `docker inspect` go on to the next kind; making one is refused.
fn absent() -> Router<App> {
    let mut router = Router::new();
    for kind in ["networks", "secrets", "configs", "plugins"] {
        let one = kind.trim_end_matches('s');
        let none = move |axum::extract::Path(id): axum::extract::Path<String>| async move {
            ApiError::not_found(format!("No such {one}: {}", id.trim_end_matches("/json")))
        };
        let refuse = move || async move { ApiError::unsupported(format!("{kind} are not supported yet")) };
        router = router
            .route(&format!("/{kind}"), get(|| async { axum::Json(serde_json::json!([])) }).post(refuse))
            .route(&format!("/{kind}/create"), post(refuse))
            .route(&format!("/{kind}/{{*id}}"), get(none).delete(none).post(refuse));
    }
    let volume = |axum::extract::Path(name): axum::extract::Path<String>| async move {
        ApiError::not_found(format!("No such volume: {name}"))
    };
    router
        .route("/volumes/{name}", get(volume))
        .route("/volumes", any(not_yet))
        .route("/volumes/create", any(not_yet))
        .route("/volumes/prune", any(not_yet))
        .route("/build", any(not_yet))
        .route("/build/prune", any(not_yet))
        .route("/commit", any(not_yet))
        .route("/session", any(not_yet))
        .route("/grpc", any(not_yet))
}

async fn not_yet(request: Request<axum::body::Body>) -> ApiError {
    ApiError::unsupported(format!("{} {} is not supported yet", request.method(), request.uri().path()))
}

/// State, message and error of a task, in Docker's words.
pub(super) fn progress(
    state: &orchestrator_core::state::State,
    live: &orchestrator_core::model::Live,
    reasons: &super::node::Reasons,
    task: &orchestrator_core::model::Task,
) -> (&'static str, String, String) {
    let progress = view::View { state, live, reasons }.progress(task);
    (progress.state.as_str(), progress.message, progress.error)
}
