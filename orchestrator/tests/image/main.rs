//! Images through their public handle: real archives, real mounts, a real registry.

#[cfg(test)]
mod front;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod store;
