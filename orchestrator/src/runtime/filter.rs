//! Seccomp filters as the kernel takes them (seccomp(2)): made from a profile by libseccomp, once per distinct profile,
//! because that takes longer than all else in a container's start; loaded by the process that becomes the program.
//!
//! Comes in: `linux.seccomp` of an OCI spec. Goes out: an array of `struct sock_filter`. The driver makes it and puts it beside
//! the spec; the shim's executor loads it.

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    io::{self, Read, Seek},
    sync::{Arc, Mutex, PoisonError},
};

/// What a process needs to load a filter without no_new_privs (seccomp(2)), and to drop from its bounding set afterwards
/// (PR_CAPBSET_DROP of prctl(2)).
pub(super) const NEEDED: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SETPCAP"];

/// Filters that are remembered, some 6 KiB each. Profiles differ by the capabilities of containers only, and few sets of them
/// are in use on one node.
const REMEMBERED: usize = 16;

/// How libseccomp arranges calls (seccomp_attr_set(3), SCMP_FLTATR_CTL_OPTIMIZE): as a tree by number, not as a list. It takes
/// longer to make, which is done once, and a third of the time to load: the kernel runs the filter once for every call
/// there is, to know which need not be asked about again.
const TREE: u32 = 2;

/// Size of a `struct sock_filter` in bytes (linux/filter.h).
const INSTRUCTION: usize = 8;

/// The filters that were made last.
#[derive(Debug, Default)]
pub(super) struct Filters(Mutex<Vec<(LinuxSeccomp, Arc<[u8]>)>>);

impl Filters {
    /// The filter of a profile. Blocking.
    ///
    /// # Errors
    /// The profile has something that [`compile`] does not take, or libseccomp cannot make it.
    pub(super) fn get(&self, profile: &LinuxSeccomp) -> Result<Arc<[u8]>, String> {
        // Held while the filter is made: who starts many containers at once makes it once.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|(known, _)| known == profile) {
            let found = all.remove(at);
            let filter = Arc::clone(&found.1);
            all.push(found);
            return Ok(filter);
        }
        let filter: Arc<[u8]> = compile(profile, TREE)?.into();
        if all.len() == REMEMBERED {
            all.remove(0);
        }
        all.push((profile.clone(), Arc::clone(&filter)));
        Ok(filter)
    }
}

/// Makes a filter that decides as the one that libcontainer would load. Calls that libseccomp does not know are left out, and so fall to the
/// default action.
///
/// # Errors
/// Flags, notifications and other things that profiles of this program never have; nothing that is asked for is ignored.
fn compile(profile: &LinuxSeccomp, arrangement: u32) -> Result<Vec<u8>, String> {
    if profile.flags().is_some() || profile.listener_path().is_some() {
        return Err("flags and listeners are not supported".into());
    }
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: SeccompError| format!("{what}: {error}")
    };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed("make a filter"))?;
    context.set_ctl_optimize(arrangement).map_err(failed("arrange a filter"))?;
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)?).map_err(failed("add an architecture"))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let conditions = conditions(rule)?;
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            context.add_rule_conditional(action, call, &conditions).map_err(failed(name))?;
        }
    }
    let written = memfd_create(c"seccomp", MemfdFlags::CLOEXEC).map_err(|e| format!("memfd: {e}"))?;
    context.export_bpf(&written).map_err(failed("write the filter"))?;
    let (mut file, mut filter) = (File::from(written), Vec::new());
    file.rewind().and_then(|()| file.read_to_end(&mut filter)).map_err(|e| format!("read the filter: {e}"))?;
    Ok(filter)
}

fn architecture(arch: Arch) -> Result<ScmpArch, String> {
    Ok(match arch {
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchArm => ScmpArch::Arm,
        other => return Err(format!("architecture {other:?} is not supported")),
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => {
            ScmpAction::Errno(errno.and_then(|n| n.try_into().ok()).unwrap_or(libc::EPERM))
        }
        other => return Err(format!("action {other:?} is not supported")),
    })
}

/// The conditions of a rule, all of which must hold. libseccomp takes one per argument.
fn conditions(rule: &LinuxSyscall) -> Result<Vec<ScmpArgCompare>, String> {
    let args = rule.args().iter().flatten();
    args.map(|arg| {
        let index = u32::try_from(arg.index()).map_err(|_| format!("argument {} is not supported", arg.index()))?;
        Ok(match arg.op() {
            LinuxSeccompOperator::ScmpCmpLt => ScmpArgCompare::new(index, ScmpCompareOp::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => ScmpArgCompare::new(index, ScmpCompareOp::Equal, arg.value()),
            // The OCI spec's `value` is the mask and `valueTwo` what must be left, as in libseccomp; libcontainer 0.7 has them
            // the wrong way round, which makes "none of these bits" hold always.
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                let mask = ScmpCompareOp::MaskedEqual(arg.value());
                ScmpArgCompare::new(index, mask, arg.value_two().unwrap_or(0))
            }
            other => return Err(format!("condition {other:?} is not supported")),
        })
    })
    .collect()
}

/// Puts the calling thread under a filter, for good. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// What the kernel says; nothing has changed then.
pub(super) fn load(filter: &[u8]) -> io::Result<()> {
    let length = filter.len() / INSTRUCTION;
    let bad = || io::Error::other("it is no seccomp filter");
    if length == 0 || !filter.len().is_multiple_of(INSTRUCTION) {
        return Err(bad());
    }
    // Aligned as the kernel's structure is.
    let mut instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(INSTRUCTION)
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let program =
        libc::sock_fprog { len: u16::try_from(length).map_err(|_| bad())?, filter: instructions.as_mut_ptr() };
    // SAFETY: the program points to as many instructions as it says, and the kernel copies them before it returns.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::seccomp::profile;
    use serde_json::{Value, json};

    fn parsed(profile: Value) -> LinuxSeccomp {
        serde_json::from_value(profile).unwrap()
    }

    fn plain() -> LinuxSeccomp {
        parsed(profile(&["CAP_CHOWN".into()], std::env::consts::ARCH).unwrap())
    }

    /// The error numbers of calls (0: it went well), made under a filter by a thread of their own.
    fn errors_under<const N: usize>(filter: Option<Arc<[u8]>>, calls: [fn() -> libc::c_long; N]) -> [i32; N] {
        let run = move || {
            if let Some(filter) = filter {
                load(&filter).unwrap();
            }
            calls.map(|call| if call() == -1 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 })
        };
        std::thread::spawn(run).join().unwrap()
    }

    /// A fork whose child ends at once.
    fn clone(flags: libc::c_int) -> libc::c_long {
        // SAFETY: without CLONE_VM and with a null stack this is fork(2); the child makes one system call.
        unsafe {
            let pid = libc::syscall(libc::SYS_clone, libc::c_long::from(flags | libc::SIGCHLD), 0, 0, 0, 0);
            match pid {
                0 => libc::_exit(0),
                -1 => -1,
                pid => libc::c_long::from(libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0).min(0)),
            }
        }
    }

    fn socket(family: libc::c_int) -> libc::c_long {
        // SAFETY: a plain system call; the descriptor, if there is one, is closed at once.
        unsafe {
            match libc::socket(family, libc::SOCK_STREAM, 0) {
                -1 => -1,
                fd => libc::c_long::from(libc::close(fd)),
            }
        }
    }

    #[test]
    fn new_namespaces_are_closed_and_plain_forks_are_open() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: loading a filter without no_new_privs needs root");
            return;
        }
        let calls: [fn() -> libc::c_long; 5] = [
            || clone(0),
            || clone(libc::CLONE_NEWUSER),
            || clone(libc::CLONE_NEWNS),
            || socket(libc::AF_UNIX),
            || socket(libc::AF_VSOCK),
        ];
        let unfiltered = errors_under(None, calls);
        assert_eq!(unfiltered[..4], [0; 4]);
        let filter = Filters::default().get(&plain()).unwrap();
        assert_eq!(errors_under(Some(filter), calls), [0, libc::EPERM, libc::EPERM, 0, libc::EPERM]);
    }

    /// What a filter says of a call, as the kernel would work it out (networking/filter.rst; `struct seccomp_data` of
    /// linux/seccomp.h).
    fn verdict(filter: &[u8], number: u32, arch: u32, argument: u64) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let i = &filter[at * INSTRUCTION..][..INSTRUCTION];
            let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
            let holds = match u16::from_ne_bytes([i[0], i[1]]) {
                0x20 => {
                    accumulator = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap());
                    at += 1;
                    continue;
                }
                0x54 => {
                    accumulator &= k;
                    at += 1;
                    continue;
                }
                0x05 => {
                    at += 1 + k as usize;
                    continue;
                }
                0x06 => return k,
                0x15 => accumulator == k,
                0x25 => accumulator > k,
                0x35 => accumulator >= k,
                0x45 => accumulator & k != 0,
                code => panic!("instruction {code:#x} is not known"),
            };
            at += 1 + usize::from(if holds { i[2] } else { i[3] });
        }
    }

    #[test]
    fn the_arrangement_of_a_filter_changes_nothing_but_its_speed() {
        const LIST: u32 = 1;
        // AUDIT_ARCH_{X86_64,I386,AARCH64,ARM,S390X} of linux/audit.h: two of each pair of ours, and a foreign one.
        const ARCHES: [u32; 5] = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 0x8000_0016];
        let arguments =
            [0, 1, 8, 11, 12, 13, 38, 40, 45, 46, 0x11, 0x1000_0011, 0x2_0008, 0xffff_ffff, 1 << 32, u64::MAX];
        for arch in ["x86_64", "aarch64"] {
            for capabilities in [&[][..], &["CAP_SYS_ADMIN".into()], &["CAP_SYS_CHROOT".into(), "CAP_BPF".into()]] {
                let profile = parsed(profile(capabilities, arch).unwrap());
                let (list, tree) = (compile(&profile, LIST).unwrap(), compile(&profile, TREE).unwrap());
                assert_ne!(list, tree);
                // Calls of 32-bit ARM's own lie at 0xf0000; x32 sets bit 30.
                let numbers = (0..480).chain(0xf_0000..0xf_0008).chain(0x4000_0000..0x4000_0004).chain([u32::MAX]);
                for (number, told) in numbers.flat_map(|number| ARCHES.map(|told| (number, told))) {
                    for argument in arguments {
                        let of = |filter| verdict(filter, number, told, argument);
                        assert_eq!(of(&list), of(&tree), "{arch} {capabilities:?} {number} {told:#x} {argument:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_profile_is_compiled_once_and_few_are_remembered() {
        let (filters, plain) = (Filters::default(), plain());
        let first = filters.get(&plain).unwrap();
        assert!(Arc::ptr_eq(&first, &filters.get(&plain).unwrap()));
        for n in 1..=REMEMBERED {
            let other = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": n});
            filters.get(&parsed(other)).unwrap();
        }
        let again = filters.get(&plain).unwrap();
        assert!(!Arc::ptr_eq(&first, &again));
        assert_eq!(first, again);
        assert_eq!(filters.0.lock().unwrap().len(), REMEMBERED);
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let allow = |more: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [more]});
        for bad in [
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}),
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_S390X"]}),
            allow(
                json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}]}),
            ),
            allow(json!({"names": ["read"], "action": "SCMP_ACT_TRAP"})),
        ] {
            assert!(compile(&parsed(bad.clone()), TREE).is_err(), "{bad}");
        }
        for bad in [&[][..], &[0; 7], &[0xff; 8]] {
            assert!(load(bad).is_err(), "{bad:?}");
        }
    }
}
