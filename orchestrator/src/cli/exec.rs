//! `edgectl exec`: a process in a container, with our terminal or our three streams. Its exit code becomes ours.

use super::{Error, Result, client::Client, output::Out, place::Place};
use crate::api::docker::frames;
use bytes::BytesMut;
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

#[derive(clap::Args)]
pub(super) struct Exec {
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// Return at once
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable, KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// User: NAME or UID[:GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// The container by id or name
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(exec: Exec, client: &Client, out: &mut Out) -> Result {
    let context = |error: Error| error.context(format!("exec in {}", exec.container));
    if exec.tty && exec.interactive && !exec.detach && !io::stdin().is_terminal() {
        return Err(context(Error::new("standard input is no terminal; leave out -t")));
    }
    let size = exec.tty.then(terminal_size).flatten();
    let body = json!({
        "AttachStdin": exec.interactive && !exec.detach,
        "AttachStdout": !exec.detach,
        "AttachStderr": !exec.detach,
        "Tty": exec.tty,
        "Cmd": exec.command,
        "Env": exec.env,
        "User": exec.user.as_deref().unwrap_or(""),
        "WorkingDir": exec.workdir.as_deref().unwrap_or(""),
        "Privileged": exec.privileged,
    });
    let (place, _) = Place::find(client, &exec.container).await.map_err(context)?;
    let created: Value = client.post(&place.container("/exec"), &body).await.map_err(context)?;
    let id = created["Id"].as_str().unwrap_or("").to_owned();
    let start = json!({
        "Detach": exec.detach,
        "Tty": exec.tty,
        "ConsoleSize": size.map_or(Vec::new(), |(rows, columns)| vec![rows, columns]),
    });
    let path = place.exec(&id, "/start");
    if exec.detach {
        client.post_only(&path, &start).await.map_err(context)?;
        return Ok(());
    }
    let connection = client.hijack(&path, &start).await.map_err(|error| context(not_started(error)))?;
    out.flush()?;
    attach(connection, &exec, client, &place.exec(&id, "/resize"), out).await.map_err(context)?;
    let state: Value = client.get(&place.exec(&id, "/json")).await.map_err(context)?;
    match state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(Error::code(code)),
        None => Err(context(Error::new("the connection ended before the process did"))),
    }
}

/// Gives the error of a process that could not be started the exit code that shells give it (bash(1), EXIT STATUS).
fn not_started(mut error: Error) -> Error {
    if error.message.contains("not found") || error.message.contains("no such file") {
        error.code = 127;
    } else if error.message.to_lowercase().contains("permission denied") {
        error.code = 126;
    }
    error
}

/// Lines and characters per line of our terminal.
fn terminal_size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

async fn attach(
    connection: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    exec: &Exec,
    client: &Client,
    resize: &str,
    out: &mut Out,
) -> Result {
    let _raw = (exec.tty && exec.interactive).then(RawTerminal::enter).transpose()?;
    let (mut from, mut to) = tokio::io::split(connection);
    let input = async {
        if exec.interactive {
            // The input may end before the output does; the output alone decides when we are done.
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
            let _ = to.shutdown().await;
        }
        std::future::pending::<()>().await
    };
    let output = async {
        let mut buffer = BytesMut::new();
        loop {
            let read = from.read_buf(&mut buffer).await;
            let length = read.map_err(|error| Error::new(format!("the connection broke: {error}")))?;
            if exec.tty {
                out.bytes(&buffer.split())?;
            }
            while let Some((number, payload)) = frames::take(&mut buffer).map_err(Error::new)? {
                if number == 2 { out.error_bytes(&payload)? } else { out.bytes(&payload)? }
            }
            out.flush()?;
            if length == 0 {
                return Ok(());
            }
        }
    };
    let signals = async {
        let mut window = signal(SignalKind::window_change())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = window.recv() => if let (true, Some((rows, columns))) = (exec.tty, terminal_size()) {
                    // The process may be gone by now, which makes the size irrelevant.
                    let _ = client.post_only(&format!("{resize}?h={rows}&w={columns}"), &json!({})).await;
                },
                // Ending here puts the terminal back, which the signal's default action would not.
                _ = terminate.recv() => return Err::<(), Error>(Error::code(128 + 15)),
                _ = hangup.recv() => return Err(Error::code(128 + 1)),
            }
        }
    };
    tokio::select! {
        result = output => result,
        result = signals => result,
        () = input => Ok(()),
    }
}

/// The terminal's settings as they were, for whoever ends the process.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal passes every key on. Dropping it, or a panic, puts the settings back.
struct RawTerminal;

impl RawTerminal {
    fn enter() -> Result<Self> {
        let fail = |error: rustix::io::Errno| Error::new(format!("cannot switch the terminal to raw mode: {error}"));
        let before = termios::tcgetattr(io::stdin()).map_err(fail)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            others(panic);
        }));
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(fail)?;
        Ok(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing can be done if the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}
