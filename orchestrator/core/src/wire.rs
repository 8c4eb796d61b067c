//! The envelope of everything that leaves a process: log entries, snapshots, assignments, reports. The store writes it to
//! disk, leader and agents send it to each other.
//!
//! ```text
//! offset  0      2        3       7        11
//!         kind   version  length  crc32    payload …
//!         u16    u8       u32     u32      `length` bytes of postcard
//! ```
//!
//! Numbers are little endian. The checksum (CRC-32 of IEEE 802.3) covers the first seven bytes and the payload. postcard is
//! positional: a field is only ever appended to the last struct of a message, together with a new version here.

use crate::{
    assignment::Assignment,
    model::Report,
    state::{Entry, State},
};
use alloc::vec::Vec;
use core::fmt;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 11;

/// What an envelope holds. The numbers are part of the format; they are never given to something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// An [`Entry`] of the log.
    Entry = 1,
    /// A [`State`], as a snapshot.
    State = 2,
    /// An [`Assignment`].
    Assignment = 3,
    /// A [`Report`].
    Report = 4,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Entry, Kind::State, Kind::Assignment, Kind::Report];

    /// The largest payload of this kind, in bytes, so that a damaged or hostile length allocates nothing. A task takes about
    /// 200 bytes in a state or entry and 1 KiB in an assignment; the largest cluster has 20,000.
    #[must_use]
    pub const fn max_len(self) -> usize {
        match self {
            Kind::Entry => 32 << 20,
            Kind::State => 256 << 20,
            Kind::Assignment => 64 << 20,
            Kind::Report => 16 << 20,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Entry => "entry",
            Kind::State => "state",
            Kind::Assignment => "assignment",
            Kind::Report => "report",
        })
    }
}

/// What can be put into an envelope.
pub trait Message: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
    /// The version that is written, and the only one that is read.
    const VERSION: u8;
}

impl Message for Entry {
    const KIND: Kind = Kind::Entry;
    const VERSION: u8 = 1;
}

impl Message for State {
    const KIND: Kind = Kind::State;
    const VERSION: u8 = 1;
}

impl Message for Assignment {
    const KIND: Kind = Kind::Assignment;
    const VERSION: u8 = 1;
}

impl Message for Report {
    const KIND: Kind = Kind::Report;
    const VERSION: u8 = 1;
}

/// Why bytes are not the message that was expected. Offsets count from the start of the envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// More bytes are needed: the writer was cut off, or the reader has not read all.
    #[error("{have} bytes are too few: at least {need} are needed")]
    Truncated {
        /// Bytes given.
        have: usize,
        /// Bytes of the whole, as far as known.
        need: usize,
    },
    /// Written by something newer, or not by us.
    #[error("kind {0} at offset 0 is unknown")]
    UnknownKind(u16),
    /// Another kind than was asked for.
    #[error("found kind {found} at offset 0, expected {expected}")]
    WrongKind {
        /// The kind that was asked for.
        expected: Kind,
        /// The kind of the envelope.
        found: Kind,
    },
    /// Written by another version of the software.
    #[error("version {found} of {kind} at offset 2 is unknown, this build reads version {known}")]
    UnknownVersion {
        /// The kind.
        kind: Kind,
        /// The version of the envelope.
        found: u8,
        /// The version that this build reads.
        known: u8,
    },
    /// A payload larger than any of its kind.
    #[error("length {len} of {kind} at offset 3 is above the limit of {max}")]
    TooLong {
        /// The kind.
        kind: Kind,
        /// The length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Damaged on disk or on the way.
    #[error("checksum of {kind} at offset 7 is {found:08x}, but the content has {computed:08x}")]
    Checksum {
        /// The kind.
        kind: Kind,
        /// As written.
        found: u32,
        /// Of what was read.
        computed: u32,
    },
    /// The payload is no such message though its checksum is right.
    #[error("payload of {kind} (offset {HEADER_LEN}, {len} bytes) cannot be decoded")]
    Malformed {
        /// The kind.
        kind: Kind,
        /// Bytes of the payload.
        len: usize,
        /// What postcard says.
        #[source]
        cause: postcard::Error,
    },
    /// The message ends before the envelope does.
    #[error("{rest} bytes of {kind} at offset {offset} are left over")]
    Trailing {
        /// The kind.
        kind: Kind,
        /// Where they begin.
        offset: usize,
        /// How many.
        rest: usize,
    },
}

/// The header of an envelope: enough to know how many bytes to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Its version.
    pub version: u8,
    /// Bytes of the payload.
    pub len: usize,
    crc: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may be followed by anything.
    ///
    /// # Errors
    /// Too few bytes, an unknown kind, or a length above the limit of the kind.
    pub fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let Some([k0, k1, version, l0, l1, l2, l3, c0, c1, c2, c3]) = bytes.first_chunk::<HEADER_LEN>().copied() else {
            return Err(WireError::Truncated { have: bytes.len(), need: HEADER_LEN });
        };
        let number = u16::from_le_bytes([k0, k1]);
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u16 == number).ok_or(WireError::UnknownKind(number))?;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > kind.max_len() {
            return Err(WireError::TooLong { kind, len, max: kind.max_len() });
        }
        Ok(Self { kind, version, len, crc: u32::from_le_bytes([c0, c1, c2, c3]) })
    }
}

/// Puts a message into its envelope.
///
/// # Errors
/// It is larger than its kind may be.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let malformed = |cause| WireError::Malformed { kind: M::KIND, len: 0, cause };
    let mut bytes = postcard::to_extend(message, alloc::vec![0; HEADER_LEN]).map_err(malformed)?;
    let len = bytes.len() - HEADER_LEN;
    if len > M::KIND.max_len() {
        return Err(WireError::TooLong { kind: M::KIND, len, max: M::KIND.max_len() });
    }
    bytes[0..2].copy_from_slice(&(M::KIND as u16).to_le_bytes());
    bytes[2] = M::VERSION;
    // The limits of all kinds are below 4 GiB.
    bytes[3..7].copy_from_slice(&(len as u32).to_le_bytes());
    let crc = checksum(&bytes);
    bytes[7..11].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// Takes a message out of its envelope, which must be all of `bytes`.
///
/// # Errors
/// Anything that is not exactly what [`encode`] of this version makes.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    let header = Header::read(bytes)?;
    let kind = M::KIND;
    if header.kind != kind {
        return Err(WireError::WrongKind { expected: kind, found: header.kind });
    }
    if header.version != M::VERSION {
        return Err(WireError::UnknownVersion { kind, found: header.version, known: M::VERSION });
    }
    let end = HEADER_LEN + header.len;
    if bytes.len() < end {
        return Err(WireError::Truncated { have: bytes.len(), need: end });
    }
    if bytes.len() > end {
        return Err(WireError::Trailing { kind, offset: end, rest: bytes.len() - end });
    }
    let computed = checksum(bytes);
    if header.crc != computed {
        return Err(WireError::Checksum { kind, found: header.crc, computed });
    }
    let malformed = |cause| WireError::Malformed { kind, len: header.len, cause };
    let (message, rest) = postcard::take_from_bytes(&bytes[HEADER_LEN..]).map_err(malformed)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(WireError::Trailing { kind, offset: bytes.len() - rest.len(), rest: rest.len() })
    }
}

/// Of an envelope, the checksum itself left out.
fn checksum(envelope: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&envelope[..7]);
    hasher.update(&envelope[HEADER_LEN..]);
    hasher.finalize()
}
