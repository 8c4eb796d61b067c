//! The lab's namespaces: one net, mount and uts namespace per place, held by bind mounts below `target/lab/ns`.
//!
//! Comes in: a place. Goes out: namespaces that outlive every process, commands that run in them, and their removal.
//! `ip netns` is of no use here: it remounts /sys and so hides the cgroup file systems from a daemon.

use super::topology::{Folder, Place};
use crate::process::output;
use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    process::Command,
};

/// The kinds of namespaces a place has, by the names that /proc/PID/ns has for them.
pub(super) const KINDS: [&str; 3] = ["net", "uts", "mnt"];

/// Where daemons of all places have their runtime folders.
const RUN: &str = "/run/edged";

/// What a place looks like from inside, run once in its new namespaces; `$1` its name, `$2` the folder of the namespace
/// files, `$3` its resolv.conf.
const FURNISH: &str = r#"
set -eu
echo "$1" > /proc/sys/kernel/hostname
# The files that hold the lab's namespaces: a copy of those mounts in here would keep the other places alive.
umount --lazy "$2"
# A fresh sysfs shows this network namespace's devices; the cgroup file systems move over to it.
holder=$(mktemp --directory)
mount --rbind /sys/fs/cgroup "$holder"
mount -t sysfs sysfs /sys
mount --rbind "$holder" /sys/fs/cgroup
umount --lazy "$holder"
rmdir "$holder"
mount -t bpf bpf /sys/fs/bpf
# Its own runtime folder, as on a machine of its own; the daemon's is below it, since it removes that itself. The folder
# on which it is mounted is the machine's.
mkdir -p /run/edged
mount -t tmpfs -o mode=0755 edged-run /run/edged
# The world outside, and with it the upstream name server, is the client.
mount --bind "$3" /etc/resolv.conf
"#;

/// Mounts the folder that holds the namespace files: private, which the kernel asks of a mount that mount namespaces are
/// bound in.
pub(super) fn prepare(folder: &Folder) -> Result<()> {
    let at = folder.namespaces();
    fs::create_dir_all(&at).with_context(|| format!("create {}", at.display()))?;
    mount("edged-lab", &at, "tmpfs", MountFlags::empty(), None)
        .with_context(|| format!("mount tmpfs on {}", at.display()))?;
    mount_change(&at, MountPropagationFlags::PRIVATE).with_context(|| format!("make {} private", at.display()))
}

/// Makes a place's namespaces; `resolv` becomes its resolv.conf.
pub(super) fn create(folder: &Folder, place: Place, resolv: &Path) -> Result<()> {
    fs::create_dir_all(folder.namespaces().join(place.to_string()))?;
    let mut unshare = Command::new("unshare");
    for (kind, option) in KINDS.iter().zip(["--net", "--uts", "--mount"]) {
        let file = folder.namespace(place, kind);
        File::create(&file).with_context(|| format!("create {}", file.display()))?;
        unshare.arg(format!("{option}={}", file.display()));
    }
    unshare.args(["--propagation", "private", "sh", "-c", FURNISH, "furnish"]);
    unshare.arg(place.to_string()).arg(folder.namespaces()).arg(resolv);
    output(&mut unshare).with_context(|| format!("make the namespaces of {place}"))?;
    Ok(())
}

/// A command that will run in a place.
pub(super) fn inside<I>(folder: &Folder, place: Place, program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let file = |kind| folder.namespace(place, kind);
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", file("net").display()));
    nsenter.arg(format!("--uts={}", file("uts").display()));
    nsenter.arg(format!("--mount={}", file("mnt").display()));
    nsenter.arg("--").arg(program).args(args);
    nsenter
}

/// A command that will see a place's network and this process' files, among them those that hold the namespaces.
pub(super) fn on_network(folder: &Folder, place: Place, program: &str, args: &[&str]) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", folder.namespace(place, "net").display()));
    nsenter.arg("--").arg(program).args(args);
    nsenter
}

/// Moves this process into a place for good, keeping the current folder; the process must have one thread only.
pub(super) fn enter(folder: &Folder, place: Place) -> Result<()> {
    let here = std::env::current_dir().context("find the current folder")?;
    let kinds = [LinkNameSpaceType::Network, LinkNameSpaceType::HostNameAndNISDomainName, LinkNameSpaceType::Mount];
    // Opened first: in the place's mount namespace the files are out of sight.
    let files = KINDS.map(|kind| File::open(folder.namespace(place, kind)));
    for ((file, name), kind) in files.into_iter().zip(KINDS).zip(kinds) {
        let file = file.with_context(|| format!("open the {name} namespace of {place}: is the lab up?"))?;
        move_into_link_name_space(file.as_fd(), Some(kind))
            .with_context(|| format!("enter the {name} namespace of {place}"))?;
    }
    std::env::set_current_dir(&here).with_context(|| format!("return to {}", here.display()))
}

/// The kernel's numbers of a place's namespaces, as /proc/PID/ns shows them: `net:[4026532000]`.
pub(super) fn marks(folder: &Folder, place: Place) -> Result<Vec<String>> {
    let mark = |kind| {
        let file = folder.namespace(place, kind);
        let number = fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?.ino();
        Ok(format!("{kind}:[{number}]"))
    };
    KINDS.into_iter().map(mark).collect()
}

/// Whether the namespaces of a place are there.
pub(super) fn exists(folder: &Folder, place: Place) -> bool {
    // An unmounted holder is an empty file on another file system.
    let file = folder.namespace(place, "net");
    let device = |path: &Path| fs::metadata(path).ok().map(|data| data.dev());
    device(&file).is_some() && device(&file) != device(&folder.namespaces())
}

/// Lets go of all namespaces; those without a process in them vanish with everything they contain.
pub(super) fn remove(folder: &Folder) -> Result<()> {
    let at = folder.namespaces();
    // After a crash halfway there may be several mounts one above the other.
    while mounted(&at)? {
        unmount(&at, UnmountFlags::DETACH).with_context(|| format!("unmount {}", at.display()))?;
    }
    Ok(())
}

/// Removes the machine's folder on which every place mounted its runtime folder, unless something else uses it.
pub(super) fn remove_mount_point() -> Result<()> {
    match fs::remove_dir(RUN) {
        Err(error) if ![io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
            Err(error).with_context(|| format!("remove {RUN}"))
        }
        _ => Ok(()),
    }
}

fn mounted(path: &Path) -> Result<bool> {
    Ok(mounts_below(path)?.iter().any(|mount| Path::new(mount) == path))
}

/// The mount points at and below a folder that this process sees.
pub(super) fn mounts_below(folder: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the fifth field is the mount point, with blanks written as \040.
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    Ok(points.filter(|point| Path::new(point).starts_with(folder)).collect())
}
