//! Times in text: RFC 3339 as Docker's API writes it, and the relative and duration forms that its users type.
//! Used by the API's handlers and by the command line; civil dates after Howard Hinnant's "chrono-compatible low-level date
//! algorithms".

use super::node::UnixNanos;
use orchestrator_core::model::UnixMillis;

/// What Docker writes for "never".
pub const ZERO: &str = "0001-01-01T00:00:00Z";

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds of a time in milliseconds.
#[must_use]
pub fn nanos(at: UnixMillis) -> UnixNanos {
    at.0.saturating_mul(1_000_000)
}

/// RFC 3339 in UTC with as many digits of the second as are needed, as Go's `time.RFC3339Nano`.
#[must_use]
pub fn rfc3339(at: UnixNanos) -> String {
    let fraction = at % NANOS;
    let text = civil(at / NANOS);
    if fraction == 0 {
        return format!("{text}Z");
    }
    let digits = format!("{fraction:09}");
    format!("{text}.{}Z", digits.trim_end_matches('0'))
}

/// RFC 3339 in UTC with exactly nine digits of the second, so that lines of a log align.
#[must_use]
pub fn rfc3339_fixed(at: UnixNanos) -> String {
    format!("{}.{:09}Z", civil(at / NANOS), at % NANOS)
}

/// RFC 3339 of a time in milliseconds.
#[must_use]
pub fn rfc3339_millis(at: UnixMillis) -> String {
    rfc3339(nanos(at))
}

fn civil(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Reads a point in time as Docker's query parameters carry it: Unix seconds with an optional fraction, or RFC 3339 with or
/// without zone and time of day.
#[must_use]
pub fn parse(text: &str) -> Option<UnixNanos> {
    parse_unix(text).or_else(|| parse_rfc3339(text))
}

fn parse_unix(text: &str) -> Option<UnixNanos> {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    if secs.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let secs: u64 = secs.parse().ok()?;
    let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
    secs.checked_mul(NANOS)?.checked_add(fraction)
}

fn parse_rfc3339(text: &str) -> Option<UnixNanos> {
    let (date, rest) = match text.split_once(['T', ' ']) {
        Some((date, rest)) => (date, rest),
        None => (text.strip_suffix('Z').unwrap_or(text), ""),
    };
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    if date.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (clock, offset) = split_zone(rest)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut secs = 0;
    for (part, factor) in clock.split(':').filter(|part| !part.is_empty()).zip([3600, 60, 1]) {
        secs += part.parse::<i64>().ok()? * factor;
    }
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
    let total = days_from_civil(year, month, day) * 86_400 + secs - offset;
    u64::try_from(total).ok()?.checked_mul(NANOS)?.checked_add(fraction)
}

/// Splits `10:00:00+02:00` into the time of day and the offset in seconds.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = text.find(['+', '-']) else { return Some((text, 0)) };
    let (clock, zone) = text.split_at(at);
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone[1..].split_once(':')?;
    Some((clock, sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60)))
}

/// Reads a length of time in Go's form, for example `1h30m`, `1.5s`, `200ms`; nanoseconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * factor;
        rest = &rest[unit..];
    }
    (!text.is_empty() && total < u64::MAX as f64).then(|| total.round() as u64)
}

/// Writes a length of time in Go's form: `1m30s`, `200ms`, `0s`.
#[must_use]
pub fn duration(nanos: u64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}µs", nanos as f64 / 1e3);
    }
    if nanos < NANOS {
        return format!("{}ms", nanos as f64 / 1e6);
    }
    let (hours, minutes) = (nanos / NANOS / 3600, nanos / NANOS / 60 % 60);
    let secs = (nanos % (60 * NANOS)) as f64 / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{secs}s"),
        (0, _) => format!("{minutes}m{secs}s"),
        _ => format!("{hours}h{minutes}m{secs}s"),
    }
}

/// A length of time for people, as Docker rounds it: `About a minute`, `3 hours`.
#[must_use]
pub fn human(nanos: u64) -> String {
    let secs = nanos / NANOS;
    let (minutes, hours) = (secs / 60, (secs + 1800) / 3600);
    match secs {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{secs} seconds"),
        60..120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants_have_known_texts() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_fixed(1_709_164_800_000_000_001), "2024-02-29T00:00:00.000000001Z");
        assert_eq!(parse("2024-02-29T01:00:00+01:00"), Some(1_709_164_800_000_000_000));
        assert_eq!(parse("2024-02-29"), Some(1_709_164_800_000_000_000));
        assert_eq!(parse("1709164800.5"), Some(1_709_164_800_500_000_000));
        for bad in ["", "yesterday", "2024-13-01", "12:00", "1.0000000001"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, nanos) in [("1h30m", 5400 * NANOS), ("1.5s", 1_500_000_000), ("200ms", 200_000_000), ("0", 0)] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
        }
        for bad in ["", "5", "s", "5x", "1h3", "-1s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(duration(5400 * NANOS), "1h30m0s");
        assert_eq!(duration(1_500_000_000), "1.5s");
        assert_eq!(human(90 * NANOS), "About a minute");
        assert_eq!(human(50 * 3600 * NANOS), "2 days");
    }

    proptest! {
        #[test]
        fn times_round_trip(at in 0..10_000_000_000_000_000_000u64) {
            prop_assert_eq!(parse(&rfc3339(at)), Some(at));
        }
    }
}
