//! The few file operations the store needs, behind a trait so that tests can put a simulated disk with power cuts under the
//! same code.
//!
//! In: names of files inside the store's one folder. Out: bytes on the device, or the kernel's error. Callers: `log` and
//! `snapshot`. Rules both sides keep: a file's contents are durable after [`DiskFile::sync`], a created, renamed or removed
//! name after [`Disk::sync_names`], and never before; a failed sync is never repeated.

use std::{
    fmt::Debug,
    fs, io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, FallocateFlags};

/// One folder of files.
pub(super) trait Disk: Debug + Send + Sync {
    /// Names of the files in the folder, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The whole file as the device holds it.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Creates (or replaces) a file of `len` zero bytes whose blocks are allocated and written, so that later overwrites
    /// change no metadata. With `len` 0 the file is simply empty.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// One open file.
pub(super) trait DiskFile: Debug + Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the contents durable (`fdatasync(2)`).
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the host's file system.
#[derive(Debug)]
pub(super) struct HostDisk {
    dir: PathBuf,
}

/// Zeros are written in pieces of this size: large enough for full device speed, small beside a Pi's memory.
const ZERO_CHUNK: usize = 256 * 1024;

impl HostDisk {
    /// Takes the folder `dir`, which must exist.
    pub(super) fn new(dir: &Path) -> Self {
        HostDisk { dir: dir.to_owned() }
    }
}

impl Disk for HostDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut file = fs::OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        // What a killed predecessor wrote may lie only in the page cache; what a failed write-back left there is a lie.
        // So: flush, drop the cached pages, and believe the device.
        file.sync_data()?;
        // It is advice; where a file system takes none, its cache has to be believed.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(bytes)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let file =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(self.dir.join(name))?;
        if len > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                // Not every file system can; writing the zeros below allocates as well, only less contiguously.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
            // fallocate leaves "unwritten" extents, and turning each into a written one costs a journal commit per append.
            let zeros = vec![0; ZERO_CHUNK.min(len as usize)];
            let mut at = 0;
            while at < len {
                let n = zeros.len().min((len - at) as usize);
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
            file.sync_all()?;
        }
        Ok(Box::new(HostFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().write(true).open(self.dir.join(name))?;
        Ok(Box::new(HostFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        fs::File::open(&self.dir)?.sync_all()
    }
}

#[derive(Debug)]
struct HostFile(fs::File);

impl DiskFile for HostFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
