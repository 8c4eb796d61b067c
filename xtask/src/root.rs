//! Root: the lab makes namespaces, so its verbs start themselves again under sudo where they must.
//!
//! What is compiled is compiled before that, so that no file in `target` belongs to root.

use anyhow::{Context, Result, bail};
use std::{convert::Infallible, ffi::OsString, os::unix::process::CommandExt, process::Command};

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The words that go before a command to run it as root: none when we are root already.
pub(crate) fn prefix() -> &'static [&'static str] {
    if is_root() { &[] } else { &["sudo"] }
}

/// Comes back when this process is root; otherwise replaces it by itself under sudo.
///
/// # Errors
/// When sudo is missing or refused.
pub(crate) fn become_root(why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    match again_under_sudo(why)? {}
}

fn again_under_sudo(why: &str) -> Result<Infallible> {
    if crate::paths::program("sudo").is_none() {
        bail!("{why} needs root: there is no sudo here, so run this command as root");
    }
    eprintln!("{why} needs root: continuing under sudo");
    let mut path = OsString::from("PATH=");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let this = std::env::current_exe().context("find this program's file")?;
    let mut command = Command::new("sudo");
    command.args(["--preserve-env", "env"]).arg(path).arg(this).args(std::env::args_os().skip(1));
    Err(command.exec()).context("run sudo")
}
