//! Content by digest on disk: blobs, unpacked layers, unfinished downloads.
//!
//! ```text
//! <root>/
//!   blobs/sha256/<hex>       manifests, configurations and layers as they came
//!   layers/<diff id>/fs      the layer unpacked, shared by all images that have it
//!   layers/<diff id>/size    its plain size in bytes, as text
//!   downloads/<hex>          the beginning of a blob; a later pull goes on from there
//!   tmp/                     everything half-written; emptied on open
//! ```
//!
//! Nothing half-written is ever visible: content is written under `tmp` or `downloads`, verified, synced and renamed.
//! In: bytes from `registry` and `load`. Out: files and directories by digest. Which content is needed is `store`'s to
//! know. Calls block; async callers wrap them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::syncfs;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir, TempPath};

use super::digest::Digest;
use super::error::Error;
use super::manifest::{Descriptor, LAYER_BLOB_MAX};
use super::unpack::{self, Options};

/// Content under one directory.
pub(crate) struct Content {
    root: PathBuf,
    options: Options,
}

impl Content {
    /// Opens the content under `root`, creating it if missing, and removes what a crash left half-written. The caller has
    /// made sure that nobody else has it open.
    pub(crate) fn open(root: PathBuf, options: Options) -> Result<Self, Error> {
        for directory in [root.join("blobs/sha256"), root.join("layers"), root.join("downloads")] {
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        let temporary = root.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("empty", &temporary)(error)),
            _ => fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?,
        }
        Ok(Self { root, options })
    }

    /// The directory, for messages.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    // Blobs

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob is here in the size its descriptor gives; one cut short by a damaged file system is not.
    pub(crate) fn has_blob(&self, descriptor: &Descriptor) -> bool {
        fs::metadata(self.blob_path(descriptor.digest)).is_ok_and(|metadata| metadata.len() == descriptor.size)
    }

    /// Opens a blob for reading. What is read is not verified again.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(Error::io("open", &path))
    }

    /// Reads a small blob and verifies it.
    pub(crate) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let content = fs::read(&path).map_err(Error::io("read", &path))?;
        let actual = Digest::of(&content);
        if actual != digest {
            return Err(Error::WrongDigest {
                image: path.display().to_string(),
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(content)
    }

    /// Stores a small blob and returns its digest.
    pub(crate) fn put_blob(&self, content: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(content);
        let mut file = self.temporary_file()?;
        file.write_all(content).map_err(Error::io("write", file.path()))?;
        self.adopt(file.into_temp_path(), digest)?;
        Ok(digest)
    }

    /// A file under `tmp` that goes when dropped.
    pub(crate) fn temporary_file(&self) -> Result<NamedTempFile, Error> {
        let directory = self.root.join("tmp");
        NamedTempFile::new_in(&directory).map_err(Error::io("create a file in", &directory))
    }

    /// A directory under `tmp` that goes when dropped.
    pub(crate) fn temporary_directory(&self) -> Result<TempDir, Error> {
        let directory = self.root.join("tmp");
        TempDir::new_in(&directory).map_err(Error::io("create a directory in", &directory))
    }

    /// Makes a file of this store the blob `digest`, which the caller has verified it to be.
    pub(crate) fn adopt(&self, file: TempPath, digest: Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        File::open(&file).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        sync_directory(&self.root.join("blobs/sha256"))
    }

    /// Opens the download of a blob where an earlier attempt left it.
    pub(crate) fn download(&self, descriptor: &Descriptor) -> Result<Download, Error> {
        let path = self.root.join("downloads").join(descriptor.digest.hex());
        let failed = || Error::io("write", &path);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed())?;
        let mut download = Download {
            hasher: Sha256::new(),
            offset: 0,
            file: file.try_clone().map_err(failed())?,
            path: path.clone(),
            descriptor: descriptor.clone(),
        };
        if file.metadata().map_err(failed())?.len() > descriptor.size {
            download.restart()?;
        } else {
            download.offset = io::copy(&mut file, &mut download.hasher).map_err(failed())?;
        }
        Ok(download)
    }

    /// Makes a complete download a blob. The inner error is the digest it has instead of the right one; it is gone then.
    pub(crate) fn finish(&self, download: Download) -> Result<Result<(), Digest>, Error> {
        let Download { hasher, file, path, descriptor, .. } = download;
        let actual = Digest::from_hasher(hasher);
        if actual != descriptor.digest {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            return Ok(Err(actual));
        }
        let target = self.blob_path(descriptor.digest);
        file.sync_all().map_err(Error::io("write", &path))?;
        fs::rename(&path, &target).map_err(Error::io("write", &target))?;
        sync_directory(&self.root.join("blobs/sha256"))?;
        Ok(Ok(()))
    }

    // Layers

    /// The directory a layer is unpacked in.
    pub(crate) fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex()).join("fs")
    }

    /// Whether a layer is unpacked.
    pub(crate) fn has_layer(&self, diff_id: Digest) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    /// The plain size of an unpacked layer in bytes.
    pub(crate) fn layer_size(&self, diff_id: Digest) -> Result<u64, Error> {
        let path = self.root.join("layers").join(diff_id.hex()).join("size");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        text.trim().parse().map_err(|error| Error::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Unpacks a layer from its blob, unless it is already.
    pub(crate) fn unpack(&self, image: &str, blob: Digest, diff_id: Digest, cancel: &AtomicBool) -> Result<(), Error> {
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let temporary = self.temporary_directory()?;
        let layer = temporary.path().join("layer");
        let content = layer.join("fs");
        fs::create_dir_all(&content).map_err(Error::io("create", &content))?;
        let size = unpack::unpack(self.open_blob(blob)?.take(LAYER_BLOB_MAX), &content, diff_id, self.options, cancel)
            .map_err(|error| Error::layer(image, blob, &self.root, error))?;
        fs::write(layer.join("size"), size.to_string()).map_err(Error::io("write", &layer))?;
        // One call for the tens of thousands of files a layer may have.
        let directory = File::open(&layer).map_err(Error::io("open", &layer))?;
        syncfs(&directory).map_err(|errno| Error::io("write", &layer)(errno.into()))?;
        let target = self.root.join("layers").join(diff_id.hex());
        match fs::rename(&layer, &target) {
            // Someone else was faster; both are the same.
            Err(_) if self.has_layer(diff_id) => Ok(()),
            Err(error) => Err(Error::io("write", &target)(error)),
            Ok(()) => sync_directory(&self.root.join("layers")),
        }
    }

    // What is there

    /// The blobs and their sizes in bytes.
    pub(crate) fn blobs(&self) -> Result<Vec<(Digest, u64)>, Error> {
        sized(&self.root.join("blobs/sha256"))
    }

    /// The unfinished downloads and their sizes in bytes.
    pub(crate) fn downloads(&self) -> Result<Vec<(Digest, u64)>, Error> {
        sized(&self.root.join("downloads"))
    }

    /// The unpacked layers and their plain sizes in bytes.
    pub(crate) fn layers(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let layers = entries(&self.root.join("layers"))?;
        Ok(layers.into_iter().map(|(digest, _)| (digest, self.layer_size(digest).unwrap_or(0))).collect())
    }

    /// Removes a blob.
    pub(crate) fn remove_blob(&self, digest: Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Removes an unfinished download.
    pub(crate) fn remove_download(&self, digest: Digest) -> Result<(), Error> {
        let path = self.root.join("downloads").join(digest.hex());
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Removes an unpacked layer: out of sight in one step, so that the slow part may be interrupted.
    pub(crate) fn remove_layer(&self, diff_id: Digest) -> Result<(), Error> {
        let path = self.root.join("layers").join(diff_id.hex());
        let grave = self.temporary_directory()?;
        fs::rename(&path, grave.path().join("layer")).map_err(Error::io("remove", &path))?;
        grave.close().map_err(Error::io("remove", &path))
    }
}

/// A blob on its way in.
pub(crate) struct Download {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    offset: u64,
    descriptor: Descriptor,
}

impl Download {
    /// Bytes that are here.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.descriptor.size - self.offset
    }

    /// Appends a piece, which must not be more than is missing.
    pub(crate) fn append(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.file.write_all(piece).map_err(Error::io("write", &self.path))?;
        self.hasher.update(piece);
        self.offset += piece.len() as u64;
        Ok(())
    }

    /// Forgets what is here.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file)).map_err(Error::io("write", &self.path))?;
        (self.hasher, self.offset) = (Sha256::new(), 0);
        Ok(())
    }
}

/// The digest-named entries of a directory. Anything else is not ours and is left alone.
fn entries(directory: &Path) -> Result<Vec<(Digest, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
            found.push((digest, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn sized(directory: &Path) -> Result<Vec<(Digest, u64)>, Error> {
    let sized = |(digest, path)| (digest, fs::metadata(path).map_or(0, |metadata| metadata.len()));
    Ok(entries(directory)?.into_iter().map(sized).collect())
}

/// Makes a rename last through a power cut.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("write", path))
}
