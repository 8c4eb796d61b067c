//! `cargo xtask VERB`: everything a developer does to this repository that cargo alone cannot.
//!
//! Comes in: the command line. Goes out: the exit code, one line per step on stderr, results on stdout.
//! Called by people, by `.ci/run` and by the lab tests.

mod bench;
mod demo;
mod http;
mod images;
mod lab;
mod paths;
mod process;
mod root;
mod setup;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build, run, test and measure the orchestrator.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find what this machine lacks to build and test, say why it is needed, and install it
    Setup,
    /// Start a node, push an image to a local registry and use it as a user would
    Demo {
        /// End after the demonstration instead of leaving the node up
        #[arg(long)]
        once: bool,
    },
    /// Format check, tidy, clippy, rustdoc and every test; the last line counts them
    Test {
        /// Only tests whose name contains this (leaves out everything that is not a test)
        filter: Vec<String>,
    },
    /// A cluster on this machine: a switch, N nodes and a client in namespaces of their own
    #[command(subcommand)]
    Lab(lab::Verb),
    /// Make image archives under target/images
    Images {
        /// Which images (default: all)
        names: Vec<images::Image>,
    },
    /// Check the rules that no compiler checks
    Tidy,
    /// Measure the figures the design has budgets for
    #[command(subcommand)]
    Bench(bench::Verb),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::ensure().map(|()| ExitCode::SUCCESS),
        Verb::Demo { once } => demo::run(once),
        Verb::Test { filter } => test::run(&filter),
        Verb::Lab(verb) => lab::run(verb),
        Verb::Images { names } => images::run(&names),
        Verb::Tidy => tidy::run(),
        Verb::Bench(verb) => bench::run(verb),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
