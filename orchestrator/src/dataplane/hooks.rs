//! Attaching programs so that they outlive this process, and replacing them between two packets.
//!
//! In: loaded programs, interfaces, the cgroup root. Out: links pinned below the node's directory, or clsact filters
//! where the kernel has no tcx, and a report of which rung of the ladder each interface is on and why.
//! Names of pins: `uplink-<ifindex>`, `xdp-<ifindex>`, `container-<ifindex>`, and the socket hooks' own names.

use super::{
    DataplaneError,
    interfaces::{self, Interface},
    kernel::{self, AttachType, Target},
};
use aya::{
    Ebpf,
    programs::{
        CgroupSockAddr, SchedClassifier, TcAttachType, Xdp,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

/// How an interface's packets reach the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XDP in the driver, and tcx or clsact behind it for backends of this node.
    Xdp,
    /// A tcx link (Linux 6.6).
    Tcx,
    /// A filter of the clsact queueing discipline.
    Clsact,
}

impl Mode {
    /// The word for it in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// How one uplink is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceReport {
    /// The interface.
    pub name: String,
    /// The rung of the ladder; `None`: published ports are not served on it.
    pub mode: Option<Mode>,
    /// Why no higher rung: each refusal with the kernel's words.
    pub why: String,
}

/// Why a virtual link is not asked for XDP: measured on veth, bulk TCP into containers falls to a fifth, because frames
/// that may be redirected by the driver cannot be segmented late.
const VIRTUAL: &str = "native xdp not used: on a virtual link it would cost the peer segmentation offload";

/// How one socket hook is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketHookReport {
    /// The program.
    pub name: &'static str,
    /// Why it is not attached; `None`: it is.
    pub refused: Option<String>,
}

const UPLINK: &str = "edged_uplink";
const UPLINK_RAW: &str = "edged_uplink_raw";
const CONTAINER: &str = "edged_container";
const XDP: &str = "edged_xdp";
/// The tc programs, as clsact filters are named by them.
const CLASSIFIERS: [&str; 3] = [UPLINK, UPLINK_RAW, CONTAINER];

const SOCKET_HOOKS: [(&str, AttachType); 10] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("bind4", AttachType::Bind4),
    ("bind6", AttachType::Bind6),
];

/// Place of our clsact filter on an interface: fixed, so that a later process finds and replaces it.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// The loaded programs and the directory of their links.
#[derive(Debug)]
pub(super) struct Hooks {
    pub(super) programs: Ebpf,
    /// What could not be loaded, by program: its hook stays empty.
    refused: BTreeMap<&'static str, String>,
    directory: PathBuf,
}

impl Hooks {
    /// Loads every program. The tc programs must load; the others depend on the kernel's age.
    pub(super) fn load(mut programs: Ebpf, directory: PathBuf) -> Result<Self, DataplaneError> {
        for name in CLASSIFIERS {
            let program: &mut SchedClassifier = named(&mut programs, name).try_into()?;
            program.load()?;
        }
        let mut refused = BTreeMap::new();
        let program: &mut Xdp = named(&mut programs, XDP).try_into()?;
        if let Err(error) = program.load() {
            refused.insert(XDP, chain(&error));
        }
        for (name, _) in SOCKET_HOOKS {
            let program: &mut CgroupSockAddr = named(&mut programs, name).try_into()?;
            if let Err(error) = program.load() {
                refused.insert(name, chain(&error));
            }
        }
        Ok(Self { programs, refused, directory })
    }

    /// Puts an uplink on the highest rung it can have, or on the one that is forced.
    pub(super) fn attach_uplink(&mut self, name: &str, interface: &Interface, force: Option<Mode>) -> InterfaceReport {
        let mut refusals = Vec::new();
        let xdp = match force {
            None if !interfaces::is_hardware(name) => {
                refusals.push(VIRTUAL.to_owned());
                self.detach(&format!("xdp-{}", interface.index), &mut refusals);
                false
            }
            None | Some(Mode::Xdp) => match self.attach_xdp(interface) {
                Ok(()) => true,
                Err(why) => {
                    refusals.push(format!("native xdp refused: {why}"));
                    false
                }
            },
            Some(_) => {
                self.detach(&format!("xdp-{}", interface.index), &mut refusals);
                false
            }
        };
        let program = if interface.ethernet { UPLINK } else { UPLINK_RAW };
        let classifier = self.attach_classifier(
            program,
            &format!("uplink-{}", interface.index),
            name,
            interface.index,
            force,
            &mut refusals,
        );
        let mode = match (xdp, classifier, force) {
            (_, None, _) | (false, _, Some(Mode::Xdp)) => None,
            (true, Some(_), _) => Some(Mode::Xdp),
            (false, rung, _) => rung,
        };
        InterfaceReport { name: name.to_owned(), mode, why: refusals.join("; ") }
    }

    /// Puts the program for containers' packets on a veth.
    pub(super) fn attach_container(
        &mut self,
        name: &str,
        index: u32,
        force: Option<Mode>,
    ) -> Result<Mode, DataplaneError> {
        let mut refusals = Vec::new();
        self.attach_classifier(CONTAINER, &format!("container-{index}"), name, index, force, &mut refusals)
            .ok_or_else(|| DataplaneError::Refused { interface: name.to_owned(), why: refusals.join("; ") })
    }

    /// Takes it off again. An interface that is gone has taken the program with it.
    pub(super) fn detach_container(&mut self, name: Option<&str>, index: u32) -> Result<(), DataplaneError> {
        remove_file(&self.directory.join(format!("container-{index}")))?;
        if let Some(name) = name {
            detach_filter(name, CONTAINER)?;
        }
        Ok(())
    }

    /// Attaches the socket hooks at the root of the cgroup tree, beside whatever is there.
    pub(super) fn attach_sockets(&mut self, cgroup: Option<&Path>) -> Vec<SocketHookReport> {
        let root = match cgroup {
            Some(path) => fs::File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display())),
            None => Err("no cgroup v2 tree is mounted".to_owned()),
        };
        let mut reports = Vec::new();
        for (name, attach_type) in SOCKET_HOOKS {
            let result = root.as_ref().map_err(Clone::clone).and_then(|root| {
                if let Some(why) = self.refused.get(name) {
                    return Err(why.clone());
                }
                let program: &mut CgroupSockAddr =
                    named(&mut self.programs, name).try_into().map_err(|error| chain(&error))?;
                let program = program.fd().map_err(|error| chain(&error))?;
                ensure_link(&self.directory.join(name), program.as_fd(), Target::Cgroup(root.as_fd()), attach_type, 0)
                    .map_err(|error| error.to_string())
            });
            reports.push(SocketHookReport { name, refused: result.err() });
        }
        reports
    }

    /// Replaces the programs of containers that are still there, and forgets those that are not.
    pub(super) fn adopt_containers<'a>(
        &mut self,
        interfaces: impl Iterator<Item = &'a String>,
    ) -> Result<(), DataplaneError> {
        let program: &mut SchedClassifier = named(&mut self.programs, CONTAINER).try_into()?;
        let descriptor = program
            .fd()?
            .try_clone()
            .map_err(|source| DataplaneError::Kernel { what: "duplicate a program's descriptor".to_owned(), source })?;
        for name in pins(&self.directory)?.iter().filter(|name| name.starts_with("container-")) {
            let path = self.directory.join(name);
            let updated =
                kernel::open_pinned(&path).and_then(|link| kernel::link_update(link.as_fd(), descriptor.as_fd()));
            if updated.is_err() {
                remove_file(&path)?;
            }
        }
        for interface in interfaces {
            // A filter is only found by removing it; for a moment packets wait for their retransmission.
            if tc::qdisc_detach_program(interface, TcAttachType::Ingress, CONTAINER).is_ok() {
                attach_filter(program, interface)?;
            }
        }
        Ok(())
    }

    /// Removes the links of uplinks that are none any longer, and of containers' interfaces that are gone: `there` are the
    /// indexes of all interfaces.
    pub(super) fn prune(&self, uplinks: &BTreeSet<u32>, there: &BTreeSet<u32>) -> Result<(), DataplaneError> {
        prune(&self.directory, uplinks, there)
    }

    fn attach_xdp(&mut self, interface: &Interface) -> Result<(), String> {
        if let Some(why) = self.refused.get(XDP) {
            return Err(why.clone());
        }
        if !interface.ethernet {
            return Err("no Ethernet header".to_owned());
        }
        let program: &mut Xdp = named(&mut self.programs, XDP).try_into().map_err(|error| chain(&error))?;
        let program = program.fd().map_err(|error| chain(&error))?;
        let pin = self.directory.join(format!("xdp-{}", interface.index));
        ensure_link(&pin, program.as_fd(), Target::Interface(interface.index), AttachType::Xdp, kernel::XDP_NATIVE)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => format!("another xdp program is attached already ({error})"),
                _ => error.to_string(),
            })
    }

    fn attach_classifier(
        &mut self,
        program: &str,
        pin: &str,
        name: &str,
        index: u32,
        force: Option<Mode>,
        refusals: &mut Vec<String>,
    ) -> Option<Mode> {
        let pin = self.directory.join(pin);
        let program: &mut SchedClassifier = named(&mut self.programs, program).try_into().ok()?;
        if force != Some(Mode::Clsact) {
            let attached = program
                .fd()
                .map_err(io::Error::other)
                .and_then(|fd| ensure_link(&pin, fd.as_fd(), Target::Interface(index), AttachType::TcxIngress, 0));
            match attached {
                Ok(()) => return Some(Mode::Tcx),
                Err(error) => refusals.push(format!("tcx refused: {error}")),
            }
        }
        if force == Some(Mode::Tcx) {
            return None;
        }
        match attach_filter(program, name) {
            Ok(()) => {
                if let Err(error) = remove_file(&pin) {
                    refusals.push(chain(&error));
                }
                Some(Mode::Clsact)
            }
            Err(error) => {
                refusals.push(format!("clsact refused: {}", chain(&error)));
                None
            }
        }
    }

    fn detach(&self, pin: &str, refusals: &mut Vec<String>) {
        if let Err(error) = remove_file(&self.directory.join(pin)) {
            refusals.push(chain(&error));
        }
    }
}

fn prune(directory: &Path, uplinks: &BTreeSet<u32>, there: &BTreeSet<u32>) -> Result<(), DataplaneError> {
    for name in pins(directory)? {
        let (index, wanted) = match name.split_once('-') {
            Some(("uplink" | "xdp", index)) => (index, uplinks),
            Some(("container", index)) => (index, there),
            _ => continue,
        };
        if index.parse().is_ok_and(|index: u32| !wanted.contains(&index)) {
            remove_file(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Removes every pin of a directory and every filter of ours on these interfaces; goes on after errors.
pub(super) fn remove_all<'a>(directory: &Path, interfaces: impl Iterator<Item = &'a String>) -> Vec<DataplaneError> {
    let mut errors = Vec::new();
    match pins(directory) {
        Ok(names) => {
            errors.extend(names.iter().filter_map(|name| remove_file(&directory.join(name)).err()));
        }
        Err(error) => errors.push(error),
    }
    for interface in interfaces {
        for program in CLASSIFIERS {
            errors.extend(detach_filter(interface, program).err());
        }
    }
    errors
}

/// The names pinned in a directory; none where there is no directory.
pub(super) fn pins(directory: &Path) -> Result<Vec<String>, DataplaneError> {
    let failed = |source| DataplaneError::Kernel { what: format!("read {}", directory.display()), source };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes a pin; one that is not there is removed already.
pub(super) fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataplaneError::Kernel { what: format!("remove {}", path.display()), source: error })
        }
        _ => Ok(()),
    }
}

/// Makes the pinned link run this program: the link that is there, or, where it is gone with its interface, a new one.
fn ensure_link(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<()> {
    if let Ok(link) = kernel::open_pinned(pin) {
        if kernel::link_update(link.as_fd(), program).is_ok() {
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    let link = kernel::link_create(program, target, attach_type, flags)?;
    kernel::pin(link.as_fd(), pin)
}

/// Attaches a clsact filter at our place, or replaces the one there.
fn attach_filter(program: &mut SchedClassifier, interface: &str) -> Result<(), DataplaneError> {
    // Fails where the discipline is there already; whether it works shows at once.
    let _ = tc::qdisc_add_clsact(interface);
    let link = SchedClassifierLink::attached(interface, TcAttachType::Ingress, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        .map_err(|source| DataplaneError::Kernel { what: format!("look up interface {interface}"), source })?;
    let id = match program.attach_to_link(link) {
        Ok(id) => id,
        Err(_) => program.attach_with_options(
            interface,
            TcAttachType::Ingress,
            TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None }),
        )?,
    };
    // A filter stays until it is removed; letting the owner go would remove it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes a clsact filter of ours; nothing there, nothing to do.
fn detach_filter(interface: &str, program: &str) -> Result<(), DataplaneError> {
    match tc::qdisc_detach_program(interface, TcAttachType::Ingress, program) {
        Ok(()) => Ok(()),
        Err(tc::TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // An interface without the discipline answers the dump with an error of its own.
        Err(tc::TcError::NetlinkError(_)) => Ok(()),
        Err(error) => Err(aya::programs::ProgramError::from(error).into()),
    }
}

fn named<'a>(programs: &'a mut Ebpf, name: &str) -> &'a mut aya::programs::Program {
    programs.program_mut(name).expect("the object is compiled with this library and has the program")
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_interfaces_that_are_gone_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["uplink-2", "xdp-2", "uplink-3", "xdp-3", "container-3", "container-7", "container-8", "connect4"]
        {
            fs::write(directory.path().join(name), "").unwrap();
        }
        prune(directory.path(), &[2].into(), &[1, 2, 3, 7].into()).unwrap();
        let left: BTreeSet<String> = pins(directory.path()).unwrap().into_iter().collect();
        let expected = ["uplink-2", "xdp-2", "container-3", "container-7", "connect4"];
        assert_eq!(left, expected.map(String::from).into());
    }
}
