//! A small init: process 1 of a container whose program runs as its child. It reaps orphans, passes signals on, and ends as
//! the program ends. Runs inside the container's first process, from the memory of the shim's program, so that no file has
//! to be put into the image. The process stays non-dumpable, so that `/proc/1/exe`, the node's own binary, is closed to a
//! container without CAP_SYS_PTRACE (proc(5), prctl(2) PR_SET_DUMPABLE).

use super::{super::wire::FailureKind, executor::tell};
use std::{io, mem::MaybeUninit, os::fd::RawFd};

/// Returns in the child, which then runs the program. The calling process never returns.
pub(super) fn become_init(failures: RawFd) {
    // SAFETY: plain system calls on values of this process, which has a single thread; sigset_t is filled before use.
    unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        match libc::fork() {
            -1 => {
                tell(failures, FailureKind::Other, &format!("fork: {}", io::Error::last_os_error()));
                libc::_exit(127);
            }
            0 => {
                // Its own process group, in the foreground if there is a terminal, so that Ctrl-C reaches it and not init.
                libc::setpgid(0, 0);
                if libc::isatty(0) == 1 {
                    libc::tcsetpgrp(0, libc::getpid());
                }
                libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
            }
            child => {
                libc::prctl(libc::PR_SET_DUMPABLE, 0);
                libc::prctl(libc::PR_SET_NAME, c"edged-init".as_ptr());
                // Standard streams too: the program decides when they end.
                libc::close_range(0, libc::c_uint::MAX, 0);
                supervise(child, all.assume_init_ref())
            }
        }
    }
}

/// Waits for signals: passes them on, and for SIGCHLD collects whoever ended.
fn supervise(child: libc::pid_t, signals: &libc::sigset_t) -> ! {
    loop {
        // SAFETY: plain system calls; all signals are blocked, so none is lost between two rounds.
        unsafe {
            match libc::sigwaitinfo(signals, std::ptr::null_mut()) {
                -1 => {}
                libc::SIGCHLD => loop {
                    let mut status = 0;
                    let pid = libc::waitpid(-1, &raw mut status, libc::WNOHANG);
                    if pid == child && !libc::WIFSTOPPED(status) {
                        libc::_exit(exit_code(status));
                    }
                    if pid <= 0 {
                        break;
                    }
                },
                signal => {
                    libc::kill(child, signal);
                }
            }
        }
    }
}

/// The exit code by which shells tell of a status of wait(2).
pub(super) fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}
