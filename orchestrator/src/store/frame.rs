//! The one place where the store's bytes meet the disk: how a log record and a snapshot file are framed and checked.
//! (Encryption at rest belongs here and nowhere else.)
//!
//! In: payload bytes. Out: framed bytes, or `None` for anything that is not exactly a frame of ours. Callers: `log::segment`
//! and `snapshot`. All integers are little-endian.
//!
//! ```text
//! record, 8-byte aligned, padded with zeros      snapshot file
//! 0  u32 crc32(salt ‖ bytes 4.. ‖ payload)       0  u64 magic
//! 4  u32 payload length                          8  u16 version, u16 zero
//! 8  u32 batch: offset of the first record of    12 u32 crc32(bytes 16.. ‖ payload)
//!        the write this record belonged to       16 u64 payload length
//! 12 u8 kind, u8 version, u16 mark               24 payload
//! 16 payload
//! ```
//!
//! The salt is the segment's number, so a record of another segment (a misdirected write, a recycled block) never checks.

use crc32fast::Hasher;

/// Bytes before a record's payload.
pub(super) const RECORD_HEADER: usize = 16;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;
/// Version of every record payload written today.
pub(super) const RECORD_VERSION: u8 = 1;
/// Makes a run of zeros, or ordinary data, fail before its checksum is computed.
const RECORD_MARK: u16 = 0xed6e;

const SNAPSHOT_MAGIC: u64 = u64::from_le_bytes(*b"edgesnap");
const SNAPSHOT_VERSION: u16 = 1;
const SNAPSHOT_HEADER: usize = 24;

/// One checked record inside a segment's bytes.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Offset of the first record of the write this record belonged to.
    pub batch: u32,
    /// What the payload is.
    pub kind: u8,
    /// How the payload is laid out.
    pub version: u8,
    /// The payload.
    pub payload: &'a [u8],
    /// Offset of the next record.
    pub end: usize,
}

/// Bytes a record with a payload of `len` bytes takes in a segment.
pub(super) fn record_size(len: usize) -> usize {
    (RECORD_HEADER + len).next_multiple_of(ALIGN)
}

/// Appends one record to `out`.
pub(super) fn put_record(out: &mut Vec<u8>, salt: u64, batch: u32, kind: u8, payload: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&batch.to_le_bytes());
    out.extend_from_slice(&[kind, RECORD_VERSION]);
    out.extend_from_slice(&RECORD_MARK.to_le_bytes());
    out.extend_from_slice(payload);
    let crc = record_crc(salt, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_size(payload.len()), 0);
}

/// The record at offset `at` of a segment's bytes; `None` when there is none or it does not check.
pub(super) fn record_at(bytes: &[u8], salt: u64, at: usize) -> Option<Frame<'_>> {
    let header = bytes.get(at..at + RECORD_HEADER)?;
    if header[14..16] != RECORD_MARK.to_le_bytes() {
        return None;
    }
    let len = u32_at(header, 4) as usize;
    let end = at.checked_add(record_size(len))?;
    let payload = bytes.get(at + RECORD_HEADER..at + RECORD_HEADER + len)?;
    let batch = u32_at(header, 8);
    let checks = end <= bytes.len() && record_crc(salt, &bytes[at + 4..at + RECORD_HEADER + len]) == u32_at(header, 0);
    checks.then_some(Frame { batch, kind: header[12], version: header[13], payload, end })
}

/// A whole snapshot file around `payload`.
pub(super) fn snapshot_file(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SNAPSHOT_HEADER + payload.len());
    out.extend_from_slice(&SNAPSHOT_MAGIC.to_le_bytes());
    out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(payload);
    let crc = crc32fast::hash(&out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The payload of a whole snapshot file; `None` when it does not check.
pub(super) fn open_snapshot_file(bytes: &[u8]) -> Option<&[u8]> {
    let (header, payload) = bytes.split_at_checked(SNAPSHOT_HEADER)?;
    let whole = header[..8] == SNAPSHOT_MAGIC.to_le_bytes()
        && header[8..10] == SNAPSHOT_VERSION.to_le_bytes()
        && header[10..12] == [0; 2]
        && header[16..24] == (payload.len() as u64).to_le_bytes()
        && crc32fast::hash(&bytes[16..]) == u32_at(header, 12);
    whole.then_some(payload)
}

fn record_crc(salt: u64, covered: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}
