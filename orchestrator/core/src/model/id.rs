//! Typed identifiers. An id is 128 bits, derived from where in the history of the cluster its object was made, and shown as
//! 25 characters of base 36, the form that users of `docker service` know.

use alloc::string::String;
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

/// Characters of an id in text: 36^25 is the first power of 36 above 2^128.
const TEXT_LEN: usize = 25;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The text was not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {0:?} (an id is 25 characters of 0-9 and a-z)")]
pub struct BadId(pub String);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl $name {
            /// The id of the `ordinal`-th object of this kind that is made by the log entry which follows `revision`.
            /// Two entries that were made from one revision yield the same ids; their guards let only one of them pass.
            #[must_use]
            pub const fn derive(seed: u128, revision: u64, ordinal: u32) -> Self {
                Self(mix(seed, $kind, revision, ordinal))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(core::str::from_utf8(&text(self.0)).expect("digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(s: &str) -> Result<Self, BadId> {
                parse(s).map(Self).ok_or_else(|| BadId(s.into()))
            }
        }
    )*};
}

ids! {
    /// A cluster. Drawn at random once, when the cluster is initialised; the seed of all other ids.
    ClusterId = 1;
    /// A member of the cluster, for as long as its certificate names it.
    NodeId = 2;
    /// A service.
    ServiceId = 3;
    /// One attempt to fill one slot of a service.
    TaskId = 4;
}

/// Spreads (seed, kind, revision, ordinal) over 128 bits so that short prefixes tell objects apart. Two finalizers of
/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") over distinct lanes.
const fn mix(seed: u128, kind: u64, revision: u64, ordinal: u32) -> u128 {
    let place = revision.rotate_left(24) ^ ((ordinal as u64) << 8) ^ kind;
    let high = finalize((seed >> 64) as u64 ^ finalize(place ^ 0x9e37_79b9_7f4a_7c15));
    let low = finalize(seed as u64 ^ finalize(place.wrapping_add(high)) ^ (ordinal as u64));
    ((high as u128) << 64) | low as u128
}

const fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn text(mut value: u128) -> [u8; TEXT_LEN] {
    let mut out = [b'0'; TEXT_LEN];
    for place in out.iter_mut().rev() {
        *place = DIGITS[(value % 36) as usize];
        value /= 36;
    }
    out
}

fn parse(s: &str) -> Option<u128> {
    if s.len() != TEXT_LEN {
        return None;
    }
    s.bytes().try_fold(0u128, |value, byte| {
        let digit = DIGITS.iter().position(|d| *d == byte)?;
        value.checked_mul(36)?.checked_add(digit as u128)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_round_trips(value: u128) {
            prop_assert_eq!(TaskId(value).to_string().parse::<TaskId>(), Ok(TaskId(value)));
        }

        #[test]
        fn neighbours_get_different_ids(seed: u128, revision: u64, ordinal in 0u32..10_000) {
            let id = TaskId::derive(seed, revision, ordinal);
            prop_assert_ne!(id, TaskId::derive(seed, revision, ordinal + 1));
            prop_assert_ne!(id, TaskId::derive(seed, revision.wrapping_add(1), ordinal));
            prop_assert_ne!(id.0, ServiceId::derive(seed, revision, ordinal).0);
        }
    }

    #[test]
    fn text_beyond_128_bits_is_refused() {
        assert!("zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<TaskId>().is_err());
        assert!("short".parse::<TaskId>().is_err());
    }
}
