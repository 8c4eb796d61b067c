//! `cargo xtask setup`: what a machine needs to build, run and test this repository.
//!
//! Comes in: the machine's files. Goes out: one line per missing thing with the reason, then its installation; nothing
//! at all where everything is there. Looking costs a few `stat` calls, so every other verb calls [`ensure`] first.
//! Supported are Debian 12, Debian 13 and Ubuntu; elsewhere the missing things are named and left to the reader.

mod bpf;
mod packages;

use crate::{
    paths,
    process::{self, command, step},
    root,
};
use anyhow::{Result, bail};

/// The test runner, and the version whose options `cargo xtask test` uses.
const NEXTEST: &str = "0.9.143";

/// Installs what is missing.
///
/// # Errors
/// When something is missing that this program cannot install; the error names it and the remedy.
pub(crate) fn ensure() -> Result<()> {
    components()?;
    packages::ensure(packages::BASE)?;
    bpf::ensure()?;
    nextest()
}

/// Clippy and rustfmt: `rustup`'s minimal profile leaves them out.
fn components() -> Result<()> {
    // Cargo names itself; its siblings are the tools of the same toolchain.
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(());
    };
    let missing: Vec<&str> = [("clippy", "cargo-clippy"), ("rustfmt", "rustfmt")]
        .into_iter()
        .filter(|(_, program)| !std::path::Path::new(&cargo).with_file_name(program).exists())
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for component in &missing {
        missing_line(component, "`cargo xtask test` checks style and format with it");
    }
    if paths::program("rustup").is_none() {
        bail!("install {} for the toolchain of {}", missing.join(" and "), cargo.display());
    }
    process::run(command("rustup", ["component", "add"]).args(missing))
}

fn nextest() -> Result<()> {
    if paths::program("cargo-nextest").is_some() {
        return Ok(());
    }
    missing_line("cargo-nextest", "it runs the tests, each in a process of its own, the lab's one after the other");
    // It waits for tests most of the time: what full optimisation saves there, it costs many times over here.
    let quick =
        [("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1".to_owned()), ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16".to_owned())];
    cargo_install("cargo-nextest", NEXTEST, &[], &quick)
}

/// `cargo install --locked` of one program at one version.
fn cargo_install(name: &str, version: &str, args: &[&str], env: &[(&str, String)]) -> Result<()> {
    let mut install = process::cargo();
    // Outside the workspace, so that its settings have no say in how a tool is built.
    install.current_dir("/").args(["install", "--locked", "--version", version, name]).args(args);
    install.envs(env.iter().map(|(name, value)| (name, value)));
    step(&process::shown(&install));
    process::run(&mut install)
}

fn missing_line(what: &str, why: &str) {
    eprintln!("missing: {what}: {why}");
}

/// Says that root is asked for, where it is.
fn announce_sudo() {
    if !root::is_root() {
        eprintln!("installing packages needs root: sudo may ask for your password");
    }
}
