//! Root file systems of containers: an overlay of an image's layers and one writable layer per task.
//!
//! ```text
//! <state>/containers/<task>/overlay/
//!   image    the id of the image, which thereby is in use
//!   upper    what the container wrote
//!   work     overlayfs's own
//! ```
//!
//! In: an image of the store, a task's key, the directory to mount on. Out: a mounted root. What is mounted is asked of the
//! kernel (`/proc/self/mountinfo`) every time, so a restarted daemon finds what it left. All calls are idempotent; they
//! block. Called by `Images`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, getxattr, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount as kernel_unmount};

use super::digest::Digest;
use super::error::Error;
use super::store::{Image, Store};

/// The root of a task, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mounted {
    /// The task's key.
    pub task: String,
    /// Where it is mounted.
    pub target: PathBuf,
}

/// Mounts the root of `task` on `target`. If it is mounted there, it stays; what the task wrote before is kept.
pub(crate) fn mount(store: &Store, id: Digest, task: &str, target: &Path) -> Result<(), Error> {
    check_task(task)?;
    let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    if let Some(other) = store.image_of(task).filter(|other| *other != id) {
        let source = io::Error::other(format!("the task's root is made of image {other}"));
        return Err(Error::Io {
            action: "mount the root of another image on",
            path: target.display().to_string(),
            source,
        });
    }
    if mounted(store)?.contains(&Mounted { task: task.to_owned(), target: target.clone() }) {
        return Ok(());
    }
    let image = store.add_user(task, id)?;
    let overlay = overlay_directory(store, task);
    let (upper, work) = (overlay.join("upper"), overlay.join("work"));
    for directory in [&upper, &work, &target] {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    }
    let layers = layers(store, &image)?;
    copy_root_attributes(store, &image, &upper)?;
    mount_overlay(&layers, &upper, &work, &target)
}

/// Unmounts the root of `task` wherever it is mounted. What it wrote stays until [`discard`].
pub(crate) fn unmount(store: &Store, task: &str) -> Result<(), Error> {
    check_task(task)?;
    // Mounts may be stacked; each pass takes the uppermost.
    while let Some(mount) = mounted(store)?.into_iter().find(|mount| mount.task == task) {
        match kernel_unmount(&mount.target, UnmountFlags::NOFOLLOW) {
            // Some process still has a file open; the kernel lets go when it ends.
            Err(rustix::io::Errno::BUSY) => {
                kernel_unmount(&mount.target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            }
            result => result,
        }
        .map_err(|errno| Error::io("unmount", &mount.target)(errno.into()))?;
    }
    Ok(())
}

/// Unmounts the root of `task` and removes what it wrote. The image is then no longer in use by it.
pub(crate) fn discard(store: &Store, task: &str) -> Result<(), Error> {
    unmount(store, task)?;
    let overlay = overlay_directory(store, task);
    match fs::remove_dir_all(&overlay) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &overlay)(error)),
        _ => {}
    }
    // The folder of the task may hold what is not ours.
    match fs::remove_dir(store.containers().join(task)) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("remove", &store.containers().join(task))(error))
        }
        _ => Ok(()),
    }
}

/// The roots of this store's tasks that are mounted.
pub(crate) fn mounted(store: &Store) -> Result<Vec<Mounted>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let containers = fs::canonicalize(store.containers()).map_err(Error::io("resolve", store.containers()))?;
    Ok(parse_mountinfo(&text, &containers))
}

/// The tasks that have a writable layer: mounted, or left over from before.
pub(crate) fn tasks(store: &Store) -> Result<Vec<String>, Error> {
    let containers = store.containers();
    let mut tasks = Vec::new();
    for entry in fs::read_dir(containers).map_err(Error::io("list", containers))? {
        let entry = entry.map_err(Error::io("list", containers))?;
        if entry.path().join("overlay").is_dir() {
            tasks.extend(entry.file_name().into_string());
        }
    }
    tasks.sort();
    Ok(tasks)
}

/// Overlays whose writable layer is `<containers>/<task>/overlay/upper`. Fields: proc_pid_mountinfo(5).
fn parse_mountinfo(text: &str, containers: &Path) -> Vec<Mounted> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut fields = file_system.split(' ');
        if fields.next() != Some("overlay") {
            continue;
        }
        let options = fields.nth(1).unwrap_or_default();
        let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(unescape);
        let target = mount.split(' ').nth(4).map(unescape);
        let (Some(upper), Some(target)) = (upper, target) else { continue };
        let task = Path::new(&upper)
            .strip_prefix(containers)
            .ok()
            .and_then(|rest| rest.to_str()?.strip_suffix("/overlay/upper").map(str::to_owned));
        if let Some(task) = task {
            found.push(Mounted { task, target: target.into() });
        }
    }
    found
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        (rest, _) = match octal {
            Some(decoded) => (&after[3..], text.push(decoded)),
            None => (after, text.push(byte)),
        };
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn overlay_directory(store: &Store, task: &str) -> PathBuf {
    store.containers().join(task).join("overlay")
}

/// A task's key becomes a folder name.
fn check_task(task: &str) -> Result<(), Error> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if task.is_empty() || task.len() > 128 || task.starts_with('.') || !task.bytes().all(valid) {
        let source = io::Error::new(
            io::ErrorKind::InvalidInput,
            "a task's key has 1 to 128 letters, digits, dots, dashes and underscores",
        );
        return Err(Error::Io { action: "use as a task's key", path: task.to_owned(), source });
    }
    Ok(())
}

/// The image's layers, uppermost first. Overlayfs ignores opaqueness of a layer's root, so layers under one that hides all
/// of them are left out here.
fn layers(store: &Store, image: &Image) -> Result<Vec<OwnedFd>, Error> {
    let mut layers = Vec::new();
    for &diff_id in image.config.rootfs.diff_ids.iter().rev() {
        let path = store.content.layer_path(diff_id);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        layers.push(openat(CWD, &path, flags, Mode::empty()).map_err(|errno| Error::io("open", &path)(errno.into()))?);
        let mut value = [0u8; 1];
        if getxattr(&path, "trusted.overlay.opaque", &mut value).is_ok() && value == *b"y" {
            break;
        }
    }
    if layers.is_empty() {
        // An image without layers is an empty root; overlayfs wants one lower layer all the same.
        let empty = store.content.root().join("empty");
        fs::create_dir_all(&empty).map_err(Error::io("create", &empty))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        layers
            .push(openat(CWD, &empty, flags, Mode::empty()).map_err(|errno| Error::io("open", &empty)(errno.into()))?);
    }
    Ok(layers)
}

/// The mounted root shows the attributes of the writable layer's.
fn copy_root_attributes(store: &Store, image: &Image, upper: &Path) -> Result<(), Error> {
    let Some(&top) = image.config.rootfs.diff_ids.last() else { return Ok(()) };
    let path = store.content.layer_path(top);
    let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
    std::os::unix::fs::chown(upper, Some(metadata.uid()), Some(metadata.gid()))
        .map_err(Error::io("set owner of", upper))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(metadata.mode() & 0o7777))
        .map_err(Error::io("set permissions of", upper))
}

/// mount(2) takes one page of options. Layers go in as `/proc/self/fd/<n>`, some 17 bytes each, which leaves room for
/// [`super::manifest::LAYERS_MAX`] of them on every kernel; `lowerdir+` would do the same from Linux 6.7 on only.
fn mount_overlay(layers: &[OwnedFd], upper: &Path, work: &Path, target: &Path) -> Result<(), Error> {
    let lower: Vec<String> = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    let failed = Error::io;
    let (upper, work) = (canonical(upper)?, canonical(work)?);
    let options = CString::new(format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":")))
        .map_err(|error| failed("mount", target)(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|errno| failed("mount the root file system on", target)(errno.into()))?;
    // What is mounted inside must not appear elsewhere, nor the reverse.
    mount_change(target, MountPropagationFlags::PRIVATE)
        .map_err(|errno| failed("make private the mount on", target)(errno.into()))
}

/// Overlayfs separates its options with characters that a path may have.
fn canonical(path: &Path) -> Result<String, Error> {
    let full = fs::canonicalize(path).map_err(Error::io("resolve", path))?;
    match full.to_str().filter(|text| !text.contains([',', ':', '\\'])) {
        Some(text) => Ok(text.to_owned()),
        None => {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "the state directory must not have a comma, colon or backslash in its path",
            );
            Err(Error::io("mount with", path)(source))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_stores_overlays_are_seen_and_escapes_are_undone() {
        let text = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:50 / /run/roots/a\\040b rw,relatime - overlay overlay rw,lowerdir=/proc/self/fd/9,upperdir=/var/lib/edged/containers/web.1.x/overlay/upper,workdir=/w
91 22 0:51 / /elsewhere rw - overlay overlay rw,lowerdir=/l,upperdir=/var/lib/other/containers/y/overlay/upper,workdir=/w
92 22 0:52 / /readonly ro - overlay overlay ro,lowerdir=/a:/b
";
        let expected = Mounted { task: "web.1.x".to_owned(), target: "/run/roots/a b".into() };
        assert_eq!(parse_mountinfo(text, Path::new("/var/lib/edged/containers")), [expected]);
    }

    #[test]
    fn task_keys_that_are_no_folder_names_are_refused() {
        for bad in ["", ".", "..", ".x", "a/b", "a b", "ä", "a\0"] {
            assert!(check_task(bad).is_err(), "{bad:?}");
        }
        assert!(check_task("web.1.8f3a_x-y").is_ok());
    }
}
