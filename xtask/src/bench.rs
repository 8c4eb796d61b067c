//! `cargo xtask bench`: measures the figures the design has budgets for.

use anyhow::{Result, bail};
use std::process::ExitCode;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// Device bytes per durable commit
    Store,
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    bail!("{verb:?}")
}
