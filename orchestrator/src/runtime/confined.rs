//! Reading and making files below a folder whose content is not trusted, such as a container's root: links in it are
//! followed as the container would follow them and never lead out (openat2(2), RESOLVE_IN_ROOT).

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

/// Longest file that is read, in bytes: `/etc/passwd` and `/etc/group` of large directories fit.
const MAX_READ: u64 = 1 << 20;

/// The text of a file; empty if there is none.
pub(crate) fn read_text(root: &Path, path: &str) -> io::Result<String> {
    let file = match resolve(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a folder and those above it, if they are missing.
pub(crate) fn create_dir_all(root: &Path, path: &Path) -> io::Result<()> {
    let mut made = PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = resolve(root, &made, OFlags::PATH | OFlags::DIRECTORY)?;
        made.push(name);
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let dir = resolve(root, &made, OFlags::PATH | OFlags::DIRECTORY)?;
    fstat(dir).map(|_| ()).map_err(Into::into)
}

/// What an existing path below `root` is, to look at or to mount.
pub(crate) fn open_path(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::PATH).map_err(Into::into)
}

fn resolve(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename elsewhere on the machine may have made the check uncertain (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Whether `path` on the node exists at all, links followed.
pub(crate) fn exists(path: &Path) -> bool {
    rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::{fd::AsRawFd, unix::fs::symlink},
    };

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "secret").unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("etc")).unwrap();
        assert_eq!(read_text(root.path(), "/etc/passwd").unwrap(), "");
        symlink("../../../../inner", root.path().join("up")).unwrap();
        fs::create_dir(root.path().join("inner")).unwrap();
        create_dir_all(root.path(), Path::new("/up/a/b")).unwrap();
        assert!(root.path().join("inner/a/b").is_dir());
        let found = open_path(root.path(), Path::new("up/a")).unwrap();
        let real = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
        assert_eq!(real, root.path().canonicalize().unwrap().join("inner/a"));
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("work"), "").unwrap();
        assert!(create_dir_all(root.path(), Path::new("/work")).is_err());
    }
}
