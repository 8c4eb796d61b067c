//! The store through its public handle, on real folders and with real processes.

#[cfg(test)]
mod common;
#[cfg(test)]
mod full;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod open;
