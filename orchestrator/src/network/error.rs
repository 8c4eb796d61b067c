//! Errors of the network driver, told apart by what the caller can do about them.

use std::{io, net::SocketAddr, path::Path};

use super::SubnetError;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The caller asked for something that cannot exist: correct the request, do not retry.
    #[error("invalid {what} {value:?}: {why}")]
    Invalid {
        /// What was given, for example `task key`.
        what: &'static str,
        /// The value given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A subnet or an address in it cannot be used: correct the configuration or the index.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// The kernel lacks a feature: `doctor` names it too, the remedy is for the operator.
    #[error("the kernel has no {feature}: {remedy}")]
    Unsupported {
        /// The feature, for example `bridge links`.
        feature: &'static str,
        /// What the operator can do.
        remedy: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else's object has the name or address that is needed: the operator must move one of them.
    #[error("{what} is in use by {holder}")]
    Taken {
        /// What is needed.
        what: String,
        /// Who has it.
        holder: String,
    },
    /// A socket could not be bound.
    #[error("cannot listen on {address} ({protocol})")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request was refused; look again and retry.
    #[error("cannot {tried}")]
    Netlink {
        /// What was tried on what.
        tried: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call or file operation failed; look again and retry.
    #[error("cannot {tried}")]
    Io {
        /// What was tried on what.
        tried: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A teardown went on after errors; these are all of them.
    #[error("{}", join(.0))]
    Several(Vec<NetworkError>),
}

impl NetworkError {
    pub(super) fn io(tried: impl Into<String>, source: impl Into<io::Error>) -> Self {
        NetworkError::Io { tried: tried.into(), source: source.into() }
    }

    pub(super) fn path(verb: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        NetworkError::io(format!("{verb} {}", path.display()), source)
    }

    pub(super) fn netlink(tried: impl Into<String>, error: rtnetlink::Error) -> Self {
        NetworkError::Netlink { tried: tried.into(), source: netlink_io(&error) }
    }

    /// `Ok` for no error, the error itself for one, [`NetworkError::Several`] for more.
    pub(super) fn collect(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Several(errors)),
        }
    }
}

/// The errno inside a netlink error, so that callers can match on it.
pub(super) fn netlink_io(error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// The error with its cause, where only text can be kept.
pub(super) fn full(error: &NetworkError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn join(errors: &[NetworkError]) -> String {
    errors.iter().map(full).collect::<Vec<_>>().join("; ")
}
