//! Persistent network namespaces: one bind mount per namespace under a folder.
//!
//! In: a folder and names. Out: mounted namespace files that others join by path. The truth is the mount table of the
//! calling thread's mount namespace. Called by the driver; the runtime only uses the paths.
//!
//! A thread that changes its namespace must never be one that others share, so everything that enters a namespace runs
//! on a thread of its own that ends with it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe},
};

use super::{NetworkError, Result};

/// The calling thread's own view; `/proc/self` would be the main thread's.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Makes the namespace mounted at `path`, unless it is there. Returns whether it was made.
///
/// # Errors
/// When the folder, the namespace or the mount cannot be made; nothing is left behind then.
pub async fn ensure(path: &Path) -> Result<bool> {
    let path = path.to_owned();
    on_own_thread(move || {
        if is_mounted(&path)? {
            return Ok(false);
        }
        create(&path)?;
        Ok(true)
    })
    .await
}

/// Unmounts the namespace at `path` and removes its file. The namespace itself ends with its last process.
///
/// # Errors
/// When it can be neither unmounted nor removed; being absent is no error.
pub async fn delete(path: &Path) -> Result<()> {
    let path = path.to_owned();
    on_own_thread(move || {
        while is_mounted(&path)? {
            unmount(&path, UnmountFlags::DETACH).map_err(|error| NetworkError::path("unmount", &path, error))?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::path("remove", &path, error)),
            _ => Ok(()),
        }
    })
    .await
}

/// What lies in `folder`, by name: `true` for a mounted namespace, `false` for a file that was left without one.
///
/// # Errors
/// When the folder or the mount table cannot be read; a folder that does not exist is empty.
pub async fn list(folder: &Path) -> Result<BTreeMap<String, bool>> {
    let folder = folder.to_owned();
    on_own_thread(move || {
        let mut names = BTreeMap::new();
        match fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    names.insert(entry.file_name().to_string_lossy().into_owned(), false);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetworkError::path("list", &folder, error)),
        }
        let folder = canonical(&folder);
        for mounted in namespace_mounts()? {
            if mounted.parent() == Some(&folder)
                && let Some(name) = mounted.file_name()
            {
                names.insert(name.to_string_lossy().into_owned(), true);
            }
        }
        Ok(names)
    })
    .await
}

/// Runs `work` inside the network namespace at `path`, on a thread of its own.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` returns.
pub async fn run<T: Send + 'static>(path: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = path.to_owned();
    on_own_thread(move || {
        let file = fs::File::open(&path).map_err(|error| NetworkError::path("open", &path, error))?;
        let into = ThreadNameSpaceType::NETWORK;
        move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&file), into)
            .map_err(|error| NetworkError::path("enter the network namespace", &path, error))?;
        work()
    })
    .await
}

/// Runs `work` in a new network namespace, on a thread of its own. The namespace lives on in sockets that were opened in
/// it.
pub(super) async fn run_in_new<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    on_own_thread(|| enter_new_namespace().and_then(|()| work())).await
}

fn create(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| NetworkError::path("create", folder, error))?;
    }
    fs::File::create(path).map_err(|error| NetworkError::path("create", path, error))?;
    let made = enter_new_namespace().and_then(|()| {
        mount_bind(OWN_NETNS, path).map_err(|error| NetworkError::path("mount a network namespace at", path, error))
    });
    if made.is_err() {
        // The error that matters is the first; a file without a mount is seen and removed by the next look.
        let _ = fs::remove_file(path);
    }
    made
}

fn enter_new_namespace() -> Result<()> {
    // SAFETY: only the FILES flag would break the sharing of file descriptors, and it is not set.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| NetworkError::io("make a network namespace", error))
}

fn is_mounted(path: &Path) -> Result<bool> {
    let path = canonical(path);
    Ok(namespace_mounts()?.contains(&path))
}

/// Mount points of namespace files (file system type `nsfs`, proc_pid_mountinfo(5)).
fn namespace_mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read(MOUNTINFO).map_err(|error| NetworkError::path("read", Path::new(MOUNTINFO), error))?;
    Ok(parse_namespace_mounts(&table))
}

fn parse_namespace_mounts(table: &[u8]) -> Vec<PathBuf> {
    let mut mounts = Vec::new();
    for line in table.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ');
        let Some(point) = fields.nth(4) else { continue };
        // Optional fields of any number end with a dash; the type follows it.
        if fields.any(|field| field == b"-") && fields.next() == Some(b"nsfs") {
            mounts.push(PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(point))));
        }
    }
    mounts
}

/// Mount points have space, tab, newline and backslash as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        out.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// The path as the mount table has it: without symbolic links in the folder.
fn canonical(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // The receiver is gone only when the caller was cancelled, and then nobody wants the result.
            let _ = sender.send(work());
        })
        .map_err(|error| NetworkError::io("start a thread for a network namespace", error))?;
    receiver
        .await
        .map_err(|_| NetworkError::io("finish work in a network namespace", io::Error::other("it panicked")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_mounts_are_told_from_other_mounts() {
        let table = b"24 1 0:22 / /proc rw,nosuid shared:5 - proc proc rw\n\
            90 24 0:4 net:[4026532001] /run/edged/netns/t1 rw shared:9 master:2 - nsfs nsfs rw\n\
            91 24 0:4 net:[4026532002] /run/a\\040b/netns/t2 rw - nsfs nsfs rw\n\
            92 24 0:40 /nsfs /mnt/nsfs rw - tmpfs nsfs rw\n";
        assert_eq!(
            parse_namespace_mounts(table),
            [PathBuf::from("/run/edged/netns/t1"), PathBuf::from("/run/a b/netns/t2")]
        );
    }

    #[test]
    fn a_damaged_mount_table_is_read_as_far_as_it_goes() {
        assert_eq!(parse_namespace_mounts(b""), Vec::<PathBuf>::new());
        assert_eq!(parse_namespace_mounts(b"1 2 3\n- - - - - - -\n1 2 3 4 /x rw -"), Vec::<PathBuf>::new());
    }
}
