//! The BPF toolchain: a Rust compiler that can target BPF and the linker that fits its LLVM.
//!
//! Two ways, looked for in this order, and the build script of `orchestrator` takes the same:
//! 1. Debian's packages: `/usr/bin/rustc` with a prebuilt `core` for `bpfel-unknown-none`.
//! 2. rustup's nightly with `rust-src`, which builds `core` itself.
//!
//! bpf-linker reads the compiler's bitcode, so it must be linked against the same major version of LLVM or a later one.

use super::{
    cargo_install, missing_line,
    packages::{self, distribution},
};
use crate::{
    paths,
    process::{self, command},
};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The linker's version: the first that supports LLVM 21 to 23 with Rust 1.95.
const BPF_LINKER: &str = "0.13.0";
/// The versions of LLVM that this bpf-linker has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

const WHY_RUST: &str = "the packet programs are Rust compiled to BPF";
const WHY_LINKER: &str = "links the packet programs into one BPF object";

/// A compiler that can target BPF.
enum Compiler {
    /// Debian's packages.
    Debian,
    /// rustup's nightly with the sources of `core`.
    Nightly,
}

impl Compiler {
    fn found() -> Option<Self> {
        if Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_CORE).exists() {
            Some(Self::Debian)
        } else if nightly_with_sources() {
            Some(Self::Nightly)
        } else {
            None
        }
    }

    /// The major version of its LLVM.
    fn llvm(&self) -> Result<u32> {
        let mut ask = match self {
            Self::Debian => command(DEBIAN_RUSTC, ["-vV"]),
            Self::Nightly => command("rustup", ["run", "nightly", "rustc", "-vV"]),
        };
        let text = process::output(&mut ask)?;
        llvm_major(&text).with_context(|| format!("`{}` names no LLVM version", process::shown(&ask)))
    }
}

pub(super) fn ensure() -> Result<()> {
    let compiler = match Compiler::found() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    if paths::program("bpf-linker").is_some() {
        return Ok(());
    }
    missing_line("bpf-linker", WHY_LINKER);
    install_linker(compiler.llvm()?)
}

fn install_compiler() -> Result<Compiler> {
    missing_line("a Rust compiler for BPF", WHY_RUST);
    packages::update()?;
    // An older release of the packages (before security updates) has no `core` for BPF: ask for that one.
    if packages::available(DEBIAN_PACKAGES[2]) {
        packages::install(&DEBIAN_PACKAGES)?;
    } else if paths::program("rustup").is_some() {
        let args = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        process::run(&mut command("rustup", args))?;
    } else {
        bail!(
            "{} has no package {} and there is no rustup: install rustup and start again",
            distribution(),
            DEBIAN_PACKAGES[2]
        );
    }
    Compiler::found()
        .context("the installed compiler still cannot target BPF: neither Debian's `core` nor rust-src is there")
}

fn install_linker(compiler_llvm: u32) -> Result<()> {
    let Some(llvm) = LLVM.filter(|version| *version >= compiler_llvm).find(|version| llvm_installable(*version)) else {
        bail!(
            "bpf-linker {BPF_LINKER} must be built against LLVM {compiler_llvm} (the BPF compiler's) or a later one up to \
             {}, and {} has no package llvm-{compiler_llvm}-dev: add the LLVM project's apt repository for your release, \
             or put a ready bpf-linker into PATH",
            LLVM.end(),
            distribution()
        );
    };
    let [dev, polly] = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    missing_line(&dev, "bpf-linker is built against it");
    packages::install(&[&dev, &polly, "g++", "zlib1g-dev", "libzstd-dev", "libxml2-dev"])?;
    let feature = format!("llvm-{llvm}");
    let prefix = [("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))];
    cargo_install("bpf-linker", BPF_LINKER, &["--no-default-features", "--features", &feature], &prefix)
}

fn llvm_installable(version: u32) -> bool {
    Path::new(&format!("/usr/lib/llvm-{version}/bin/llvm-config")).exists()
        || packages::available(&format!("llvm-{version}-dev"))
}

fn nightly_with_sources() -> bool {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".rustup")));
    let Some(toolchains) = home.and_then(|home| std::fs::read_dir(home.join("toolchains")).ok()) else {
        return false;
    };
    toolchains.flatten().any(|entry| {
        let nightly = format!("nightly-{}", std::env::consts::ARCH);
        entry.file_name().to_string_lossy().starts_with(&nightly)
            && entry.path().join("lib/rustlib/src/rust/library/core").exists()
    })
}

fn llvm_major(version: &str) -> Option<u32> {
    let value = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    value.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_llvm_is_read_from_its_version() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
