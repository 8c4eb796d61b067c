//! Log lines of a task wherever it runs: here from the drivers, elsewhere from its node, which answers [`of_task_here`] with
//! frames that carry the time of each line. Called by `logs`.

use super::frames;
use crate::api::{
    App,
    error::ApiError,
    node::{BoxStream, Failure, LogLine, LogQuery},
    proxy,
    request::{Params, encode},
    time,
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{Request, StatusCode},
    response::Response,
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use orchestrator_core::model::{NodeId, TaskId};
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// A node that was reached has this long to begin its answer; it only has to open a file.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read when a node refuses.
const REFUSAL_MAX: usize = 64 << 10;

/// Lines of one task; see [`LocalNode::logs`](crate::api::node::LocalNode::logs).
///
/// # Errors
/// [`Failure::NotFound`] when its node has no log of it, [`Failure::Unavailable`] when its node does not answer.
pub(super) async fn of(app: &App, task: TaskId, query: LogQuery) -> Result<Lines, Failure> {
    let state = app.cluster.state();
    let node = state.tasks.get(&task).and_then(|task| task.placed.as_ref()).map(|placed| placed.node);
    match node {
        Some(node) if Some(node) != app.cluster.membership().node => {
            let hostname = state.nodes.get(&node).map_or_else(|| node.to_string(), |known| known.hostname.clone());
            let asked = timeout(ANSWER_PATIENCE, ask(app, node, task, &query)).await;
            let asked = asked.unwrap_or_else(|_| Err(Failure::Unavailable("it does not answer".into())));
            asked.map_err(|failure| match failure {
                Failure::NotFound(_) => failure,
                other => incomplete(&hostname, &other),
            })
        }
        _ => app.node.logs(task, query).await,
    }
}

type Lines = BoxStream<Result<LogLine, Failure>>;

/// In Docker's words.
fn incomplete(hostname: &str, why: &Failure) -> Failure {
    Failure::Unavailable(format!(
        "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node {hostname} is not \
         available: {why}"
    ))
}

async fn ask(app: &App, node: NodeId, task: TaskId, query: &LogQuery) -> Result<Lines, Failure> {
    let stream = proxy::dial(app, node).await.map_err(|error| Failure::Unavailable(error.message))?;
    let broken = |error: &dyn std::fmt::Display| Failure::Unavailable(format!("the answer broke off: {error}"));
    let request = Request::get(format!("/edge/v1/containers/{task}/lines?{}", to_text(query))).body(Body::empty());
    let request = request.map_err(|error| broken(&error))?;
    let response = proxy::send(app, stream, request).await.map_err(|error| broken(&error))?;
    if response.status() != StatusCode::OK {
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), REFUSAL_MAX).await.unwrap_or_default();
        let refusal: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = refusal["message"].as_str().map_or_else(|| format!("it answered {status}"), str::to_owned);
        return Err(if status == StatusCode::NOT_FOUND { Failure::NotFound(text) } else { Failure::Unavailable(text) });
    }
    let body = response.into_body().into_data_stream();
    Ok(Box::pin(stream::try_unfold((body, BytesMut::new()), async |(mut body, mut buffer)| {
        loop {
            match frames::take(&mut buffer).map_err(Failure::Unavailable)? {
                Some((frames::SERVER_ERROR, text)) => {
                    return Err(Failure::Unavailable(String::from_utf8_lossy(&text).into_owned()));
                }
                Some((number, payload)) => return Ok(Some((line(number, &payload)?, (body, buffer)))),
                None => {}
            }
            match body.next().await {
                Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(Failure::Unavailable(format!("the answer broke off: {error}"))),
                None => return Ok(None),
            }
        }
    })))
}

fn line(stream: u8, payload: &[u8]) -> Result<LogLine, Failure> {
    let end = payload.iter().position(|byte| *byte == b' ');
    let parsed = end.and_then(|end| {
        let at = time::parse(str::from_utf8(&payload[..end]).ok()?)?;
        Some(LogLine { at, stream: frames::stdio(stream)?, bytes: payload[end + 1..].to_vec().into() })
    });
    parsed.ok_or_else(|| Failure::Unavailable("the node sent a line that cannot be read".into()))
}

fn to_text(query: &LogQuery) -> String {
    let mut text = String::new();
    for (key, on) in [("stdout", query.stdout), ("stderr", query.stderr), ("follow", query.follow)] {
        if on {
            text.push_str(&format!("{key}=1&"));
        }
    }
    let instant = |at: u64| format!("{}.{:09}", at / 1_000_000_000, at % 1_000_000_000);
    let values = [
        ("tail", query.tail.map(|lines| lines.to_string())),
        ("since", query.since.map(instant)),
        ("until", query.until.map(instant)),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            text.push_str(&format!("{key}={}&", encode(&value)));
        }
    }
    text
}

/// The lines of a task that ran or runs on this node: frames, whatever the container has, with times.
pub(in crate::api) async fn of_task_here(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let task = id.parse().map_err(|_| ApiError::invalid(format!("invalid task id {id:?}")))?;
    let query = super::logs::query(&params)?;
    let lines = app.node.logs(task, query).await?;
    let framed = lines.map(|line| match line {
        Ok(line) => {
            let mut text = time::rfc3339_fixed(line.at).into_bytes();
            text.push(b' ');
            text.extend_from_slice(&line.bytes);
            Ok(frames::frame(line.stream, &text))
        }
        Err(failure) => Ok(frames::error_frame(&failure)),
    });
    Ok(frames::body(&app, frames::MULTIPLEXED, framed))
}
