//! Pulling and pushing: from a reference to an image in the store, and back.
//!
//! ```text
//! reference ─► manifest or index ─► manifest for the platform ─► configuration ─► layers (3 at a time) ─► index.json
//! ```
//!
//! In: a reference, credentials, a platform. Out: an [`Image`], or an error that names what to do. Pulls of the same
//! content at the same time wait for each other instead of loading it twice. Dropping the future stops everything soon;
//! what has come so far is kept for the next attempt. Called by `Images`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::RegistryOperation;

use super::digest::Digest;
use super::error::Error;
use super::manifest::{Descriptor, Document, ImageConfig, Index, Manifest};
use super::platform::Platform;
use super::progress::{Event, Phase, Progress};
use super::reference::Reference;
use super::registry::{Repository, blocking};
use super::store::{Image, Lease, Store};

/// Layers fetched at the same time, Docker's default: more does not fill a Wi-Fi link better and costs memory.
const PARALLEL_LAYERS: usize = 3;

/// What a reference stands for in its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The digest of the manifest or index; a reference pinned to it never changes its meaning.
    pub digest: Digest,
    /// Media type of the manifest or index.
    pub media_type: String,
    /// Size of the manifest or index in bytes.
    pub size: u64,
    /// The platforms the image is there for.
    pub platforms: Vec<Platform>,
}

/// At most one operation at a time for each piece of content.
#[derive(Default)]
pub(crate) struct Turns(Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    async fn take(&self, digest: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(digest, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// Tells blocking work, which cannot be dropped, that nobody waits for it any more.
#[derive(Default)]
pub(crate) struct CancelOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pulls an image from one repository (the registry itself or a mirror).
pub(crate) async fn pull(
    store: &Arc<Store>,
    turns: &Arc<Turns>,
    repository: &Repository,
    reference: &Reference,
    platform: &Platform,
    progress: &Progress,
) -> Result<Image, Error> {
    repository.authenticate(RegistryOperation::Pull).await?;
    let mut lease = store.lease();
    let (content, digest) = repository.manifest(reference.tag(), reference.digest()).await?;
    let (content, manifest, manifest_digest) = match parse(reference, &content)? {
        Document::Manifest(manifest) => (content, manifest, digest),
        Document::Index(index) => {
            let chosen = choose(reference, &index, platform)?.digest;
            let (content, chosen) = repository.manifest(None, Some(chosen)).await?;
            match parse(reference, &content)? {
                Document::Manifest(manifest) => (content, manifest, chosen),
                Document::Index(_) => {
                    let reason = "its index leads to another index instead of a manifest".to_owned();
                    return Err(Error::Registry {
                        image: reference.familiar(),
                        registry: reference.registry().to_owned(),
                        reason,
                    });
                }
            }
        }
    };
    lease.add([manifest_digest]);
    {
        let store = Arc::clone(store);
        blocking(move || store.content.put_blob(&content)).await?;
    }
    let config = fetch_config(store, turns, repository, reference, &manifest, &mut lease).await?;
    check_platform(reference, &config, platform)?;
    fetch_layers(store, turns, repository, reference, &manifest, &config, &mut lease, progress).await?;

    let tags = BTreeSet::from_iter(reference.tagged().filter(|_| reference.digest().is_none()));
    let digests = BTreeSet::from([reference.pinned(digest), reference.pinned(manifest_digest)]);
    let store = Arc::clone(store);
    // The lease goes along, so that the content stays until the index names it, even if this future is dropped.
    blocking(move || {
        let image = store.commit(manifest_digest, tags, digests);
        drop(lease);
        image
    })
    .await
}

async fn fetch_config(
    store: &Arc<Store>,
    turns: &Arc<Turns>,
    repository: &Repository,
    reference: &Reference,
    manifest: &Manifest,
    lease: &mut Lease,
) -> Result<ImageConfig, Error> {
    let descriptor = &manifest.config;
    lease.add([descriptor.digest]);
    let read = || {
        let (store, digest) = (Arc::clone(store), descriptor.digest);
        blocking(move || store.content.read_blob(digest))
    };
    let _turn = turns.take(descriptor.digest).await;
    let content = match read().await {
        Ok(content) => content,
        // Missing, or damaged since it came.
        Err(_) => {
            repository.fetch(store, descriptor, &super::progress::silent()).await?;
            read().await?
        }
    };
    ImageConfig::parse(&content, manifest).map_err(|source| Error::InvalidDocument {
        image: reference.familiar(),
        what: "its configuration",
        source,
    })
}

#[expect(clippy::too_many_arguments, reason = "one step of one function, kept apart for reading")]
async fn fetch_layers(
    store: &Arc<Store>,
    turns: &Arc<Turns>,
    repository: &Repository,
    reference: &Reference,
    manifest: &Manifest,
    config: &ImageConfig,
    lease: &mut Lease,
    progress: &Progress,
) -> Result<(), Error> {
    // An image may have the same (empty) layer several times.
    let layers: BTreeMap<Digest, &Descriptor> = config.rootfs.diff_ids.iter().copied().zip(&manifest.layers).collect();
    lease.add(layers.keys().copied());
    lease.add(layers.values().map(|descriptor| descriptor.digest));
    let cancel = CancelOnDrop::default();
    let fetch = |(diff_id, descriptor): (Digest, &Descriptor)| Fetch {
        store: Arc::clone(store),
        turns: Arc::clone(turns),
        repository: repository.clone(),
        image: reference.familiar(),
        descriptor: descriptor.clone(),
        diff_id,
        progress: Arc::clone(progress),
        cancel: Arc::clone(&cancel.0),
    };
    let fetches: Vec<Fetch> = layers.into_iter().map(fetch).collect();
    stream::iter(fetches).map(Fetch::run).buffer_unordered(PARALLEL_LAYERS).try_collect().await
}

/// One layer on its way.
struct Fetch {
    store: Arc<Store>,
    turns: Arc<Turns>,
    repository: Repository,
    image: String,
    descriptor: Descriptor,
    diff_id: Digest,
    progress: Progress,
    cancel: Arc<AtomicBool>,
}

impl Fetch {
    async fn run(self) -> Result<(), Error> {
        let Descriptor { digest: layer, size: total, .. } = self.descriptor;
        let tell = |phase, current| (self.progress)(Event { layer, phase, current, total });
        let _turn = self.turns.take(self.diff_id).await;
        if self.store.content.has_layer(self.diff_id) {
            tell(Phase::Exists, total);
            return Ok(());
        }
        let was_here = self.store.content.has_blob(&self.descriptor);
        if !was_here {
            self.fetch().await?;
        }
        tell(Phase::Unpacking, total);
        match self.unpack().await {
            // Blobs are verified when they come; this one may have been damaged since.
            Err(Error::Layer { .. }) if was_here => {
                self.fetch().await?;
                self.unpack().await?;
            }
            result => result?,
        }
        tell(Phase::Done, total);
        Ok(())
    }

    async fn fetch(&self) -> Result<(), Error> {
        self.repository.fetch(&self.store, &self.descriptor, &self.progress).await
    }

    async fn unpack(&self) -> Result<(), Error> {
        let (store, image, cancel) = (Arc::clone(&self.store), self.image.clone(), Arc::clone(&self.cancel));
        let (blob, diff_id) = (self.descriptor.digest, self.diff_id);
        blocking(move || store.content.unpack(&image, blob, diff_id, &cancel)).await
    }
}

/// Asks the registry what a reference stands for, without pulling it.
pub(crate) async fn resolve(
    store: &Arc<Store>,
    turns: &Arc<Turns>,
    repository: &Repository,
    reference: &Reference,
) -> Result<Resolved, Error> {
    repository.authenticate(RegistryOperation::Pull).await?;
    let (content, digest) = repository.manifest(reference.tag(), reference.digest()).await?;
    let size = content.len() as u64;
    match parse(reference, &content)? {
        Document::Index(index) => {
            let platforms = platforms(&index).cloned().collect();
            Ok(Resolved { digest, media_type: index.media_type, size, platforms })
        }
        Document::Manifest(manifest) => {
            let mut lease = store.lease();
            let config = fetch_config(store, turns, repository, reference, &manifest, &mut lease).await?;
            Ok(Resolved { digest, media_type: manifest.media_type, size, platforms: vec![config.platform()] })
        }
    }
}

/// Sends an image to a repository under the reference's tag.
pub(crate) async fn push(
    store: &Arc<Store>,
    repository: &Repository,
    reference: &Reference,
    image: &Image,
    progress: &Progress,
) -> Result<(), Error> {
    if let Some(layer) = image.manifest.layers.iter().find(|layer| !store.content.has_blob(layer)) {
        return Err(Error::Incomplete { image: reference.familiar(), layer: layer.digest });
    }
    let mut lease = store.lease();
    lease.add(image.manifest.layers.iter().map(|layer| layer.digest).chain([image.id, image.manifest_digest]));
    repository.authenticate(RegistryOperation::Push).await?;
    let mut sent = BTreeSet::new();
    for descriptor in image.manifest.layers.iter().chain([&image.manifest.config]) {
        if !sent.insert(descriptor.digest) {
            continue;
        }
        let Descriptor { digest: layer, size: total, .. } = *descriptor;
        let phase = if repository.has_blob(layer).await? {
            Phase::Exists
        } else {
            repository.send_blob(store, descriptor, progress).await?;
            Phase::Done
        };
        progress(Event { layer, phase, current: total, total });
    }
    let content = {
        let (store, digest) = (Arc::clone(store), image.manifest_digest);
        blocking(move || store.content.read_blob(digest)).await?
    };
    repository
        .send_manifest(reference.tag().unwrap_or(super::reference::DEFAULT_TAG), &image.manifest.media_type, content)
        .await
}

fn parse(reference: &Reference, content: &[u8]) -> Result<Document, Error> {
    Document::parse(content).map_err(|source| Error::InvalidDocument {
        image: reference.familiar(),
        what: "its manifest",
        source,
    })
}

/// The platforms of an index. Builders add attestations as entries for `unknown/unknown`.
pub(crate) fn platforms(index: &Index) -> impl Iterator<Item = &Platform> {
    index.manifests.iter().filter_map(|entry| entry.platform.as_ref()).filter(|platform| platform.os != "unknown")
}

fn choose<'a>(reference: &Reference, index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, Error> {
    let entries: Vec<&Descriptor> = index.manifests.iter().filter(|entry| entry.platform.is_some()).collect();
    let chosen = platform.choose(entries.iter().filter_map(|entry| entry.platform.as_ref()));
    chosen.map(|position| entries[position]).ok_or_else(|| no_match(&reference.familiar(), platform, platforms(index)))
}

/// An image without an index says in its configuration what it is for.
pub(crate) fn check_platform(reference: &Reference, config: &ImageConfig, platform: &Platform) -> Result<(), Error> {
    let own = config.platform();
    match platform.choose([&own]) {
        Some(_) => Ok(()),
        None => Err(no_match(&reference.familiar(), platform, [&own])),
    }
}

pub(crate) fn no_match<'a>(image: &str, wanted: &Platform, available: impl IntoIterator<Item = &'a Platform>) -> Error {
    let available: BTreeSet<String> = available.into_iter().map(Platform::to_string).collect();
    let available =
        if available.is_empty() { "none".to_owned() } else { available.into_iter().collect::<Vec<_>>().join(", ") };
    Error::NoMatchingPlatform { image: image.to_owned(), wanted: wanted.to_string(), available }
}
