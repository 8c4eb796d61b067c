//! The store.
//!
#![doc = include_str!("../../docs/store.md")]

mod disk;
mod error;
mod frame;
mod handle;
mod log;
#[expect(clippy::result_large_err, reason = "openraft's traits demand its error type")]
mod log_store;
mod machine;
mod meter;
mod network;
mod raft;
mod recover;
mod snapshot;
#[cfg(test)]
mod tests;

pub use error::{InitializeError, ProposeError, ReadError, StoreError};
pub use handle::{Leadership, Metrics, Store, StoreConfig};
pub use log::{LogError, writer::Health};
pub use meter::Written;
pub use network::{NoPeers, PeerError, Peers};
pub use raft::Member;
