//! Parts of volumes, mounted where no container can reach while a container is made.
//!
//! Whoever has a volume can put a link in the place of any folder in it, at any moment. So a subpath is looked up once, inside
//! its volume, and what was found is mounted by its descriptor; libcontainer, which knows paths only, is given the path of
//! that mount. The mounts go as soon as the container has its own.
//!
//! Called by `prepare` and by the driver. The folder is beside the container's and not in it: removing that one with all it
//! holds must never come upon a volume.

use super::error::{At, RuntimeError};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
    mount::{UnmountFlags, mount_bind_recursive, unmount},
};
use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Mounts `what` as number `number` of the folder `dir`; where.
pub(super) fn mount(dir: &Path, number: usize, what: &OwnedFd) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let place = dir.join(number.to_string());
    if FileType::from_raw_mode(fstat(what)?.st_mode).is_dir() {
        fs::create_dir(&place)?;
    } else {
        drop(open(&place, OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::RUSR)?);
    }
    mount_bind_recursive(format!("/proc/self/fd/{}", what.as_raw_fd()), &place)?;
    Ok(place)
}

/// Removes all mounts of the folder, and the folder. Fine if there is none. Nothing is removed with what is in it, so a mount
/// that stays keeps its place.
pub(super) fn clear(dir: &Path) -> Vec<RuntimeError> {
    let places = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        places => places.and_then(|all| all.map(|place| Ok(place?.path())).collect::<io::Result<Vec<_>>>()),
    };
    let clear = |place: &PathBuf| {
        match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It is no mount (umount(2)): the last step of making it failed.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error).at("unmount", place),
        }
        match fs::symlink_metadata(place) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir(place),
            _ => fs::remove_file(place),
        }
        .at("remove", place)
    };
    match places.at("read", dir) {
        Ok(places) => {
            let mut errors: Vec<RuntimeError> = places.iter().filter_map(|place| clear(place).err()).collect();
            errors.extend(fs::remove_dir(dir).at("remove", dir).err());
            errors
        }
        Err(error) => vec![error],
    }
}
