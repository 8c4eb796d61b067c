//! What can go wrong with images, by what the caller can do about it.
//!
//! Every text is one line that names the image, what was tried and, where there is one, the remedy; it is shown to users
//! as it is. Causes are in `source`.

use std::io;
use std::path::Path;

use super::digest::Digest;
use super::manifest::InvalidDocument;
use super::reference::InvalidReference;
use super::unpack::UnpackError;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not parse: the user corrects it.
    #[error(transparent)]
    InvalidReference(#[from] InvalidReference),
    /// This node has no such image.
    #[error("no such image: {name} (`edgectl image ls` lists the images of this node)")]
    NoSuchImage {
        /// The name or id as it was given.
        name: String,
    },
    /// Several images' ids begin like this.
    #[error("image id {prefix} is ambiguous: {count} images' ids begin with it")]
    AmbiguousId {
        /// The prefix as it was given.
        prefix: String,
        /// How many images match.
        count: usize,
    },
    /// The registry answers, and has no such image.
    #[error("image {image} not found: registry {registry} has no such repository, tag or digest")]
    NotFound {
        /// The image.
        image: String,
        /// The registry asked.
        registry: String,
    },
    /// The registry wants other credentials.
    #[error(
        "access to image {image} denied by registry {registry}: it does not exist or needs credentials (`[registries.\"{registry}\"]` in edged.toml holds those of this node)"
    )]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry asked.
        registry: String,
    },
    /// No connection, or none that lasted; a later attempt may succeed.
    #[error(
        "registry {registry} is unreachable while getting image {image}: check that it runs and that this node's network and DNS reach it"
    )]
    Unreachable {
        /// The image.
        image: String,
        /// The registry asked.
        registry: String,
        /// The last failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answered with something else than what was asked.
    #[error("registry {registry} failed while handling image {image}: {reason}")]
    Registry {
        /// The image.
        image: String,
        /// The registry asked.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// Content that is not what its digest says.
    #[error(
        "content of image {image} has the wrong digest: expected {expected}, got {actual}; it was damaged or tampered with and is not used"
    )]
    WrongDigest {
        /// The image, or the archive.
        image: String,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// No entry of the index runs here.
    #[error("image {image} has no variant for {wanted}; it has {available}")]
    NoMatchingPlatform {
        /// The image.
        image: String,
        /// This node's platform.
        wanted: String,
        /// The platforms there are, comma-separated.
        available: String,
    },
    /// A manifest, index or configuration that is not an image's.
    #[error("image {image} cannot be used: {what} is invalid")]
    InvalidDocument {
        /// The image.
        image: String,
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidDocument,
    },
    /// An archive that is neither `docker save`'s nor an OCI layout.
    #[error("not an image archive: {reason}")]
    InvalidArchive {
        /// What is missing or wrong.
        reason: String,
    },
    /// A layer was refused or could not be read.
    #[error("layer {layer} of image {image} cannot be unpacked")]
    Layer {
        /// The image.
        image: String,
        /// The layer's digest.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// The file system of the image store is full.
    #[error("no space left in {path}: make room, for example by `edgectl image prune --all`")]
    NoSpace {
        /// The store's directory.
        path: String,
    },
    /// Containers use the image.
    #[error("image {image} is in use by {}: remove the service or task first", .users.join(", "))]
    InUse {
        /// The image.
        image: String,
        /// The keys of the tasks.
        users: Vec<String>,
    },
    /// The id has several names, so removing it needs to be forced.
    #[error("image {image} has several names ({names}): remove the names one by one, or force it")]
    SeveralNames {
        /// The id as it was given.
        image: String,
        /// Its names, comma-separated.
        names: String,
    },
    /// Content that pushing and saving need was not kept.
    #[error(
        "image {image} cannot be pushed or saved: this node has layer {layer} unpacked only; pull the image again after removing it"
    )]
    Incomplete {
        /// The image.
        image: String,
        /// The missing layer.
        layer: Digest,
    },
    /// Another process has the store open.
    #[error("image store {path} is in use by another process")]
    Locked {
        /// The store's directory.
        path: String,
    },
    /// Some other failure of the file system.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An error constructor for `map_err` on file operations; a full disk gets its own variant.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.display().to_string();
            if is_no_space(&source) { Self::NoSpace { path } } else { Self::Io { action, path, source } }
        }
    }

    /// The failure of one layer; a full disk gets its own variant.
    pub(crate) fn layer(image: &str, layer: Digest, store: &Path, source: UnpackError) -> Self {
        match source {
            UnpackError::Io { source, .. } if is_no_space(&source) => {
                Self::NoSpace { path: store.display().to_string() }
            }
            source => Self::Layer { image: image.to_owned(), layer, source: Box::new(source) },
        }
    }
}

fn is_no_space(error: &io::Error) -> bool {
    // EDQUOT: a quota is as full as a disk.
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
