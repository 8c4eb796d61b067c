//! The store.
//!
#![doc = include_str!("../../docs/store.md")]

mod disk;
mod frame;
mod handle;
mod log;
#[expect(clippy::result_large_err, reason = "openraft's traits demand its error type")]
mod log_store;
mod machine;
mod meter;
mod network;
mod raft;
mod snapshot;
#[cfg(test)]
mod tests;

pub use handle::{InitializeError, Leadership, Metrics, ProposeError, ReadError, Store, StoreConfig, StoreError};
pub use log::{LogError, writer::Health};
pub use meter::Written;
pub use network::{NoPeers, PeerError, Peers};
pub use raft::Member;
