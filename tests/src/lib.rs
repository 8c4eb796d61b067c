//! The tests' harness: a handle on the lab, predicates with deadlines, and the way a test says that it cannot run.
//!
//! Comes in: what a test wants to happen. Goes out: results as values, errors that name what was run and what it said.
//! Called by the programs in `tests/tests`; `lab_*.rs` run one after the other, since a machine has one lab.

pub mod api;
mod lab;
mod scenarios;
mod wait;
pub mod writers;

pub use lab::{Lab, Output, Process, xtask};
pub use scenarios::Scenarios;
pub use wait::wait_for;

/// Says why this test cannot run on this machine and ends it; `cargo xtask test` counts it as skipped.
/// The test must return [`anyhow::Result`].
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        println!("SKIPPED: {}", format_args!($($why)+));
        return Ok(());
    }};
}

/// Ends the test as skipped where this machine cannot run a lab.
#[macro_export]
macro_rules! skip_without_lab {
    () => {
        if let Some(why) = $crate::Lab::unavailable() {
            $crate::skip!("{why}");
        }
    };
}
