//! Containers on this machine, through the runtime and its shims.

mod life;
mod support;
