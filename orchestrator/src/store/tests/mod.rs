//! Tests of the store's inside: openraft's own suite, power cuts on a simulated disk, and several members in one process.

mod alone;
mod crash;
mod handover;
mod large;
mod leadership;
mod members;
mod nemesis;
mod sim;
mod suite;
mod turns;
mod wires;
mod writer;
