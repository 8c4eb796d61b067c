//! Named volumes of the node: directories below the state directory, made when first used.

use orchestrator_core::model::{MountSource, TaskId};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// The volumes below a state directory.
#[derive(Clone, Debug)]
pub struct Volumes {
    dir: PathBuf,
}

/// A volume could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making volume {name} in {dir}")]
pub struct VolumeError {
    name: String,
    dir: PathBuf,
    #[source]
    source: io::Error,
}

/// A volume and whether it was made just now, so that it may be filled from the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Directory that is mounted.
    pub path: PathBuf,
    /// It is empty and new.
    pub fresh: bool,
}

impl Volumes {
    /// The volumes below `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("volumes") }
    }

    /// Directory of the volume behind `source`, made if it is not there; `None` for mounts that are not volumes. A volume
    /// without a name belongs to `task` and to the mount's `target`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn resolve(
        &self,
        task: TaskId,
        target: &str,
        source: &MountSource,
    ) -> Result<Option<(String, Resolved)>, VolumeError> {
        let MountSource::Volume { name, .. } = source else { return Ok(None) };
        let name = name.clone().unwrap_or_else(|| anonymous(task, target));
        let path = self.dir.join(&name).join("_data");
        let make = || -> io::Result<bool> {
            let fresh = !path.exists();
            std::fs::create_dir_all(&path)?;
            Ok(fresh)
        };
        let fresh =
            make().map_err(|source| VolumeError { name: name.clone(), dir: self.dir.clone(), source })?;
        Ok(Some((name, Resolved { path, fresh })))
    }

    /// Removes the volumes without a name of `task`.
    ///
    /// # Errors
    /// All that could not be removed; the others are gone.
    pub fn forget(&self, task: TaskId) -> Result<(), VolumeError> {
        let mut failed = None;
        let names = self.list().map_err(|source| VolumeError {
            name: "*".into(),
            dir: self.dir.clone(),
            source,
        })?;
        for name in names.into_keys().filter(|name| name.starts_with(&anonymous(task, ""))) {
            match std::fs::remove_dir_all(self.dir.join(&name)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    failed = Some(VolumeError { name, dir: self.dir.clone(), source });
                }
                _ => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// All volumes and their directories.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        entries.map(|entry| Ok(entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path().join("_data")))?)).collect()
    }
}

/// Name of the volume without a name that `task` mounts at `target`.
fn anonymous(task: TaskId, target: &str) -> String {
    format!("{task}{}", target.replace('/', "-"))
}
