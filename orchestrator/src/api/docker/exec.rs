//! `/exec`: processes in running containers. Starting one turns the connection into its terminal or its three streams
//! ("hijacking": 101 with `Upgrade: tcp`); a client that does not ask for that gets the output as the answer's body.

use super::{containers, frames, spec::wire};
use crate::api::{
    App,
    error::ApiError,
    node::{ContainerState, ExecIo, ExecSpec, Stdio, TerminalSize},
    request::{JsonBody, Params, parse_body, read_body},
};
use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of standard input read at a time.
const INPUT_CHUNK: usize = 16 << 10;

wire! {
    pub(super) struct ExecCreate {
        pub attach_stdin: bool,
        pub attach_stdout: bool,
        pub attach_stderr: bool,
        pub tty: bool,
        pub detach: bool,
        pub detach_keys: String,
        pub console_size: Vec<u16>,
        pub cmd: Vec<String>,
        pub env: Vec<String>,
        pub working_dir: String,
        pub user: String,
        pub privileged: bool,
    }

    pub(super) struct ExecStart {
        pub detach: bool,
        pub tty: bool,
        pub console_size: Vec<u16>,
    }
}

pub(super) async fn create(
    State(app): State<App>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<ExecCreate>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let container = containers::find(&app, &id).await?;
    if body.cmd.is_empty() {
        return Err(ApiError::invalid("invalid Cmd: no exec command specified"));
    }
    if container.state != ContainerState::Running {
        return Err(ApiError::conflict(format!("container {} is not running", container.task)));
    }
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let spec = ExecSpec {
        command: body.cmd,
        env: body.env,
        workdir: text(body.working_dir),
        user: text(body.user),
        tty: body.tty,
        stdin: body.attach_stdin,
        privileged: body.privileged,
    };
    let exec = app.node.exec_create(container.task, spec).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec }))))
}

fn size(rows_columns: &[u16]) -> Option<TerminalSize> {
    match rows_columns {
        [rows, columns] if *rows > 0 && *columns > 0 => Some(TerminalSize { rows: *rows, columns: *columns }),
        _ => None,
    }
}

pub(super) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let wants_upgrade = request.headers().contains_key(header::UPGRADE);
    let upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let body: ExecStart = parse_body(&read_body(request.into_body()).await?)?;
    let exec = app.node.exec_inspect(&id).await?;
    let (tty, stdin) = (exec.spec.tty, exec.spec.stdin);
    let io = app.node.exec_start(&id, size(&body.console_size).filter(|_| tty)).await?;
    if body.detach {
        // Whoever detaches reads nothing: the output is read and dropped so that the process never blocks on it.
        tokio::spawn(io.output.for_each(|_| async {}));
        return Ok(StatusCode::OK.into_response());
    }
    let content_type = if tty { frames::RAW } else { frames::MULTIPLEXED };
    let Some(upgrade) = upgrade else {
        drop(io.stdin);
        return Ok(frames::body(&app, content_type, io.output.map(move |chunk| Ok(encode(tty, chunk?)))));
    };
    let shutdown = app.shutdown.clone();
    tokio::spawn(async move {
        let connection = match upgrade.await {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(%error, "the client left before its exec began"),
        };
        tokio::select! {
            () = hijack(connection, io, tty, stdin) => {}
            () = shutdown.cancelled() => {}
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Ok(response)
}

fn encode(tty: bool, (stream, bytes): (Stdio, Bytes)) -> Bytes {
    if tty { bytes } else { frames::frame(stream, &bytes) }
}

/// Carries bytes both ways until the output ends or the client leaves. The client may close its sending half early.
async fn hijack(connection: Upgraded, io: ExecIo, tty: bool, with_stdin: bool) {
    let ExecIo { mut stdin, mut output } = io;
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(connection));
    let input = async {
        let mut buffer = vec![0; INPUT_CHUNK];
        if !with_stdin {
            // Never ends by itself: without input the output alone decides.
            let _ = stdin.shutdown().await;
            return std::future::pending::<()>().await;
        }
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if stdin.write_all(&buffer[..length]).await.is_err() || stdin.flush().await.is_err() {
                break;
            }
        }
        let _ = stdin.shutdown().await;
        std::future::pending().await
    };
    let forward = async {
        while let Some(Ok(chunk)) = output.next().await {
            if to_client.write_all(&encode(tty, chunk)).await.is_err() || to_client.flush().await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = input => {}
        () = forward => {}
    }
}

pub(super) async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let rows = params.number("h")?.unwrap_or(0);
    let columns = params.number("w")?.unwrap_or(0);
    let size = size(&[rows, columns]).ok_or_else(|| ApiError::invalid("invalid size: h and w must be above 0"))?;
    app.node.exec_resize(&id, size).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let exec = app.node.exec_inspect(&id).await?;
    let (program, arguments) = exec.spec.command.split_first().map_or(("", &[][..]), |(a, b)| (a.as_str(), b));
    Ok(Json(json!({
        "ID": id,
        "ContainerID": exec.task.to_string(),
        "Running": exec.running,
        "ExitCode": exec.exit_code,
        "Pid": exec.pid.unwrap_or(0),
        "OpenStdin": exec.spec.stdin,
        "OpenStdout": true,
        "OpenStderr": true,
        "CanRemove": false,
        "DetachKeys": "",
        "ProcessConfig": {
            "tty": exec.spec.tty,
            "entrypoint": program,
            "arguments": arguments,
            "privileged": exec.spec.privileged,
            "user": exec.spec.user.clone().unwrap_or_default(),
        },
    })))
}
