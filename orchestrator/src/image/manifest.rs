//! Manifests, image indexes and image configurations: the JSON documents an image is made of.
//!
//! In: bytes from a registry, an archive or the store. Out: values with every digest parsed and every rule that later
//! code relies on checked. Formats: OCI image specification 1.1 and Docker's manifest schema 2, which differ in media
//! types only.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// Largest manifest, index or configuration accepted, in bytes: the limit registries have for manifests (OCI
/// distribution specification, "Pushing Manifests").
pub const DOCUMENT_MAX: usize = 4 << 20;
/// Most layers of an image: Docker's limit, which keeps an overlay mount's options within one page.
pub const LAYERS_MAX: usize = 128;
/// Largest layer blob accepted, in bytes.
pub const LAYER_BLOB_MAX: u64 = 20 << 30;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, an uncompressed tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What `Accept` says when a manifest is asked for.
pub const ACCEPTED_MANIFESTS: &[&str] = &[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

const LAYER_TYPES: &[&str] = &[
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A reference from one document to another piece of content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// The platform, on entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form annotations; archives keep the image's name here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// The manifest of an image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`]; older OCI tools leave it out.
    #[serde(default = "oci_manifest")]
    pub media_type: String,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// An image index: manifests of one image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_INDEX`] or [`DOCKER_INDEX`].
    #[serde(default = "oci_index")]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// What a reference resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One platform.
    Manifest(Manifest),
    /// Several platforms.
    Index(Index),
}

/// The image configuration: for which platform, what to run, and of which layers the root is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made (RFC 3339), if its builder said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Architecture in Go's words.
    pub architecture: String,
    /// Operating system in Go's words.
    pub os: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What a container of the image runs, and how.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: RunConfig,
    /// The layers.
    pub rootfs: RootFs,
    /// How the layers came about, lowest first; entries without a layer included.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub history: Vec<History>,
}

/// The layers of an image by the digests of their uncompressed content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// No layer belongs to the step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// How a container of the image runs unless the service says otherwise. Serialises to the JSON of the image
/// specification's `config` object, which is also what the Docker API shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`, names or numbers; empty means root.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub user: String,
    /// Ports the image's authors mean to be reached, as `80/tcp`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", with = "set_as_object")]
    pub exposed_ports: BTreeSet<String>,
    /// Environment, `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The command's beginning, kept when the user gives arguments.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments, replaced when the user gives some.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Paths that want a volume.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", with = "set_as_object")]
    pub volumes: BTreeSet<String>,
    /// Working directory; empty means `/`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the command to end, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The health check (Docker's extension of the specification).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell of shell-form commands (Docker's extension); the health check's `CMD-SHELL` uses it.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub shell: Vec<String>,
}

/// A health check as Docker's `HEALTHCHECK` instruction stores it. Times are nanoseconds; 0 means the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", command]`.
    #[serde(deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: i64,
    /// How long one check may take.
    pub timeout: i64,
    /// Time after the start in which failures do not count.
    pub start_period: i64,
    /// Time between two checks during the start period.
    pub start_interval: i64,
    /// Failures in a row that make a container unhealthy.
    pub retries: i64,
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDocument {
    /// Larger than [`DOCUMENT_MAX`].
    #[error("{size} bytes, at most {DOCUMENT_MAX} are accepted")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// Not the JSON it should be.
    #[error("malformed JSON")]
    Json(#[from] serde_json::Error),
    /// A format other than schema 2.
    #[error("schema version {0} is not supported, only 2 is")]
    SchemaVersion(u32),
    /// Not an image (a Helm chart, a WebAssembly module, a signature, …), or one that cannot be unpacked.
    #[error("media type {0} is not that of a container image")]
    MediaType(String),
    /// More layers than can be mounted.
    #[error("{0} layers, at most {LAYERS_MAX} are accepted")]
    TooManyLayers(usize),
    /// The manifest and the configuration disagree.
    #[error("the manifest has {manifest} layers, the configuration {config}")]
    LayerCount {
        /// Layers in the manifest.
        manifest: usize,
        /// Layers in the configuration.
        config: usize,
    },
    /// A layer claims to be larger than accepted.
    #[error("a layer of {0} bytes, at most {LAYER_BLOB_MAX} are accepted")]
    LayerTooLarge(u64),
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// [`InvalidDocument`] if it is too large, malformed, or not an image's.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidDocument> {
        /// What tells the kinds apart; an index without a media type is known by its `manifests`.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            schema_version: u32,
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        check_size(bytes.len() as u64)?;
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version != 2 {
            return Err(InvalidDocument::SchemaVersion(probe.schema_version));
        }
        match probe.media_type.as_deref() {
            Some(OCI_INDEX | DOCKER_INDEX) => Ok(Self::Index(serde_json::from_slice(bytes)?)),
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => Ok(Self::Manifest(Manifest::parse(bytes)?)),
            Some(other) => Err(InvalidDocument::MediaType(other.to_owned())),
            None if probe.manifests.is_some() => Ok(Self::Index(serde_json::from_slice(bytes)?)),
            None => Ok(Self::Manifest(Manifest::parse(bytes)?)),
        }
    }
}

impl Manifest {
    /// Reads a manifest and checks that its layers can be unpacked.
    ///
    /// # Errors
    /// [`InvalidDocument`] as for [`Document::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidDocument> {
        check_size(bytes.len() as u64)?;
        let manifest: Self = serde_json::from_slice(bytes)?;
        check_size(manifest.config.size)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(InvalidDocument::TooManyLayers(manifest.layers.len()));
        }
        for layer in &manifest.layers {
            if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
                return Err(InvalidDocument::MediaType(layer.media_type.clone()));
            }
            if layer.size > LAYER_BLOB_MAX {
                return Err(InvalidDocument::LayerTooLarge(layer.size));
            }
        }
        Ok(manifest)
    }
}

impl ImageConfig {
    /// Reads the configuration that belongs to `manifest`.
    ///
    /// # Errors
    /// [`InvalidDocument`] if it is malformed or disagrees with the manifest.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, InvalidDocument> {
        let config = Self::parse_alone(bytes)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(InvalidDocument::LayerCount {
                manifest: manifest.layers.len(),
                config: config.rootfs.diff_ids.len(),
            });
        }
        Ok(config)
    }

    /// Reads a configuration whose manifest is not known yet.
    ///
    /// # Errors
    /// [`InvalidDocument`] if it is malformed.
    pub fn parse_alone(bytes: &[u8]) -> Result<Self, InvalidDocument> {
        check_size(bytes.len() as u64)?;
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The platform the image is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        let variant = self.variant.clone().filter(|variant| !variant.is_empty());
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant }
    }
}

fn check_size(size: u64) -> Result<(), InvalidDocument> {
    if size > DOCUMENT_MAX as u64 { Err(InvalidDocument::TooLarge { size }) } else { Ok(()) }
}

fn oci_manifest() -> String {
    OCI_MANIFEST.to_owned()
}

fn oci_index() -> String {
    OCI_INDEX.to_owned()
}

/// Go writes an empty list or map as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A set that the specification writes as `{"name": {}, …}`.
mod set_as_object {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::de::IgnoredAny;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(set.iter().map(|name| (name, BTreeMap::<(), ()>::new())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_nulls_and_docker_extensions_is_read() {
        let text = r#"{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-01-01T00:00:00Z",
            "config":{"Env":["PATH=/bin"],"Cmd":null,"Entrypoint":["/x"],"ExposedPorts":{"80/tcp":{}},"Volumes":null,
              "Labels":null,"User":"1000","WorkingDir":"/srv","StopSignal":"SIGQUIT","ArgsEscaped":true,
              "Healthcheck":{"Test":["CMD","true"],"Interval":5000000000,"Retries":3}},
            "rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let config = ImageConfig::parse_alone(text.as_bytes()).unwrap();
        assert_eq!(config.platform().to_string(), "linux/arm64/v8");
        assert_eq!(config.config.exposed_ports, BTreeSet::from(["80/tcp".to_owned()]));
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 5_000_000_000);
        let json = serde_json::to_value(&config.config).unwrap();
        assert_eq!(json["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
        assert_eq!(json.get("Cmd"), None);
    }

    #[test]
    fn documents_that_are_not_images_are_refused() {
        let descriptor = |media_type: &str, size: u64| serde_json::json!({"mediaType": media_type, "digest": Digest::of(b"x"), "size": size});
        let manifest = |layers: Vec<serde_json::Value>| {
            serde_json::to_vec(
                &serde_json::json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, 2), "layers": layers}),
            )
            .unwrap()
        };
        assert!(matches!(Document::parse(&manifest(vec![descriptor(OCI_LAYER, 1)])), Ok(Document::Manifest(_))));
        let refused: [(Vec<u8>, &str); 9] = [
            (vec![b' '; DOCUMENT_MAX + 1], "at most 4194304"),
            (b"{".to_vec(), "malformed JSON"),
            (br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(), "schema version 1"),
            (br#"{"schemaVersion":2,"mediaType":"text/html"}"#.to_vec(), "media type text/html"),
            (manifest(vec![descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip", 1)]), "helm"),
            (manifest(vec![descriptor(OCI_LAYER, LAYER_BLOB_MAX + 1)]), "a layer of"),
            (manifest(vec![descriptor(OCI_LAYER, 1); 500]), "500 layers"),
            (
                br#"{"schemaVersion":2,"config":{"digest":"sha256:../x","size":1},"layers":[]}"#.to_vec(),
                "malformed JSON",
            ),
            (br#"{"schemaVersion":2,"layers":[]}"#.to_vec(), "malformed JSON"),
        ];
        for (bytes, expected) in refused {
            let error = Document::parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
    }
}
