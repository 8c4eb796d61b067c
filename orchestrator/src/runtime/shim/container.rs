//! The calls into libcontainer. Each runs in a forked child of the shim: libcontainer allocates freely, changes the working
//! directory, and sets the caller's dumpable flag and OOM score (youki #3011, #3027); all of that ends with the child. The
//! container's processes are made siblings of the child, so the shim is their parent and can wait for them.

use super::{
    super::{
        error::error_line,
        files::{FILTER, ShimConfig},
        wire::{Failure, FailureKind},
    },
    executor::{Restrict, Run, tell},
    init::exit_code,
};
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    oci_spec::runtime::{Capabilities, LinuxCapabilitiesBuilder},
    syscall::syscall::SyscallType,
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

/// Rows and columns that programs assume where nobody tells; whoever looks at the terminal sends the real size.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// Standard streams of a process, or the socket by which its terminal is handed over.
pub(super) enum Stdio<'a> {
    Streams([OwnedFd; 3]),
    Console(&'a Path),
}

/// A process that libcontainer made.
pub(super) struct Made {
    /// Its id, in the node's pid namespace.
    pub pid: u32,
    /// Where it tells why its program could not be run; ends when the program runs.
    pub failures: File,
}

/// Creates the container: everything is in place, the program waits.
pub(super) fn create(dir: &Path, config: &ShimConfig, stdio: Stdio<'_>) -> Result<Made, Failure> {
    in_child(|failures| {
        let size = config.tty.then_some(DEFAULT_SIZE);
        let container = builder(dir, config, stdio)?
            .with_executor(Run::new(failures, config.init, size, restrict(dir, config)?))
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(true)
            .build()?;
        Ok(container.pid().map_or(0, |pid| pid.as_raw()))
    })
}

/// Lets the created process run its program.
pub(super) fn start(dir: &Path, config: &ShimConfig) -> Result<(), Failure> {
    in_child(|_| {
        Container::load(dir.join(&config.id))?.start()?;
        Ok(0)
    })
    .map(|_| ())
}

/// Another process to run inside.
pub(super) struct Tenant<'a> {
    /// File with the OCI process.
    pub process: &'a Path,
    /// Whether the container's filter applies.
    pub filter: bool,
    /// Rows and columns of its terminal, if it has one.
    pub size: Option<(u16, u16)>,
}

/// Runs another process inside.
pub(super) fn exec(dir: &Path, config: &ShimConfig, tenant: &Tenant<'_>, stdio: Stdio<'_>) -> Result<Made, Failure> {
    in_child(|failures| {
        let restrict = if tenant.filter { restrict(dir, config)? } else { None };
        let pid = builder(dir, config, stdio)?
            .with_executor(Run::new(failures, false, tenant.size, restrict))
            .as_tenant()
            .with_detach(true)
            .as_sibling(true)
            .with_process(Some(tenant.process))
            .build()?;
        Ok(pid.as_raw())
    })
}

/// What a program of the container loses; nothing if it is privileged.
fn restrict(dir: &Path, config: &ShimConfig) -> Result<Option<Restrict>, AnyError> {
    let Some(keep) = &config.keep else { return Ok(None) };
    let filter = fs::read(dir.join(FILTER)).map_err(|e| format!("read the seccomp filter: {e}"))?;
    let set: Capabilities = serde_json::from_value(keep.as_slice().into())?;
    let mut capabilities =
        LinuxCapabilitiesBuilder::default().bounding(set.clone()).effective(set.clone()).permitted(set).build()?;
    capabilities.set_inheritable(None).set_ambient(None);
    Ok(Some(Restrict { filter, capabilities }))
}

fn builder(dir: &Path, config: &ShimConfig, stdio: Stdio<'_>) -> Result<ContainerBuilder, AnyError> {
    let builder = ContainerBuilder::new(config.id.clone(), SyscallType::default()).with_root_path(dir)?;
    Ok(match stdio {
        Stdio::Streams([stdin, stdout, stderr]) => builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr),
        Stdio::Console(socket) => builder.with_console_socket(Some(socket)),
    })
}

type AnyError = Box<dyn std::error::Error>;

/// Runs `call` in a child of its own. The child tells the pid that it got, or why it failed, and is gone afterwards.
fn in_child(call: impl FnOnce(RawFd) -> Result<i32, AnyError>) -> Result<Made, Failure> {
    let other = |text: String| Failure { kind: FailureKind::Other, text };
    let (mut results, result_end) = pipe().map_err(|e| other(format!("pipe: {e}")))?;
    let (mut failures, failure_end) = pipe().map_err(|e| other(format!("pipe: {e}")))?;
    // SAFETY: the shim has a single thread, so the child may do whatever the parent might.
    match unsafe { libc::fork() } {
        -1 => Err(other(format!("fork: {}", io::Error::last_os_error()))),
        0 => {
            super::reset_signals();
            log_errors_to(failure_end.as_raw_fd());
            let code = match call(failure_end.as_raw_fd()) {
                Ok(pid) => {
                    let pid = pid.to_string();
                    // SAFETY: the buffer is valid for its length.
                    unsafe { libc::write(result_end.as_raw_fd(), pid.as_ptr().cast(), pid.len()) };
                    0
                }
                Err(error) => {
                    tell(failure_end.as_raw_fd(), FailureKind::Other, &error_line(error.as_ref()));
                    1
                }
            };
            // SAFETY: ends the child without running the shim's exit handlers.
            unsafe { libc::_exit(code) }
        }
        child => {
            drop((result_end, failure_end));
            let mut status = 0;
            // SAFETY: waits for the child made above, with a valid pointer.
            while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            if exit_code(status) == 0 {
                // Only the child had the other end, with close-on-exec everywhere else, and the text is short: one read gets it.
                let mut pid = [0; 16];
                let length = results.read(&mut pid).unwrap_or(0);
                let pid = std::str::from_utf8(&pid[..length]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                return Ok(Made { pid, failures });
            }
            Err(first_cause(&read_available(&mut failures))
                .unwrap_or_else(|| other(format!("libcontainer ended with status {status:#x}"))))
        }
    }
}

/// What the program's process told, once the descriptor has ended or `failures` has something.
pub(super) fn wait_for_program(mut failures: File) -> Result<(), Failure> {
    let mut text = String::new();
    let _ = failures.read_to_string(&mut text);
    failures_in(&text).into_iter().find(|f| f.kind != FailureKind::Log).map_or(Ok(()), Err)
}

/// The message that says most: what our own executor found, else the innermost error that libcontainer logged, which is the
/// first one, with a kind guessed from its words; libcontainer passes errors between its processes as text only.
fn first_cause(text: &str) -> Option<Failure> {
    let all = failures_in(text);
    if let Some(told) = all.iter().find(|f| !matches!(f.kind, FailureKind::Log | FailureKind::Other)) {
        return Some(told.clone());
    }
    let words = text.to_lowercase();
    let kind = [
        ("seccomp", FailureKind::Seccomp),
        ("chdir", FailureKind::Workdir),
        ("cgroup", FailureKind::Cgroup),
        ("mount", FailureKind::Mount),
    ]
    .into_iter()
    .find_map(|(word, kind)| words.contains(word).then_some(kind))
    .unwrap_or(FailureKind::Other);
    all.into_iter().next().map(|first| Failure { kind, ..first })
}

fn failures_in(text: &str) -> Vec<Failure> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// All that lies in the pipe, without waiting for more.
fn read_available(pipe: &mut File) -> String {
    let _ = rustix::io::ioctl_fionbio(&*pipe, true);
    let mut text = Vec::new();
    let _ = pipe.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A pipe whose ends close on exec; the writing end never blocks.
fn pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read.into(), write))
}

/// Sends every error that libcontainer logs to `fd` as a [`Failure`]. Other levels are off.
fn log_errors_to(fd: RawFd) {
    let _ = tracing::subscriber::set_global_default(ErrorsTo(fd));
}

struct ErrorsTo(RawFd);

impl tracing::Subscriber for ErrorsTo {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR && metadata.is_event()
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Words(String);
        impl tracing::field::Visit for Words {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                use std::fmt::Write;
                let _ = match field.name() {
                    "message" if self.0.is_empty() => write!(self.0, "{value:?}"),
                    "message" => write!(self.0, ": {value:?}"),
                    name if self.0.is_empty() => write!(self.0, "{name}={value:?}"),
                    name => write!(self.0, " {name}={value:?}"),
                };
            }
        }
        let mut words = Words(String::new());
        event.record(&mut words);
        tell(self.0, FailureKind::Log, &words.0);
    }
}
