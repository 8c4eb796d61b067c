//! What the eBPF programs and user space share: the layout of every map and the packet functions.
//!
//! In: packet bytes through [`packet::Bytes`], map values. Out: parsed packets, table positions, timeouts.
//! Called by the programs of `orchestrator-ebpf` (compiled for BPF) and by `orchestrator::dataplane` (which
//! fills and reads the maps). Everything here is free of effects and is tested on the host.
#![no_std]

pub mod checksum;
pub mod conntrack;
pub mod hash;
pub mod maps;
pub mod packet;
