//! Container images: from a registry or an archive to a mounted root file system.
//!
//! ```text
//!  registry ─► registry ─► pull ─┐                                   ┌─► rootfs ─► overlay mount per task
//!                                ├─► store (blobs, layers, index) ───┤
//!  archive  ─► load ─────────────┘      └─► unpack (tarball,         └─► list, inspect, tag, remove, prune, push, save
//!                                            compression)
//! ```
//!
//! In: image references, archives, credentials. Out: [`Image`]s and mounted roots. The agent, the API and the command
//! line's local verbs call [`Images`]; nothing else of this module has effects, except [`archive::Builder`], which makes
//! archives and needs no store.
//!
//! Everything that comes from outside is verified by digest while it is written and unpacked under confinement; see
//! `unpack` for what hostile layers get.

pub mod archive;
mod compression;
mod content;
mod digest;
mod error;
mod load;
pub mod manifest;
mod platform;
mod progress;
mod pull;
pub mod reference;
mod registry;
mod rootfs;
mod save;
mod store;
mod tarball;
mod unpack;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use digest::{Digest, InvalidDigest};
pub use error::Error;
pub use load::Loaded;
pub use platform::{InvalidPlatform, Platform};
pub use progress::{Event, Phase, Progress, silent};
pub use pull::Resolved;
pub use reference::{InvalidReference, Reference};
pub use registry::Credentials;
pub use rootfs::Mounted;
pub use save::Archive;
pub use store::{Image, Removed, Usage};
pub use unpack::UnpackError;

use pull::{CancelOnDrop, Turns};
use registry::{Repository, blocking};
use store::Store;

/// The longest that a registry is waited for when somebody asks what a name stands for there. A digest takes three requests
/// on a slow link.
const PATIENCE: Duration = Duration::from_secs(8);

/// The same where the node has an image of that name: nothing is lost if the registry is not reached.
const PATIENCE_HERE: Duration = Duration::from_secs(2);

/// How a node handles images.
#[derive(Debug, Clone)]
pub struct Config {
    /// Registries (`host` or `host:port`) spoken to in plain HTTP. `localhost`, `127.0.0.0/8` and `::1` always are.
    pub insecure_registries: Vec<String>,
    /// Mirrors to ask first, by registry, in order. They are asked without credentials.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// The platform to run.
    pub platform: Platform,
    /// Unpack device nodes instead of refusing layers that have some.
    pub device_nodes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            mirrors: BTreeMap::new(),
            platform: Platform::host(),
            device_nodes: false,
        }
    }
}

/// Whether an image that is here is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// What is here is good: the registry is asked only for what is missing.
    IfMissing,
    /// A tag may have moved: the registry is asked. An image pinned by digest that is here needs no asking.
    Always,
}

/// The images of this node. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    turns: Arc<Turns>,
    config: Config,
}

impl Images {
    /// Opens the image store under `state_dir` (`<state_dir>/images` and `<state_dir>/containers`), creating it if missing.
    /// Blocks for as long as it takes to read the index and remove half-written files.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it open; [`Error::Io`] and [`Error::NoSpace`].
    pub fn open(state_dir: &Path, config: Config) -> Result<Self, Error> {
        let store = Arc::new(Store::open(state_dir, unpack::Options { devices: config.device_nodes })?);
        Ok(Self(Arc::new(Inner { store, turns: Arc::default(), config })))
    }

    /// The platform images are chosen for.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.0.config.platform
    }

    /// Makes an image available here, from its registry if need be. `platform` is this node's unless given. Dropping the
    /// future stops the pull; a later one goes on from what has come.
    ///
    /// # Errors
    /// All of [`Error`]'s registry and content kinds; the text is meant for the user.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        platform: Option<&Platform>,
        policy: Policy,
        progress: &Progress,
    ) -> Result<Image, Error> {
        let platform = platform.unwrap_or(&self.0.config.platform);
        if policy == Policy::IfMissing || reference.digest().is_some() {
            let here = self.0.store.get_reference(reference);
            if let Some(image) = here.filter(|image| platform.choose([&image.config.platform()]).is_some()) {
                return Ok(image);
            }
        }
        let mut last = None;
        for (host, credentials) in self.hosts(reference, credentials) {
            let repository = Repository::new(reference, host, credentials, &self.0.config.insecure_registries)?;
            match pull::pull(&self.0.store, &self.0.turns, &repository, reference, platform, progress).await {
                Err(error) if host != reference.registry() => {
                    tracing::info!(image = %reference, mirror = host, %error, "mirror failed, asking the next");
                    last = Some(error);
                }
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| Error::NoSuchImage { name: reference.familiar() }))
    }

    /// Asks the registry what a reference stands for and for which platforms it is there. Somebody waits for the answer, and
    /// a node without a way to its registry should not let them wait for long.
    ///
    /// # Errors
    /// As for [`Images::pull`].
    pub async fn resolve(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
        let repository =
            Repository::new(reference, reference.registry(), credentials, &self.0.config.insecure_registries)?;
        let is_here = self.0.store.get_reference(reference).is_some();
        let patience = if is_here { PATIENCE_HERE } else { PATIENCE };
        let answer = pull::resolve(&self.0.store, &self.0.turns, &repository, reference);
        tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
            Err(Error::Unreachable {
                image: reference.familiar(),
                registry: reference.registry().to_owned(),
                source: format!("no answer within {} s", patience.as_secs()).into(),
            })
        })
    }

    /// Mirrors first, the registry itself last.
    fn hosts<'a>(
        &'a self,
        reference: &'a Reference,
        credentials: Option<&'a Credentials>,
    ) -> Vec<(&'a str, Option<&'a Credentials>)> {
        let mirrors = self.0.config.mirrors.get(reference.registry()).into_iter().flatten();
        mirrors.map(|mirror| (mirror.as_str(), None)).chain([(reference.registry(), credentials)]).collect()
    }

    /// Sends an image to the registry its name says. The image must have that name here, see [`Images::tag`].
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Incomplete`], and the registry kinds.
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<Image, Error> {
        let image =
            self.0.store.get_reference(reference).ok_or_else(|| Error::NoSuchImage { name: reference.familiar() })?;
        let repository =
            Repository::new(reference, reference.registry(), credentials, &self.0.config.insecure_registries)?;
        pull::push(&self.0.store, &repository, reference, &image, progress).await?;
        Ok(image)
    }

    /// Loads every image of a `docker save` or OCI archive, plain or compressed, from any stream.
    ///
    /// # Errors
    /// [`Error::InvalidArchive`] and the content kinds.
    pub async fn load(&self, reader: impl Read + Send + 'static, progress: &Progress) -> Result<Vec<Loaded>, Error> {
        let cancel = CancelOnDrop::default();
        let flag = Arc::clone(&cancel.0);
        let (inner, progress) = (Arc::clone(&self.0), Arc::clone(progress));
        blocking(move || load::load(&inner.store, &inner.config.platform, reader, &progress, &flag)).await
    }

    /// Images, by name or id, as one archive that [`Images::load`] and `docker load` read.
    ///
    /// # Errors
    /// As for [`Images::get`]; [`Error::Incomplete`].
    pub fn save(&self, names: &[String]) -> Result<Archive, Error> {
        Archive::open(&self.0.store, names)
    }

    /// The image with this name, id, or beginning of an id, if it is here.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::AmbiguousId`], [`Error::InvalidReference`].
    pub fn get(&self, name_or_id: &str) -> Result<Image, Error> {
        self.0.store.get(name_or_id)
    }

    /// Asks the registry of `reference` whether it takes these credentials.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::Unreachable`], [`Error::Registry`].
    pub async fn log_in(&self, reference: &Reference, credentials: &Credentials) -> Result<(), Error> {
        let insecure = &self.0.config.insecure_registries;
        Repository::new(reference, reference.registry(), Some(credentials), insecure)?.log_in().await
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.0.store.list()
    }

    /// Gives the image `name_or_id` the name `tag`, taking it from another image if need be.
    ///
    /// # Errors
    /// As for [`Images::get`]; [`Error::Io`] and [`Error::NoSpace`].
    pub async fn tag(&self, name_or_id: &str, tag: &Reference) -> Result<Image, Error> {
        let (store, name_or_id, tag) = (Arc::clone(&self.0.store), name_or_id.to_owned(), tag.clone());
        blocking(move || store.tag(&name_or_id, &tag)).await
    }

    /// Removes a name; with the last name, or given an id, the image and what only it needs. `force` removes an image by
    /// id although it has several names.
    ///
    /// # Errors
    /// As for [`Images::get`]; [`Error::InUse`], [`Error::SeveralNames`].
    pub async fn remove(&self, name_or_id: &str, force: bool) -> Result<Removed, Error> {
        let (store, name_or_id) = (Arc::clone(&self.0.store), name_or_id.to_owned());
        blocking(move || store.remove(&name_or_id, force)).await
    }

    /// Removes the images no container uses: those without a tag, or `all` of them; and unfinished downloads.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn prune(&self, all: bool) -> Result<Removed, Error> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.prune(all)).await
    }

    /// Space taken, and what pruning would give back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn usage(&self) -> Result<Usage, Error> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.usage()).await
    }

    /// The keys of the tasks whose roots are made of an image.
    #[must_use]
    pub fn users(&self, id: Digest) -> Vec<String> {
        self.0.store.users(id)
    }

    /// Mounts the root of `task` on `target`: the image's layers under a writable layer of its own. Idempotent; what the
    /// task wrote before is kept. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Io`], [`Error::NoSpace`].
    pub async fn mount(&self, id: Digest, task: &str, target: &Path) -> Result<(), Error> {
        let (store, task, target) = (Arc::clone(&self.0.store), task.to_owned(), PathBuf::from(target));
        blocking(move || rootfs::mount(&store, id, &task, &target)).await
    }

    /// Unmounts the root of `task`. What it wrote stays. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn unmount(&self, task: &str) -> Result<(), Error> {
        let (store, task) = (Arc::clone(&self.0.store), task.to_owned());
        blocking(move || rootfs::unmount(&store, &task)).await
    }

    /// Unmounts the root of `task` and removes what it wrote; the image is then no longer in use by it. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn discard(&self, task: &str) -> Result<(), Error> {
        let (store, task) = (Arc::clone(&self.0.store), task.to_owned());
        blocking(move || rootfs::discard(&store, &task)).await
    }

    /// The roots that are mounted, read from the kernel.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn mounted(&self) -> Result<Vec<Mounted>, Error> {
        let store = Arc::clone(&self.0.store);
        blocking(move || rootfs::mounted(&store)).await
    }

    /// The keys of the tasks that have a writable layer, mounted or left over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn tasks(&self) -> Result<Vec<String>, Error> {
        let store = Arc::clone(&self.0.store);
        blocking(move || rootfs::tasks(&store)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API runs each request on a task of its own.
    #[test]
    fn long_operations_can_be_spawned() {
        fn spawnable<F: Future + Send>(_: impl FnOnce(&'static Images, &'static Reference, &'static Progress) -> F) {}
        spawnable(|images, reference, progress| images.pull(reference, None, None, Policy::Always, progress));
        spawnable(|images, reference, progress| images.push(reference, None, progress));
        spawnable(|images, reference, _| images.resolve(reference, None));
        spawnable(|images, _, progress| images.load(std::io::empty(), progress));
    }
}
