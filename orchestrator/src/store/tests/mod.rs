//! Tests of the store's inside: openraft's own suite, power cuts on a simulated disk, and several members in one process.

mod crash;
mod members;
mod sim;
mod suite;
mod writer;
