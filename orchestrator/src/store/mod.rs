//! The store.
//!
#![doc = include_str!("../../docs/store.md")]

mod alone;
mod answer;
mod check;
mod contacts;
mod disk;
mod elections;
mod error;
mod frame;
mod handle;
mod handover;
mod leadership;
mod log;
#[expect(clippy::result_large_err, reason = "openraft's traits demand its error type")]
mod log_store;
mod machine;
mod members;
mod meter;
mod network;
mod parts;
mod raft;
mod recover;
mod snapshot;
#[cfg(test)]
mod tests;

pub use error::{HandOverError, InitializeError, MembersError, ProposeError, ReadError, StoreError};
pub use handle::{Metrics, Store, StoreConfig};
pub use leadership::Leadership;
pub use log::{LogError, writer::Health};
pub use meter::Written;
pub use network::{NoPeers, PeerError, Peers};
pub use orchestrator_core::members::Members;
pub use raft::Member;
