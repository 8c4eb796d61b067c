//! The seccomp profile of containers: which system calls a container may make, given its capabilities and the machine's
//! architecture. What is not listed fails with EPERM. The allowed set is Docker's default (facts read from
//! github.com/moby/profiles, August 2026), so that images behave as they do there. Pure.
//!
//! Not reachable without the matching capability: mounts and new namespaces, bpf, perf events, kernel modules, the clock,
//! raw I/O. Not reachable at all: keyrings, userfaultfd, io_uring, kexec, swap, and sockets of the kernel's crypto
//! interface (AF_ALG) and of virtual machines (AF_VSOCK).

use serde_json::{Value, json};

/// Harmless calls, or calls that check the caller's rights well enough themselves. Names that a machine's libseccomp does not
/// know are skipped by libcontainer, which leaves them forbidden.
const ALWAYS: &str = "
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
    fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
    fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
    listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
    mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
    ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6
    pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall
    riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
    tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork
    vmsplice wait4 waitid waitpid write writev";

/// Calls that a capability opens.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// Socket families (include/linux/socket.h) up to 11 are all allowed; beyond them those that exist, without the kernel's
/// crypto interface (38) and virtual machines (40).
const FAMILIES_BELOW: u64 = 12;
const FAMILIES: [u64; 25] =
    [13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// Execution domains: Linux, 32 bit, without address randomisation of the 2.6 kind, both, and "tell me" (personality(2)).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} (clone(2)).
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;

/// The profile, as `linux.seccomp` of an OCI runtime spec. `capabilities` are OCI names; `arch` is Rust's `ARCH`.
///
/// # Errors
/// There is no table for the architecture.
pub(crate) fn profile(capabilities: &[String], arch: &str) -> Result<Value, String> {
    // The machine's own calls and those of its 32-bit programs. Not x32, which kernels come without; each kind costs its
    // share of the time in which libseccomp makes the filter, the largest part of a container's start.
    let (arches, of_arch) = match arch {
        "x86_64" => (json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), "arch_prctl modify_ldt"),
        "aarch64" => (
            json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
        ),
        other => return Err(format!("there is no seccomp table for {other}")),
    };
    let has = |name: &str| capabilities.iter().any(|c| c == name);
    let mut names: Vec<&str> = ALWAYS.split_ascii_whitespace().chain(of_arch.split_ascii_whitespace()).collect();
    for (_, calls) in BY_CAPABILITY.iter().filter(|(capability, _)| has(capability)) {
        names.extend(calls.split_ascii_whitespace());
    }
    names.sort_unstable();
    names.dedup();

    let allow_if = |name: &str, value: u64, op: &str| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": value, "op": op}]});
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    rules.push(allow_if("socket", FAMILIES_BELOW, "SCMP_CMP_LT"));
    rules.extend(FAMILIES.map(|family| allow_if("socket", family, "SCMP_CMP_EQ")));
    rules.extend(PERSONALITIES.map(|domain| allow_if("personality", domain, "SCMP_CMP_EQ")));
    if !has("CAP_SYS_ADMIN") {
        // "Of these bits, none is set": value is the mask and valueTwo what must be left.
        rules.push(json!({
            "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        }));
        // Its flags lie in memory, where no filter can look; told that it does not exist, C libraries use clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": arches,
        "syscalls": rules,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value) -> Vec<&str> {
        profile["syscalls"][0]["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = profile(&["CAP_SYS_CHROOT".into()], "x86_64").unwrap();
        for call in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "userfaultfd",
            "io_uring_setup",
            "reboot",
            "clone",
            "clone3",
        ] {
            assert!(!allowed(&plain).contains(&call), "{call}");
        }
        assert!(allowed(&plain).contains(&"chroot") && allowed(&plain).contains(&"arch_prctl"));

        let admin = profile(&["CAP_SYS_ADMIN".into()], "aarch64").unwrap();
        for call in ["mount", "unshare", "clone", "clone3", "set_tls"] {
            assert!(allowed(&admin).contains(&call), "{call}");
        }
        for call in ["keyctl", "userfaultfd", "io_uring_setup", "chroot"] {
            assert!(!allowed(&admin).contains(&call), "{call}");
        }
    }

    #[test]
    fn libcontainer_understands_the_profile() {
        for arch in ["x86_64", "aarch64"] {
            let parsed: oci_spec::runtime::LinuxSeccomp = serde_json::from_value(profile(&[], arch).unwrap()).unwrap();
            assert!(parsed.syscalls().as_ref().is_some_and(|rules| rules.len() > 30));
        }
        assert!(profile(&[], "m68k").is_err());
    }

    #[test]
    fn crypto_and_vm_sockets_are_closed() {
        assert!(![12, 19, 20, 23, 25, 34, 37, 38, 40].iter().any(|family| FAMILIES.contains(family)));
    }
}
