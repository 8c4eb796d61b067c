//! The content store: blobs by digest, unpacked layers by diff id, and the names of images.
//!
//! ```text
//! <state>/images/
//!   lock                     held while open: one process at a time
//!   index.json               images by id: manifest, tags, digests; replaced atomically
//!   blobs/sha256/<hex>       manifests, configurations and layers as they came
//!   layers/<diff id>/fs      the layer unpacked, shared by all images that have it
//!   layers/<diff id>/size    its plain size in bytes, as text
//!   downloads/<hex>          the beginning of a blob; a later pull goes on from there
//!   tmp/                     everything half-written; emptied on open
//! ```
//!
//! Nothing half-written is ever visible: content is written under `tmp` or `downloads`, verified, synced and renamed. What
//! is neither named by the index nor leased by a running operation is garbage and goes when an image is removed.
//! In: content from `pull` and `load`. Out: [`Image`]s, and layer directories for `rootfs`. Calls block; async callers
//! wrap them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock, syncfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir, TempPath};

use super::digest::Digest;
use super::error::Error;
use super::manifest::{Descriptor, ImageConfig, LAYER_BLOB_MAX, Manifest};
use super::reference::Reference;
use super::unpack::{self, Options};

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
    /// What [`Store::prune`] of all unused images would give back.
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
    root: PathBuf,
    containers: PathBuf,
    options: Options,
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
        for directory in [root.join("blobs/sha256"), root.join("layers"), root.join("downloads"), containers.clone()] {
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        // Layers hold setuid programs of any age; only root may reach them outside a container.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&root, private).map_err(Error::io("set permissions of", &root))?;
        let lock_path = root.join("lock");
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Locked { path: root.display().to_string() })?;
        let temporary = root.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("empty", &temporary)(error)),
            _ => fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?,
        }
        let store = Self { root, containers, options, state: Mutex::default(), _lock: lock };
        let images = store.read_index()?;
        store.lock().images = images;
        Ok(store)
    }

    /// The store's directory, for messages.
    pub(crate) fn root(&self) -> &Path {
        &self.root
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
        self.root.join("index.json")
    }

    fn read_index(&self) -> Result<BTreeMap<Digest, Image>, Error> {
        let path = self.index_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let invalid = |error: serde_json::Error| Error::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error));
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
                Ok(image) => tracing::warn!(%id, found = %image.id, "image dropped from the store: its manifest belongs to another"),
                Err(error) => tracing::warn!(%id, error = &error as &dyn std::error::Error, "image dropped from the store: its content is damaged"),
            }
        }
        Ok(images)
    }

    fn write_index(&self, images: &BTreeMap<Digest, Image>) -> Result<(), Error> {
        let texts = |references: &BTreeSet<Reference>| references.iter().map(Reference::to_string).collect();
        let entry = |image: &Image| IndexEntry { manifest: image.manifest_digest, tags: texts(&image.tags), digests: texts(&image.digests) };
        let index = IndexFile { version: INDEX_VERSION, images: images.iter().map(|(id, image)| (*id, entry(image))).collect() };
        let path = self.index_path();
        let mut file = self.temporary_file()?;
        let write = |file: &mut NamedTempFile| -> io::Result<()> {
            file.write_all(&serde_json::to_vec_pretty(&index)?)?;
            file.as_file().sync_all()
        };
        write(&mut file).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        sync_directory(&self.root)
    }

    fn read_image(&self, manifest_digest: Digest, tags: BTreeSet<Reference>, digests: BTreeSet<Reference>) -> Result<Image, Error> {
        let name = manifest_digest.to_string();
        let invalid = |what| move |source| Error::InvalidDocument { image: name.clone(), what, source };
        let manifest = Manifest::parse(&self.read_blob(manifest_digest)?).map_err(invalid.clone()("the manifest"))?;
        let id = manifest.config.digest;
        let config = ImageConfig::parse(&self.read_blob(id)?, &manifest).map_err(invalid("the configuration"))?;
        let mut size = 0;
        for &layer in &config.rootfs.diff_ids {
            size += self.layer_size(layer)?;
        }
        Ok(Image { id, manifest_digest, tags, digests, manifest, config, size })
    }

    /// Makes the image of a manifest, all of whose content is in the store, known by `tags` and `digests`. A tag that
    /// stood for another image now stands for this one.
    pub(crate) fn commit(&self, manifest_digest: Digest, tags: BTreeSet<Reference>, digests: BTreeSet<Reference>) -> Result<Image, Error> {
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

    /// Removes a name, or an image when it was its last name or `name_or_id` is an id. Content no other image needs goes
    /// with it. `force` removes an image by id although it has several names.
    pub(crate) fn remove(&self, name_or_id: &str, force: bool) -> Result<Removed, Error> {
        let mut state = self.lock();
        let image = find(&state.images, name_or_id)?.clone();
        let name = name_or_id.parse::<Reference>().ok().filter(|name| is_named(&image, name));
        let mut images = state.images.clone();
        let mut removed = Removed::default();
        let names = || image.tags.iter().chain(&image.digests);
        let tag = name.as_ref().and_then(Reference::tagged).filter(|tag| image.tags.contains(tag));
        if let Some(tag) = tag.filter(|_| image.tags.len() > 1) {
            removed.untagged.push(tag.to_string());
            images.values_mut().for_each(|image| image.tags.retain(|other| *other != tag));
        } else {
            if name.is_none() && image.tags.len() > 1 && !force {
                let names = image.tags.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
                return Err(Error::SeveralNames { image: name_or_id.to_owned(), names });
            }
            let users = self.users(image.id);
            if !users.is_empty() {
                return Err(Error::InUse { image: name_or_id.to_owned(), users: users.join(", ") });
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
        let (kept, unused): (BTreeMap<_, _>, BTreeMap<_, _>) = state
            .images
            .clone()
            .into_iter()
            .partition(|(id, image)| (!all && !image.tags.is_empty()) || state.leases.contains_key(id) || !self.users(*id).is_empty());
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
        for (digest, path) in entries(&self.root.join("downloads"))? {
            if !state.leases.contains_key(&digest) {
                removed.reclaimed += remove(&path)?;
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
        for (digest, path) in entries(&self.root.join("blobs/sha256"))? {
            let size = file_size(&path);
            usage.blobs += size;
            usage.reclaimable += if needed.contains(&digest) { 0 } else { size };
        }
        for (digest, _) in entries(&self.root.join("layers"))? {
            let size = self.layer_size(digest).unwrap_or(0);
            usage.layers += size;
            usage.reclaimable += if needed.contains(&digest) { 0 } else { size };
        }
        for (digest, path) in entries(&self.root.join("downloads"))? {
            let size = file_size(&path);
            usage.downloads += size;
            usage.reclaimable += if needed.contains(&digest) { 0 } else { size };
        }
        Ok(usage)
    }

    /// Removes blobs and layers that no image has and no operation leases. Returns the bytes given back.
    fn sweep(&self, state: &State) -> Result<u64, Error> {
        let mut live: BTreeSet<Digest> = state.leases.keys().copied().collect();
        state.images.values().for_each(|image| live.extend(content(image)));
        let mut reclaimed = 0;
        for (digest, path) in entries(&self.root.join("blobs/sha256"))? {
            if !live.contains(&digest) {
                reclaimed += remove(&path)?;
            }
        }
        for (digest, path) in entries(&self.root.join("layers"))? {
            if live.contains(&digest) {
                continue;
            }
            reclaimed += self.layer_size(digest).unwrap_or(0);
            // Out of sight in one step; the slow part may be interrupted.
            let grave = self.temporary_directory()?;
            fs::rename(&path, grave.path().join("layer")).map_err(Error::io("remove", &path))?;
            grave.close().map_err(Error::io("remove", &path))?;
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
        let mut file = self.temporary_file()?;
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
        let mut users: Vec<String> =
            tasks.filter_map(|task| task.file_name().into_string().ok()).filter(|task| self.image_of(task) == Some(id)).collect();
        users.sort();
        users
    }

    // Blobs

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob is here in the size its descriptor gives; one cut short by a damaged file system is not.
    pub(crate) fn has_blob(&self, descriptor: &Descriptor) -> bool {
        fs::metadata(self.blob_path(descriptor.digest)).is_ok_and(|metadata| metadata.len() == descriptor.size)
    }

    /// Opens a blob for reading. What is read is not verified again.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(Error::io("open", &path))
    }

    /// Reads a small blob and verifies it.
    pub(crate) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let content = fs::read(&path).map_err(Error::io("read", &path))?;
        let actual = Digest::of(&content);
        if actual != digest {
            return Err(Error::WrongDigest { image: path.display().to_string(), expected: digest.to_string(), actual: actual.to_string() });
        }
        Ok(content)
    }

    /// Stores a small blob and returns its digest.
    pub(crate) fn put_blob(&self, content: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(content);
        let mut file = self.temporary_file()?;
        file.write_all(content).map_err(Error::io("write", file.path()))?;
        self.adopt(file.into_temp_path(), digest)?;
        Ok(digest)
    }

    /// A file under `tmp` that goes when dropped.
    pub(crate) fn temporary_file(&self) -> Result<NamedTempFile, Error> {
        let directory = self.root.join("tmp");
        NamedTempFile::new_in(&directory).map_err(Error::io("create a file in", &directory))
    }

    /// A directory under `tmp` that goes when dropped.
    pub(crate) fn temporary_directory(&self) -> Result<TempDir, Error> {
        let directory = self.root.join("tmp");
        TempDir::new_in(&directory).map_err(Error::io("create a directory in", &directory))
    }

    /// Makes a file of this store the blob `digest`, which the caller has verified it to be.
    pub(crate) fn adopt(&self, file: TempPath, digest: Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        File::open(&file).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        sync_directory(&self.root.join("blobs/sha256"))
    }

    /// Opens the download of a blob where an earlier attempt left it.
    pub(crate) fn download(&self, descriptor: &Descriptor) -> Result<Download, Error> {
        let path = self.root.join("downloads").join(descriptor.digest.hex());
        let failed = || Error::io("write", &path);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed())?;
        let mut download = Download { hasher: Sha256::new(), offset: 0, file: file.try_clone().map_err(failed())?, path: path.clone(), descriptor: descriptor.clone() };
        if file.metadata().map_err(failed())?.len() > descriptor.size {
            download.restart()?;
        } else {
            download.offset = io::copy(&mut file, &mut download.hasher).map_err(failed())?;
        }
        Ok(download)
    }

    /// Makes a complete download a blob. The inner error is the digest it has instead of the right one; it is gone then.
    pub(crate) fn finish(&self, download: Download) -> Result<Result<(), Digest>, Error> {
        let Download { hasher, file, path, descriptor, .. } = download;
        let actual = Digest::from_hasher(hasher);
        if actual != descriptor.digest {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            return Ok(Err(actual));
        }
        let target = self.blob_path(descriptor.digest);
        file.sync_all().map_err(Error::io("write", &path))?;
        fs::rename(&path, &target).map_err(Error::io("write", &target))?;
        sync_directory(&self.root.join("blobs/sha256"))?;
        Ok(Ok(()))
    }

    // Layers

    /// The directory a layer is unpacked in.
    pub(crate) fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex()).join("fs")
    }

    /// Whether a layer is unpacked.
    pub(crate) fn has_layer(&self, diff_id: Digest) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    fn layer_size(&self, diff_id: Digest) -> Result<u64, Error> {
        let path = self.root.join("layers").join(diff_id.hex()).join("size");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        text.trim().parse().map_err(|error| Error::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Unpacks a layer from its blob, unless it is already.
    pub(crate) fn unpack(&self, image: &str, blob: Digest, diff_id: Digest, cancel: &AtomicBool) -> Result<(), Error> {
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let temporary = self.temporary_directory()?;
        let layer = temporary.path().join("layer");
        let content = layer.join("fs");
        fs::create_dir_all(&content).map_err(Error::io("create", &content))?;
        let size = unpack::unpack(self.open_blob(blob)?.take(LAYER_BLOB_MAX), &content, diff_id, self.options, cancel)
            .map_err(|error| Error::layer(image, blob, &self.root, error))?;
        fs::write(layer.join("size"), size.to_string()).map_err(Error::io("write", &layer))?;
        // One call for the tens of thousands of files a layer may have.
        let directory = File::open(&layer).map_err(Error::io("open", &layer))?;
        syncfs(&directory).map_err(|errno| Error::io("write", &layer)(errno.into()))?;
        let target = self.root.join("layers").join(diff_id.hex());
        match fs::rename(&layer, &target) {
            // Someone else was faster; both are the same.
            Err(_) if self.has_layer(diff_id) => Ok(()),
            Err(error) => Err(Error::io("write", &target)(error)),
            Ok(()) => sync_directory(&self.root.join("layers")),
        }
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

/// A blob on its way in.
pub(crate) struct Download {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    offset: u64,
    descriptor: Descriptor,
}

impl Download {
    /// Bytes that are here.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.descriptor.size - self.offset
    }

    /// Appends a piece, which must not be more than is missing.
    pub(crate) fn append(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.file.write_all(piece).map_err(Error::io("write", &self.path))?;
        self.hasher.update(piece);
        self.offset += piece.len() as u64;
        Ok(())
    }

    /// Forgets what is here.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file)).map_err(Error::io("write", &self.path))?;
        (self.hasher, self.offset) = (Sha256::new(), 0);
        Ok(())
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
    if let Some(image) = reference.as_ref().ok().and_then(|reference| images.values().find(|image| is_named(image, reference))) {
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

/// The digest-named entries of a directory. Anything else is not the store's and is left alone.
fn entries(directory: &Path) -> Result<Vec<(Digest, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
            found.push((digest, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn file_size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) -> Result<u64, Error> {
    let size = file_size(path);
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    Ok(size)
}

/// Makes a rename last through a power cut.
fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("write", path))
}
