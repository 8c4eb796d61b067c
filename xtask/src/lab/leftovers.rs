//! What a lab may have left on the machine: found by marks, ended or removed, and found again to prove that it is gone.
//!
//! Marks are: the lab's namespaces (their numbers are on file), the environment variable that daemons and shims inherit,
//! and cgroups whose path names `edged` and a lab node's key. None of them depends on the lab's own files being intact.

use super::{
    daemon::{MARK, Pending, Process, wait},
    namespace,
    topology::{Folder, Place},
    wiring::UPLINK,
};
use crate::process::output;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

const CGROUPS: &str = "/sys/fs/cgroup";
/// v1 mounts one hierarchy per controller, `edged` adds a few levels; deeper cgroups belong to containers' own payload
/// and lie below one that is found.
const CGROUP_DEPTH: usize = 8;
/// A killed process is gone as soon as the kernel has freed its memory.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// What `edged reset` should have removed from a node, seen from inside while its namespaces still exist.
pub(super) fn on_node(folder: &Folder, number: u8) -> Result<Vec<String>> {
    let place = Place::Node(number);
    // The kernel itself puts *.debug iterators into every BPF file system.
    let script = format!(
        "for link in $(ls /sys/class/net); do case $link in lo|{UPLINK}) ;; *) echo \"link $link\";; esac; done\n\
         find /sys/fs/bpf -mindepth 1 | grep -v '[.]debug$' | sed 's/^/pin /'\n\
         nft list tables | sed 's/^table/nftables table/'\n\
         awk '{{print $5}}' /proc/self/mountinfo | grep -E '^({}|/run/edged)/' | sed 's/^/mount /'\n\
         find /run/edged -mindepth 1 | sed 's/^/file /'\n\
         exit 0",
        folder.node(number).path().display()
    );
    let found = output(&mut namespace::inside(folder, place, "sh", ["-c", &script]))?;
    Ok(found.lines().map(|line| format!("{place}: {line}")).collect())
}

/// The lab's processes: those in its namespaces, with its mark in their environment, or in its cgroups.
pub(super) fn processes(folder: &Folder, namespaces: &BTreeSet<String>) -> Result<Vec<Process>> {
    let this = std::process::id();
    let mark = [MARK.as_bytes(), b"=", folder.path().as_os_str().as_bytes()].concat();
    let pids = fs::read_dir("/proc")
        .context("read /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours =
        |pid: &u32| *pid != this && (in_namespace(*pid, namespaces) || has_environment(*pid, &mark) || in_cgroup(*pid));
    Ok(pids.filter(ours).filter_map(Process::of).collect())
}

fn in_namespace(pid: u32, namespaces: &BTreeSet<String>) -> bool {
    let namespace = |kind: &&str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    namespace::KINDS.iter().filter_map(namespace).any(|link| namespaces.contains(&*link.to_string_lossy()))
}

fn has_environment(pid: u32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}

fn in_cgroup(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().lines().any(is_marked)
}

/// Whether a cgroup's path is a lab node's.
fn is_marked(path: &str) -> bool {
    path.contains("edged") && path.contains("lab-n")
}

/// A process as one would recognise it.
pub(super) fn described(process: &Process) -> String {
    let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("process {} ({})", process.pid, line.trim())
}

/// Kills processes and waits until they are gone.
pub(super) fn kill(processes: &[Process]) -> Result<()> {
    for process in processes {
        process.signal(Signal::KILL)?;
    }
    wait(KILLED_WITHIN, || match processes.iter().find(|process| process.lives()) {
        Some(process) => Err(Pending(format!("{} still runs", described(process))).into()),
        None => Ok(()),
    })
}

/// The lab's cgroups in every hierarchy, the deepest first.
pub(super) fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new(CGROUPS), CGROUP_DEPTH, &mut found);
    found.reverse();
    found
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        if is_marked(&path.to_string_lossy()) {
            found.push(path.clone());
        }
        if depth > 1 {
            collect(&path, depth - 1, found);
        }
    }
}

/// Removes cgroups that have no process left.
pub(super) fn remove_cgroups() -> Vec<String> {
    let remove = |path: PathBuf| match fs::remove_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("cgroup {}: {error}", path.display())),
        _ => None,
    };
    cgroups().into_iter().filter_map(remove).collect()
}

/// Everything of a lab that is still there, one line each.
pub(super) fn all(folder: &Folder, namespaces: &BTreeSet<String>) -> Result<Vec<String>> {
    let processes = processes(folder, namespaces)?;
    let mounts = namespace::mounts_below(folder.path())?;
    let links = fs::read_dir("/sys/class/net").context("list the links")?.flatten();
    let links = links.filter_map(|link| link.file_name().into_string().ok()).filter(|name| name.starts_with("edge"));
    // Nodes have a BPF file system of their own, so a pin on the machine's would be a mistake of theirs.
    let pins = fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten().map(|entry| entry.path());
    let pins = pins.filter(|path| is_marked(&format!("edged {}", path.display())));
    let mut found: Vec<String> = processes.iter().map(described).collect();
    found.extend(cgroups().iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(mounts.iter().map(|path| format!("mount {path}")));
    found.extend(links.map(|name| format!("link {name}")));
    found.extend(pins.map(|path| format!("pin {}", path.display())));
    if folder.path().exists() {
        found.push(format!("folder {}", folder.path().display()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_the_labs_only_if_it_names_the_daemon_and_a_lab_node() {
        assert!(is_marked("4:memory:/edged/lab-n1/web.1.x"));
        assert!(is_marked("/sys/fs/cgroup/unified/edged-lab-n2"));
        assert!(!is_marked("4:memory:/edged/pi-kitchen/web.1.x"));
        assert!(!is_marked("4:memory:/user/lab-notes"));
    }

    #[test]
    fn a_process_with_the_mark_in_its_environment_is_found() {
        let folder = Folder::new("/nonexistent/lab of this test".into());
        let mut child = std::process::Command::new("cat")
            .env(MARK, folder.path())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        wait(KILLED_WITHIN, || {
            let found = processes(&folder, &BTreeSet::new())?;
            match found.iter().any(|process| process.pid == child.id()) {
                true => Ok(()),
                // Between fork and exec the child still has this process' environment.
                false => Err(Pending("not found".to_owned()).into()),
            }
        })
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let found = processes(&folder, &BTreeSet::new()).unwrap();
        assert!(found.iter().all(|process| process.pid != child.id()), "a process that has ended is found");
    }
}
