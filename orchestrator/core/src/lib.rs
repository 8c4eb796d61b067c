//! Every decision of the orchestrator and not one effect.
//!
//! What the user wants ([`model::ServiceSpec`]) becomes replicated facts ([`state::State`]), a plan, what one node should
//! have ([`assignment::Assignment`]) and the next steps of that node ([`node::reconcile`]). All functions here are pure:
//! time is an argument, ids are derived, maps are ordered. The effects live in the package `orchestrator`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod assignment;
pub mod check;
pub mod find;
pub mod forwarding;
pub mod intent;
pub mod members;
pub mod model;
pub mod node;
pub mod plan;
pub mod protocol;
pub mod state;
pub mod wire;
