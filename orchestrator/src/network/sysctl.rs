//! Kernel settings below `/proc/sys/net`, which belong to the network namespace of the thread that opens them.

use std::{fs, io, path::PathBuf};

use super::{NetworkError, Result};

/// The folder whose entries are the settings of the calling thread's network namespace.
const ROOT: &str = "/proc/sys/net";

/// Whether the kernel has IPv6 (it may be compiled out or booted with `ipv6.disable=1`).
pub(super) fn has_ipv6() -> bool {
    PathBuf::from(ROOT).join("ipv6/conf").exists()
}

/// Reads a setting, for example `ipv4/ip_forward`; `None` when the kernel does not have it.
pub(super) fn get(name: &str) -> Result<Option<String>> {
    match fs::read_to_string(PathBuf::from(ROOT).join(name)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetworkError::io(format!("read {ROOT}/{name}"), error)),
    }
}

/// Makes a setting so, unless it is. A setting the kernel does not have is an error.
pub(super) fn ensure(name: &str, value: &str) -> Result<()> {
    if get(name)?.as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(PathBuf::from(ROOT).join(name), value)
        .map_err(|error| NetworkError::io(format!("write {value} to {ROOT}/{name}"), error))
}

/// Turns on forwarding for both families in the calling thread's network namespace.
///
/// A forwarding host ignores router advertisements unless `accept_ra` is 2 (kernel's ip-sysctl.rst), and would lose the
/// default route it learnt from them; interfaces that accept them keep doing so.
pub(super) fn enable_forwarding() -> Result<()> {
    ensure("ipv4/ip_forward", "1")?;
    if !has_ipv6() || get("ipv6/conf/all/forwarding")?.as_deref() == Some("1") {
        return Ok(());
    }
    let conf = PathBuf::from(ROOT).join("ipv6/conf");
    let entries = fs::read_dir(&conf).map_err(|error| NetworkError::path("list", &conf, error))?;
    for entry in entries.flatten() {
        let name = format!("ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy());
        if get(&name)?.as_deref() == Some("1") {
            ensure(&name, "2")?;
        }
    }
    ensure("ipv6/conf/all/forwarding", "1")
}

/// Settings of an interface whose IPv6 addresses are ours alone to give: no router advertisements, no autoconfiguration,
/// and no duplicate address detection, which would keep a new address unusable for a second.
pub(super) fn static_ipv6(interface: &str) -> Result<()> {
    if !has_ipv6() {
        return Ok(());
    }
    for (setting, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
        ensure(&format!("ipv6/conf/{interface}/{setting}"), value)?;
    }
    Ok(())
}
