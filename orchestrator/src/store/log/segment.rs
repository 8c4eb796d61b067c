//! One segment file: its name, and what its bytes say after any kind of crash.
//!
//! In: the bytes of a file. Out: the records of its valid prefix and where that ends, or the offset at which it is damaged.
//! Caller: `log` on recovery. Telling a torn tail from damage: a write is synced before the next one begins, and every record
//! names the offset its write began at. So a valid record whose write began *behind* a broken spot proves that the spot had
//! been durable: damage. Valid records of the same write as the broken spot prove nothing: the power went during that write.

use super::record::{Record, SegmentStart};
use crate::store::frame::{self, RECORD_VERSION};

/// Name of segment number `seq`; names sort as the numbers do.
pub(crate) fn file_name(seq: u64) -> String {
    format!("log-{seq:016x}")
}

/// The number of a segment from its file's name.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?;
    let seq = u64::from_str_radix(digits, 16).ok()?;
    (file_name(seq) == name).then_some(seq)
}

/// What a segment holds.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The first record, `None` in a segment that was never begun.
    pub start: Option<SegmentStart>,
    /// Offset and content of the records behind it.
    pub records: Vec<(usize, Record)>,
    /// Offset behind the last valid record.
    pub end: usize,
    /// Bytes from `end` that are not zero: what a torn write left.
    pub leftover: usize,
}

/// Why a segment cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Bytes that had been durable are broken at this offset.
    Damaged(usize),
    /// The checked record at this offset is of a kind or version this program does not know.
    Unknown(usize),
}

/// Reads the segment `seq` from the bytes of its file.
///
/// # Errors
/// [`Bad`] when records are missing that had been durable, or cannot be understood.
pub(crate) fn scan(bytes: &[u8], seq: u64) -> Result<Scan, Bad> {
    let mut scan = Scan::default();
    while let Some(frame) = frame::record_at(bytes, seq, scan.end) {
        if frame.version != RECORD_VERSION {
            return Err(Bad::Unknown(scan.end));
        }
        let record = Record::decode(frame.kind, frame.payload).ok_or(Bad::Unknown(scan.end))?;
        match (record, scan.start) {
            (Record::Start(start), None) => scan.start = Some(start),
            (Record::Start(_), Some(_)) | (_, None) => return Err(Bad::Damaged(scan.end)),
            (record, Some(_)) => scan.records.push((scan.end, record)),
        }
        scan.end = frame.end;
    }
    if later_write_behind(bytes, seq, scan.end) {
        return Err(Bad::Damaged(scan.end));
    }
    scan.leftover = bytes[scan.end..].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Ok(scan)
}

/// Is there a valid record behind `broken` whose write began behind it too?
fn later_write_behind(bytes: &[u8], seq: u64, broken: usize) -> bool {
    let mut at = broken + frame::ALIGN;
    while at + frame::RECORD_HEADER <= bytes.len() {
        match frame::record_at(bytes, seq, at) {
            Some(frame) if frame.batch as usize > broken => return true,
            // Of the torn write: what it contains is not worth looking into.
            Some(frame) => at = frame.end,
            None => at += frame::ALIGN,
        }
    }
    false
}
