//! The only place that reads the time of day.

use orchestrator_core::model::UnixMillis;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time of day.
#[must_use]
pub fn now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
