//! The effects of the orchestrator: everything that [`orchestrator_core`] decides is carried out here.
//!
//! Arrows point down only: binaries → `api`, `cli`, `leader`, `agent` → `store`, `transport`, drivers → core. The drivers `runtime`,
//! `image`, `network` and `dataplane` do not know each other; the agent composes them. `daemon` puts everything together.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod image;
pub mod leader;
pub mod network;
pub mod pki;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod transport;

/// How it hangs together, and decisions that would cost a day to reverse.
pub mod docs {
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../docs/cluster.md")]
    pub mod cluster {}
    #[doc = include_str!("../docs/disconnect.md")]
    pub mod disconnect {}
    #[doc = include_str!("../docs/decisions/0001-raft-log.md")]
    pub mod decision_0001_raft_log {}
}
