//! One lab per machine: its addresses and kernel-wide names are fixed, so two would meet.
//!
//! A file under /run carries the folder of the lab that is up; a lock on it serialises the verbs that change a lab.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

const FILE: &str = "/run/edged-lab.lock";
const POLL: Duration = Duration::from_millis(500);

/// The right to change the machine's lab, held until it is dropped.
pub(super) struct Claim {
    file: File,
    folder: PathBuf,
}

impl Claim {
    /// Waits for another verb to end, then takes the right to change the lab of `folder`. Where the lab of another
    /// checkout is up, that one gets `patience` to go away.
    ///
    /// # Errors
    /// When the lab of another checkout is up, and stays.
    pub(super) fn take(folder: &Path, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let (file, owner) = locked()?;
            // A folder that is gone left nothing that could be taken down from it.
            if owner == folder || !owner.exists() {
                return Ok(Self { file, folder: folder.to_owned() });
            }
            if Instant::now() >= deadline {
                let owner = owner.display();
                bail!("the lab of another checkout is up in {owner}: run `cargo xtask lab down` there first");
            }
            // Its owner needs the lock to take it down.
            drop(file);
            sleep(POLL);
        }
    }

    /// Marks the machine's lab as being up in this folder.
    pub(super) fn mark(&mut self) -> Result<()> {
        let mut put = || {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(self.folder.as_os_str().as_bytes())
        };
        put().with_context(|| format!("write {FILE}"))
    }

    /// Marks that no lab is up.
    pub(super) fn unmark(&mut self) -> Result<()> {
        // Who waits for the lock meanwhile gets it on a file without a name, and looks again.
        match fs::remove_file(FILE) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("remove {FILE}")),
            _ => Ok(()),
        }
    }
}

/// The locked file and the folder it names; an empty path, which exists nowhere, where it names none.
fn locked() -> Result<(File, PathBuf)> {
    loop {
        let mut options = File::options();
        let options = options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(FILE).with_context(|| format!("open {FILE}"))?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {FILE}"))?;
        let inode = |data: fs::Metadata| data.ino();
        if fs::metadata(FILE).ok().map(inode) != file.metadata().ok().map(inode) {
            continue;
        }
        let mut owner = String::new();
        file.read_to_string(&mut owner).with_context(|| format!("read {FILE}"))?;
        return Ok((file, PathBuf::from(owner.trim())));
    }
}
