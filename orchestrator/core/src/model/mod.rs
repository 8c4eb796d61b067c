//! The nouns: what a user can ask for, what the cluster decided, and what a node saw. Values are valid by construction.

mod constraint;
mod container;
mod id;
mod live;
mod name;
mod object;
mod secret;
mod service;

pub use constraint::*;
pub use container::*;
pub use id::*;
pub use live::*;
pub use name::*;
pub use object::*;
pub use secret::*;
pub use service::*;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as told by the caller's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// A length given in whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }
}

impl core::ops::Add<Millis> for UnixMillis {
    type Output = UnixMillis;
    fn add(self, length: Millis) -> UnixMillis {
        UnixMillis(self.0.saturating_add(length.0))
    }
}

impl UnixMillis {
    /// The time that passed from `earlier` to `self`; zero if the clock went backwards.
    #[must_use]
    pub const fn since(self, earlier: UnixMillis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}
