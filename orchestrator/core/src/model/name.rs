//! Names and other checked strings: what exists is valid.

use alloc::{borrow::ToOwned, format, string::String};
use core::fmt;
use serde::{Deserialize, Serialize};

/// Why a value was refused: which field, what was given, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {why}")]
pub struct Invalid {
    /// The field as the user knows it, for example `--replicas` or `Mounts[2].Target`.
    pub field: String,
    /// What is wrong with the value and what would be right.
    pub why: String,
}

impl Invalid {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// Longest name of a service, network, volume or node: a DNS label (RFC 1035 section 2.3.4).
pub const NAME_MAX: usize = 63;

/// A name of a service, volume or network: letters and digits, with `-` and `_` (volumes: also `.`) between them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// Empty, longer than [`NAME_MAX`], or with other characters than letters, digits and inner `-`, `_`, `.`.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        let bytes = text.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        if bytes.len() > NAME_MAX {
            return Err(Invalid::new("name", format!("{text:?} is longer than {NAME_MAX} characters")));
        }
        if !(edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)) {
            return Err(Invalid::new(
                "name",
                format!("{text:?} must be letters and digits, with '-', '_' or '.' only between them"),
            ));
        }
        Ok(Self(text))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl core::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// An image as the user named it, for example `nginx`, `nginx:1.25`, `registry:5000/team/app@sha256:…`. Only the rough form
/// is checked here; the registry client parses it whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// Longest image name: repository 255 (distribution reference grammar) + tag 128 + digest 135 + separators.
pub const IMAGE_NAME_MAX: usize = 520;

impl ImageName {
    /// Checks `text`.
    ///
    /// # Errors
    /// Empty, too long, or with white space or control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        if text.is_empty() {
            return Err(Invalid::new("image", "an image name is required"));
        }
        if text.len() > IMAGE_NAME_MAX {
            return Err(Invalid::new("image", format!("longer than {IMAGE_NAME_MAX} characters")));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Invalid::new("image", format!("{text:?} contains white space or control characters")));
        }
        Ok(Self(text))
    }

    /// The name as the user wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageName {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A signal by number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

/// Linux signal names for the architectures we run on, x86-64 and ARM (signal(7)).
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

impl Signal {
    /// Politely asks to end.
    pub const TERM: Signal = Signal(15);
    /// Ends at once.
    pub const KILL: Signal = Signal(9);

    /// Reads `SIGTERM`, `term`, `15` or `RTMIN+3`.
    ///
    /// # Errors
    /// No such signal.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = bare
            .parse::<u8>()
            .ok()
            .or_else(|| SIGNALS.iter().find(|(name, _)| *name == bare).map(|(_, number)| *number))
            .or_else(|| bare.strip_prefix("RTMIN+")?.parse::<u8>().ok()?.checked_add(34))
            .or_else(|| (bare == "RTMIN").then_some(34));
        number.and_then(|n| Self::try_from(n).ok()).ok_or_else(|| {
            Invalid::new("signal", format!("{text:?} is no signal; use a name like SIGTERM or a number from 1 to 64"))
        })
    }

    /// The number that the kernel knows.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Signal {
    type Error = Invalid;
    fn try_from(number: u8) -> Result<Self, Invalid> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(Invalid::new("signal", format!("{number} is not between 1 and 64")))
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> u8 {
        signal.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.pad(&("SIG".to_owned() + name)),
            None => f.pad(&format!("SIGRTMIN+{}", self.0.saturating_sub(34))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_are_dns_labels_with_a_little_more() {
        for good in ["web", "a", "web-1", "my_app", "data-3.x", "A9"] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-web", "web-", "we b", "wéb", "a/b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_are_read_in_all_usual_forms() {
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("sigquit", 3)] {
            assert_eq!(Signal::parse(text).map(Signal::number), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "SIGFOO", "RTMIN+99"] {
            assert!(Signal::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Signal::TERM.to_string(), "SIGTERM");
    }
}
