//! Tests of the store's inside: openraft's own suite, and power cuts on a simulated disk.

mod crash;
mod sim;
mod suite;
