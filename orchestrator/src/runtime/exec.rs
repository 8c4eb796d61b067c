//! Running another program inside a container. Comes in: an [`ExecSpec`]; goes out: its streams and its exit code. The shim
//! makes the process and waits for it; the streams connect the process and this one directly, so that they cost the shim
//! nothing. If `edged` ends, the process sees its streams end, as under other engines.

use super::{
    ExecSpec, Runtime, RuntimeError, blocking, capabilities,
    error::At,
    files::{self, ShimConfig},
    filter,
    log_format::Stream,
    prepare,
    spec::{capability_names, exec_process},
    wire::{self, Reply, Request},
};
use oci_spec::runtime::Spec;
use orchestrator_core::model::TaskId;
use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncWrite, unix::AsyncFd};

/// Read at once from a stream: what a pipe holds on most machines, in a quarter of its writes.
const READ_BYTES: usize = 16 * 1024;

/// Rows and columns that programs assume where nobody tells.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// Tells exec'd processes of this `edged` apart, in the names of their files.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A program that runs inside a container.
#[derive(Debug)]
pub struct ExecSession {
    /// Process id on the node.
    pub pid: u32,
    /// Its standard input, or the terminal; `None` if it was not asked for. Shut down or dropped, a pipe ends.
    pub stdin: Option<ExecInput>,
    /// What it writes.
    pub output: ExecOutput,
    /// Its size can be set, where it has a terminal.
    pub terminal: Option<Terminal>,
    /// Its end.
    pub exit: ExecExit,
}

/// Standard input of an exec'd program.
#[derive(Debug)]
pub struct ExecInput(Option<AsyncFd<OwnedFd>>);

/// A piece of output, and where it was written.
pub type Output = (Stream, Vec<u8>);

/// Output of an exec'd program, both streams.
#[derive(Debug)]
pub struct ExecOutput {
    streams: Vec<(Stream, AsyncFd<OwnedFd>)>,
    buffer: Vec<u8>,
}

/// The terminal of an exec'd program.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

/// The end of an exec'd program.
#[derive(Debug)]
pub struct ExecExit {
    task: TaskId,
    connection: AsyncFd<OwnedFd>,
}

impl Runtime {
    /// Runs a program inside a running container, under the container's limits and seccomp profile.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::NotRunning`], [`RuntimeError::NoSuchCommand`], [`RuntimeError::BadUser`].
    pub async fn exec(&self, task: TaskId, exec: ExecSpec) -> Result<ExecSession, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let (tty, stdin) = (exec.tty, exec.stdin);
        let (pid, ends, connection) = blocking(move || {
            let name = task.to_string();
            let dir = inner.container(task)?;
            let file = dir.join(files::OCI_CONFIG);
            let bad = |reason: String| RuntimeError::BadRequest { container: name.clone(), reason };
            let spec = Spec::load(&file).map_err(|e| bad(format!("its spec cannot be read: {e}")))?;
            let shim: ShimConfig = files::read(&dir, files::SHIM_CONFIG)
                .at("read", dir.join(files::SHIM_CONFIG))?
                .ok_or_else(|| bad("its shim's file is gone".into()))?;
            let (request, process) = request(&name, &spec, shim.keep, &exec)?;
            let Request::Exec { id, .. } = request else { unreachable!("made above") };
            let connection = inner.connect(task)?;
            let process_file = format!("exec-{id}.json");
            files::write(&dir, &process_file, &process).at("write", dir.join(&process_file))?;
            let streams = if exec.tty { None } else { Some(Streams::new(exec.stdin).at("make pipes for", &dir)?) };
            let theirs = streams.as_ref().map(|s| s.theirs.each_ref().map(AsFd::as_fd));
            let answer = inner.ask(&connection, task, &request, theirs.as_ref().map_or(&[], |fds| fds.as_slice()));
            let _ = std::fs::remove_file(dir.join(process_file));
            match answer? {
                (Reply::Failed(failure), _) => Err(failure.about(&name)),
                (Reply::Running(pid), mut fds) => {
                    let ends = match (streams, fds.pop()) {
                        (Some(streams), _) => Ends::Pipes(streams.ours),
                        (None, Some(terminal)) => Ends::Terminal(terminal),
                        (None, None) => return Err(bad("the shim sent no terminal".into())),
                    };
                    Ok((pid, ends, connection))
                }
                _ => Err(bad("the shim gave an answer of another question".into())),
            }
        })
        .await?;
        ExecSession::new(task, pid, ends, stdin, connection)
            .at(if tty { "use the terminal of" } else { "use the pipes of" }, task.to_string())
    }

    /// Standard input of a container that was made with it open, or its terminal.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::NotRunning`], or it has none.
    pub async fn stdin(&self, task: TaskId) -> Result<ExecInput, RuntimeError> {
        let fd = self.stdin_fd(task).await?;
        asynchronous(fd).map(|fd| ExecInput(Some(fd))).at("use standard input of", task.to_string())
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::NotRunning`], or it has none.
    pub async fn resize(&self, task: TaskId, rows: u16, columns: u16) -> Result<(), RuntimeError> {
        set_size(&self.stdin_fd(task).await?, rows, columns).at("size the terminal of", task.to_string())
    }

    async fn stdin_fd(&self, task: TaskId) -> Result<OwnedFd, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let connection = inner.connect(task)?;
            match inner.ask(&connection, task, &Request::Stdin, &[])? {
                (Reply::Failed(failure), _) => Err(failure.about(&task.to_string())),
                (_, mut fds) => fds.pop().ok_or_else(|| RuntimeError::NotRunning(task.to_string())),
            }
        })
        .await
    }
}

/// What the shim is asked, and the process it finds in a file.
fn request(
    name: &str,
    spec: &Spec,
    keep: Option<Vec<String>>,
    exec: &ExecSpec,
) -> Result<(Request, serde_json::Value), RuntimeError> {
    let bad = |reason: String| RuntimeError::BadRequest { container: name.into(), reason };
    let process = spec.process().as_ref().ok_or_else(|| bad("its spec has no process".into()))?;
    let rootfs = spec.root().as_ref().ok_or_else(|| bad("its spec has no root".into()))?.path();
    if exec.args.is_empty() {
        return Err(RuntimeError::NoSuchCommand { container: name.into(), reason: "no command specified".into() });
    }
    let user = match &exec.user {
        Some(who) => Some(prepare::find_user(name, rootfs, who, &[])?),
        None => None,
    };
    let filter = !exec.privileged && keep.is_some();
    let given = match keep {
        _ if exec.privileged => capabilities::granted(true, &[], &[], prepare::own_capabilities()).map_err(bad)?,
        // Taken away again by who loads the filter.
        Some(keep) => keep.into_iter().chain(filter::NEEDED.map(String::from)).collect(),
        None => capability_names(process).map_err(|e| bad(format!("its capabilities cannot be read: {e}")))?,
    };
    let document = exec_process(process, exec, user, &given).map_err(|e| bad(e.to_string()))?;
    let id = (u64::from(std::process::id()) << 32) | NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let size = exec.tty.then(|| exec.size.unwrap_or(DEFAULT_SIZE));
    Ok((Request::Exec { id, size, filter }, document))
}

/// Pipes of a process, and the ends that stay here.
struct Streams {
    theirs: [OwnedFd; 3],
    ours: (Option<OwnedFd>, OwnedFd, OwnedFd),
}

impl Streams {
    fn new(stdin: bool) -> io::Result<Self> {
        let (input, input_end) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            (rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
        };
        let ((out, out_end), (err, err_end)) = (pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?);
        Ok(Self { theirs: [input, out_end, err_end], ours: (input_end, out, err) })
    }
}

/// What connects a process with this one.
enum Ends {
    Pipes((Option<OwnedFd>, OwnedFd, OwnedFd)),
    Terminal(OwnedFd),
}

impl ExecSession {
    fn new(task: TaskId, pid: u32, ends: Ends, stdin: bool, connection: OwnedFd) -> io::Result<Self> {
        let exit = ExecExit { task, connection: asynchronous(connection)? };
        let (input, streams, terminal) = match ends {
            Ends::Pipes((input, out, err)) => {
                (input, vec![(Stream::Stdout, asynchronous(out)?), (Stream::Stderr, asynchronous(err)?)], None)
            }
            Ends::Terminal(fd) => {
                let input = if stdin { Some(fd.try_clone()?) } else { None };
                (input, vec![(Stream::Stdout, asynchronous(fd.try_clone()?)?)], Some(Terminal(fd)))
            }
        };
        let stdin = input.map(asynchronous).transpose()?.map(|fd| ExecInput(Some(fd)));
        Ok(Self { pid, stdin, output: ExecOutput { streams, buffer: vec![0; READ_BYTES] }, terminal, exit })
    }
}

impl ExecOutput {
    /// The next piece of output; `None` once all streams have ended. Cancel-safe because nothing is taken from a stream
    /// before there is something to return.
    ///
    /// # Errors
    /// A stream cannot be read.
    pub async fn next(&mut self) -> Option<io::Result<Output>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`ExecOutput::next`], for who makes a stream of it.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Output>>> {
        let Self { streams, buffer } = self;
        let mut index = 0;
        while let Some((stream, fd)) = streams.get(index) {
            match poll_io(fd, context, |fd| rustix::io::read(fd, &mut *buffer)) {
                Poll::Ready(Ok(length)) if length > 0 => {
                    return Poll::Ready(Some(Ok((*stream, buffer[..length].to_vec()))));
                }
                // A terminal whose last user has left yields EIO (pty(7)).
                Poll::Ready(Ok(_)) => drop(streams.remove(index)),
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EIO) => drop(streams.remove(index)),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => index += 1,
            }
        }
        if streams.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}

impl ExecExit {
    /// Waits for the program to end; its exit code, 128 + signal if a signal ended it. Cancel-safe because it only waits
    /// for a socket to become readable and then reads at once.
    ///
    /// # Errors
    /// The shim was killed.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        let lost = |reason: String| RuntimeError::Shim { container: self.task.to_string(), reason };
        loop {
            let mut ready = self.connection.readable().await.map_err(|e| lost(e.to_string()))?;
            match wire::receive::<Reply>(ready.get_inner()) {
                Ok(Some((Reply::Exited(code), _))) => return Ok(code),
                Ok(_) => return Err(lost("it ended and took the exit code with it".into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(lost(error.to_string())),
            }
        }
    }
}

impl Terminal {
    /// Sets the size in characters.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        set_size(&self.0, rows, columns)
    }
}

impl AsyncWrite for ExecInput {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(fd) = &self.0 else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        loop {
            let mut guard = ready!(fd.poll_write_ready(context))?;
            match guard.try_io(|fd| rustix::io::write(fd, bytes).map_err(Into::into)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The end of a pipe. A terminal has none: its user types Ctrl-D.
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

fn poll_io(
    fd: &AsyncFd<OwnedFd>,
    context: &mut Context<'_>,
    mut read: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        let mut guard = ready!(fd.poll_read_ready(context))?;
        match guard.try_io(|fd| read(fd.get_ref()).map_err(Into::into)) {
            Ok(result) => return Poll::Ready(result),
            Err(_would_block) => {}
        }
    }
}

/// Registers a descriptor with the async runtime.
fn asynchronous(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an owned descriptor stays open as long as the registration that owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn set_size(fd: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    tcsetwinsize(fd, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).map_err(Into::into)
}
