//! What a pull, load or push tells while it runs.

use std::sync::Arc;

use super::digest::Digest;

/// What happens to one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its bytes are on their way in: `current` of `total`.
    Downloading,
    /// It is being unpacked.
    Unpacking,
    /// It is there now.
    Done,
    /// It was there already, here or (when pushing) in the registry.
    Exists,
    /// Its bytes are on their way out: `current` of `total`.
    Uploading,
}

/// One step of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The layer's blob digest.
    pub layer: Digest,
    /// What happens to it.
    pub phase: Phase,
    /// Bytes so far.
    pub current: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Receives events. Called from several threads and expected to return at once (for example `try_send`).
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// Receives events and forgets them.
#[must_use]
pub fn silent() -> Progress {
    Arc::new(|_| {})
}
