//! placeholder
pub mod network;
