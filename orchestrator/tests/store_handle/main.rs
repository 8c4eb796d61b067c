//! The store through its public handle, on real folders and with real processes.

mod common;
mod full;
mod kill;
mod open;
