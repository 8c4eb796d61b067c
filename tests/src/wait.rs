//! Waiting for a predicate: the only place of the tests where time passes by itself.

use anyhow::{Result, bail};
use std::{
    fmt::Display,
    thread::sleep,
    time::{Duration, Instant},
};

/// How often a predicate is asked.
const POLL: Duration = Duration::from_millis(20);

/// Asks a predicate until it gives a value.
///
/// # Errors
/// When `within` has passed: the last reason that the predicate gave, and `what` was waited for.
pub fn wait_for<T, E: Display>(what: &str, within: Duration, mut predicate: impl FnMut() -> Result<T, E>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match predicate() {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() >= deadline => {
                bail!("waited {} s for {what}: {why:#}", within.as_secs_f32())
            }
            Err(_) => sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predicate_is_asked_until_it_holds() {
        let mut asked = 0;
        let value = wait_for("the third answer", Duration::from_secs(60), || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err("not yet") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_deadline_gives_the_last_reason() {
        let error = wait_for::<(), _>("a wonder", Duration::ZERO, || Err("none seen")).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for a wonder: none seen");
    }
}
