//! stub
use anyhow::{Result, bail};
use std::process::ExitCode;
pub(crate) fn run(once: bool) -> Result<ExitCode> {
    bail!("{once}")
}
