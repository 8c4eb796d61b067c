//! Image references as people write them (`nginx`, `localhost:5000/team/app:1.2@sha256:…`) and their full form.
//!
//! In: text from the command line, the API and archives. Out: registry, repository, tag and digest, all validated.
//! The grammar and the short-name rules are those of the Docker reference (`distribution/reference`, `reference.go` and
//! `normalize.go`); used by every part of `image` that names an image.

use core::fmt;
use core::str::FromStr;

use super::digest::Digest;

/// The registry a name without a host belongs to.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace a one-word name on the default registry belongs to.
const OFFICIAL_NAMESPACE: &str = "library";
/// The tag meant when neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together (`NameTotalLengthMax` of the reference grammar).
const NAME_MAX: usize = 255;
/// Longest tag (reference grammar: `[\w][\w.-]{0,127}`).
const TAG_MAX: usize = 128;

/// A validated image reference in its full form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// Nothing was given.
    #[error("invalid image name: it is empty")]
    Empty,
    /// The registry part is not a host with an optional port.
    #[error("invalid image name \"{text}\": \"{registry}\" is not a registry host (expected host or host:port)")]
    Registry {
        /// The whole text.
        text: String,
        /// The part that is wrong.
        registry: String,
    },
    /// The repository has upper-case letters.
    #[error("invalid image name \"{text}\": the repository must be lower case")]
    UpperCase {
        /// The whole text.
        text: String,
    },
    /// The repository has characters or separators that are not allowed.
    #[error(
        "invalid image name \"{text}\": \"{component}\" is not a repository name (lower-case letters and digits, separated by one dot, one or two underscores, or dashes)"
    )]
    Repository {
        /// The whole text.
        text: String,
        /// The path component that is wrong.
        component: String,
    },
    /// The tag is not a tag.
    #[error(
        "invalid image name \"{text}\": \"{tag}\" is not a tag (letters, digits, underscore, dot and dash, at most 128, not starting with dot or dash)"
    )]
    Tag {
        /// The whole text.
        text: String,
        /// The part that is wrong.
        tag: String,
    },
    /// The digest is not a digest.
    #[error("invalid image name \"{text}\": \"{digest}\" is not a digest (expected sha256: and 64 hexadecimal digits)")]
    Digest {
        /// The whole text.
        text: String,
        /// The part that is wrong.
        digest: String,
    },
    /// The name is longer than registries allow.
    #[error("invalid image name: {length} characters, registries allow {NAME_MAX}")]
    TooLong {
        /// Length of registry and repository.
        length: usize,
    },
    /// A name of 64 hexadecimal digits would be taken for an image id.
    #[error("invalid image name \"{text}\": 64 hexadecimal digits are an image id, not a name")]
    LooksLikeId {
        /// The whole text.
        text: String,
    },
}

impl Reference {
    /// The registry's host, with its port if one was given; `docker.io` if none was.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, for example `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None` only when a digest was given without one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned to one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository, pinned to `digest` and without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository and tag without a digest. `None` if there is no tag.
    #[must_use]
    pub fn tagged(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self { digest: None, ..self.clone() })
    }

    /// The repository as people write it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        match (self.registry.as_str(), self.repository.split_once('/')) {
            (DEFAULT_REGISTRY, Some((OFFICIAL_NAMESPACE, name))) if !name.contains('/') => name.to_owned(),
            (DEFAULT_REGISTRY, _) => self.repository.clone(),
            _ => format!("{}/{}", self.registry, self.repository),
        }
    }

    /// The reference as people write it, for example `nginx:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffixes(self.familiar_repository())
    }

    fn with_suffixes(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// The full form, for example `docker.io/library/nginx:latest`; it parses back to the same value.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffixes(format!("{}/{}", self.registry, self.repository)))
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let owned = || text.chars().take(NAME_MAX + TAG_MAX).collect::<String>();
        if text.is_empty() {
            return Err(InvalidReference::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest
                    .parse()
                    .map_err(|_| InvalidReference::Digest { text: owned(), digest: digest.to_owned() })?;
                (rest, Some(parsed))
            }
            None => (text, None),
        };
        let (registry, path) = split_registry(rest);
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        if !is_host_and_port(registry) {
            return Err(InvalidReference::Registry { text: owned(), registry: registry.to_owned() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(InvalidReference::Tag { text: owned(), tag: tag.to_owned() });
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidReference::UpperCase { text: owned() });
        }
        if let Some(component) = path.split('/').find(|component| !is_path_component(component)) {
            return Err(InvalidReference::Repository { text: owned(), component: component.to_owned() });
        }
        if rest.len() == 64 && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidReference::LooksLikeId { text: owned() });
        }
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL_NAMESPACE}/{path}")
        } else {
            path.to_owned()
        };
        let length = registry.len() + 1 + repository.len();
        if length > NAME_MAX {
            return Err(InvalidReference::TooLong { length });
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Splits off the registry. The first component is one only if it could not be a path: it has a dot or a colon, is
/// `localhost`, or has an upper-case letter.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => return is_port(port),
            None => return rest.is_empty(),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    port.is_none_or(is_port) && host.split('.').all(is_host_component)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_host_component(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `[a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(|&b| alphanumeric(b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_get_their_full_and_familiar_forms() {
        let pinned = format!("nginx@sha256:{HEX}");
        let both = format!("nginx:1.27@sha256:{HEX}");
        let full_pinned = format!("docker.io/library/nginx@sha256:{HEX}");
        let full_both = format!("docker.io/library/nginx:1.27@sha256:{HEX}");
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine", "nginx:1.27-alpine"),
            ("grafana/loki", "docker.io/grafana/loki:latest", "grafana/loki:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
            ("127.0.0.1:5000/team/app:v2", "127.0.0.1:5000/team/app:v2", "127.0.0.1:5000/team/app:v2"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app", "[2001:db8::1]/app:latest", "[2001:db8::1]/app:latest"),
            (
                "registry.example.com/a_b/c__d/e-f/g---h/i.j",
                "registry.example.com/a_b/c__d/e-f/g---h/i.j:latest",
                "registry.example.com/a_b/c__d/e-f/g---h/i.j:latest",
            ),
            ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
            ("host:80/a", "host:80/a:latest", "host:80/a:latest"),
            ("app:80", "docker.io/library/app:80", "app:80"),
            ("app:_x.Y-z", "docker.io/library/app:_x.Y-z", "app:_x.Y-z"),
            (&pinned, &full_pinned, &pinned),
            (&both, &full_both, &both),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "the full form of {text} parses back");
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "the familiar form of {text} parses back");
        }
    }

    #[test]
    fn what_is_wrong_with_a_reference_is_said() {
        let long = "a".repeat(300);
        let long_tag = format!("app:{}", "t".repeat(129));
        for (text, expected) in [
            ("", "is empty"),
            ("Nginx", "lower case"),
            ("library/Nginx", "lower case"),
            ("nginx:", "not a tag"),
            ("nginx:.x", "not a tag"),
            ("nginx:a b", "not a tag"),
            ("nginx:a:b", "not a tag"),
            (&long_tag, "not a tag"),
            ("nginx@sha256:abc", "not a digest"),
            ("nginx@md5:abc", "not a digest"),
            ("nginx@", "not a digest"),
            ("/nginx", "not a repository name"),
            ("nginx/", "not a repository name"),
            ("a//b", "not a repository name"),
            ("a..b", "not a repository name"),
            ("a___b", "not a repository name"),
            ("-a", "not a repository name"),
            ("a_", "not a repository name"),
            ("../etc/passwd", "not a registry host"),
            ("a/../b", "not a repository name"),
            ("app name", "not a repository name"),
            ("app\0", "not a repository name"),
            ("äpp", "not a repository name"),
            ("host:port/a", "not a registry host"),
            ("host:99999/a", "not a registry host"),
            ("-host.com/a", "not a registry host"),
            ("[::1/a", "not a registry host"),
            ("http://host/a", "not a registry host"),
            (HEX, "image id"),
            (&long, "registries allow 255"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, expected {expected:?}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn pinning_and_tagging_keep_the_repository() {
        let reference: Reference = "host:1/app:v1".parse().unwrap();
        let digest = Digest::of(b"x");
        assert_eq!(reference.pinned(digest).to_string(), format!("host:1/app@{digest}"));
        assert_eq!(reference.pinned(digest).tagged(), None);
        assert_eq!(reference.tagged(), Some(reference));
    }
}
