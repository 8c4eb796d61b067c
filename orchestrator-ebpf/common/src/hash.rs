//! The hash that picks a place in a Maglev table. Every node computes the same for the same packet.

use crate::maps::{FlowKey, MAGLEV_SLOTS, SLOTS_PER_WORD};

/// Odd constant of Fibonacci hashing: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Folds one word into the hash: multiply to spread upwards, shift to bring it down again.
#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 29)
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

/// Hash of a client's flow: protocol, both addresses, both ports.
#[inline(always)]
pub const fn flow(key: &FlowKey) -> u32 {
    let mut hash = mix(key.protocol as u64, pair(key.peer.words[0], key.peer.words[1]));
    hash = mix(hash, pair(key.peer.words[2], key.peer.words[3]));
    hash = mix(hash, pair(key.own.words[0], key.own.words[1]));
    hash = mix(hash, pair(key.own.words[2], key.own.words[3]));
    hash = mix(hash, pair(key.peer_port as u32, key.own_port as u32));
    (mix(hash, MULTIPLIER) >> 32) as u32
}

/// Hash of a local socket, which chooses once for its lifetime.
#[inline(always)]
pub const fn socket(cookie: u64) -> u32 {
    (mix(mix(cookie, MULTIPLIER), MULTIPLIER) >> 32) as u32
}

/// Place in a table: the word within it, and the bits to shift that word by.
#[inline(always)]
pub const fn place(hash: u32) -> (u32, u32) {
    let index = hash % MAGLEV_SLOTS;
    (index / SLOTS_PER_WORD, (index % SLOTS_PER_WORD) * 16)
}
