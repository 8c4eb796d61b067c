//! Logs of containers, tasks and services. Those of a service are the logs of all its tasks, ended ones in the history
//! included; while following, tasks that are made later join in.

use super::{containers, frames};
use crate::api::{
    App,
    error::ApiError,
    node::{BoxStream, Failure, LogLine, LogQuery},
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
    stream::{self, Peekable},
};
use orchestrator_core::{
    find,
    model::{ServiceId, TaskId},
};
use std::{collections::BTreeSet, io, pin::Pin, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};

/// Lines under way to a client; a client that reads slowly slows the readers down.
const LINES_BUFFERED: usize = 64;
/// How often a task whose log has not begun is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone)]
struct Wanted {
    query: LogQuery,
    timestamps: bool,
    details: bool,
    /// A terminal's bytes come as they are, without frames.
    raw: bool,
}

impl Wanted {
    fn read(params: &Params, raw: bool) -> Result<Self, ApiError> {
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
        Ok(Self { query, timestamps: params.flag("timestamps"), details: params.flag("details"), raw })
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
            Err(failure) if self.raw => Err(io::Error::other(failure)),
            Err(failure) => Ok(frames::error_frame(&failure)),
        }
    }
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
    let wanted = Wanted::read(&params, container.tty)?;
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
    one(&app, task.service, id, Wanted::read(&params, raw)?).await
}

async fn one(app: &App, service: ServiceId, task: TaskId, wanted: Wanted) -> Result<Response, ApiError> {
    elsewhere(app, task)?;
    if wanted.query.follow {
        let (sender, receiver) = mpsc::channel(LINES_BUFFERED);
        let content_type = wanted.content_type();
        tokio::spawn(pump(app.clone(), service, task, wanted, sender));
        return Ok(frames::body(app, content_type, frames::received(receiver)));
    }
    let context = context(app, service, task);
    let lines = app.node.logs(task, wanted.query.clone()).await?;
    let content_type = wanted.content_type();
    Ok(frames::body(app, content_type, lines.map(move |line| wanted.item(&context, line))))
}

/// Refuses when the task runs on another node.
fn elsewhere(app: &App, task: TaskId) -> Result<(), Failure> {
    let (own, state) = (app.cluster.membership().node, app.cluster.state());
    match state.tasks.get(&task).and_then(|task| task.placed.as_ref()) {
        Some(placed) if Some(placed.node) != own => Err(Failure::Unsupported(format!(
            "the logs of task {task} are on node {}, and reading logs of other nodes is not supported yet",
            placed.node
        ))),
        _ => Ok(()),
    }
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
    let wanted = Wanted::read(&params, raw)?;
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
    for task in tasks_of(&app, service) {
        let lines = match elsewhere(&app, task) {
            Ok(()) => app.node.logs(task, wanted.query.clone()).await,
            Err(failure) => Err(failure),
        };
        match lines {
            Ok(lines) => sources.push((context(&app, service, task), Box::pin(lines.peekable()))),
            Err(Failure::NotFound(_)) => {}
            Err(failure) => {
                let _ = sender.send(wanted.item("", Err(failure))).await;
                return;
            }
        }
    }
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
    if let Err(failure) = elsewhere(&app, task) {
        let _ = sender.send(wanted.item(&context, Err(failure))).await;
        return;
    }
    let mut query = wanted.query.clone();
    loop {
        // Asked before reading: whatever the container wrote until then is read below. A log that is not there yet, or
        // ends although the task has not, is looked at again: the container is just being started.
        let state = app.cluster.state();
        let ended = state.tasks.get(&task).is_none_or(|task| task.outcome.is_some());
        let mut lines = match app.node.logs(task, query.clone()).await {
            Ok(lines) => lines,
            Err(Failure::NotFound(_)) => Box::pin(stream::empty()) as BoxStream<_>,
            Err(failure) => {
                let _ = sender.send(wanted.item(&context, Err(failure))).await;
                return;
            }
        };
        while let Some(line) = lines.next().await {
            if let Ok(line) = &line {
                (query.since, query.tail) = (Some(line.at + 1), None);
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
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = sender.closed() => return,
        }
    }
}
