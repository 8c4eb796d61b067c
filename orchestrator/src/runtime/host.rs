//! What containers need of this machine, as facts for `edgectl doctor`: found or missing, and what to do about it.

use super::cgroup::Hierarchies;
use std::{fs, path::Path};

/// One thing that containers need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do if it is not there; empty if it is.
    pub remedy: String,
}

/// Where Raspberry Pi OS keeps the kernel command line, newest place first.
const CMDLINE_FILES: [&str; 2] = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"];

/// Everything that was looked at.
#[must_use]
pub fn facts() -> Vec<Fact> {
    let mut all = Vec::new();
    let mut add = |name, ok: bool, found: String, remedy: &str| {
        all.push(Fact { name, ok, found, remedy: if ok { String::new() } else { remedy.into() } });
    };
    match Hierarchies::detect() {
        Ok(hierarchies) => {
            let version = if hierarchies.is_v2() { "cgroup v2" } else { "cgroup v1" };
            for (name, controller, remedy) in [
                (
                    "cgroup cpu",
                    "cpu",
                    "use a kernel with CONFIG_CFS_BANDWIDTH, and on v2 enable the controller in cgroup.subtree_control",
                ),
                ("cgroup memory", "memory", memory_remedy().as_str()),
                ("cgroup pids", "pids", "use a kernel with CONFIG_CGROUP_PIDS"),
            ] {
                let ok = hierarchies.has(controller);
                add(name, ok, format!("{version}: {}", if ok { "on" } else { "off" }), remedy);
            }
            // Not needed: a limit on memory holds without it, only swap is not counted.
            let swap = hierarchies.limits_swap();
            add("swap accounting", true, if swap { "on" } else { "off: memory limits do not count swap" }.into(), "");
        }
        Err(error) => add(
            "cgroups",
            false,
            super::error_line(&error),
            "mount the cgroup file systems, e.g. with systemd or cgroupfs-mount",
        ),
    }
    let seccomp = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    add(
        "seccomp",
        seccomp.split_ascii_whitespace().any(|action| action == "errno"),
        if seccomp.is_empty() { "no filters".into() } else { "filters".into() },
        "use a kernel with CONFIG_SECCOMP_FILTER",
    );
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = filesystems.lines().any(|line| line.ends_with("\toverlay"));
    add(
        "overlay file system",
        overlay,
        if overlay { "there" } else { "missing" }.into(),
        "modprobe overlay, and put overlay into /etc/modules-load.d/edged.conf",
    );
    let missing: Vec<&str> = ["mnt", "uts", "ipc", "pid", "net", "cgroup"]
        .into_iter()
        .filter(|ns| !Path::new("/proc/self/ns").join(ns).exists())
        .collect();
    add(
        "namespaces",
        missing.is_empty(),
        if missing.is_empty() { "all".into() } else { format!("missing: {}", missing.join(", ")) },
        "use a kernel with CONFIG_NAMESPACES and all its kinds",
    );
    let lacking = lacking_capabilities();
    add(
        "privileges",
        lacking.is_empty(),
        if lacking.is_empty() { "all that are needed".into() } else { format!("missing: {}", lacking.join(", ")) },
        "run edged as root, without a CapabilityBoundingSet",
    );
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // pidfd_open came with 5.3, openat2 with 5.6, close_range with 5.9.
    add("kernel 5.10 or newer", at_least(&release, (5, 10)), release.trim().into(), "update the kernel");
    all
}

/// Raspberry Pi OS switches the memory controller off unless the command line asks for it.
fn memory_remedy() -> String {
    let file = CMDLINE_FILES.into_iter().find(|file| Path::new(file).exists()).unwrap_or(CMDLINE_FILES[0]);
    format!("append \" cgroup_enable=memory cgroup_memory=1\" to the line in {file} and reboot")
}

/// Capabilities without which no container can be made.
fn lacking_capabilities() -> Vec<&'static str> {
    const NEEDED: [(&str, u32); 6] = [
        ("CAP_CHOWN", 0),
        ("CAP_SETUID", 7),
        ("CAP_SETPCAP", 8),
        ("CAP_NET_ADMIN", 12),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_MKNOD", 27),
    ];
    let ours = super::prepare::own_capabilities();
    NEEDED.into_iter().filter(|(_, bit)| ours >> bit & 1 == 0).map(|(name, _)| name).collect()
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(at_least("6.18.44-fc", (5, 10)) && at_least("5.10.0+rpt", (5, 10)));
        assert!(!at_least("5.9.16", (5, 10)) && !at_least("", (5, 10)));
    }

    #[test]
    fn what_is_missing_comes_with_a_remedy() {
        assert!(facts().iter().all(|fact| fact.ok == fact.remedy.is_empty()));
    }
}
