//! Loading of image archives: `docker save` (of any age) and OCI image layouts, plain or compressed.
//!
//! In: one stream, read once and in whatever order the archive has. Out: every image in it, in the store. The members are
//! spooled into the store's temporary directory and renamed from there to their places, so nothing is written twice.
//! Formats: Docker image specification 1.2 ("Combined Image JSON + Filesystem Changeset Format"), OCI image layout 1.1.
//! Called by `Images`; blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use tempfile::TempPath;

use super::compression::{CutOff, Plain};
use super::digest::Digest;
use super::error::Error;
use super::manifest::{
    DOCUMENT_MAX, Descriptor, Document, ImageConfig, Index, LAYERS_MAX, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use super::platform::Platform;
use super::progress::{Event, Phase, Progress};
use super::pull::no_match;
use super::reference::Reference;
use super::store::{Image, Store};
use super::tarball::{Kind, TarError, TarReader};

/// Most plain bytes of an archive: a few layers of the largest size.
const ARCHIVE_BYTES_MAX: u64 = 64 << 30;
/// Most members of an archive; `docker save` of a hundred images of the most layers stays below.
const MEMBERS_MAX: usize = 50_000;

/// Where containerd and Docker keep an image's full name in an OCI layout.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Where the specification keeps its tag; some tools write the full name.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// An image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The names it has in the archive; without any it is known by its id only.
    pub names: BTreeSet<Reference>,
    /// The image.
    pub image: Image,
}

/// Members of the archive by name.
struct Spool {
    members: BTreeMap<String, Member>,
    by_digest: BTreeMap<Digest, String>,
}

enum Member {
    File {
        content: TempPath,
        digest: Digest,
        size: u64,
        start: [u8; 4],
    },
    /// Older `docker save` links a repeated layer instead of repeating it.
    Link(String),
    /// Moved into the store already.
    Adopted {
        digest: Digest,
        size: u64,
        start: [u8; 4],
    },
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Loads every image of an archive. Either all are committed or none.
pub(crate) fn load(
    store: &Arc<Store>,
    platform: &Platform,
    reader: impl Read,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Vec<Loaded>, Error> {
    let mut spool = Spool::read(store, reader, cancel)?;
    let docker: Vec<DockerEntry> = match spool.document("manifest.json")? {
        Some(content) => parse_json("manifest.json", &content)?,
        None => Vec::new(),
    };
    let mut lease = store.lease();
    let found = match spool.document("index.json")? {
        Some(content) => spool.oci(&parse_json("index.json", &content)?, &docker, platform)?,
        None if docker.is_empty() => return Err(invalid("it has neither index.json nor manifest.json")),
        None => docker.iter().map(|entry| spool.docker(entry)).collect::<Result<_, _>>()?,
    };
    if found.is_empty() {
        return Err(invalid("it has no image"));
    }
    for image in &found {
        check_platform(image, platform)?;
        lease.add([image.digest, image.manifest.config.digest]);
        lease.add(image.manifest.layers.iter().map(|layer| layer.digest));
        lease.add(image.config.rootfs.diff_ids.iter().copied());
        spool.store_image(store, image, progress, cancel)?;
    }
    let commit = |image: Found| {
        Ok(Loaded { image: store.commit(image.digest, image.names.clone(), BTreeSet::new())?, names: image.names })
    };
    found.into_iter().map(commit).collect()
}

/// An image found in the archive, not yet in the store.
struct Found {
    names: BTreeSet<Reference>,
    digest: Digest,
    /// The manifest's text where the archive has none.
    made: Option<Vec<u8>>,
    manifest: Manifest,
    config: ImageConfig,
}

impl Found {
    fn shown(&self) -> String {
        self.names.first().map_or_else(|| self.manifest.config.digest.short(), Reference::familiar)
    }
}

fn check_platform(image: &Found, platform: &Platform) -> Result<(), Error> {
    let own = image.config.platform();
    if platform.choose([&own]).is_some() { Ok(()) } else { Err(no_match(&image.shown(), platform, [&own])) }
}

impl Spool {
    fn read(store: &Store, reader: impl Read, cancel: &AtomicBool) -> Result<Self, Error> {
        let plain = Plain::new(reader, ARCHIVE_BYTES_MAX, cancel).map_err(read_error)?;
        let mut tar = TarReader::new(plain);
        let mut spool = Self { members: BTreeMap::new(), by_digest: BTreeMap::new() };
        while let Some(entry) = tar.next_entry().map_err(tar_error)? {
            let name = member_name(&entry.path)?;
            let member = match entry.kind {
                Kind::Directory => continue,
                Kind::File => spool_file(store, &mut tar)?,
                Kind::Symlink => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    Member::Link(resolve_link(folder, &entry.link)?)
                }
                Kind::HardLink => Member::Link(member_name(&entry.link)?),
                _ => return Err(invalid(&format!("member {name:?} is neither a file nor a link"))),
            };
            if let Member::File { digest, .. } = member {
                spool.by_digest.insert(digest, name.clone());
            }
            spool.members.insert(name, member);
            if spool.members.len() > MEMBERS_MAX {
                return Err(invalid("it has more than 50000 members"));
            }
        }
        Ok(spool)
    }

    /// The name under which the content of `name` lies, links followed.
    fn target<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let mut name = name;
        // Longer chains than this are loops.
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::Link(target) => name = target,
                _ => return Some(name),
            }
        }
        None
    }

    fn facts(&self, name: &str) -> Option<(Digest, u64, [u8; 4])> {
        match self.members.get(self.target(name)?)? {
            Member::File { digest, size, start, .. } | Member::Adopted { digest, size, start } => {
                Some((*digest, *size, *start))
            }
            Member::Link(_) => None,
        }
    }

    /// A small member's content.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(Member::File { content, size, .. }) = self.target(name).and_then(|name| self.members.get(name)) else {
            return Ok(None);
        };
        if *size > DOCUMENT_MAX as u64 {
            return Err(invalid(&format!("{name} has {size} bytes, at most {DOCUMENT_MAX} are accepted")));
        }
        fs::read(content).map(Some).map_err(Error::io("read", content))
    }

    /// A document by digest. Members are found by what they are, not by what they are called.
    fn blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, Error> {
        self.name_of(digest).map_or(Ok(None), |name| self.document(name))
    }

    fn has(&self, digest: Digest) -> bool {
        self.name_of(digest).is_some()
    }

    /// The member with this content. A later member of the same name may have taken its place.
    fn name_of(&self, digest: Digest) -> Option<&str> {
        let name = self.by_digest.get(&digest)?;
        self.facts(name).filter(|(actual, ..)| *actual == digest).map(|_| name.as_str())
    }

    /// The images of an OCI layout.
    fn oci(&self, index: &Index, docker: &[DockerEntry], platform: &Platform) -> Result<Vec<Found>, Error> {
        // Several platforms of one image may stand side by side instead of in an index of their own.
        let mut by_name: BTreeMap<Option<Reference>, Vec<&Descriptor>> = BTreeMap::new();
        for entry in &index.manifests {
            by_name.entry(annotated_name(entry)).or_default().push(entry);
        }
        let mut found: BTreeMap<Digest, Found> = BTreeMap::new();
        for (name, entries) in by_name {
            let several_platforms = entries.len() > 1 && entries.iter().all(|entry| entry.platform.is_some());
            let manifests = if several_platforms {
                vec![self.choose(name.as_ref(), &entries, platform)?]
            } else {
                entries
                    .iter()
                    .map(|entry| self.descend(name.as_ref(), entry, platform))
                    .collect::<Result<Vec<_>, _>>()?
            };
            for (digest, manifest) in manifests {
                let content = self
                    .blob(manifest.config.digest)?
                    .ok_or_else(|| missing("configuration", manifest.config.digest))?;
                let config = ImageConfig::parse(&content, &manifest)
                    .map_err(document_error(name.as_ref(), "its configuration"))?;
                let image = found.entry(digest).or_insert_with(|| Found {
                    names: BTreeSet::new(),
                    digest,
                    made: None,
                    manifest,
                    config,
                });
                image.names.extend(name.clone());
            }
        }
        for image in found.values_mut() {
            for entry in docker {
                if self.facts(&entry.config).is_some_and(|(digest, ..)| digest == image.manifest.config.digest) {
                    image.names.extend(tags(entry)?);
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// The best entry whose manifest the archive really has: `docker save` keeps whole indexes but one platform's content.
    fn choose(
        &self,
        name: Option<&Reference>,
        entries: &[&Descriptor],
        platform: &Platform,
    ) -> Result<(Digest, Manifest), Error> {
        let present: Vec<&Descriptor> =
            entries.iter().copied().filter(|entry| self.has(entry.digest) && entry.platform.is_some()).collect();
        let offered = || present.iter().filter_map(|entry| entry.platform.as_ref());
        let Some(position) = platform.choose(offered()) else {
            let known = offered().filter(|platform| platform.os != "unknown");
            return Err(no_match(
                &name.map_or_else(|| "in the archive".to_owned(), Reference::familiar),
                platform,
                known,
            ));
        };
        let content =
            self.blob(present[position].digest)?.ok_or_else(|| missing("manifest", present[position].digest))?;
        let manifest = Manifest::parse(&content).map_err(document_error(name, "its manifest"))?;
        Ok((present[position].digest, manifest))
    }

    fn descend(
        &self,
        name: Option<&Reference>,
        entry: &Descriptor,
        platform: &Platform,
    ) -> Result<(Digest, Manifest), Error> {
        let content = self.blob(entry.digest)?.ok_or_else(|| missing("manifest", entry.digest))?;
        match Document::parse(&content).map_err(document_error(name, "its manifest"))? {
            Document::Manifest(manifest) => Ok((entry.digest, manifest)),
            Document::Index(index) => self.choose(name, &index.manifests.iter().collect::<Vec<_>>(), platform),
        }
    }

    /// An image of `docker save` without an OCI layout: it has no manifest, so one is made.
    fn docker(&self, entry: &DockerEntry) -> Result<Found, Error> {
        let names = tags(entry)?;
        let (config_digest, config_size, _) = self
            .facts(&entry.config)
            .ok_or_else(|| invalid(&format!("manifest.json names {:?}, which it does not have", entry.config)))?;
        let content = self.document(&entry.config)?.ok_or_else(|| missing("configuration", config_digest))?;
        let mut layers = Vec::new();
        for layer in entry.layers.iter().flatten().take(LAYERS_MAX + 1) {
            let (digest, size, start) = self
                .facts(layer)
                .ok_or_else(|| invalid(&format!("manifest.json names {layer:?}, which it does not have")))?;
            let suffix = match start {
                [0x1f, 0x8b, ..] => "+gzip",
                [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
                _ => "",
            };
            layers.push(Descriptor {
                media_type: format!("{OCI_LAYER}{suffix}"),
                digest,
                size,
                platform: None,
                annotations: BTreeMap::new(),
            });
        }
        let config = Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: config_digest,
            size: config_size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config, layers };
        let bytes = serde_json::to_vec(&manifest).map_err(|_| invalid("its manifest cannot be written"))?;
        let manifest = Manifest::parse(&bytes).map_err(document_error(names.first(), "its manifest"))?;
        let config =
            ImageConfig::parse(&content, &manifest).map_err(document_error(names.first(), "its configuration"))?;
        Ok(Found { names, digest: Digest::of(&bytes), made: Some(bytes), manifest, config })
    }

    /// Moves an image's content into the store and unpacks its layers.
    fn store_image(
        &mut self,
        store: &Arc<Store>,
        image: &Found,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        if let Some(manifest) = &image.made {
            store.content.put_blob(manifest)?;
        }
        for digest in [image.manifest.config.digest, image.digest] {
            self.adopt(store, digest)?;
        }
        for (descriptor, &diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let Descriptor { digest: layer, size: total, .. } = *descriptor;
            let tell = |phase| progress(Event { layer, phase, current: total, total });
            self.adopt(store, layer)?;
            if store.content.has_layer(diff_id) {
                tell(Phase::Exists);
                continue;
            }
            if !store.content.has_blob(descriptor) {
                return Err(missing("layer", layer));
            }
            tell(Phase::Unpacking);
            store.content.unpack(&image.shown(), layer, diff_id, cancel)?;
            tell(Phase::Done);
        }
        Ok(())
    }

    fn adopt(&mut self, store: &Store, wanted: Digest) -> Result<(), Error> {
        let Some(name) = self.name_of(wanted).map(str::to_owned) else { return Ok(()) };
        let Some(member) = self.members.get_mut(&name) else { return Ok(()) };
        let Member::File { digest, size, start, .. } = *member else { return Ok(()) };
        match std::mem::replace(member, Member::Adopted { digest, size, start }) {
            Member::File { content, .. } => store.content.adopt(content, digest),
            _ => Ok(()),
        }
    }
}

fn spool_file(store: &Store, content: &mut impl Read) -> Result<Member, Error> {
    let mut file = store.content.temporary_file()?;
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    let (mut size, mut start) = (0u64, [0; 4]);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = content.read(&mut buffer).map_err(read_error)?;
        if count == 0 {
            break;
        }
        if size == 0 {
            let known = count.min(4);
            start[..known].copy_from_slice(&buffer[..known]);
        }
        sha2::Digest::update(&mut hasher, &buffer[..count]);
        file.write_all(&buffer[..count]).map_err(Error::io("write", store.content.root()))?;
        size += count as u64;
    }
    Ok(Member::File { content: file.into_temp_path(), digest: Digest::from_hasher(hasher), size, start })
}

fn member_name(path: &[u8]) -> Result<String, Error> {
    resolve_link("", path)
}

/// The member a link in `folder` stands for.
fn resolve_link(folder: &str, target: &[u8]) -> Result<String, Error> {
    let wrong = || invalid(&format!("member {:?} leads out of it", String::from_utf8_lossy(target)));
    let text = std::str::from_utf8(target).map_err(|_| wrong())?;
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(wrong)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn annotated_name(entry: &Descriptor) -> Option<Reference> {
    let full = entry.annotations.get(NAME_ANNOTATION);
    // A bare tag would parse as the name of a repository.
    let name = full.or_else(|| entry.annotations.get(REF_ANNOTATION).filter(|name| name.contains(['/', ':'])))?;
    name.parse::<Reference>().ok()?.tagged()
}

fn tags(entry: &DockerEntry) -> Result<BTreeSet<Reference>, Error> {
    entry.repo_tags.iter().flatten().map(|tag| tag.parse::<Reference>().map_err(Error::from)).collect()
}

fn parse_json<T: for<'de> Deserialize<'de>>(name: &str, content: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(content).map_err(|error| invalid(&format!("{name} is malformed: {error}")))
}

fn document_error(
    name: Option<&Reference>,
    what: &'static str,
) -> impl FnOnce(super::manifest::InvalidDocument) -> Error {
    let image = name.map_or_else(|| "in the archive".to_owned(), Reference::familiar);
    move |source| Error::InvalidDocument { image, what, source }
}

fn missing(what: &str, digest: Digest) -> Error {
    invalid(&format!("{what} {digest} is missing"))
}

fn invalid(reason: &str) -> Error {
    Error::InvalidArchive { reason: reason.to_owned() }
}

fn tar_error(error: TarError) -> Error {
    match error {
        TarError::Io(error) => read_error(error),
        malformed @ TarError::Malformed(_) => invalid(&malformed.to_string()),
    }
}

fn read_error(error: io::Error) -> Error {
    match CutOff::of(&error) {
        Some(reason) => invalid(&format!("it is refused: {reason}")),
        None => Error::Io { action: "read", path: "the image archive".to_owned(), source: error },
    }
}
