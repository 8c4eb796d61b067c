//! Owner, mode, extended attributes and times of what a layer has.
//!
//! In: an entry and the open file, or the directory and name of what cannot be opened. Out: the file with them. Called by
//! `unpack`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    utimensat,
};
use rustix::io::Errno;

use super::{UnpackError, refused, shown};
use crate::image::tarball::{Entry, Kind};

/// Owner before mode before attributes: changing the owner clears setuid bits and capabilities.
pub(super) fn set_attributes(file: impl AsFd, entry: &Entry) -> Result<(), UnpackError> {
    let failed = |errno: Errno| UnpackError::Io { path: shown(&entry.path), source: errno.into() };
    fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(failed)?;
    fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
    for (name, value) in &entry.xattrs {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err(refused(&entry.path, "it has attributes of overlayfs"));
        }
        if name.as_slice() == b"security.capability" || name.starts_with(b"user.") {
            fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()).map_err(failed)?;
        }
    }
    Ok(())
}

/// The same for what cannot be opened. These have no attributes worth keeping: the kernel allows `user.*` on files and
/// directories only, and capabilities mean something on programs only.
pub(super) fn set_attributes_at(parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    chownat(parent, name, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    if entry.kind != Kind::Symlink {
        chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// The modification time alone, in the form the kernel takes.
pub(super) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}
