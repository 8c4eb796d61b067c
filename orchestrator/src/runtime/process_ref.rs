//! A process that cannot be mistaken for a later one with the same number: pid and start time (proc(5), field 22 of
//! `/proc/<pid>/stat`). Used by the driver and the shims to find, watch and kill processes after restarts of either.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// Identity of a process within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    /// Process id in the node's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessRef {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_ticks) =
            parse_stat(&stat).ok_or_else(|| io::Error::other("unknown format of /proc/<pid>/stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it runs. A zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_some_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }

    /// A descriptor of exactly this process, readable once it has ended; `None` if it is gone.
    pub(crate) fn pidfd(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number may have been given to another process before it was opened; not after.
        self.is_alive().then_some(fd)
    }

    /// Sends a signal, by its number. Fine if the process is gone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let Some(fd) = self.pidfd() else { return Ok(()) };
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and a null siginfo is allowed (pidfd_send_signal(2)). The raw call because
        // rustix's signal type has no real-time signals.
        if unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, no_info, 0) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits until the process has ended; whether it has.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let Some(fd) = self.pidfd() else { return true };
        let timeout = Timespec::try_from(timeout).ok();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// State and start time. The name in parentheses may hold anything, so fields are counted from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is field 3, start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_skipped() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
    }

    #[test]
    fn the_own_process_lives_and_one_with_another_start_does_not() {
        let me = ProcessRef::of(std::process::id()).unwrap();
        assert!(me.is_alive() && me.pidfd().is_some());
        let other = ProcessRef { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.is_alive() && other.pidfd().is_none());
    }
}
