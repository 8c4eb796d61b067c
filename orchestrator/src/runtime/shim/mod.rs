//! `edged shim <dir>`: the process that stands beside one container for as long as it lives, and the only caller of
//! libcontainer. It has one thread and no async runtime, is a child of nobody, and does not notice when `edged` ends.
//!
//! Comes in: `config.json` and `shim.json` in `<dir>`, requests on `<dir>/control.sock`. Goes out: one line on standard
//! output once the container is created or could not be, then the files described in `files`, and the container's
//! log. Ends by itself after it has recorded how the container ended; nothing needs to be running to receive that.
//!
//! ```text
//! edged ──spawn──► shim ──fork──► (ends; edged reaps it)
//!                   └─► shim, own session ── fork ─► libcontainer ─► container's process 1, child of the shim
//!                        │  loop: output → log file · control.sock → start, exec · SIGCHLD → exit codes
//!                        └─ exit.json, then the end
//! ```

mod container;
mod executor;
mod init;
mod log_writer;

pub(crate) use log_writer::{log_numbers, log_path};

use super::{
    cgroup::keyed,
    devices::DeviceRules,
    error::error_line,
    files::{self, Exit, ShimConfig, Started},
    log_format::{Stream, now_nanos},
    process_ref::ProcessRef,
    wire::{self, Failure, FailureKind, Reply, Request},
};
use container::{Made, Stdio, Tenant};
use log_writer::LogWriter;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

/// Read from a container at once. Memory of every shim on the node, so no more than a pipe yields in a few rounds.
const READ_BYTES: usize = 4096;
/// Requests that wait while another is worked on.
const BACKLOG: i32 = 16;
const MILLION: u64 = 1_000_000;

/// Runs as shim of the container whose folder is the second argument of this process (`edged shim <dir>`); to be called
/// before anything else, while the process has one thread. Never returns. Exit code 0 says that the line on standard output
/// is still to come or has come: the process that was spawned ends early and the shim lives on.
pub fn main() -> ! {
    let code = match std::env::args_os().nth(2) {
        Some(dir) => run(&PathBuf::from(dir)),
        None => {
            eprintln!("usage: edged shim <dir>: started by edged, not by hand");
            2
        }
    };
    std::process::exit(code)
}

fn run(dir: &Path) -> i32 {
    // SAFETY: a single-threaded process forks; the parent ends at once.
    match unsafe { libc::fork() } {
        -1 => return 1,
        0 => {}
        _ => return 0,
    }
    let (reply, shim) = match prepare(dir).and_then(|config| Shim::create(dir, config)) {
        Ok(shim) => (Reply::Done, Some(shim)),
        Err(failure) => (Reply::Failed(failure), None),
    };
    // Nobody may be listening any more; the files say the same.
    let _ = writeln!(io::stdout(), "{}", serde_json::to_string(&reply).unwrap_or_default());
    point_stdout_to_null();
    match shim {
        Some(mut shim) => {
            shim.serve();
            0
        }
        None => 1,
    }
}

/// Becomes a process that nothing of `edged` clings to.
fn prepare(dir: &Path) -> Result<ShimConfig, Failure> {
    let failed = |what: &str, error: &dyn std::error::Error| Failure {
        kind: FailureKind::Other,
        text: format!("{what}: {}", error_line(error)),
    };
    reset_signals();
    // SAFETY: plain system calls without pointers. Descriptors from 3 on are edged's; nothing here has opened any yet.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
        libc::close_range(3, libc::c_uint::MAX, 0);
        // A reader that went away must yield an error, not end the shim; the container gets the default back.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // Freed memory goes back to the system as soon as there is a page of it.
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4096);
    }
    let _ = rustix::thread::set_name(c"edged-shim");
    std::env::set_current_dir(dir).map_err(|e| failed("enter the container's folder", &e))?;
    let config: ShimConfig = files::read(dir, files::SHIM_CONFIG)
        .map_err(|e| failed("read shim.json", &e))?
        .ok_or_else(|| failed("read shim.json", &io::Error::from(io::ErrorKind::NotFound)))?;
    for group in &config.shim_cgroups {
        let joined = group.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(group, "0"));
        joined.map_err(|e| failed(&format!("join {}", group.display()), &e))?;
    }
    ProcessRef::of(std::process::id())
        .and_then(|me| files::write(dir, files::SHIM_PID, &me))
        .map_err(|e| failed("write shim.pid", &e))?;
    Ok(config)
}

/// Default handling of all signals and none blocked, whatever `edged` had: both are inherited by programs (execve(2)).
fn reset_signals() {
    // SAFETY: plain system calls; the set is filled before it is used, and failing for SIGKILL and SIGSTOP is fine.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

fn point_stdout_to_null() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

/// Everything the shim holds.
struct Shim {
    dir: PathBuf,
    config: ShimConfig,
    log: LogWriter,
    init: ProcessRef,
    /// What the container writes to; shorter as they end.
    outputs: Vec<(OwnedFd, Stream)>,
    /// Writing end of standard input, or the terminal.
    stdin: Option<OwnedFd>,
    control: OwnedFd,
    child_signals: OwnedFd,
    /// Told by the created process if its program cannot be run; taken by the start.
    failures: Option<File>,
    /// Who waits for which exec'd process.
    execs: BTreeMap<i32, OwnedFd>,
}

impl Shim {
    fn create(dir: &Path, config: ShimConfig) -> Result<Self, Failure> {
        let failed =
            |what: &str, error: io::Error| Failure { kind: FailureKind::Other, text: format!("{what}: {error}") };
        let child_signals = child_signals().map_err(|e| failed("signalfd", e))?;
        let control =
            listener(files::CONTROL_SOCKET, SocketType::SEQPACKET).map_err(|e| failed("control socket", e))?;
        let (made, outputs, stdin) = if config.tty {
            let (made, terminal) =
                with_terminal(|socket| container::create(dir, &config, Stdio::Console(socket)), dir, None)?;
            let reader = rustix::io::fcntl_dupfd_cloexec(&terminal, 3).map_err(|e| failed("terminal", e.into()))?;
            (made, vec![(reader, Stream::Stdout)], Some(terminal))
        } else {
            let pipe =
                || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed("pipe", e.into()));
            let (stdin, stdin_end) = if config.open_stdin {
                let (read, write) = pipe()?;
                (read, Some(write))
            } else {
                let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                (null.map_err(|e| failed("/dev/null", e.into()))?, None)
            };
            let ((out, out_end), (err, err_end)) = (pipe()?, pipe()?);
            let made = container::create(dir, &config, Stdio::Streams([stdin, out_end, err_end]))?;
            (made, vec![(out, Stream::Stdout), (err, Stream::Stderr)], stdin_end)
        };
        let init = ProcessRef::of(made.pid).map_err(|e| failed("read the new process", e))?;
        files::write(dir, files::INIT_PID, &init).map_err(|e| failed("write init.pid", e))?;
        // Its process waits for its start. If this fails, who asked for the container ends it.
        config.devices.as_ref().map_or(Ok(()), DeviceRules::attach).map_err(|e| Failure {
            kind: FailureKind::Cgroup,
            text: format!("device rules cannot be put in force (does the kernel have CONFIG_CGROUP_BPF?): {e}"),
        })?;
        let log = LogWriter::new(&config.log_dir, config.log_max_bytes, config.log_max_files);
        Ok(Self {
            dir: dir.into(),
            config,
            log,
            init,
            outputs,
            stdin,
            control,
            child_signals,
            failures: Some(made.failures),
            execs: BTreeMap::new(),
        })
    }

    /// Works until the container has ended and that is recorded.
    fn serve(&mut self) {
        loop {
            // A reader that has come to its end stays readable, so the order below matters for nothing.
            let (children, requests, outputs) = self.wait();
            for index in outputs.into_iter().rev() {
                self.copy_output(index);
            }
            if requests {
                self.answer_request();
            }
            if children && let Some(status) = self.reap() {
                self.finish(status);
                return;
            }
        }
    }

    /// Which of (children, control socket, outputs by index) have something.
    fn wait(&self) -> (bool, bool, Vec<usize>) {
        let mut fds: Vec<PollFd<'_>> = [&self.child_signals, &self.control]
            .into_iter()
            .chain(self.outputs.iter().map(|(fd, _)| fd))
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        if poll(&mut fds, None).is_err() {
            return (false, false, Vec::new());
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        (ready(0), ready(1), (2..fds.len()).filter(|i| ready(*i)).map(|i| i - 2).collect())
    }

    /// Moves one piece of output to the log; forgets the output if it has ended. Whether there was a piece.
    fn copy_output(&mut self, index: usize) -> bool {
        let mut buffer = [0; READ_BYTES];
        let Some((fd, stream)) = self.outputs.get(index) else { return false };
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => {}
            Ok(length) => {
                self.log.append(*stream, &buffer[..length]);
                return true;
            }
            Err(Errno::INTR | Errno::AGAIN) => return false,
            // A terminal whose last user has left yields EIO (pty(7)). Before the container has opened it there is none
            // either, but then its process 1 holds it already.
            Err(_) => {}
        }
        self.outputs.remove(index);
        false
    }

    fn answer_request(&mut self) {
        let Ok(connection) = accept_with(&self.control, SocketFlags::CLOEXEC) else { return };
        let Ok(Some((request, fds))) = wire::receive::<Request>(&connection) else { return };
        let (reply, fd) = self.carry_out(request, fds, &connection).unwrap_or_else(|f| (Reply::Failed(f), None));
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        let _ = wire::send(&connection, &reply, &fds);
    }

    fn carry_out(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        connection: &OwnedFd,
    ) -> Result<(Reply, Option<OwnedFd>), Failure> {
        let failed = |text: String| Failure { kind: FailureKind::Other, text };
        match request {
            Request::Start => {
                let Some(failures) = self.failures.take() else { return Ok((Reply::Done, None)) };
                container::start(&self.dir, &self.config)?;
                container::wait_for_program(failures)?;
                files::write(&self.dir, files::STARTED, &Started { at: now_nanos() / MILLION })
                    .map_err(|e| failed(format!("record the start: {e}")))?;
                Ok((Reply::Done, None))
            }
            Request::Exec { id, size, filter } => {
                if self.failures.is_some() {
                    return Err(Failure { kind: FailureKind::NotRunning, text: "it was not started yet".into() });
                }
                let process = self.dir.join(format!("exec-{id}.json"));
                let tenant = Tenant { process: &process, filter, size };
                let run = |stdio: Stdio<'_>| container::exec(&self.dir, &self.config, &tenant, stdio);
                let (made, terminal) = if size.is_some() {
                    let (made, terminal) = with_terminal(|socket| run(Stdio::Console(socket)), &self.dir, Some(id))?;
                    (made, Some(terminal))
                } else {
                    let streams = <[OwnedFd; 3]>::try_from(fds)
                        .map_err(|_| failed("three standard streams are needed".into()))?;
                    (run(Stdio::Streams(streams))?, None)
                };
                container::wait_for_program(made.failures)?;
                let waiter = rustix::io::fcntl_dupfd_cloexec(connection, 3).map_err(|e| failed(e.to_string()))?;
                self.execs.insert(made.pid.cast_signed(), waiter);
                Ok((Reply::Running(made.pid), terminal))
            }
            Request::Stdin => {
                let stdin = self.stdin.as_ref().ok_or_else(|| failed("standard input is not open".into()))?;
                let copy = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(|e| failed(e.to_string()))?;
                Ok((Reply::Done, Some(copy)))
            }
        }
    }

    /// Collects children that ended, tells those who wait for them, and yields the status of the container's process 1.
    fn reap(&mut self) -> Option<i32> {
        let mut buffer = [0; 128];
        let _ = rustix::io::read(&self.child_signals, &mut buffer);
        let mut ended = None;
        loop {
            let mut status = 0;
            // SAFETY: collects a child of this process; the pointer is valid.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return ended;
            }
            if let Some(waiter) = self.execs.remove(&pid) {
                let _ = wire::send(&waiter, &Reply::Exited(init::exit_code(status)), &[]);
            }
            if pid.cast_unsigned() == self.init.pid {
                ended = Some(status);
            }
        }
    }

    /// Takes what output is left and records the end. With process 1 all others of the container are gone
    /// (pid_namespaces(7)), so nothing can be written any more.
    fn finish(&mut self, status: i32) {
        for (fd, _) in &self.outputs {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        for index in (0..self.outputs.len()).rev() {
            while self.copy_output(index) {}
        }
        let oom_kills = self.config.oom_file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        let exit = Exit {
            code: init::exit_code(status),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            oom: oom_kills.is_some_and(|text| keyed(&text, "oom_kill") > 0),
            finished_at: now_nanos() / MILLION,
        };
        if let Err(error) = files::write(&self.dir, files::EXIT, &exit) {
            eprintln!("cannot record {exit:?}: {error}");
        }
    }
}

/// SIGCHLD as something to poll.
fn child_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised before use; the descriptor returned is new and owned by nobody else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        let fd: RawFd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd == -1 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// A listening socket in the working directory; a relative path keeps within the 108 bytes of unix(7).
fn listener(name: &str, kind: SocketType) -> io::Result<OwnedFd> {
    let _ = fs::remove_file(name);
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(name)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Makes a process with a terminal and receives the terminal from it.
fn with_terminal(
    make: impl FnOnce(&Path) -> Result<Made, Failure>,
    dir: &Path,
    exec: Option<u64>,
) -> Result<(Made, OwnedFd), Failure> {
    let failed = |error: io::Error| Failure { kind: FailureKind::Other, text: format!("terminal: {error}") };
    let name = exec.map_or_else(|| files::CONSOLE_SOCKET.to_owned(), |id| format!("exec-{id}.sock"));
    let socket = listener(&name, SocketType::STREAM).map_err(failed)?;
    let made = make(&dir.join(&name));
    let _ = fs::remove_file(&name);
    let made = made?;
    let connection = accept_with(&socket, SocketFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let terminal = wire::receive_fd(&connection).map_err(failed)?;
    Ok((made, terminal))
}
