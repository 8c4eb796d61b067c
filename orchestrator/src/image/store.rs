//! The image store: which images this node has, under which names, and which content they need.
//!
//! ```text
//! <state>/images/
//!   lock          held while open: one process at a time
//!   index.json    images by id: manifest, tags, digests; replaced atomically
//!   …             see `content`
//! ```
//!
//! Content that is neither needed by an image of the index nor leased by a running operation is garbage and goes when an
//! image is removed. In: content and names from `pull` and `load`. Out: [`Image`]s. Calls block; async callers wrap them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::content::{Content, sync_directory};
use super::digest::Digest;
use super::error::Error;
use super::manifest::{ImageConfig, Manifest};
use super::reference::Reference;
use super::unpack::Options;

/// Version of `index.json`; another one is refused instead of misread.
const INDEX_VERSION: u32 = 1;

/// An image this node has, complete and ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The image's id: the digest of its configuration, as Docker has it.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// Full names with tags, for example `docker.io/library/nginx:latest`.
    pub tags: BTreeSet<Reference>,
    /// Full names with the digests they were pulled by (of the manifest, or of the index that chose it).
    pub digests: BTreeSet<Reference>,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration: platform, command, environment, layers.
    pub config: ImageConfig,
    /// Plain size of all layers in bytes.
    pub size: u64,
    /// Plain size of each layer in bytes, lowest first.
    pub layer_sizes: Vec<u64>,
}

/// Space taken by the store, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: usize,
    /// Images that no container uses.
    pub unused_images: usize,
    /// Blobs as they came.
    pub blobs: u64,
    /// Layers unpacked (plain sizes).
    pub layers: u64,
    /// Unfinished downloads.
    pub downloads: u64,
    /// What [`super::Images::prune`] of all unused images would give back.
    pub reclaimable: u64,
}

/// What removing or pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Full names that no longer stand for an image.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes given back.
    pub reclaimed: u64,
}

/// The store. One per node; shared by reference.
pub(crate) struct Store {
    /// Blobs and layers.
    pub(crate) content: Content,
    containers: PathBuf,
    state: Mutex<State>,
    _lock: File,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, Image>,
    /// Content that running operations need, with the number of them.
    leases: BTreeMap<Digest, usize>,
}

#[derive(Serialize, Deserialize)]
struct IndexFile {
    version: u32,
    images: BTreeMap<Digest, IndexEntry>,
}

#[derive(Serialize, Deserialize)]
struct IndexEntry {
    manifest: Digest,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
}

impl Store {
    /// Opens the store under `state_dir`, creating it if missing, and removes what a crash left half-written. Images
    /// whose content is damaged or missing are dropped from the index, so that they are pulled again.
    pub(crate) fn open(state_dir: &Path, options: Options) -> Result<Self, Error> {
        let root = state_dir.join("images");
        let containers = state_dir.join("containers");
        for directory in [&root, &containers] {
            fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        // Layers hold setuid programs of any age; only root may reach them outside a container.
        let private: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        for directory in [&root, &containers] {
            fs::set_permissions(directory, Clone::clone(&private))
                .map_err(Error::io("set permissions of", directory))?;
        }
        let path = root.join("lock");
        let lock = File::create(&path).map_err(Error::io("create", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::Locked { path: root.display().to_string() })?;
        let store = Self { content: Content::open(root, options)?, containers, state: Mutex::default(), _lock: lock };
        let images = store.read_index()?;
        store.lock().images = images;
        Ok(store)
    }

    /// Where containers' writable layers lie.
    pub(crate) fn containers(&self) -> &Path {
        &self.containers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single insertion or removal, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Index

    fn index_path(&self) -> PathBuf {
        self.content.root().join("index.json")
    }

    fn read_index(&self) -> Result<BTreeMap<Digest, Image>, Error> {
        let path = self.index_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let invalid =
            |error: serde_json::Error| Error::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error));
        let index: IndexFile = serde_json::from_slice(&bytes).map_err(invalid)?;
        if index.version != INDEX_VERSION {
            let text = format!("it has version {}, this program reads {INDEX_VERSION}", index.version);
            return Err(Error::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let mut images = BTreeMap::new();
        for (id, entry) in index.images {
            let references = |texts: &BTreeSet<String>| texts.iter().filter_map(|text| text.parse().ok()).collect();
            match self.read_image(entry.manifest, references(&entry.tags), references(&entry.digests)) {
                Ok(image) if image.id == id => drop(images.insert(id, image)),
                Ok(image) => {
                    tracing::warn!(%id, found = %image.id, "image dropped from the store: its manifest belongs to another")
                }
                Err(error) => {
                    tracing::warn!(%id, error = &error as &dyn std::error::Error, "image dropped from the store: its content is damaged")
                }
            }
        }
        Ok(images)
    }

    fn write_index(&self, images: &BTreeMap<Digest, Image>) -> Result<(), Error> {
        let texts = |references: &BTreeSet<Reference>| references.iter().map(Reference::to_string).collect();
        let entry = |image: &Image| IndexEntry {
            manifest: image.manifest_digest,
            tags: texts(&image.tags),
            digests: texts(&image.digests),
        };
        let index = IndexFile {
            version: INDEX_VERSION,
            images: images.iter().map(|(id, image)| (*id, entry(image))).collect(),
        };
        let path = self.index_path();
        let mut file = self.content.temporary_file()?;
        let write = |file: &mut NamedTempFile| -> io::Result<()> {
            file.write_all(&serde_json::to_vec_pretty(&index)?)?;
            file.as_file().sync_all()
        };
        write(&mut file).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        sync_directory(self.content.root())
    }

    fn read_image(
        &self,
        manifest_digest: Digest,
        tags: BTreeSet<Reference>,
        digests: BTreeSet<Reference>,
    ) -> Result<Image, Error> {
        let name = manifest_digest.to_string();
        let invalid = |what| move |source| Error::InvalidDocument { image: name.clone(), what, source };
        let manifest =
            Manifest::parse(&self.content.read_blob(manifest_digest)?).map_err(invalid.clone()("the manifest"))?;
        let id = manifest.config.digest;
        let config =
            ImageConfig::parse(&self.content.read_blob(id)?, &manifest).map_err(invalid("the configuration"))?;
        let sizes = config.rootfs.diff_ids.iter().map(|layer| self.content.layer_size(*layer));
        let layer_sizes = sizes.collect::<Result<Vec<u64>, Error>>()?;
        let size = layer_sizes.iter().sum();
        Ok(Image { id, manifest_digest, tags, digests, manifest, config, size, layer_sizes })
    }

    /// Makes the image of a manifest, all of whose content is in the store, known by `tags` and `digests`. A tag that
    /// stood for another image now stands for this one.
    pub(crate) fn commit(
        &self,
        manifest_digest: Digest,
        tags: BTreeSet<Reference>,
        digests: BTreeSet<Reference>,
    ) -> Result<Image, Error> {
        let mut state = self.lock();
        let mut images = state.images.clone();
        images.values_mut().for_each(|other| other.tags.retain(|tag| !tags.contains(tag)));
        let mut image = self.read_image(manifest_digest, tags, digests)?;
        if let Some(known) = images.get(&image.id) {
            image.tags.extend(known.tags.iter().cloned());
            image.digests.extend(known.digests.iter().cloned());
        }
        images.insert(image.id, image.clone());
        if images != state.images {
            self.write_index(&images)?;
            state.images = images;
        }
        Ok(image)
    }

    /// Gives an image another name.
    pub(crate) fn tag(&self, name_or_id: &str, tag: &Reference) -> Result<Image, Error> {
        let image = self.get(name_or_id)?;
        self.commit(image.manifest_digest, BTreeSet::from([tag.clone()]), BTreeSet::new())
    }

    /// All images, by id.
    pub(crate) fn list(&self) -> Vec<Image> {
        self.lock().images.values().cloned().collect()
    }

    /// The image with this name, id, or beginning of an id.
    pub(crate) fn get(&self, name_or_id: &str) -> Result<Image, Error> {
        let state = self.lock();
        find(&state.images, name_or_id).cloned()
    }

    /// The image a reference stands for here: by its digest if it has one, else by its tag.
    pub(crate) fn get_reference(&self, reference: &Reference) -> Option<Image> {
        let state = self.lock();
        state.images.values().find(|image| is_named(image, reference)).cloned()
    }

    /// Removes a name, or an image when no tag is left or `name_or_id` is an id. Content no other image needs goes with
    /// it. `force` removes an image by id although it has several names.
    pub(crate) fn remove(&self, name_or_id: &str, force: bool) -> Result<Removed, Error> {
        let mut state = self.lock();
        let image = find(&state.images, name_or_id)?.clone();
        let name = name_or_id.parse::<Reference>().ok().filter(|name| is_named(&image, name));
        let mut images = state.images.clone();
        let mut removed = Removed::default();
        let names = || image.tags.iter().chain(&image.digests);
        let exact = name.map(|name| name.digest().map_or_else(|| name.clone(), |digest| name.pinned(digest)));
        if let Some(name) = exact.as_ref().filter(|name| image.tags.iter().any(|tag| tag != *name)) {
            removed.untagged.push(name.to_string());
            images.entry(image.id).and_modify(|image| {
                image.tags.remove(name);
                image.digests.remove(name);
            });
        } else {
            if exact.is_none() && image.tags.len() > 1 && !force {
                let names = image.tags.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
                return Err(Error::SeveralNames { image: name_or_id.to_owned(), names });
            }
            let users = self.users(image.id);
            if !users.is_empty() {
                return Err(Error::InUse { image: name_or_id.to_owned(), users });
            }
            removed.untagged.extend(names().map(Reference::to_string));
            removed.deleted.push(image.id);
            images.remove(&image.id);
        }
        self.write_index(&images)?;
        state.images = images;
        removed.reclaimed = self.sweep(&state)?;
        Ok(removed)
    }

    /// Removes images that no container uses: those without a tag, or `all` of them; and unfinished downloads.
    pub(crate) fn prune(&self, all: bool) -> Result<Removed, Error> {
        let mut state = self.lock();
        let (kept, unused): (BTreeMap<_, _>, BTreeMap<_, _>) =
            state.images.clone().into_iter().partition(|(id, image)| {
                (!all && !image.tags.is_empty()) || state.leases.contains_key(id) || !self.users(*id).is_empty()
            });
        if !unused.is_empty() {
            self.write_index(&kept)?;
            state.images = kept;
        }
        let mut removed = Removed::default();
        for (id, image) in unused {
            removed.untagged.extend(image.tags.iter().chain(&image.digests).map(Reference::to_string));
            removed.deleted.push(id);
        }
        removed.reclaimed = self.sweep(&state)?;
        for (digest, size) in self.content.downloads()? {
            if !state.leases.contains_key(&digest) {
                self.content.remove_download(digest)?;
                removed.reclaimed += size;
            }
        }
        Ok(removed)
    }

    /// Space taken, and what could be given back.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let state = self.lock();
        let mut usage = Usage { images: state.images.len(), ..Usage::default() };
        let used: BTreeMap<_, _> = state.images.iter().filter(|(id, _)| !self.users(**id).is_empty()).collect();
        usage.unused_images = state.images.len() - used.len();
        let mut needed: BTreeSet<Digest> = state.leases.keys().copied().collect();
        used.values().for_each(|image| needed.extend(content(image)));
        let mut add = |kind: fn(&mut Usage) -> &mut u64, (digest, size)| {
            *kind(&mut usage) += size;
            usage.reclaimable += if needed.contains(&digest) { 0 } else { size };
        };
        self.content.blobs()?.into_iter().for_each(|item| add(|usage| &mut usage.blobs, item));
        self.content.layers()?.into_iter().for_each(|item| add(|usage| &mut usage.layers, item));
        self.content.downloads()?.into_iter().for_each(|item| add(|usage| &mut usage.downloads, item));
        Ok(usage)
    }

    /// Removes blobs and layers that no image has and no operation leases. Returns the bytes given back.
    fn sweep(&self, state: &State) -> Result<u64, Error> {
        let mut live: BTreeSet<Digest> = state.leases.keys().copied().collect();
        state.images.values().for_each(|image| live.extend(content(image)));
        let mut reclaimed = 0;
        for (digest, size) in self.content.blobs()?.into_iter().filter(|(digest, _)| !live.contains(digest)) {
            self.content.remove_blob(digest)?;
            reclaimed += size;
        }
        for (digest, size) in self.content.layers()?.into_iter().filter(|(digest, _)| !live.contains(digest)) {
            self.content.remove_layer(digest)?;
            reclaimed += size;
        }
        Ok(reclaimed)
    }

    // Leases and users

    /// Keeps content from being swept until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Lease { store: Arc::clone(self), held: BTreeSet::new() }
    }

    fn user_file(&self, task: &str) -> PathBuf {
        self.containers.join(task).join("overlay").join("image")
    }

    /// Records that a task's root is made of an image. Under the lock, so that a removal sees it or comes first.
    pub(crate) fn add_user(&self, task: &str, id: Digest) -> Result<Image, Error> {
        let state = self.lock();
        let image = state.images.get(&id).cloned().ok_or_else(|| Error::NoSuchImage { name: id.to_string() })?;
        let path = self.user_file(task);
        let directory = path.parent().expect("the path has components above the file");
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let mut file = self.content.temporary_file()?;
        file.write_all(id.to_string().as_bytes()).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        Ok(image)
    }

    /// The image a task's root is made of.
    pub(crate) fn image_of(&self, task: &str) -> Option<Digest> {
        fs::read_to_string(self.user_file(task)).ok()?.parse().ok()
    }

    /// The tasks whose roots are made of an image.
    pub(crate) fn users(&self, id: Digest) -> Vec<String> {
        let tasks = fs::read_dir(&self.containers).into_iter().flatten().flatten();
        let mut users: Vec<String> = tasks
            .filter_map(|task| task.file_name().into_string().ok())
            .filter(|task| self.image_of(task) == Some(id))
            .collect();
        users.sort();
        users
    }
}

/// Content kept from being swept. A running pull or load holds one.
pub(crate) struct Lease {
    store: Arc<Store>,
    held: BTreeSet<Digest>,
}

impl Lease {
    /// Adds content. Only then look whether it is there: content seen earlier may have been swept.
    pub(crate) fn add(&mut self, digests: impl IntoIterator<Item = Digest>) {
        let mut state = self.store.lock();
        for digest in digests {
            if self.held.insert(digest) {
                *state.leases.entry(digest).or_default() += 1;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        for digest in &self.held {
            if let Some(count) = state.leases.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(digest);
                }
            }
        }
    }
}

/// Everything an image consists of.
fn content(image: &Image) -> impl Iterator<Item = Digest> + '_ {
    let blobs = image.manifest.layers.iter().map(|layer| layer.digest);
    blobs.chain(image.config.rootfs.diff_ids.iter().copied()).chain([image.id, image.manifest_digest])
}

fn is_named(image: &Image, reference: &Reference) -> bool {
    match reference.digest() {
        Some(digest) => image.digests.contains(&reference.pinned(digest)),
        None => image.tags.contains(reference),
    }
}

/// By name first: a name may look like the beginning of an id.
fn find<'a>(images: &'a BTreeMap<Digest, Image>, name_or_id: &str) -> Result<&'a Image, Error> {
    let missing = || Error::NoSuchImage { name: name_or_id.to_owned() };
    let reference = name_or_id.parse::<Reference>();
    if let Some(image) =
        reference.as_ref().ok().and_then(|reference| images.values().find(|image| is_named(image, reference)))
    {
        return Ok(image);
    }
    let prefix = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return reference.map_err(Error::from).and_then(|_| Err(missing()));
    }
    let mut matches = images.iter().filter(|(id, _)| id.hex().starts_with(prefix));
    let (_, first) = matches.next().ok_or_else(missing)?;
    match matches.count() {
        0 => Ok(first),
        more => Err(Error::AmbiguousId { prefix: name_or_id.to_owned(), count: more + 1 }),
    }
}
