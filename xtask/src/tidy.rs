//! stub
use anyhow::{Result, bail};
use std::process::ExitCode;
pub(crate) fn run() -> Result<ExitCode> {
    bail!("")
}
