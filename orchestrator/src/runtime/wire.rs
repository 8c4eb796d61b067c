//! What driver and shim say to each other over the control socket: one JSON message per packet (`SOCK_SEQPACKET`), file
//! descriptors beside it (`SCM_RIGHTS`, unix(7)). One connection carries one request.

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Longest message in bytes: errors are the longest ones, and are cut to fit.
const MAX_MESSAGE: usize = 8192;
/// Most descriptors in one message: the three standard streams.
const MAX_FDS: usize = 3;

/// What the driver asks of a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Let the created process run. Answer: `Done` or `Failed`.
    Start,
    /// Run the process described by file `exec-<id>.json` inside. The three standard streams come along, unless it has a
    /// terminal. Answers: `Running` (with the terminal) or `Failed`; after `Running`, `Exited` once it has ended.
    Exec {
        /// Names the file.
        id: u64,
        /// Rows and columns of its terminal, if it has one.
        size: Option<(u16, u16)>,
        /// Whether it gets the container's filter and keeps no capabilities but the container's.
        filter: bool,
    },
    /// Hand out the writing end of standard input, or the terminal. Answer: `Done` or `Failed`.
    Stdin,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It is so.
    Done,
    /// It could not be done.
    Failed(Failure),
    /// The process that was to be run runs, with this id in the node's pid namespace.
    Running(u32),
    /// The process that was run has ended with this code.
    Exited(i32),
}

/// Why the shim could not do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What the caller can change.
    pub kind: FailureKind,
    /// For people.
    pub text: String,
}

/// What has to change for it to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    Command,
    Mount,
    Seccomp,
    Cgroup,
    Workdir,
    NotRunning,
    Other,
    /// Not a failure by itself: an error that libcontainer logged on the way.
    Log,
}

/// Sends one message.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::other("message to or from a shim is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(|_| ()).map_err(Into::into),
        }
    }
}

/// Receives one message; `None` if the other side has closed.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let fds = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::other("message to or from a shim was cut off"));
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes]).map_err(io::Error::other)?, fds)))
}

/// Receives one descriptor that comes with any text, as libcontainer hands over a terminal.
pub(crate) fn receive_fd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| io::Error::other("no descriptor came"))
}
