//! The platform an image is made for, and the choice of one from an image index.
//!
//! In: `os/architecture[/variant]` and the entries of an index. Out: the entry this node can run. Used when pulling,
//! loading and building images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant in Go's words (`linux/arm64/v8`), as the OCI image specification wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// `v7`, `v8`, … for architectures that have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform \"{0}\": expected os/architecture or os/architecture/variant, for example linux/arm64")]
pub struct InvalidPlatform(String);

impl Platform {
    /// The platform this binary was built for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "loongarch64" => ("loong64", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well something made for `offered` runs here: smaller is better, `None` is not at all. An older ARM variant
    /// runs on a newer one; arm64 without a variant means v8 (OCI image specification, "Platform Variants").
    fn fit(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm64", None) => Some(8),
            ("arm", None) => Some(7),
            ("amd64", None) => Some(1),
            (_, Some(variant)) => variant.strip_prefix('v').and_then(|level| level.parse::<u32>().ok()),
            (_, None) => Some(0),
        };
        let (own, theirs) = (level(self)?, level(offered)?);
        own.checked_sub(theirs)
    }

    /// The index of the best of `offered` for this platform.
    #[must_use]
    pub fn choose<'a>(&self, offered: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        let fits = offered.into_iter().enumerate().filter_map(|(index, platform)| Some((self.fit(platform)?, index)));
        fits.min().map(|(_, index)| index)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(valid) {
            return Err(InvalidPlatform(text.to_owned()));
        }
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|&v| v.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_variant_a_node_can_run_is_chosen() {
        let offered: Vec<Platform> = [
            "linux/amd64",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/arm64/v9",
            "windows/amd64",
            "unknown/unknown",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        for (own, expected) in [
            ("linux/amd64", Some(0)),
            ("linux/arm/v7", Some(2)),
            ("linux/arm/v6", Some(1)),
            ("linux/arm64/v8", Some(3)),
            ("linux/arm64", Some(3)),
            ("linux/riscv64", None),
        ] {
            assert_eq!(own.parse::<Platform>().unwrap().choose(&offered), expected, "{own}");
        }
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for bad in ["", "linux", "linux/", "/arm64", "linux/arm64/v8/x", "linux/ar m"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
