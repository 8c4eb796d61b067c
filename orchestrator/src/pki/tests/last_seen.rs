//! The floor under the clock.

use super::*;
use std::{
    fs, thread,
    time::{Duration, Instant},
};

const EPOCH: UnixMillis = UnixMillis(0);

/// Waits until the state directory remembers `at`.
fn kept(dir: &Path, at: UnixMillis) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let text = format!("{}\n", at.0 / 1000);
    while fs::read_to_string(dir.join("last-seen")).ok().as_ref() != Some(&text) {
        assert!(Instant::now() < deadline, "{text:?} was not written");
        thread::yield_now();
    }
}

#[test]
fn a_clock_in_1970_gives_the_time_of_the_build() {
    let seen = time(EPOCH);
    // 2026-11-01, when this was written.
    assert!(seen.now() >= UnixMillis(1_793_491_200_000));
    assert!(seen.is_unset());
}

#[test]
fn a_clock_that_is_set_is_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::at(START);
    let seen = clock.last_seen(dir.path());
    assert!(!seen.is_unset());
    clock.set(START + DAY);
    assert_eq!(seen.now(), START + DAY);
}

#[test]
fn what_was_told_is_remembered_across_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::at(EPOCH);
    clock.last_seen(dir.path()).raise(START);
    kept(dir.path(), START);
    let again = clock.last_seen(dir.path());
    assert_eq!(again.now(), START);
    again.raise(before(START, DAY));
    assert_eq!(again.now(), START, "the floor never sinks");
}

#[test]
fn a_jump_of_the_own_clock_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::at(START);
    let seen = clock.last_seen(dir.path());
    let ten_years = Millis::from_secs(10 * 365 * 86_400);
    clock.set(START + ten_years);
    assert_eq!(seen.now(), START + ten_years);
    clock.set(START);
    assert_eq!(seen.now(), START);
}

#[test]
fn a_manager_that_is_ten_years_ahead_moves_a_set_clock_by_an_hour() {
    let seen = time(START);
    seen.raise(START + Millis::from_secs(10 * 365 * 86_400));
    assert_eq!(seen.now(), START + HOUR);
}

#[test]
fn a_damaged_file_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("last-seen"), "soon\n").unwrap();
    let seen = Clock::at(START).last_seen(dir.path());
    assert_eq!(seen.now(), START);
    seen.raise(START);
    kept(dir.path(), START);
}

#[test]
fn a_disk_that_takes_nothing_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Clock::at(EPOCH).last_seen(dir.path());
    drop(dir);
    seen.raise(START);
    assert_eq!(seen.now(), START);
}
