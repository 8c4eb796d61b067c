//! The node's memory across power cuts: the last assignment it accepted, replaced atomically when it changes.

use orchestrator_core::{assignment::Assignment, wire};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

const FILE: &str = "assignment";

/// The file that holds the last accepted assignment.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
}

/// The ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} the ledger {path}")]
pub struct LedgerError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Ledger {
    /// The ledger below `state_dir`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        let dir = state_dir.join("ledger");
        std::fs::create_dir_all(&dir).map_err(|source| LedgerError { action: "making", path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// The last assignment that was written whole; `None` if there is none or if it is damaged, which is logged: the
    /// leader sends a new one, and what runs is kept until then.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(&self) -> Result<Option<Assignment>, LedgerError> {
        let path = self.dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LedgerError { action: "reading", path, source }),
        };
        match wire::decode(&bytes) {
            Ok(assignment) => Ok(Some(assignment)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the ledger is damaged and will be written anew");
                Ok(None)
            }
        }
    }

    /// Forgets the assignment: the node is no member any more.
    ///
    /// # Errors
    /// The disk is broken or read-only.
    pub fn remove(&self) -> Result<(), LedgerError> {
        let path = self.dir.join(FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError { action: "removing", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Replaces the assignment; after this returns, it is on the disk.
    ///
    /// # Errors
    /// The disk is full or broken; the assignment before is still there.
    pub fn save(&self, assignment: &Assignment) -> Result<(), LedgerError> {
        let path = self.dir.join(FILE);
        let temporary = self.dir.join("assignment.new");
        let replace = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&wire::encode(assignment).map_err(io::Error::other)?)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        replace().map_err(|source| LedgerError { action: "writing", path: path.clone(), source })
    }
}
