//! Volumes of the node: directories below the state directory, made when first used and then filled with what the image has
//! in their place. Named ones stay; those without a name live and die with their task.

use orchestrator_core::model::{Mount, MountSource, TaskId};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes of a mount target that a volume's name shows; the whole name has to stay below 255 (NAME_MAX, limits.h).
const READABLE: usize = 64;
/// Bytes of the digest that follow. They tell apart the few targets of one task, which all are its user's.
const DIGEST_BYTES: usize = 6;

/// The volumes below a state directory.
#[derive(Clone, Debug)]
pub struct Volumes {
    dir: PathBuf,
    /// Held while a volume is made: tasks that share one come up side by side.
    making: Arc<Mutex<()>>,
}

/// Something with a volume failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} volume {name}")]
pub struct VolumeError {
    action: &'static str,
    name: String,
    #[source]
    source: io::Error,
}

impl Volumes {
    /// The volumes below `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("volumes"), making: Arc::default() }
    }

    /// The directory of the volume behind `mount` of `task`, if it is one; the subpath is the runtime's to find. A new volume
    /// gets a copy of what lies at the mount's target below `rootfs`.
    ///
    /// # Errors
    /// The directory cannot be made or filled.
    pub fn resolve(&self, task: TaskId, mount: &Mount, rootfs: &Path) -> Result<Option<PathBuf>, VolumeError> {
        let MountSource::Volume { name, no_copy, .. } = &mount.source else { return Ok(None) };
        let name = name.clone().unwrap_or_else(|| anonymous(task, &mount.target));
        let fail = |action| {
            let name = name.clone();
            move |source| VolumeError { action, name, source }
        };
        let data = self.dir.join(&name).join("_data");
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !data.exists() {
            // Filled beside its place and moved there when whole, so that a crash leaves no half of it.
            let filling = self.dir.join(&name).join("_filling");
            remove_tree(&filling).map_err(fail("clearing"))?;
            fs::create_dir_all(&filling).map_err(fail("making"))?;
            if !no_copy {
                fill(rootfs, &mount.target, &filling).map_err(fail("filling"))?;
            }
            fs::rename(&filling, &data).map_err(fail("making"))?;
        }
        Ok(Some(data))
    }

    /// Removes the volumes without a name of `task`.
    ///
    /// # Errors
    /// One that could not be removed; the others are gone.
    pub fn forget(&self, task: TaskId) -> Result<(), VolumeError> {
        let listed = self.list().map_err(|source| VolumeError { action: "listing", name: "*".into(), source })?;
        let mut failed = None;
        let own = format!("{task}-");
        for name in listed.into_keys().filter(|name| name.starts_with(&own)) {
            if let Err(source) = remove_tree(&self.dir.join(&name)) {
                failed = Some(VolumeError { action: "removing", name, source });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// All volumes and their directories.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let mut out = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            out.insert(entry.file_name().to_string_lossy().into_owned(), entry.path().join("_data"));
        }
        Ok(out)
    }
}

/// Name of the volume without a name that `task` mounts at `target`: as much of the target as can be read, and a digest of it,
/// because `/a/b` and `/a-b` read alike.
fn anonymous(task: TaskId, target: &str) -> String {
    let readable = target.trim_matches('/').replace('/', "-");
    let readable = &readable[..readable.floor_char_boundary(READABLE)];
    let digest = hex::encode(&Sha256::digest(target)[..DIGEST_BYTES]);
    format!("{task}-{readable}-{digest}")
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a directory below `root`; links are followed as if `root` were `/` (openat2(2), `RESOLVE_IN_ROOT`).
fn open_below(root: &Path, path: &str) -> io::Result<rustix::fd::OwnedFd> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?)
}

/// Copies what lies at `target` below `rootfs` into `volume`, if there is a directory. Nothing runs in the root file system
/// yet, so it holds still; links are copied and never followed.
fn fill(rootfs: &Path, target: &str, volume: &Path) -> io::Result<()> {
    let from = match open_below(rootfs, target) {
        Ok(from) => from,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", from.as_raw_fd()));
    like(&fs::metadata(&path)?, volume)?;
    copy_tree(&path, volume)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata()?;
        if meta.is_dir() {
            fs::create_dir(&copy)?;
            copy_tree(&source, &copy)?;
            like(&meta, &copy)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &copy)?;
            lchown(&copy, Some(meta.uid()), Some(meta.gid()))?;
        } else if meta.is_file() {
            fs::copy(&source, &copy)?;
            like(&meta, &copy)?;
        }
        // Sockets, pipes and devices belong to who made them, not to a copy.
    }
    Ok(())
}

/// Gives `copy` the owner and mode that `meta` tells.
fn like(meta: &fs::Metadata, copy: &Path) -> io::Result<()> {
    chown(copy, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(copy, fs::Permissions::from_mode(meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: Option<&str>, target: &str, subpath: Option<&str>) -> Mount {
        let source = MountSource::Volume {
            name: name.map(Into::into),
            no_copy: false,
            labels: BTreeMap::new(),
            subpath: subpath.map(Into::into),
        };
        Mount { target: target.into(), read_only: false, source }
    }

    #[test]
    fn a_new_volume_has_what_the_image_has_and_keeps_what_is_written() {
        let (state, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(rootfs.path().join("data/sub")).unwrap();
        fs::write(rootfs.path().join("data/sub/file"), "from the image").unwrap();
        symlink("/etc/passwd", rootfs.path().join("data/link")).unwrap();
        let volumes = Volumes::new(state.path());
        let mount = volume(Some("db"), "/data", None);
        let path = volumes.resolve(TaskId(1), &mount, rootfs.path()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(path.join("sub/file")).unwrap(), "from the image");
        assert_eq!(fs::read_link(path.join("link")).unwrap(), Path::new("/etc/passwd"));
        fs::write(path.join("sub/file"), "written").unwrap();
        let again = volumes.resolve(TaskId(2), &mount, rootfs.path()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(again.join("sub/file")).unwrap(), "written");
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let (state, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink("/etc", rootfs.path().join("data")).unwrap();
        let path = Volumes::new(state.path()).resolve(TaskId(1), &volume(Some("db"), "/data", None), rootfs.path());
        assert_eq!(fs::read_dir(path.unwrap().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn tasks_that_come_up_side_by_side_share_one_whole_volume() {
        let (state, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(rootfs.path().join("data")).unwrap();
        for number in 0..200 {
            fs::write(rootfs.path().join(format!("data/{number}")), "x").unwrap();
        }
        let volumes = Volumes::new(state.path());
        std::thread::scope(|scope| {
            for task in 0..8 {
                let (volumes, rootfs) = (&volumes, rootfs.path());
                scope.spawn(move || {
                    let path = volumes.resolve(TaskId(task), &volume(Some("db"), "/data", None), rootfs);
                    assert_eq!(fs::read_dir(path.unwrap().unwrap()).unwrap().count(), 200);
                });
            }
        });
    }

    #[test]
    fn volumes_without_a_name_go_with_their_task() {
        let (state, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let volumes = Volumes::new(state.path());
        for task in [1, 2] {
            volumes.resolve(TaskId(task), &volume(None, "/data", None), rootfs.path()).unwrap();
        }
        volumes.forget(TaskId(1)).unwrap();
        assert_eq!(volumes.list().unwrap().len(), 1);
    }

    #[test]
    fn targets_that_read_alike_get_volumes_of_their_own() {
        let (state, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let volumes = Volumes::new(state.path());
        let resolve = |target: &str| volumes.resolve(TaskId(1), &volume(None, target, None), rootfs.path()).unwrap();
        let long = format!("/{}", "\u{e9}/".repeat(1000));
        let targets = ["/a/b", "/a-b", "/a", long.as_str(), &long[..long.len() - 1]];
        let paths: std::collections::BTreeSet<_> = targets.iter().map(|target| resolve(target)).collect();
        assert_eq!(paths.len(), targets.len());
        assert_eq!(resolve("/a/b"), resolve("/a/b"));
        assert!(volumes.list().unwrap().keys().any(|name| name.starts_with(&format!("{}-a-b-", TaskId(1)))));
        volumes.forget(TaskId(1)).unwrap();
        assert_eq!(volumes.list().unwrap(), BTreeMap::new());
    }
}
