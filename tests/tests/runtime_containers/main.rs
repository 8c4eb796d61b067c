//! Containers on this machine, through the runtime and its shims.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

/// A new node, or the end of the test where containers cannot run.
macro_rules! node {
    () => {{
        if let Some(why) = crate::support::unavailable() {
            println!("SKIPPED: {why}");
            return;
        }
        crate::support::Node::new(env!("CARGO_BIN_EXE_shim")).await
    }};
}

mod exec;
mod health;
mod isolation;
mod life;
mod limits;
mod logs;
mod refusals;
mod support;
