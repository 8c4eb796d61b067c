//! Bytes that no log and no error message shows.

use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Secret bytes of any length, for example a private key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 128 secret bits. Two are compared in a time that does not depend on where they differ.
#[derive(Clone, Copy, Eq, Serialize, Deserialize)]
pub struct Secret16(pub [u8; 16]);

impl PartialEq for Secret16 {
    fn eq(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(other.0).fold(0, |difference, (a, b)| difference | (a ^ b));
        core::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Secret16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret16(..)")
    }
}
