//! One entry of a container's log file, in the format that Kubernetes defines for container runtimes
//! (kubernetes/design-proposals, `kubelet-cri-logging.md`), so that existing log shippers read our files:
//!
//! ```text
//! 2026-11-20T08:47:49.123456789Z stdout F a whole line
//! 2026-11-20T08:47:49.123456789Z stderr P the beginning of a line
//! ```
//!
//! `F` entries end with the line feed that the process wrote, `P` entries are continued. Bytes are kept as they are: joining
//! the entries of a stream yields exactly what the process wrote. Written by the shim, read by [`super::logs`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of a time stamp with nine decimals.
const TIME_LEN: usize = 30;
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Where a process wrote something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Something a process wrote at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When, in nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
    /// Where.
    pub stream: Stream,
    /// What, with the line feed if it was written; without one, the line goes on in the stream's next entry.
    pub bytes: Vec<u8>,
}

/// Nanoseconds since the epoch; the clock of log entries.
pub(crate) fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends `chunk`, cut into entries.
pub(crate) fn encode(out: &mut Vec<u8>, unix_nanos: u64, stream: Stream, chunk: &[u8]) {
    let mut time = [0; TIME_LEN];
    format_time(&mut time, unix_nanos);
    for line in chunk.split_inclusive(|b| *b == b'\n') {
        out.extend_from_slice(&time);
        out.push(b' ');
        out.extend_from_slice(stream.as_str().as_bytes());
        match line.strip_suffix(b"\n") {
            Some(_) => {
                out.extend_from_slice(b" F ");
                out.extend_from_slice(line);
            }
            None => {
                out.extend_from_slice(b" P ");
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
    }
}

/// Reads one entry, line feed included. `None` if it is damaged, as the last one before a power cut may be.
pub(crate) fn decode(entry: &[u8]) -> Option<LogLine> {
    let unix_nanos = parse_time(entry.get(..TIME_LEN)?)?;
    let rest = entry.get(TIME_LEN..)?.strip_prefix(b" ")?;
    let (stream, rest) = match (rest.strip_prefix(b"stdout "), rest.strip_prefix(b"stderr ")) {
        (Some(rest), _) => (Stream::Stdout, rest),
        (_, Some(rest)) => (Stream::Stderr, rest),
        _ => return None,
    };
    let bytes = match (rest.strip_prefix(b"F "), rest.strip_prefix(b"P ")) {
        (Some(text), _) => text,
        (_, Some(text)) => text.strip_suffix(b"\n")?,
        _ => return None,
    };
    Some(LogLine { unix_nanos, stream, bytes: bytes.to_vec() })
}

/// RFC 3339 in UTC with nine decimals, so that all stamps have one length.
fn format_time(out: &mut [u8; TIME_LEN], unix_nanos: u64) {
    let secs = unix_nanos / NANOS_PER_SEC;
    let (year, month, day) = civil_from_days(secs / 86_400);
    out.copy_from_slice(b"0000-00-00T00:00:00.000000000Z");
    let mut put = |at: usize, width: usize, mut value: u64| {
        for place in out[at..at + width].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, secs / 3600 % 24);
    put(14, 2, secs / 60 % 60);
    put(17, 2, secs % 60);
    put(20, 9, unix_nanos % NANOS_PER_SEC);
}

fn parse_time(text: &[u8]) -> Option<u64> {
    let get = |from: usize, to: usize| -> Option<u64> {
        text.get(from..to)?.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
    };
    if (text.get(10), text.get(29)) != (Some(&b'T'), Some(&b'Z')) {
        return None;
    }
    let days = days_from_civil(get(0, 4)?, get(5, 7)?, get(8, 10)?)?;
    let secs = days * 86_400 + get(11, 13)? * 3600 + get(14, 16)? * 60 + get(17, 19)?;
    secs.checked_mul(NANOS_PER_SEC)?.checked_add(get(20, 29)?)
}

/// Days since 1970-01-01 to a date of the Gregorian calendar. Years are counted from March so that the leap day is the
/// last one; 400 years have 146,097 days (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // 719,468 days lie between 0000-03-01 and the epoch.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

/// The way back; `None` for what is no date, or before the epoch.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = year.checked_sub(u64::from(month <= 2))?;
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let year_of_era = year % 400;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (year / 400 * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_look_as_log_shippers_expect() {
        let mut out = Vec::new();
        encode(&mut out, 1_795_164_469_000_000_042, Stream::Stderr, b"one\ntw");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-20T08:47:49.000000042Z stderr F one\n2026-11-20T08:47:49.000000042Z stderr P tw\n"
        );
    }

    #[test]
    fn a_torn_entry_is_no_entry() {
        assert_eq!(decode(b"2026-11-20T08:47:49.0000"), None);
        assert_eq!(decode(b"2026-11-20T08:47:49.000000042Z stdout P half"), None);
    }

    proptest! {
        #[test]
        fn joined_entries_are_what_was_written(nanos: u64, chunk: Vec<u8>) {
            let mut out = Vec::new();
            encode(&mut out, nanos, Stream::Stdout, &chunk);
            let lines: Vec<LogLine> = out.split_inclusive(|b| *b == b'\n').map(|e| decode(e).unwrap()).collect();
            prop_assert!(lines.iter().all(|l| l.unix_nanos == nanos && l.stream == Stream::Stdout));
            prop_assert_eq!(lines.concat_bytes(), chunk);
        }

        #[test]
        fn dates_round_trip(days in 0u64..3_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), Some(days));
        }
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl ConcatBytes for Vec<LogLine> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|l| l.bytes.clone()).collect()
        }
    }
}
