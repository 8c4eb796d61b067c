//! `edgectl logs` and `edgectl service logs`: unpacks the API's frames and names the task of each line.

use super::{Error, Result, client::Client, node::read, output::Out, place::Place, service::tasks::Names};
use crate::api::{
    docker::{frames, objects::Task},
    request::{decode, encode},
    time,
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use std::{collections::BTreeMap, io};

/// Flags of both commands.
#[derive(clap::Args)]
struct Flags {
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only the last lines (of each task)
    #[arg(short = 'n', long, default_value = "all", value_name = "N")]
    tail: String,
    /// Only lines since a time (2026-01-31T10:00:00Z) or for a duration (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show the origin of each line in full
    #[arg(long)]
    details: bool,
}

impl Flags {
    fn query(&self, details: bool) -> Result<String> {
        let mut query = format!("stdout=1&stderr=1&tail={}", encode(&self.tail));
        for (key, on) in [("follow", self.follow), ("timestamps", self.timestamps), ("details", details)] {
            if on {
                query.push_str(&format!("&{key}=1"));
            }
        }
        if let Some(since) = &self.since {
            query.push_str(&format!("&since={}", encode(&instant(since)?)));
        }
        Ok(query)
    }
}

/// A point in time as the API takes it; a duration counts back from now.
pub(super) fn instant(text: &str) -> Result<String> {
    if let Some(length) = time::parse_duration(text) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let at = now.saturating_sub(std::time::Duration::from_nanos(length));
        return Ok(format!("{}.{:09}", at.as_secs(), at.subsec_nanos()));
    }
    match time::parse(text) {
        Some(_) => Ok(text.into()),
        None => Err(Error::usage(format!(
            "invalid time {text:?}: use 2026-01-31T10:00:00Z, Unix seconds, or a duration like 10m"
        ))),
    }
}

#[derive(clap::Args)]
pub(super) struct ContainerLogs {
    #[command(flatten)]
    flags: Flags,
    /// The container by id or name
    container: String,
}

#[derive(clap::Args)]
pub(super) struct ServiceLogs {
    #[command(flatten)]
    flags: Flags,
    /// Lines as they are, without the task's name
    #[arg(long)]
    raw: bool,
    /// Print ids instead of names
    #[arg(long)]
    no_resolve: bool,
    /// Leave out the ids of tasks
    #[arg(long)]
    no_task_ids: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// The service or task by id or name
    service: String,
}

pub(super) async fn of_container(logs: ContainerLogs, client: &Client, out: &mut Out) -> Result {
    let context = |error: Error| error.context(format!("logs of {}", logs.container));
    let (place, container) = Place::find(client, &logs.container).await.map_err(context)?;
    let path = place.container(&format!("/logs?{}", logs.flags.query(logs.flags.details)?));
    let stream = client.stream(&path).await.map_err(context)?;
    if container["Config"]["Tty"].as_bool() == Some(true) {
        return copy(stream, out).await;
    }
    let mut frames = Frames::new(stream);
    while let Some((number, payload)) = frames.next().await? {
        if number == 2 {
            out.error_bytes(&payload)?
        } else {
            out.bytes(&payload)?
        }
        out.flush()?;
    }
    Ok(())
}

async fn copy(mut stream: impl Stream<Item = io::Result<Bytes>> + Unpin, out: &mut Out) -> Result {
    while let Some(bytes) = stream.next().await {
        out.bytes(&bytes.map_err(|error| Error::new(format!("the log broke off: {error}")))?)?;
        out.flush()?;
    }
    Ok(())
}

pub(super) async fn of_service(logs: ServiceLogs, client: &Client, out: &mut Out) -> Result {
    let context = |error: Error| error.context(format!("logs of {}", logs.service));
    let query = logs.flags.query(true)?;
    let found = client.get::<Value>(&format!("/services/{}", logs.service)).await;
    let (path, template) = match found {
        Ok(service) => (format!("/services/{}/logs?{query}", logs.service), service["Spec"]["TaskTemplate"].clone()),
        Err(error) if error.status == Some(404) => {
            let task: Value = client.get(&format!("/tasks/{}", logs.service)).await.map_err(|e| match e.status {
                Some(404) => context(Error::new("no such task or service")),
                _ => context(e),
            })?;
            (format!("/tasks/{}/logs?{query}", logs.service), task["Spec"].clone())
        }
        Err(error) => return Err(context(error)),
    };
    let stream = client.stream(&path).await.map_err(context)?;
    if template["ContainerSpec"]["TTY"].as_bool() == Some(true) {
        return copy(stream, out).await;
    }
    let mut names = Prefixes::new(client, &logs);
    let mut frames = Frames::new(stream);
    while let Some((number, payload)) = frames.next().await? {
        let line = if logs.raw { strip(&payload, &logs.flags).1 } else { names.line(&payload).await? };
        if number == 2 {
            out.error_bytes(&line)?
        } else {
            out.bytes(&line)?
        }
        out.flush()?;
    }
    Ok(())
}

/// Splits `[time ]details text` into the details and the line without them.
fn strip(payload: &[u8], flags: &Flags) -> (String, Vec<u8>) {
    let mut parts = payload.splitn(if flags.timestamps { 3 } else { 2 }, |byte| *byte == b' ');
    let time = if flags.timestamps { parts.next() } else { None };
    let details = String::from_utf8_lossy(parts.next().unwrap_or(b"")).into_owned();
    let mut line = time.map_or(Vec::new(), |time| [time, b" "].concat());
    line.extend_from_slice(parts.next().unwrap_or(b""));
    (details, line)
}

/// Finds the names behind the details of lines.
struct Prefixes<'a> {
    client: &'a Client,
    logs: &'a ServiceLogs,
    names: Names,
    known: BTreeMap<String, String>,
    width: usize,
}

impl<'a> Prefixes<'a> {
    fn new(client: &'a Client, logs: &'a ServiceLogs) -> Self {
        Self { client, logs, names: Names::default(), known: BTreeMap::new(), width: 0 }
    }

    async fn line(&mut self, payload: &[u8]) -> Result<Vec<u8>> {
        let (details, line) = strip(payload, &self.logs.flags);
        let prefix = match self.known.get(&details) {
            Some(prefix) => prefix.clone(),
            None => {
                let prefix = self.prefix(&details).await?;
                self.known.insert(details.clone(), prefix.clone());
                prefix
            }
        };
        self.width = self.width.max(prefix.chars().count());
        let shown = if self.logs.flags.details { format!("{details} ") } else { String::new() };
        let mut text = format!("{prefix:<width$} | {shown}", width = self.width).into_bytes();
        text.extend_from_slice(&line);
        Ok(text)
    }

    async fn prefix(&mut self, details: &str) -> Result<String> {
        let value = |key: &str| {
            let pair = details.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.map(decode).unwrap_or_default()
        };
        let (task_id, node_id) = (value("com.docker.swarm.task.id"), value("com.docker.swarm.node.id"));
        if task_id.is_empty() {
            return Err(Error::new(format!("invalid context in log message: {details:?}")));
        }
        let shown_id = if self.logs.no_trunc { task_id.clone() } else { super::output::short_id(&task_id) };
        if self.logs.no_resolve {
            return Ok(format!("{shown_id}@{node_id}"));
        }
        let task: Task = match self.client.get::<Value>(&format!("/tasks/{task_id}")).await {
            Ok(task) => read(&task)?,
            // It is gone from the history by now; its id is all that is left.
            Err(error) if error.status == Some(404) => return Ok(shown_id),
            Err(error) => return Err(error),
        };
        self.names = Names::load(self.client).await?;
        let name = self.names.task(&task);
        let name = if self.logs.no_task_ids { name } else { format!("{name}.{shown_id}") };
        Ok(format!("{name}@{}", self.names.node(&node_id)))
    }
}

/// Frames from a stream of bytes.
struct Frames<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Frames<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Stream number and payload. The server's own error is an error here.
    async fn next(&mut self) -> Result<Option<(u8, Bytes)>> {
        loop {
            if let Some(frame) = frames::take(&mut self.buffer).map_err(Error::new)? {
                return match frame {
                    (frames::SERVER_ERROR, message) => Err(Error::new(String::from_utf8_lossy(&message).into_owned())),
                    frame => Ok(Some(frame)),
                };
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(Error::new(format!("the log broke off: {error}"))),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::new("the log broke off in the middle of a line")),
            }
        }
    }
}
