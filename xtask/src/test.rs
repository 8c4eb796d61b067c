//! stub
use anyhow::{Result, bail};
use std::process::ExitCode;
pub(crate) fn run(once: &[String]) -> Result<ExitCode> {
    bail!("{once:?}")
}
