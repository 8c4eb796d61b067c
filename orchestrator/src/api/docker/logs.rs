//! Logs of containers, tasks and services. Those of a service are the logs of all its tasks on whatever nodes, ended ones in
//! the history included; while following, tasks that are made later join in. A node that does not answer costs the lines of
//! its tasks, and a warning stands in their place.

use super::{containers, frames, lines};
use crate::api::{
    App,
    error::ApiError,
    node::{BoxStream, Failure, LogLine, LogQuery, Stdio, UnixNanos},
    request::{Params, encode},
    time,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::join_all,
    stream::{self, Peekable},
};
use orchestrator_core::{
    find,
    model::{ServiceId, TaskId, UnixMillis},
};
use std::{collections::BTreeSet, io, pin::Pin, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};

/// Lines under way to a client; a client that reads slowly slows the readers down.
const LINES_BUFFERED: usize = 64;
/// How often a task whose log has not begun is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often a node that does not answer is asked again.
const NODE_AGAIN: Duration = Duration::from_secs(2);

/// Which lines a request asks for.
pub(super) fn query(params: &Params) -> Result<LogQuery, ApiError> {
    let query = LogQuery {
        follow: params.flag("follow"),
        tail: match params.text("tail") {
            None | Some("all") => None,
            Some(text) => Some(text.parse().map_err(|_| ApiError::invalid(format!("invalid tail: {text:?}")))?),
        },
        since: params.instant("since")?,
        until: params.instant("until")?,
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
    };
    if !query.stdout && !query.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    Ok(query)
}

#[derive(Clone)]
struct Wanted {
    query: LogQuery,
    timestamps: bool,
    details: bool,
    /// A terminal's bytes come as they are, without frames.
    raw: bool,
    now: fn() -> UnixMillis,
}

impl Wanted {
    fn read(app: &App, params: &Params, raw: bool) -> Result<Self, ApiError> {
        let query = query(params)?;
        Ok(Self { query, timestamps: params.flag("timestamps"), details: params.flag("details"), raw, now: app.now })
    }

    fn content_type(&self) -> &'static str {
        if self.raw { frames::RAW } else { frames::MULTIPLEXED }
    }

    /// One line in Docker's order: time, details, text.
    fn line(&self, context: &str, line: &LogLine) -> Bytes {
        let mut text = Vec::with_capacity(line.bytes.len() + 160);
        if self.timestamps {
            text.extend_from_slice(time::rfc3339_fixed(line.at).as_bytes());
            text.push(b' ');
        }
        if self.details {
            text.extend_from_slice(context.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&line.bytes);
        if self.raw { text.into() } else { frames::frame(line.stream, &text) }
    }

    fn item(&self, context: &str, line: Result<LogLine, Failure>) -> io::Result<Bytes> {
        match line {
            Ok(line) => Ok(self.line(context, &line)),
            Err(Failure::Unavailable(text)) => Ok(self.line(context, &warning(time::nanos((self.now)()), text))),
            Err(failure) if self.raw => Err(io::Error::other(failure)),
            Err(failure) => Ok(frames::error_frame(&failure)),
        }
    }
}

/// Stands in place of lines that cannot be had.
fn warning(at: UnixNanos, mut text: String) -> LogLine {
    text.push('\n');
    LogLine { at, stream: Stdio::Err, bytes: text.into() }
}

/// What `docker service logs` needs to name the task of a line.
fn context(app: &App, service: ServiceId, task: TaskId) -> String {
    let state = app.cluster.state();
    let placed = state.tasks.get(&task).and_then(|task| task.placed.as_ref().map(|placed| placed.node));
    let node = placed.or(app.cluster.membership().node).map(|id| id.to_string()).unwrap_or_default();
    format!(
        "com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={}",
        encode(&node),
        encode(&service.to_string()),
        encode(&task.to_string())
    )
}

pub(super) async fn of_container(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let container = containers::find(&app, &id).await?;
    let wanted = Wanted::read(&app, &params, container.tty)?;
    one(&app, container.service, container.task, wanted).await
}

pub(super) async fn of_task(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let state = app.read().await?;
    let id = find::find_task(&state, &id)?;
    let task = state.tasks.get(&id).ok_or_else(|| ApiError::not_found(format!("task {id} not found")))?;
    let raw = state.task_spec(task).is_some_and(|spec| spec.container.tty);
    one(&app, task.service, id, Wanted::read(&app, &params, raw)?).await
}

async fn one(app: &App, service: ServiceId, task: TaskId, wanted: Wanted) -> Result<Response, ApiError> {
    if wanted.query.follow {
        let (sender, receiver) = mpsc::channel(LINES_BUFFERED);
        let content_type = wanted.content_type();
        tokio::spawn(pump(app.clone(), service, task, wanted, sender));
        return Ok(frames::body(app, content_type, frames::received(receiver)));
    }
    let context = context(app, service, task);
    let lines = lines::of(app, task, wanted.query.clone()).await?;
    let content_type = wanted.content_type();
    Ok(frames::body(app, content_type, lines.map(move |line| wanted.item(&context, line))))
}

pub(super) async fn of_service(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let state = app.read().await?;
    let id = find::find_service(&state, &id)?;
    let version = state.services.get(&id).and_then(|service| state.current_spec(service));
    let raw = version.is_some_and(|version| version.value.spec.task.container.tty);
    let wanted = Wanted::read(&app, &params, raw)?;
    let (sender, receiver) = mpsc::channel(LINES_BUFFERED);
    if wanted.query.follow {
        tokio::spawn(follow(app.clone(), id, wanted.clone(), sender));
    } else {
        tokio::spawn(merge(app.clone(), id, wanted.clone(), sender));
    }
    Ok(frames::body(&app, wanted.content_type(), frames::received(receiver)))
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

fn tasks_of(app: &App, service: ServiceId) -> BTreeSet<TaskId> {
    let state = app.cluster.state();
    state.tasks.values().filter(|task| task.service == service && task.placed.is_some()).map(|task| task.id).collect()
}

/// The lines of one task, the next of which can be looked at.
type Source = Pin<Box<Peekable<BoxStream<Result<LogLine, Failure>>>>>;

/// What is there, in order of time over all tasks.
async fn merge(app: App, service: ServiceId, wanted: Wanted, sender: Sender) {
    let mut sources: Vec<(String, Source)> = Vec::new();
    let opening = tasks_of(&app, service).into_iter().map(async |task| {
        let lines = match lines::of(&app, task, wanted.query.clone()).await {
            Ok(lines) => lines,
            Err(Failure::NotFound(_)) => return None,
            Err(failure) => Box::pin(stream::iter([Err(failure)])) as BoxStream<_>,
        };
        Some((context(&app, service, task), Box::pin(lines.peekable()) as Source))
    });
    sources.extend(join_all(opening).await.into_iter().flatten());
    loop {
        let mut first: Option<(usize, u64)> = None;
        for (at, (_, lines)) in sources.iter_mut().enumerate() {
            let time = match lines.as_mut().peek().await {
                Some(Ok(line)) => line.at,
                Some(Err(_)) => 0,
                None => continue,
            };
            if first.is_none_or(|(_, best)| time < best) {
                first = Some((at, time));
            }
        }
        let Some((at, _)) = first else { return };
        let (context, lines) = &mut sources[at];
        let Some(line) = lines.next().await else { return };
        if sender.send(wanted.item(context, line)).await.is_err() {
            return;
        }
    }
}

/// What is there and what comes, of tasks that are there and tasks that come. Ends when the service and its tasks are gone,
/// or the client is.
async fn follow(app: App, service: ServiceId, wanted: Wanted, sender: Sender) {
    let mut changes = app.cluster.watch();
    let mut known = BTreeSet::new();
    let mut pumps = JoinSet::new();
    loop {
        changes.borrow_and_update();
        for task in tasks_of(&app, service) {
            if known.insert(task) {
                pumps.spawn(pump(app.clone(), service, task, wanted.clone(), sender.clone()));
            }
        }
        let gone = !app.cluster.state().services.contains_key(&service);
        if gone && pumps.is_empty() {
            return;
        }
        tokio::select! {
            Some(_) = pumps.join_next(), if !pumps.is_empty() => if gone && pumps.is_empty() { return },
            changed = changes.changed(), if !gone => if changed.is_err() { return },
            () = sender.closed() => return,
            () = app.shutdown.cancelled() => return,
            else => return,
        }
    }
}

async fn pump(app: App, service: ServiceId, task: TaskId, wanted: Wanted, sender: Sender) {
    let context = context(&app, service, task);
    let mut query = wanted.query.clone();
    // Whether the client knows that the task's node does not answer.
    let mut warned = false;
    loop {
        // Asked before reading: whatever the container wrote until then is read below. A log that is not there yet, or
        // ends although the task has not, is looked at again: the container is just being started.
        let state = app.cluster.state();
        let ended = state.tasks.get(&task).is_none_or(|task| task.outcome.is_some());
        let mut lines = match lines::of(&app, task, query.clone()).await {
            Ok(lines) => lines,
            Err(Failure::NotFound(_)) => Box::pin(stream::empty()) as BoxStream<_>,
            Err(failure) => Box::pin(stream::iter([Err(failure)])),
        };
        let mut pause = LOOK_AGAIN;
        while let Some(line) = lines.next().await {
            match &line {
                Ok(line) => {
                    (query.since, query.tail) = (Some(line.at + 1), None);
                    warned = false;
                }
                Err(Failure::Unavailable(_)) => {
                    pause = NODE_AGAIN;
                    if std::mem::replace(&mut warned, true) {
                        continue;
                    }
                }
                Err(_) => {
                    let _ = sender.send(wanted.item(&context, line)).await;
                    return;
                }
            }
            if sender.send(wanted.item(&context, line)).await.is_err() {
                return;
            }
        }
        let over = query.until.is_some_and(|until| until < time::nanos((app.now)()));
        if ended || over {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = sender.closed() => return,
        }
    }
}
