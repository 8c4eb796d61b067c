//! Control groups of the node's containers: where they lie (v1, hybrid, v2), what they count, killing and removing them.
//! Making and limiting them is libcontainer's work, in the shim. Kernel docs: admin-guide/cgroup-v1 and cgroup-v2.rst.
//!
//! `/edged-<node>/<task>` holds a container, `/edged-<node>/shims` all shims of the node, in every hierarchy.
//!
//! Device rules are enforced on v1 by the devices controller. Version 2 has none; there a BPF program does it,
//! see `devices`.

use super::{
    error::{At, RuntimeError},
    process_ref::ProcessRef,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Killed processes leave their groups within milliseconds; one in uninterruptible sleep (broken storage) may stay.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Mount points of v1 controllers, by the controller's name.
    v1: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 hierarchy.
    v2: Option<PathBuf>,
}

impl Hierarchies {
    /// What is mounted.
    pub(crate) fn detect() -> Result<Self, RuntimeError> {
        let path = "/proc/self/mountinfo";
        Ok(Self::parse(&fs::read_to_string(path).at("read", path)?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { v1: BTreeMap::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            if !point.starts_with("/sys/fs/cgroup") {
                continue;
            }
            let mut filesystem = filesystem.split(' ');
            match filesystem.next() {
                Some("cgroup2") => found.v2 = Some(point),
                Some("cgroup") => {
                    for option in filesystem.next_back().unwrap_or_default().split(',') {
                        // Named hierarchies such as `name=systemd` control nothing.
                        if !matches!(option, "rw" | "ro" | "xattr" | "clone_children") && !option.starts_with("name=") {
                            found.v1.insert(option.into(), point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether the machine runs on version 2 alone.
    pub(crate) fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// Where version 2 is mounted, alone or beside version 1.
    #[cfg(test)]
    pub(crate) fn v2_root(&self) -> Option<PathBuf> {
        self.v2.clone()
    }

    /// The folder of group `path` (without leading slash) on a machine that runs on version 2 alone.
    pub(crate) fn v2_group(&self, path: &str) -> Option<PathBuf> {
        self.is_v2().then(|| self.v2.as_ref().map(|root| root.join(path))).flatten()
    }

    /// Whether limits of this kind can be set. On v2, `cpu` includes accounting and `devices` is always false.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.v1.contains_key(controller)
            || self.v2.as_ref().is_some_and(|root| {
                fs::read_to_string(root.join("cgroup.controllers"))
                    .is_ok_and(|all| all.split_ascii_whitespace().any(|c| c == controller))
            })
    }

    /// Whether the kernel can limit swap (v1: swapaccount=1).
    pub(crate) fn limits_swap(&self) -> bool {
        match self.v1.get("memory") {
            Some(root) => root.join("memory.memsw.limit_in_bytes").exists(),
            None => self.has("memory"),
        }
    }

    /// The folder of group `path` (without leading slash) for one controller.
    fn group(&self, controller: &str, path: &str) -> Option<PathBuf> {
        self.v1.get(controller).or(if self.is_v2() { self.v2.as_ref() } else { None }).map(|root| root.join(path))
    }

    /// Every folder that group `path` can have.
    fn groups(&self, path: &str) -> BTreeSet<PathBuf> {
        self.v1.values().chain(&self.v2).map(|root| root.join(path)).collect()
    }

    /// `cgroup.procs` files by which the shims leave the group of `edged`. Those v1 controllers suffice that count or stop
    /// something; cpuset would first have to be given processors.
    pub(crate) fn shim_groups(&self, parent: &str) -> Vec<PathBuf> {
        let roots: BTreeSet<&PathBuf> = if self.is_v2() {
            self.v2.iter().collect()
        } else {
            ["cpu", "cpuacct", "memory", "pids", "blkio", "freezer"].iter().filter_map(|c| self.v1.get(*c)).collect()
        };
        roots.into_iter().map(|root| root.join(parent).join("shims/cgroup.procs")).collect()
    }

    /// The file in which the kernel counts processes killed for lack of memory, in a line `oom_kill N`.
    pub(crate) fn oom_file(&self, path: &str) -> Option<PathBuf> {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        Some(self.group("memory", path)?.join(file))
    }

    /// Kills every process of the group and removes its folders. Goes on after errors and returns them.
    pub(crate) fn remove(&self, path: &str) -> Vec<RuntimeError> {
        let deadline = Instant::now() + REMOVE_DEADLINE;
        self.groups(path).iter().filter_map(|group| remove_tree(group, deadline).err()).collect()
    }

    /// Removes the folders of the node if nothing is in them.
    pub(crate) fn remove_parent_if_empty(&self, parent: &str) {
        for group in self.groups(parent) {
            // Both fail with EBUSY as long as a shim or a container is there, which is what decides.
            let _ = fs::remove_dir(group.join("shims"));
            let _ = fs::remove_dir(group);
        }
    }

    /// What the group uses.
    pub(crate) fn stats(&self, path: &str) -> Stats {
        if self.is_v2() { self.stats_v2(path) } else { self.stats_v1(path) }
    }

    fn stats_v1(&self, path: &str) -> Stats {
        let read = |controller: &str, file: &str| {
            self.group(controller, path).and_then(|group| fs::read_to_string(group.join(file)).ok()).unwrap_or_default()
        };
        let memory = read("memory", "memory.stat");
        let cpu = read("cpuacct", "cpuacct.stat");
        let blkio = read("blkio", "blkio.throttle.io_service_bytes");
        Stats {
            cpu_nanos: number(&read("cpuacct", "cpuacct.usage")),
            // In USER_HZ, which is 100 on every architecture we run on (time(7)).
            cpu_user_nanos: keyed(&cpu, "user") * 10_000_000,
            cpu_system_nanos: keyed(&cpu, "system") * 10_000_000,
            memory_bytes: number(&read("memory", "memory.usage_in_bytes")),
            memory_cache_bytes: keyed(&memory, "total_inactive_file"),
            memory_limit_bytes: limit(&read("memory", "memory.limit_in_bytes")),
            pids: number(&read("pids", "pids.current")),
            pids_limit: limit(&read("pids", "pids.max")),
            read_bytes: third_column(&blkio, "Read"),
            write_bytes: third_column(&blkio, "Write"),
            ..Stats::of_machine()
        }
    }

    fn stats_v2(&self, path: &str) -> Stats {
        let read = |file: &str| {
            self.v2.as_ref().and_then(|root| fs::read_to_string(root.join(path).join(file)).ok()).unwrap_or_default()
        };
        let cpu = read("cpu.stat");
        let io = read("io.stat");
        Stats {
            cpu_nanos: keyed(&cpu, "usage_usec") * 1000,
            cpu_user_nanos: keyed(&cpu, "user_usec") * 1000,
            cpu_system_nanos: keyed(&cpu, "system_usec") * 1000,
            memory_bytes: number(&read("memory.current")),
            memory_cache_bytes: keyed(&read("memory.stat"), "inactive_file"),
            memory_limit_bytes: limit(&read("memory.max")),
            pids: number(&read("pids.current")),
            pids_limit: limit(&read("pids.max")),
            read_bytes: assigned(&io, "rbytes="),
            write_bytes: assigned(&io, "wbytes="),
            ..Stats::of_machine()
        }
    }
}

/// What a container uses, and the machine's figures that it is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used since the start, in nanoseconds.
    pub cpu_nanos: u64,
    /// The part spent in user space.
    pub cpu_user_nanos: u64,
    /// The part spent in the kernel.
    pub cpu_system_nanos: u64,
    /// CPU time of the whole machine since boot, idle included, in nanoseconds.
    pub machine_cpu_nanos: u64,
    /// Processors of the machine.
    pub machine_cpus: u32,
    /// Memory charged to the container, caches included.
    pub memory_bytes: u64,
    /// The part of it that the kernel can take back without harm (inactive file pages).
    pub memory_cache_bytes: u64,
    /// Limit of memory; `None` is none.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Limit of processes and threads; `None` is none.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub write_bytes: u64,
}

impl Stats {
    fn of_machine() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cpu = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is part of user time already (proc(5)).
        let ticks: u64 = cpu.split_ascii_whitespace().skip(1).take(8).filter_map(|n| n.parse::<u64>().ok()).sum();
        let cpus = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
        Self {
            machine_cpu_nanos: ticks * 10_000_000,
            machine_cpus: u32::try_from(cpus).unwrap_or(1),
            ..Self::default()
        }
    }
}

fn remove_tree(group: &Path, deadline: Instant) -> Result<(), RuntimeError> {
    let below = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at("read", group),
    };
    for entry in below.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path(), deadline)?;
    }
    loop {
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(process) = pid.parse().ok().and_then(|pid| ProcessRef::of(pid).ok()) {
                let _ = process.signal(libc::SIGKILL);
            }
        }
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error).at("remove control group", group),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `max` (v2) and a number near 2^63 (v1) are no limit.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|n| *n < 1 << 62)
}

/// The number in the line `key N`.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map_or(0, number)
}

/// The sum of N over all lines `device key N`.
fn third_column(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            (words.next()? == key).then(|| words.next().map_or(0, number))
        })
        .sum()
}

/// The sum of N over all words `keyN`.
fn assigned(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)).map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_machines_are_told_apart() {
        let hybrid = Hierarchies::parse(
            "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
        );
        assert!(!hybrid.is_v2());
        assert_eq!(hybrid.oom_file("edged-a/t"), Some("/sys/fs/cgroup/memory/edged-a/t/memory.oom_control".into()));
        assert_eq!(
            hybrid.groups("edged-a/t").into_iter().collect::<Vec<_>>(),
            ["cpu", "memory", "unified"].map(|c| PathBuf::from(format!("/sys/fs/cgroup/{c}/edged-a/t")))
        );

        let unified =
            Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(unified.is_v2());
        assert_eq!(unified.oom_file("edged-a/t"), Some("/sys/fs/cgroup/edged-a/t/memory.events".into()));
        assert_eq!(unified.shim_groups("edged-a"), [PathBuf::from("/sys/fs/cgroup/edged-a/shims/cgroup.procs")]);
    }

    #[test]
    fn counters_are_read_in_the_kernels_formats() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("67108864\n"), Some(67_108_864));
        assert_eq!(third_column("8:0 Read 10\n8:0 Write 3\n9:0 Read 5\nTotal 18\n", "Read"), 15);
        assert_eq!(assigned("8:0 rbytes=7 wbytes=9 rios=1\n8:16 rbytes=1 wbytes=0 rios=1\n", "rbytes="), 8);
    }
}
