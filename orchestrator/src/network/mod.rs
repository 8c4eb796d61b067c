//! The node's networking: namespaces, links, addresses, masquerade, name resolution.
//!
//! In: what the agent wants (a base, attachments by task, names to resolve). Out: the kernel's state made so, and
//! what the kernel really has (`Network::observe`), read from it and never from memory. Called by the agent.
//!
//! ```text
//!                      node's network namespace                         │ <run dir>/netns/<task>
//!  uplink ── forward ── masquerade ── edge0 (gateway .1, DNS :53) ── ve<hash> ═══ eth0 (.index)
//! ```
//!
//! Nothing here is global: links, nf_tables and sockets belong to the network namespace `edged` runs in, bind mounts
//! to its mount namespace, so several nodes can share one kernel.
//!
//! This is the only module that speaks netlink.

mod attachment;
pub mod dns;
pub mod doctor;
mod driver;
mod error;
mod link;
mod masquerade;
pub mod netns;
mod nftables;
pub mod ports;
mod subnet;
mod sysctl;
mod uplink;

pub use attachment::{Attached, Attachment};
pub use driver::{Network, NetworkConfig, Observed, TaskKey};
pub use error::NetworkError;
pub use subnet::{Subnet4, Subnet6, SubnetError};
pub use uplink::{NodeAddress, Uplink, Uplinks};

/// The result of everything in this module.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
