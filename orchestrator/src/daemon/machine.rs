//! What this machine is: platform, processors, memory, kernel. Read from the kernel and os-release(5).

use orchestrator_core::model::Platform;
use std::{fs, path::Path};

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Host name.
    pub hostname: String,
    /// Processors that this process may run on.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Name of the distribution for people.
    pub os_name: String,
    /// Its version.
    pub os_version: String,
    /// Platform in Go's words, as images carry them.
    pub platform: Platform,
    /// 1 where the memory controller lies on its own hierarchy, else 2.
    pub cgroup_version: u8,
}

impl Machine {
    /// Reads what there is; what cannot be read stays empty.
    #[must_use]
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            hostname: text(uname.nodename()),
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_bytes: mem_total(&memory),
            kernel: text(uname.release()),
            os_name: os_release(&os, "PRETTY_NAME"),
            os_version: os_release(&os, "VERSION_ID"),
            platform: platform(&text(uname.machine())),
            cgroup_version: if Path::new("/sys/fs/cgroup/memory").is_dir() { 1 } else { 2 },
        }
    }
}

fn mem_total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kib| kib << 10)
}

fn os_release(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

/// Go's names of the architectures that uname(2) tells.
fn platform(machine: &str) -> Platform {
    let (arch, variant) = match machine {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", ""),
        "armv7l" => ("arm", "v7"),
        "armv6l" => ("arm", "v6"),
        other => (other, ""),
    };
    Platform { os: "linux".into(), arch: arch.into(), variant: variant.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_their_files() {
        assert_eq!(mem_total("MemTotal:        1000 kB\nMemFree: 1 kB\n"), 1_024_000);
        assert_eq!(os_release("ID=debian\nVERSION_ID=\"12\"\n", "VERSION_ID"), "12");
        assert_eq!(platform("aarch64").arch, "arm64");
    }
}
