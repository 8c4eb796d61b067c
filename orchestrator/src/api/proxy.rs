//! Which node answers a request. Requests for the cluster are the leader's: other managers pass them on over a stream from
//! [`Remote::dial`](super::node::Remote::dial) and pass the answer back, bodies and upgrades included; a caller waits
//! through an election instead of failing in it. Requests under `/edge/v1/nodes/{node}/api` are the named node's. All others
//! are answered here. In: requests of users, from `server`. The far side (`server::serve_stream`) never passes anything on,
//! so that no request can go round in circles.

use super::{
    App,
    error::{ApiError, NOT_LEADER},
    node::{Failure, Io, Leader},
};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{body::Body as _, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use orchestrator_core::{find, model::NodeId};
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// A request waits this long for a leader: an election takes 1.5-3 s, and the new leader's first commit a moment more.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks at who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A node of the local network that does not answer by then is down or cut off.
const DIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Bodies up to this size are kept so that the request can be sent again; specs of services are far smaller.
const REPEATABLE_BODY: u64 = 1 << 20;
/// Where requests for one node begin; its own path follows after `/{node}/api`.
const NODES: &str = "/edge/v1/nodes/";

/// Who answers.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Here,
    Leader,
    Node { name: String, uri: Uri },
}

fn target(uri: &Uri) -> Result<Target, ApiError> {
    let path = uri.path();
    if let Some((name, rest)) = path.strip_prefix(NODES).and_then(|rest| rest.split_once("/api/")) {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let uri = format!("/{rest}{query}").parse();
        let uri = uri.map_err(|_| ApiError::invalid(format!("not a path: /{rest}")))?;
        return Ok(Target::Node { name: super::request::decode(name), uri });
    }
    let path = path.strip_prefix("/edge/v1").unwrap_or(path);
    let mut segments = path.split('/').skip(1);
    Ok(match (segments.next().unwrap_or(""), segments.next()) {
        ("services" | "tasks" | "nodes", _) => Target::Leader,
        ("swarm", None | Some("" | "update" | "unlockkey")) => Target::Leader,
        _ => Target::Here,
    })
}

/// Has a user's request answered by the node whose it is.
pub(super) async fn near<L, F>(app: &App, local: L, request: Request<Body>) -> Response
where
    L: Fn(Request<Body>) -> F,
    F: Future<Output = Response>,
{
    match target(request.uri()) {
        Ok(Target::Here) => local(request).await,
        Ok(Target::Leader) => at_leader(app, local, request).await,
        Ok(Target::Node { name, uri }) => at_node(app, local, &name, uri, request).await,
        Err(error) => error.into_response(),
    }
}

/// Answers another node's request, or tells it to look for the leader elsewhere.
pub(super) async fn far<F: Future<Output = Response>>(
    app: &App,
    local: impl Fn(Request<Body>) -> F,
    request: Request<Body>,
) -> Response {
    match target(request.uri()) {
        Ok(Target::Here) => local(request).await,
        Ok(Target::Leader) if app.remote.leader() == Leader::Own => local(request).await,
        Ok(Target::Leader) => {
            ApiError::from(Failure::NotLeader("the node that was asked does not lead".into())).into_response()
        }
        Ok(Target::Node { .. }) => ApiError::invalid("a request is passed on once only").into_response(),
        Err(error) => error.into_response(),
    }
}

/// What came of one attempt to have a request answered.
enum Attempt {
    Answer(Response),
    /// Nothing was done; the next attempt may fare better.
    Again(Response),
}

async fn at_leader<L, F>(app: &App, local: L, request: Request<Body>) -> Response
where
    L: Fn(Request<Body>) -> F,
    F: Future<Output = Response>,
{
    let (parts, body) = request.into_parts();
    let mut source = match Source::new(&parts, body).await {
        Ok(source) => source,
        Err(error) => return error.into_response(),
    };
    let deadline = Instant::now() + LEADER_PATIENCE;
    loop {
        let attempt = match app.remote.leader() {
            Leader::NotManager => return not_manager(app).into_response(),
            Leader::None(why) => Attempt::Again(no_leader(&why).into_response()),
            Leader::Own => {
                let response = local(source.request(&parts)).await;
                if is_marked(&response) { Attempt::Again(response) } else { Attempt::Answer(response) }
            }
            Leader::Other(node) => pass_to_leader(app, node, &parts, &mut source).await,
        };
        match attempt {
            Attempt::Answer(response) => return response,
            Attempt::Again(mut response) => {
                if source.is_used_up() || Instant::now() + LOOK_AGAIN >= deadline || app.shutdown.is_cancelled() {
                    response.headers_mut().remove(NOT_LEADER);
                    return response;
                }
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The body of a request, as often as it is needed, if it is small.
enum Source {
    Kept(Bytes),
    Once(Option<Body>),
}

impl Source {
    async fn new(parts: &Parts, body: Body) -> Result<Self, ApiError> {
        let known = body.size_hint().exact().is_some_and(|length| length <= REPEATABLE_BODY);
        if !known && !body.is_end_stream() && parts.method != Method::GET {
            return Ok(Self::Once(Some(body)));
        }
        let kept = super::request::read_body(body).await?;
        Ok(Self::Kept(kept))
    }

    fn request(&mut self, parts: &Parts) -> Request<Body> {
        let body = match self {
            Self::Kept(bytes) => Body::from(bytes.clone()),
            Self::Once(body) => body.take().unwrap_or_default(),
        };
        Request::from_parts(parts.clone(), body)
    }

    /// Whether there is nothing left to send a second time.
    fn is_used_up(&self) -> bool {
        matches!(self, Self::Once(None))
    }
}

fn is_marked(response: &Response) -> bool {
    response.headers().contains_key(NOT_LEADER)
}

/// Docker's words for a node that has no say in a cluster.
pub(super) fn not_manager(app: &App) -> ApiError {
    if app.cluster.membership().cluster.is_none() {
        return super::node::ProposeError::NoCluster.into();
    }
    Failure::Unavailable(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this \
         command on a manager node or promote the current node to a manager."
            .into(),
    )
    .into()
}

/// Docker's words for a cluster that lacks a majority, and ours for why.
fn no_leader(why: &str) -> ApiError {
    Failure::NotLeader(format!(
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the \
         managers are online. ({why})"
    ))
    .into()
}

async fn pass_to_leader(app: &App, node: NodeId, parts: &Parts, source: &mut Source) -> Attempt {
    let unanswered = |why: &str| ApiError::from(Failure::Unavailable(format!("the leader (node {node}) {why}")));
    let stream = match dial(app, node).await {
        Ok(stream) => stream,
        Err(error) => return Attempt::Again(error.into_response()),
    };
    let request = source.request(parts);
    // A leader that dies is not noticed by its silence for long; that another one was elected is.
    let deposed = async {
        while app.remote.leader() == Leader::Other(node) {
            sleep(LOOK_AGAIN).await;
        }
    };
    let broken = tokio::select! {
        sent = send(app, stream, request) => match sent {
            Ok(response) if is_marked(&response) => return Attempt::Again(response),
            Ok(response) => return Attempt::Answer(response),
            Err(error) => format!("broke off: {error}"),
        },
        () = deposed => "lost the lead before it answered".to_owned(),
    };
    if parts.method.is_safe() {
        return Attempt::Again(unanswered(&broken).into_response());
    }
    let text = format!("{broken}; the change may have been made or not: look before trying again");
    Attempt::Answer(unanswered(&text).into_response())
}

async fn at_node<L, F>(app: &App, local: L, name: &str, uri: Uri, mut request: Request<Body>) -> Response
where
    L: Fn(Request<Body>) -> F,
    F: Future<Output = Response>,
{
    *request.uri_mut() = uri;
    if target(request.uri()).ok() != Some(Target::Here) {
        return ApiError::invalid("only what a node answers itself can be asked of it").into_response();
    }
    if app.remote.leader() == Leader::NotManager {
        return not_manager(app).into_response();
    }
    let node = match find::find_node(&app.cluster.state(), name) {
        Ok(node) => node,
        Err(error) => return ApiError::from(error).into_response(),
    };
    if app.cluster.membership().node == Some(node) {
        return local(request).await;
    }
    let stream = match dial(app, node).await {
        Ok(stream) => stream,
        Err(error) => return error.into_response(),
    };
    let sent = send(app, stream, request).await;
    sent.unwrap_or_else(|error| {
        ApiError::from(Failure::Unavailable(format!("node {name} broke off: {error}"))).into_response()
    })
}

/// A stream to another node.
pub(super) async fn dial(app: &App, node: NodeId) -> Result<Box<dyn Io>, ApiError> {
    match timeout(DIAL_PATIENCE, app.remote.dial(node)).await {
        Ok(dialled) => Ok(dialled?),
        Err(_) => {
            let text = format!("node {node} does not answer within {} s", DIAL_PATIENCE.as_secs());
            Err(Failure::Unavailable(text).into())
        }
    }
}

/// Headers that mean one connection, not the request (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [header::HeaderName; 4] =
    [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::TE];

fn keep_end_to_end(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Sends a request over a stream and gives the answer as it comes; an upgrade joins the two connections.
pub(super) async fn send(app: &App, stream: Box<dyn Io>, mut request: Request<Body>) -> hyper::Result<Response> {
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let near: Option<OnUpgrade> = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    keep_end_to_end(request.headers_mut());
    request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("edged"));
    if let Some(protocol) = &upgrade {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol.clone());
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let shutdown = app.shutdown.clone();
    // Ends with the exchange: when the answer was read, or whoever wanted it has dropped it.
    tokio::spawn(async move {
        tokio::select! {
            _ended = connection.with_upgrades() => {}
            () = shutdown.cancelled() => {}
        }
    });
    let mut response = sender.send_request(request).await?;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let (true, Some(near)) = (switched, near) {
        let far = hyper::upgrade::on(&mut response);
        tokio::spawn(join(near, far, app.shutdown.clone()));
    } else {
        keep_end_to_end(response.headers_mut());
    }
    Ok(response.map(|body| Body::new(body.map_err(axum::Error::new))))
}

/// Copies between two upgraded connections until both have ended.
async fn join(near: OnUpgrade, far: OnUpgrade, shutdown: tokio_util::sync::CancellationToken) {
    let (near, far) = match tokio::try_join!(near, far) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
    };
    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
    tokio::select! {
        _copied = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        () = shutdown.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_one_node_that_answers_it() {
        let of = |text: &str| target(&text.parse().unwrap()).unwrap();
        for path in
            ["/services", "/services/web/logs?follow=1", "/tasks/x", "/nodes", "/swarm", "/swarm/update?version=1"]
        {
            assert_eq!(of(path), Target::Leader, "{path}");
        }
        for path in
            ["/info", "/_ping", "/swarm/init", "/swarm/leave", "/containers/json", "/edge/v1/doctor", "/exec/x/start"]
        {
            assert_eq!(of(path), Target::Here, "{path}");
        }
        assert_eq!(of("/edge/v1/services/web/explain"), Target::Leader);
        let uri = "/containers/x/logs?stdout=1".parse().unwrap();
        assert_eq!(of("/edge/v1/nodes/pi2/api/containers/x/logs?stdout=1"), Target::Node { name: "pi2".into(), uri });
    }
}
