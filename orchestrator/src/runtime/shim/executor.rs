//! The last steps inside the container before its program runs, called by libcontainer in the container's process: load the
//! seccomp filter, take away the rights that this needs, find the program, run it, as child of a small init if asked for.
//!
//! What goes wrong here is told to the shim as one [`Failure`] on a descriptor that closes by itself when the program runs.

use super::super::{
    error::error_line,
    filter,
    wire::{Failure, FailureKind},
};
use libcontainer::{
    oci_spec::runtime::{LinuxCapabilities, Spec},
    syscall::syscall::create_syscall,
    workload::{Executor, ExecutorError, ExecutorValidationError},
};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
    termios::{Winsize, tcsetwinsize},
};
use std::{
    cell::RefCell,
    ffi::CString,
    fs, io,
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// Runs the program of a container, or one that was asked for by exec.
#[derive(Clone)]
pub(super) struct Run {
    /// Where failures are told; close-on-exec.
    failures: RawFd,
    /// Whether this process stays as process 1 and runs the program as its child.
    init: bool,
    /// Rows and columns of the terminal, if there is one.
    size: Option<(u16, u16)>,
    /// What is still to be taken away.
    restrict: RefCell<Option<Restrict>>,
}

/// What the process loses before it waits for its start. It comes here with [`filter::NEEDED`] beside the capabilities that
/// it keeps. libcontainer would load a filter too, but makes it anew for each container, which takes longer than all else
/// in its start, and gives none to an exec'd process.
#[derive(Clone)]
pub(super) struct Restrict {
    /// The filter, as the kernel takes it.
    pub filter: Vec<u8>,
    /// What is kept.
    pub capabilities: LinuxCapabilities,
}

impl Run {
    /// Tells failures to `failures`, a descriptor that closes on exec.
    pub(super) fn new(failures: RawFd, init: bool, size: Option<(u16, u16)>, restrict: Option<Restrict>) -> Self {
        Self { failures, init, size, restrict: RefCell::new(restrict) }
    }

    /// Loads the filter, then gives up the rights that loading it needs.
    fn restrict(&self) -> Result<(), String> {
        let Some(restrict) = self.restrict.take() else { return Ok(()) };
        filter::load(&restrict.filter).map_err(|e| self.tell(FailureKind::Seccomp, e.to_string()))?;
        libcontainer::capabilities::drop_privileges(&restrict.capabilities, create_syscall().as_ref())
            .map_err(|e| self.tell(FailureKind::Other, error_line(&e)))
    }

    fn tell(&self, kind: FailureKind, text: String) -> String {
        tell(self.failures, kind, &text);
        text
    }
}

impl Executor for Run {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.restrict().map_err(ExecutorValidationError::ArgValidationError)?;
        find_program(spec)
            .map(|_| ())
            .map_err(|text| ExecutorValidationError::ArgValidationError(self.tell(FailureKind::Command, text)))
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let program = find_program(spec).map_err(|text| ExecutorError::Other(self.tell(FailureKind::Command, text)))?;
        if let Some((ws_row, ws_col)) = self.size {
            // Best effort: a program that draws before its user's size is known does so badly, and that is all.
            let _ = tcsetwinsize(rustix::stdio::stdin(), Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
        }
        // Nothing is left to do here unless libcontainer did not validate first.
        self.restrict().map_err(ExecutorError::Other)?;
        if self.init {
            super::init::become_init(self.failures);
        }
        let error =
            run_program(&program, spec.process().as_ref().and_then(|p| p.args().as_deref()).unwrap_or_default());
        let text = match error.raw_os_error() {
            Some(libc::ENOEXEC) => {
                format!("exec {}: exec format error (is the image for another architecture?)", program.display())
            }
            // The file is there, so it is its interpreter that is missing (execve(2)).
            Some(libc::ENOENT) => {
                format!("exec {}: the interpreter or dynamic loader it names is missing", program.display())
            }
            _ => format!("exec {}: {error}", program.display()),
        };
        Err(ExecutorError::Other(self.tell(FailureKind::Command, text)))
    }
}

/// Longest message, in bytes.
const MAX_TEXT: usize = 1000;

/// Tells the shim. Nothing can be done if it does not listen.
pub(super) fn tell(failures: RawFd, kind: FailureKind, text: &str) {
    // Names in it may be as long as a command line; a pipe takes 64 KiB and a message to the driver less.
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    let line = serde_json::to_string(&Failure { kind, text: text.into() }).unwrap_or_default() + "\n";
    // SAFETY: the buffer is valid for its length; a bad descriptor only yields an error.
    unsafe { libc::write(failures, line.as_ptr().cast(), line.len()) };
}

/// The file that the command's first word means: itself if it has a slash, otherwise the first executable in PATH.
/// Errors use Docker's words, which scripts look for.
fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let process = spec.process().as_ref().ok_or("no process was given")?;
    let name =
        process.args().as_ref().and_then(|a| a.first()).filter(|n| !n.is_empty()).ok_or("no command specified")?;
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Err(Errno::ISDIR) => Err(format!("exec: {name:?}: is a directory")),
            Err(_) => Err(format!("exec: {name:?}: permission denied")),
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        // An empty entry is the working directory (environ(7)).
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    Err(match denied {
        true => format!("exec: {name:?}: permission denied"),
        false => format!("exec: {name:?}: executable file not found in $PATH"),
    })
}

fn executable(path: &Path) -> Result<(), Errno> {
    let metadata = fs::metadata(path).map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    if metadata.is_dir() {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Replaces this process. Returns only the error.
fn run_program(program: &Path, args: &[String]) -> io::Error {
    let cstring = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    let path = cstring(program.as_os_str().as_bytes());
    let args: Vec<CString> = args.iter().map(|a| cstring(a.as_bytes())).collect();
    let mut pointers: Vec<_> = args.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: all strings end with a zero byte and outlive the call, and the list ends with a null pointer.
    unsafe { libc::execv(path.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}
