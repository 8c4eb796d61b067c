//! Whiteouts: how a layer says that something of the layers below is gone.
//!
//! In: an entry named `.wh.…` in an open directory. Out: overlayfs's form of it. Called by `unpack`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fsetxattr, mkdirat, mknodat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::{UnpackError, refused, shown};

/// Names that begin so are whiteouts (OCI image specification, "Whiteouts").
pub(super) const PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// Turns a whiteout of the image specification ("Whiteouts", "Opaque Whiteout") into overlayfs's: a character device 0:0
/// or the attribute `trusted.overlay.opaque` (kernel documentation, overlayfs, "whiteouts and opaque directories").
/// A whiteout hides what lower layers have; what this layer has under the same name stays.
pub(super) fn apply(parent: &OwnedFd, name: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), UnpackError> {
    let failed = |errno: Errno| UnpackError::Io { path: shown(path), source: errno.into() };
    if name == OPAQUE_MARKER {
        let directory =
            openat(parent, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        return set_opaque(&directory).map_err(failed);
    }
    // Other names of this form are bookkeeping of aufs.
    if hidden.starts_with(PREFIX) {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(refused(path, "a whiteout of no name"));
    }
    match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed),
        Err(errno) => Err(failed(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = openat(parent, hidden, flags, Mode::empty()).map_err(failed)?;
            set_opaque(&directory).map_err(failed)
        }
        Ok(_) => Ok(()),
    }
}

/// Makes a directory hide what lower layers have in it.
fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

/// Whether this is overlayfs's sign that a name is gone.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes `name` a directory. One that is there stays; a whiteout becomes an opaque directory; anything else gives way.
pub(super) fn ensure_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut opaque = false;
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(stat) => {
            opaque = is_whiteout(&stat);
            unlinkat(parent, name, AtFlags::empty())?;
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    if opaque {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        set_opaque(&openat(parent, name, flags, Mode::empty())?)?;
    }
    Ok(())
}
