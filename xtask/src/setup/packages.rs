//! Distribution packages: what each one is needed for, how its presence shows, and apt.

use super::{announce_sudo, missing_line};
use crate::{
    paths,
    process::{self, command, step},
    root,
};
use anyhow::{Context, Result, bail};
use std::{path::Path, process::Command};

/// How one sees that a package is there, without asking dpkg (which takes longer than everything else together).
pub(super) enum Probe {
    /// A program in `PATH` or the sbin folders.
    Program(&'static str),
    /// A file or folder.
    File(&'static str),
    /// dpkg's list of the package's files, for packages that own nothing telling.
    Installed,
}

/// A distribution package, how to see it, and why it is needed.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) probe: Probe,
    pub(super) why: &'static str,
}

const fn package(name: &'static str, probe: Probe, why: &'static str) -> Package {
    Package { name, probe, why }
}

/// What every machine needs; names are the same on Debian 12, Debian 13 and Ubuntu.
pub(super) const BASE: &[Package] = &[
    package("gcc", Probe::Program("cc"), "links every Rust program and compiles ring's C code"),
    package("libc6-dev", Probe::File("/usr/include/stdio.h"), "headers and start files of the C library"),
    package("pkg-config", Probe::Program("pkg-config"), "build scripts find C libraries with it"),
    package("libseccomp-dev", Probe::File("/usr/include/seccomp.h"), "libcontainer loads seccomp filters through it"),
    package("ca-certificates", Probe::File("/etc/ssl/certs/ca-certificates.crt"), "TLS to crate and image registries"),
    package("iproute2", Probe::Program("ip"), "the lab's links and addresses"),
    package("ethtool", Probe::Program("ethtool"), "the lab's switch ports need receive offload for native XDP"),
    package("nftables", Probe::Program("nft"), "partitions in the lab's switch; `doctor` and tests read rules with it"),
    package("util-linux", Probe::Program("nsenter"), "enters the lab's namespaces"),
    package("curl", Probe::Program("curl"), "the client that demo and tests request published ports with"),
    package(
        "docker-registry",
        Probe::Program("docker-registry"),
        "the registry that demo and tests push to and pull from",
    ),
    package("busybox-static", Probe::Installed, "the smallest test image"),
    package("libfaketime", Probe::Installed, "gives a lab's daemon a wrong clock"),
];

impl Package {
    fn present(&self) -> bool {
        match self.probe {
            Probe::Program(name) => paths::program(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Installed => {
                // Packages that may be there for several architectures carry theirs in the name.
                let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
                let names = [format!("{}.list", self.name), format!("{}:{architecture}.list", self.name)];
                names.iter().any(|name| Path::new("/var/lib/dpkg/info").join(name).exists())
            }
        }
    }
}

/// Installs those packages that are missing.
pub(super) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.present()).collect();
    for package in &missing {
        missing_line(package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    install(&names)
}

/// Installs packages by name.
pub(super) fn install(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let apt = paths::program("apt-get");
    if apt.is_none() {
        bail!("{} has no apt-get: install what Debian calls {} and start again", distribution(), names.join(", "));
    }
    announce_sudo();
    update()?;
    let mut install = as_root("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(names);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    step(&process::shown(&install));
    process::run(&mut install)
}

/// Whether apt knows an installable version of a package.
pub(super) fn available(name: &str) -> bool {
    let policy = process::output(&mut command("apt-cache", ["policy", name])).unwrap_or_default();
    policy.lines().any(|line| line.trim().starts_with("Candidate:") && !line.ends_with("(none)"))
}

/// Refreshes apt's lists.
pub(super) fn update() -> Result<()> {
    let mut update = as_root("apt-get");
    update.args(["update", "--quiet", "--quiet"]);
    step(&process::shown(&update));
    process::run(&mut update).context("refresh the package lists")
}

fn as_root(program: &str) -> Command {
    let words: Vec<&str> = root::prefix().iter().copied().chain([program]).collect();
    command(words[0], &words[1..])
}

/// The distribution's name for people, from os-release(5).
pub(super) fn distribution() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    pretty_name(&text).unwrap_or_else(|| "this system".to_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_read_from_os_release() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(pretty_name("ID=debian\n"), None);
    }

    #[test]
    fn every_package_says_why_it_is_needed() {
        for package in BASE {
            assert!(package.why.len() > 15, "{}", package.name);
        }
    }
}
