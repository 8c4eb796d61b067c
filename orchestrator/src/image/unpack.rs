//! Unpacking of one layer into a directory that overlayfs can use as a lower layer.
//!
//! In: a layer blob (tar, possibly compressed), the digest its plain content must have, and an empty directory. Out: the
//! directory filled, with the image specification's whiteouts turned into overlayfs's. Called by `store`, which gives a
//! temporary directory and throws it away on any error.
//!
//! Layers are hostile until proven otherwise:
//! - Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` on the directory given:
//!   whatever symbolic links a layer has planted, nothing outside that directory can be named. The last component is never
//!   followed. Names with `..` and hard links with absolute targets are refused outright.
//! - Symbolic links are stored as they are; absolute targets are normal and mean the container's root.
//! - Owner, mode (setuid and setgid included, images need them), modification time, and the extended attributes
//!   `security.capability` and `user.*` are kept. Other attributes are dropped, because they are labels of the machine
//!   the image was built on; those of overlayfs (`trusted.overlay.*`, `user.overlay.*`) are refused, because they would
//!   redirect lookups in the mounted root.
//! - Device nodes are refused unless [`Options::devices`] is set: a container gets its `/dev` from the runtime.
//! - Size, entry count, path length and depth are bounded, see the constants and `compression`.

mod attributes;
#[cfg(test)]
mod tests;
mod whiteout;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, futimens, linkat, makedev, mknodat, openat, openat2, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use self::attributes::{set_attributes, set_attributes_at, times};
use self::whiteout::{ensure_directory, is_whiteout};
use super::compression::{CutOff, Plain};
use super::digest::Digest;
use super::tarball::{Entry, Kind, TarError, TarReader};

/// Most plain bytes of a layer: more than fits on the cards these nodes boot from, less than fills a disk for good.
pub(super) const LAYER_BYTES_MAX: u64 = 20 << 30;
/// Most entries of a layer: ten times what a full desktop image has, a tenth of the inodes of a 16 GB ext4 card.
pub(super) const LAYER_ENTRIES_MAX: u64 = 1_000_000;
/// Most components of a path: real images stay below 40; deep trees make removal and path walks slow.
const DEPTH_MAX: usize = 256;
/// Longest name of one component, NAME_MAX of Linux.
const NAME_MAX: usize = 255;
/// Bytes of directory names remembered until their times are set at the end; bounds memory.
const DIRECTORY_NAMES_MAX: usize = 64 << 20;

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What an unpack may do beyond the default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Create device nodes instead of refusing them.
    pub(super) devices: bool,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry does something no honest layer does.
    #[error("entry \"{path}\" is refused: {reason}")]
    Refused {
        /// The entry's name, escaped and shortened.
        path: String,
        /// What it tried.
        reason: String,
    },
    /// A limit on size, ratio or count was reached.
    #[error("the layer is refused: {0}")]
    Limit(String),
    /// Not a readable tar archive.
    #[error("{0}")]
    Malformed(String),
    /// The content is not what the image configuration names.
    #[error("the unpacked layer has digest {actual}, the image says {expected}")]
    WrongDigest {
        /// From the image configuration.
        expected: Digest,
        /// Of what was unpacked.
        actual: Digest,
    },
    /// The caller went away.
    #[error("unpacking was cancelled")]
    Cancelled,
    /// The file system refused something; `ENOSPC` comes this way.
    #[error("cannot unpack \"{path}\"")]
    Io {
        /// The entry's name, escaped and shortened.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Unpacks `blob` into the empty directory `target` and checks the content's digest. Returns the plain size in bytes.
///
/// # Errors
/// [`UnpackError`]; `target` is then half-filled and must be removed.
pub(super) fn unpack(
    blob: impl Read,
    target: &Path,
    diff_id: Digest,
    options: Options,
    cancel: &AtomicBool,
) -> Result<u64, UnpackError> {
    let root = openat(CWD, target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| UnpackError::Io { path: target.display().to_string(), source: errno.into() })?;
    let plain = Plain::new(blob, LAYER_BYTES_MAX, cancel).map_err(|error| read_error(error, b"."))?;
    let mut tar = TarReader::new(plain);
    let mut unpacker = Unpacker { root, options, directories: Vec::new(), directory_bytes: 0 };
    let mut entries = 0;
    while let Some(entry) = tar.next_entry().map_err(tar_error)? {
        entries += 1;
        if entries > LAYER_ENTRIES_MAX {
            return Err(UnpackError::Limit(format!("more than {LAYER_ENTRIES_MAX} entries")));
        }
        unpacker.entry(&entry, &mut tar)?;
    }
    unpacker.set_directory_times()?;
    let (actual, size) = tar.into_inner().finish().map_err(|error| read_error(error, b"."))?;
    if actual != diff_id {
        return Err(UnpackError::WrongDigest { expected: diff_id, actual });
    }
    Ok(size)
}

struct Unpacker {
    root: OwnedFd,
    options: Options,
    /// Directories and their times, set last because every file created in them changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    directory_bytes: usize,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), UnpackError> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root_entry(entry);
        };
        let failed = |source: io::Error| UnpackError::Io { path: shown(&entry.path), source };
        let parent = self.open_parent(parents).map_err(|errno| self.resolve_error(&entry.path, errno))?;
        if let Some(hidden) = name.strip_prefix(whiteout::PREFIX) {
            return whiteout::apply(&parent, name, hidden, &entry.path);
        }
        match entry.kind {
            Kind::Directory => self.directory(&parent, name, entry)?,
            Kind::File => {
                replace(&parent, name).map_err(failed)?;
                file(&parent, name, entry, content)?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(&entry.path, "a symbolic link to nothing"));
                }
                replace(&parent, name).map_err(failed)?;
                symlinkat(entry.link.as_slice(), &parent, *name).map_err(|errno| failed(errno.into()))?;
                set_attributes_at(&parent, name, entry).map_err(failed)?;
            }
            Kind::HardLink => self.hard_link(&parent, name, entry)?,
            Kind::Fifo => {
                replace(&parent, name).map_err(failed)?;
                mknodat(&parent, *name, FileType::Fifo, Mode::from_raw_mode(entry.mode), 0)
                    .map_err(|errno| failed(errno.into()))?;
                set_attributes_at(&parent, name, entry).map_err(failed)?;
            }
            Kind::CharDevice { major, minor } => {
                self.device(&parent, name, entry, FileType::CharacterDevice, (major, minor))?
            }
            Kind::BlockDevice { major, minor } => {
                self.device(&parent, name, entry, FileType::BlockDevice, (major, minor))?
            }
        }
        Ok(())
    }

    /// `./`: the layer's root directory itself.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(refused(&entry.path, "the root must be a directory"));
        }
        set_attributes(&self.root, entry)?;
        self.remember_directory(entry)
    }

    fn directory(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let failed = |source: io::Error| UnpackError::Io { path: shown(&entry.path), source };
        ensure_directory(parent, name).map_err(failed)?;
        let directory = openat(
            parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| failed(errno.into()))?;
        set_attributes(&directory, entry)?;
        self.remember_directory(entry)
    }

    fn remember_directory(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.directory_bytes += entry.path.len();
        if self.directory_bytes > DIRECTORY_NAMES_MAX {
            return Err(UnpackError::Limit(format!("more than {DIRECTORY_NAMES_MAX} bytes of directory names")));
        }
        self.directories.push((entry.path.clone(), entry.mtime));
        Ok(())
    }

    /// The target is resolved like an entry's own path, so it lies in this layer; the link goes to the name itself, not
    /// to what a symbolic link of that name points to.
    fn hard_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if entry.link.starts_with(b"/") {
            return Err(refused(&entry.path, "a hard link with an absolute target"));
        }
        let target =
            components(&entry.link).map_err(|_| refused(&entry.path, "a hard link with a target outside the layer"))?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused(&entry.path, "a hard link to the root"));
        };
        let missing = |errno: Errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => refused(
                &entry.path,
                &format!("a hard link to \"{}\", which the layer does not have", shown(&entry.link)),
            ),
            Errno::PERM => refused(&entry.path, "a hard link to a directory"),
            errno => UnpackError::Io { path: shown(&entry.path), source: errno.into() },
        };
        let target_parent = self.open_directory(&target_parents.join(&b'/')).map_err(missing)?;
        let stat = statat(&target_parent, *target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if is_whiteout(&stat) {
            return Err(refused(&entry.path, "a hard link to a whiteout"));
        }
        // Linking a name to itself is already so; replacing it first would remove the target.
        let own = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        if own.is_ok_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        replace(parent, name).map_err(|source| UnpackError::Io { path: shown(&entry.path), source })?;
        linkat(&target_parent, *target_name, parent, name, AtFlags::empty()).map_err(missing)
    }

    fn device(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), UnpackError> {
        if !self.options.devices {
            return Err(refused(&entry.path, "a device node; containers get theirs from the runtime"));
        }
        if (kind, major, minor) == (FileType::CharacterDevice, 0, 0) {
            return Err(refused(&entry.path, "an overlayfs whiteout made by hand"));
        }
        let failed = |source: io::Error| UnpackError::Io { path: shown(&entry.path), source };
        replace(parent, name).map_err(failed)?;
        mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), makedev(major, minor))
            .map_err(|errno| failed(errno.into()))?;
        set_attributes_at(parent, name, entry).map_err(failed)
    }

    /// Opens the directory `path` within the root, following symbolic links within the root.
    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            // EAGAIN: some rename on the machine raced with the walk (openat2(2)).
            match openat2(&self.root, path, flags, Mode::empty(), CONFINED) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// Opens the directory that is to hold an entry, creating what is missing of the way.
    fn open_parent(&self, parents: &[&[u8]]) -> Result<OwnedFd, Errno> {
        match self.open_directory(&parents.join(&b'/')) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            result => return result,
        }
        let mut directory = self.open_directory(b".")?;
        for depth in 1..=parents.len() {
            let path = parents[..depth].join(&b'/');
            directory = match self.open_directory(&path) {
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let name = parents[depth - 1];
                    // Only nothing at all and a whiteout make way; a file or a dangling link in the middle of a path
                    // is not something to guess about.
                    match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) if !is_whiteout(&stat) => return Err(Errno::NOTDIR),
                        _ => ensure_directory(&directory, name)
                            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
                    }
                    self.open_directory(&path)?
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    fn resolve_error(&self, path: &[u8], errno: Errno) -> UnpackError {
        match errno {
            Errno::NOTDIR => refused(path, "its way leads through something that is not a directory"),
            Errno::LOOP => refused(path, "its way leads through a loop of symbolic links"),
            Errno::NOSYS => UnpackError::Io {
                path: shown(path),
                source: io::Error::other("openat2 is missing: Linux 5.6 or newer is needed"),
            },
            errno => UnpackError::Io { path: shown(path), source: errno.into() },
        }
    }

    fn set_directory_times(&self) -> Result<(), UnpackError> {
        for (path, mtime) in self.directories.iter().rev() {
            let joined = components(path)?.join(&b'/');
            // A directory that a later entry replaced has no time to set.
            let Ok(directory) = self.open_directory(&joined) else { continue };
            utimensat(&directory, ".", &times(*mtime), AtFlags::empty())
                .map_err(|errno| UnpackError::Io { path: shown(path), source: errno.into() })?;
        }
        Ok(())
    }
}

/// Splits a name into components. A leading slash means the layer's root; `.` is passed over.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let components: Vec<&[u8]> =
        path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if components.contains(&b"..".as_slice()) {
        return Err(refused(path, "its name has \"..\""));
    }
    if components.len() > DEPTH_MAX {
        return Err(refused(path, "its name has more than 256 components"));
    }
    if components.iter().any(|part| part.len() > NAME_MAX) {
        return Err(refused(path, "a component of its name has more than 255 bytes"));
    }
    Ok(components)
}

/// Removes whatever has the name, so that something else can take its place. Symbolic links are not followed.
fn replace(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(OsStr::from_bytes(name));
            fs::remove_dir_all(path)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn file(parent: &OwnedFd, name: &[u8], entry: &Entry, content: &mut impl Read) -> Result<(), UnpackError> {
    let failed = |source: io::Error| UnpackError::Io { path: shown(&entry.path), source };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File =
        openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(|errno| failed(errno.into()))?.into();
    io::copy(content, &mut file).map_err(|error| read_error(error, &entry.path))?;
    set_attributes(&file, entry)?;
    futimens(&file, &times(entry.mtime)).map_err(|errno| failed(errno.into()))
}

fn refused(path: &[u8], reason: &str) -> UnpackError {
    UnpackError::Refused { path: shown(path), reason: reason.to_owned() }
}

/// A name fit for an error text.
fn shown(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 120;
    let text = String::from_utf8_lossy(&path[..path.len().min(SHOWN_MAX)]).escape_debug().to_string();
    if path.len() > SHOWN_MAX { text + "…" } else { text }
}

fn tar_error(error: TarError) -> UnpackError {
    match error {
        TarError::Io(error) => read_error(error, b"."),
        malformed @ TarError::Malformed(_) => UnpackError::Malformed(malformed.to_string()),
    }
}

/// An error while reading the layer's content, which is the writing side's if the kernel gave it.
fn read_error(error: io::Error, path: &[u8]) -> UnpackError {
    match CutOff::of(&error) {
        Some(CutOff::Cancelled) => UnpackError::Cancelled,
        Some(limit) => UnpackError::Limit(limit.to_string()),
        None if error.raw_os_error().is_some() => UnpackError::Io { path: shown(path), source: error },
        None => UnpackError::Malformed(format!("malformed layer: {error}")),
    }
}
