//! What can go wrong with a container, sorted by what the caller can do about it. Texts are one line, name what was
//! tried on what, and end with the remedy where there is one; they are shown to users as they are.

use std::{io, path::PathBuf};

/// An operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The command is not in the image. The user has to change the command or the image.
    #[error("{container}: {reason}: check the command and the image")]
    NoSuchCommand {
        /// Name of the container.
        container: String,
        /// What was looked for, in the words users of Docker know.
        reason: String,
    },
    /// A mount cannot be made as asked for. The user has to change the mount.
    #[error("{container}: cannot mount {what}: {reason}")]
    BadMount {
        /// Name of the container.
        container: String,
        /// Source and target.
        what: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// The user or a group is unknown in the image. The user has to change it.
    #[error("{container}: {reason}")]
    BadUser {
        /// Name of the container.
        container: String,
        /// Which one, and where it was looked for.
        reason: String,
    },
    /// Something else in the request cannot be had: a sysctl, a device, a limit, a capability.
    #[error("{container}: {reason}")]
    BadRequest {
        /// Name of the container.
        container: String,
        /// What, why and the remedy.
        reason: String,
    },
    /// The seccomp profile cannot be applied, so nothing was started.
    #[error("{container}: the seccomp profile cannot be applied: {reason}: nothing was started")]
    Seccomp {
        /// Name of the container.
        container: String,
        /// The kernel's or the library's words.
        reason: String,
    },
    /// The control groups cannot be set up. The operator has to look at the node (`edgectl doctor`).
    #[error("{container}: cannot set up control groups: {reason}: run `edgectl doctor`")]
    Cgroup {
        /// Name of the container.
        container: String,
        /// The kernel's or the library's words.
        reason: String,
    },
    /// The container exists already.
    #[error("container {0} exists already")]
    AlreadyExists(String),
    /// There is no such container here.
    #[error("there is no container {0} on this node")]
    NotFound(String),
    /// The container exists but does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The shim of the container does not answer; the container should be replaced.
    #[error("the shim of {container} failed: {reason}")]
    Shim {
        /// Name or id of the container.
        container: String,
        /// What happened.
        reason: String,
    },
    /// The node refused an operation on a file or a process.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Teardown met several errors; all that could be removed was removed.
    #[error("not all of {container} could be removed: {}", .errors.iter().map(|e| error_line(e)).collect::<Vec<_>>().join("; "))]
    Teardown {
        /// Id of the container.
        container: String,
        /// What failed.
        errors: Vec<RuntimeError>,
    },
}

/// The error and its causes in one line, for messages that leave the process as text.
#[must_use]
pub fn error_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some libraries repeat the cause in the text of the outer error.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

/// Puts action and path to an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, RuntimeError> {
        self.map_err(|source| RuntimeError::Io { action, path: path.into(), source: source.into() })
    }
}
