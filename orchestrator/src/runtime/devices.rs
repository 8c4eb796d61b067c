//! Device rules on cgroup v2, which has no devices controller: a BPF program of type `CGROUP_DEVICE`, attached to the
//! container's group, is asked at each open(2) and mknod(2) of a device (bpf(2); kernel docs, cgroup-v2.rst, "Device
//! controller").
//!
//! Comes in: what is allowed. Goes out: the program, made of a few instructions per rule, in place for as long as the group
//! is there. The driver says the rules, the shim attaches before the container's program runs. On v1 the rules are
//! libcontainer's work.

use super::spec::DeviceNode;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// All that the processes of a group may do with devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRules {
    /// Folder of the group.
    pub group: PathBuf,
    /// Nothing else is allowed.
    pub allowed: Vec<Allowed>,
}

/// One kind of device and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allowed {
    /// `b` or `c`.
    pub kind: char,
    /// `None` is any.
    pub major: Option<u32>,
    /// `None` is any.
    pub minor: Option<u32>,
    /// Any of `rwm`.
    pub access: String,
}

/// What containers have without asking, as under Docker: nodes of all devices may be made, though not opened; null, zero, full,
/// random, urandom, tty, console and ptmx may be used (Documentation/admin-guide/devices.txt), and terminals of devpts.
const DEFAULTS: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

impl DeviceRules {
    /// The rules of a container that was given these devices.
    pub(crate) fn new(group: PathBuf, given: &[DeviceNode]) -> Self {
        let any = |kind| Allowed { kind, major: None, minor: None, access: "m".into() };
        let default = |(major, minor)| Allowed { kind: 'c', major: Some(major), minor, access: "rwm".into() };
        let given = given.iter().map(|node| Allowed {
            kind: node.kind,
            major: Some(node.major),
            minor: Some(node.minor),
            access: node.access.clone(),
        });
        Self { group, allowed: ['b', 'c'].map(any).into_iter().chain(DEFAULTS.map(default)).chain(given).collect() }
    }

    /// Puts the rules in force.
    ///
    /// # Errors
    /// The group is not there, or the kernel has no CONFIG_CGROUP_BPF.
    pub(crate) fn attach(&self) -> io::Result<()> {
        attach(&load(&program(&self.allowed))?, &self.group)
    }
}

/// `struct bpf_insn` (linux/bpf.h). Both register numbers lie in one byte, in an order that depends on the machine's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { target | (source << 4) } else { (target << 4) | source };
    Instruction { code, registers, offset, immediate }
}

// Registers: r0 is the verdict, r1 points to `struct bpf_cgroup_dev_ctx` { access_type, major, minor }.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Codes (linux/bpf_common.h, linux/bpf.h).
const LOAD_U32: u8 = 0x61;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

/// BPF_DEVCG_ACC_{MKNOD,READ,WRITE}, in the upper half of `access_type`.
const ACCESSES: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
const EVERY_ACCESS: i32 = 7;
/// BPF_DEVCG_DEV_{BLOCK,CHAR}, in the lower half.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// A program that returns 1 if one of the rules allows the access, and 0 (EPERM) otherwise.
fn program(allowed: &[Allowed]) -> Vec<Instruction> {
    let mut all = vec![
        instruction(LOAD_U32, ACCESS, CONTEXT, 0, 0),
        instruction(COPY, KIND, ACCESS, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_U32, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_U32, MINOR, CONTEXT, 8, 0),
    ];
    for rule in allowed {
        let kind = if rule.kind == 'b' { BLOCK } else { CHARACTER };
        let granted: i32 =
            ACCESSES.iter().filter(|(letter, _)| rule.access.contains(*letter)).map(|(_, bit)| bit).sum();
        let mut conditions = vec![instruction(JUMP_IF_NOT, KIND, 0, 0, kind)];
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            // The kernel's numbers have 12 and 20 bits; what is larger never matches.
            conditions.extend(number.map(|n| instruction(JUMP_IF_NOT, register, 0, 0, i32::try_from(n).unwrap_or(-1))));
        }
        conditions.extend([
            instruction(COPY, VERDICT, ACCESS, 0, 0),
            instruction(AND, VERDICT, 0, 0, EVERY_ACCESS & !granted),
            instruction(JUMP_IF_NOT, VERDICT, 0, 0, 0),
            instruction(MOVE, VERDICT, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ]);
        // Whatever does not hold leads past the end of the rule.
        let length = conditions.len();
        for (at, condition) in conditions.iter_mut().enumerate().filter(|(_, c)| c.code == JUMP_IF_NOT) {
            condition.offset = (length - at - 1) as i16;
        }
        all.extend(conditions);
    }
    all.extend([instruction(MOVE, VERDICT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    all
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of groups below run too, and an access has to please all of them.
const BPF_F_ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    /// The beginning of `union bpf_attr` for this command; the kernel takes the rest as zero.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"edged_devices\0\0\0",
        interface: 0,
        attach_type: BPF_CGROUP_DEVICE,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us (closed on exec, bpf(2)).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: &OwnedFd, group: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let group = File::open(group)?;
    let attributes = Attributes {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(|_| ())
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` lies as the kernel's union does for this command and is valid for its size; the addresses in it are
    // of values that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cgroup::Hierarchies;
    use std::process::Command;

    /// A group of the v2 hierarchy, which is there on hybrid machines too; removed at the end.
    struct Group(PathBuf);

    impl Group {
        fn new(name: &str) -> Option<Self> {
            let root = rustix::process::geteuid().is_root().then(|| Hierarchies::detect().unwrap().v2_root())??;
            let group = root.join(format!("edged-test-{name}-{}", std::process::id()));
            std::fs::create_dir(&group).ok()?;
            Some(Self(group))
        }

        /// Runs a line of shell inside; its exit code and what it says of errors.
        fn run(&self, line: &str) -> (i32, String) {
            let line = format!("echo $$ > {}/cgroup.procs && {line}", self.0.display());
            let output = Command::new("sh").args(["-c", &line]).env("LC_ALL", "C").output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    fn node(major: u32, minor: u32, access: &str) -> DeviceNode {
        let path = "/dev/x".into();
        DeviceNode { path, kind: 'c', major, minor, mode: 0o600, uid: 0, gid: 0, access: access.into() }
    }

    #[test]
    fn only_what_is_allowed_can_be_opened() {
        let Some(group) = Group::new("devices") else {
            println!("SKIPPED: there is no cgroup v2 hierarchy to make a group in");
            return;
        };
        // /dev/kmsg and /dev/mem, of which neither is a container's.
        assert_eq!(group.run(": < /dev/kmsg && : < /dev/null").0, 0);
        DeviceRules::new(group.0.clone(), &[node(1, 1, "rw")]).attach().unwrap();
        assert_eq!(group.run(": < /dev/null && : > /dev/null && : < /dev/urandom").0, 0);
        let (code, error) = group.run(": < /dev/kmsg");
        assert!(code != 0 && error.contains("Operation not permitted"), "{error}");
        // Of making nodes the rules keep nobody; of opening what was made, they do.
        let place = tempfile::tempdir_in("/dev").unwrap();
        let made = place.path().join("kmsg");
        assert_eq!(group.run(&format!("mknod {} c 1 11", made.display())).0, 0);
        assert_ne!(group.run(&format!(": < {}", made.display())).0, 0);
    }

    #[test]
    fn a_device_can_be_given_for_reading_alone() {
        let Some(group) = Group::new("readonly") else {
            println!("SKIPPED: there is no cgroup v2 hierarchy to make a group in");
            return;
        };
        DeviceRules::new(group.0.clone(), &[node(1, 11, "r")]).attach().unwrap();
        assert_eq!(group.run(": < /dev/kmsg").0, 0);
        let (code, error) = group.run(": >> /dev/kmsg");
        assert!(code != 0 && error.contains("Operation not permitted"), "{error}");
    }
}
