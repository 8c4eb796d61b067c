//! Large messages in parts: no request that leaves this node is larger than a frame of the transport takes.
//!
//! In: a message of any size. Out: on one side parts in order, on the other the message again. Callers: `network` splits, the
//! handle's `answer` puts together. One message at a time is put together, the newest one begun: a member receives large ones
//! from its leader only, and a leader that was deposed in the middle has to give up anyway.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Bytes of a message that travel in one request: a hundredth of a second on a wire, a second on bad Wi-Fi.
pub(super) const PART_BYTES: usize = 512 * 1024;
/// The largest message taken: ten times the state of 1,000 services, so that a broken peer cannot take all of a Pi's memory.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A message whose next part is this late is given up.
const ABANDONED: Duration = Duration::from_secs(60);

/// A piece of a message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    /// Raft id of the sender.
    pub(super) from: u64,
    /// Number of the message among the sender's; never used again while the sender runs.
    pub(super) message: u64,
    /// Where in the message this piece lies.
    pub(super) offset: u64,
    /// Is it the last one?
    pub(super) last: bool,
    /// The piece.
    #[serde(with = "whole")]
    pub(super) bytes: Vec<u8>,
}

/// Bytes as one value. (Serde would take a `Vec<u8>` number by number, which for some MiB costs a noticeable part of a second.)
pub(super) mod whole {
    use std::fmt;

    use serde::{Deserializer, Serializer, de};

    pub(in crate::store) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl de::Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// A part that does not continue the message which is being put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PartError {
    #[error("a part of message {message} at {offset} does not continue what came before")]
    Gap { message: u64, offset: u64 },
    #[error("a message of more than {MAX_MESSAGE_BYTES} bytes is not taken")]
    TooLarge,
}

/// What has arrived of the newest message.
#[derive(Debug, Default)]
pub(super) struct Assembly(Mutex<Option<Arriving>>);

#[derive(Debug)]
struct Arriving {
    from: u64,
    message: u64,
    bytes: Vec<u8>,
    at: Instant,
}

/// The parts of a message, in order.
pub(super) fn split(from: u64, message: u64, bytes: &[u8]) -> impl Iterator<Item = Part> {
    let pieces = bytes.len().div_ceil(PART_BYTES).max(1);
    (0..pieces).map(move |n| {
        let offset = n * PART_BYTES;
        let end = bytes.len().min(offset + PART_BYTES);
        let last = n + 1 == pieces;
        Part { from, message, offset: offset as u64, last, bytes: bytes[offset..end].to_vec() }
    })
}

impl Assembly {
    /// Takes in a part; returns the message when it was the last one.
    ///
    /// # Errors
    /// [`PartError`]: the message has to be sent again from its beginning.
    pub(super) fn take(&self, part: Part) -> Result<Option<Vec<u8>>, PartError> {
        // Whatever a panic elsewhere left is checked against the part's offset.
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Part { from, message, offset, last, bytes } = part;
        if offset == 0 {
            *slot = Some(Arriving { from, message, bytes: Vec::new(), at: Instant::now() });
        }
        let continues = |arriving: &Arriving| {
            (arriving.from, arriving.message, arriving.bytes.len() as u64) == (from, message, offset)
        };
        let Some(arriving) = slot.as_mut().filter(|arriving| continues(arriving)) else {
            return Err(PartError::Gap { message, offset });
        };
        if arriving.bytes.len() + bytes.len() > MAX_MESSAGE_BYTES {
            *slot = None;
            return Err(PartError::TooLarge);
        }
        arriving.bytes.extend_from_slice(&bytes);
        arriving.at = Instant::now();
        Ok(if last { slot.take().map(|arriving| arriving.bytes) } else { None })
    }

    /// Gives back the memory of a message that nobody goes on with.
    pub(super) fn forget_abandoned(&self) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take_if(|arriving| arriving.at.elapsed() > ABANDONED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_is_put_together_again() {
        for len in [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let assembly = Assembly::default();
            let whole: Vec<_> = split(1, 7, &bytes).filter_map(|part| assembly.take(part).unwrap()).collect();
            assert_eq!(whole, [bytes]);
        }
    }

    #[test]
    fn the_newest_message_wins_and_a_gap_is_refused() {
        let bytes = vec![1; 2 * PART_BYTES];
        let assembly = Assembly::default();
        let mut old = split(1, 7, &bytes);
        let mut new = split(2, 3, &bytes);
        assert_eq!(assembly.take(old.next().unwrap()), Ok(None));
        assert_eq!(assembly.take(new.next().unwrap()), Ok(None));
        let offset = PART_BYTES as u64;
        assert_eq!(assembly.take(old.next().unwrap()), Err(PartError::Gap { message: 7, offset }));
        assert_eq!(assembly.take(new.next().unwrap()), Ok(Some(bytes.clone())));
    }

    #[test]
    fn a_message_without_end_is_refused() {
        let assembly = Assembly::default();
        let part = |offset| Part { from: 1, message: 1, offset, last: false, bytes: vec![0; 16 << 20] };
        for n in 0..4 {
            assert_eq!(assembly.take(part(n << 24)), Ok(None));
        }
        assert_eq!(assembly.take(part(4 << 24)), Err(PartError::TooLarge));
    }
}
