//! Making of image archives, without a build engine and without a store.
//!
//! In: layers (directories or tar streams) and a configuration. Out: one uncompressed tar that is an OCI image layout and
//! a `docker save` archive at once, so `edgectl image load`, `docker load` and OCI tools read it. The same input gives the
//! same bytes: entries are sorted and times are those asked for. Used by the demo and by tests.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::manifest::{
    Descriptor, ImageConfig, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, RootFs, RunConfig,
};
use super::platform::Platform;
use super::reference::Reference;

/// An image in the making.
pub struct Builder {
    names: Vec<Reference>,
    platform: Platform,
    /// What a container of the image runs; set the fields wanted.
    pub config: RunConfig,
    /// When the image was made (RFC 3339). The default is the epoch, so that equal input gives an equal image.
    pub created: String,
    layers: Vec<Layer>,
}

struct Layer {
    content: File,
    digest: Digest,
    size: u64,
}

impl Builder {
    /// An image without layers for `platform`.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        let created = "1970-01-01T00:00:00Z".to_owned();
        Self { names: Vec::new(), platform, config: RunConfig::default(), created, layers: Vec::new() }
    }

    /// Adds a name the image is loaded under.
    #[must_use]
    pub fn name(mut self, name: Reference) -> Self {
        self.names.push(name);
        self
    }

    /// Adds a layer from an uncompressed tar stream, on top of those added before.
    ///
    /// # Errors
    /// When the stream or the temporary directory fails.
    pub fn layer_tar(mut self, mut tar: impl Read) -> io::Result<Self> {
        let mut layer = LayerWriter::new()?;
        io::copy(&mut tar, &mut layer)?;
        self.layers.push(layer.finish()?);
        Ok(self)
    }

    /// Adds a layer with the content of a directory, on top of those added before. Owners, modes, links, and the
    /// attributes `security.capability` and `user.*` are kept; times become the epoch; sockets and device nodes are left
    /// out, because a container gets its `/dev` from the runtime.
    ///
    /// # Errors
    /// When something in the directory or the temporary directory cannot be read or written.
    pub fn layer_directory(mut self, directory: &Path) -> io::Result<Self> {
        let mut tar = tar::Builder::new(LayerWriter::new()?);
        append_directory(&mut tar, directory, Path::new(""), &mut BTreeMap::new())?;
        self.layers.push(tar.into_inner()?.finish()?);
        Ok(self)
    }

    /// Adds a layer of regular files, given as path, mode and content.
    ///
    /// # Errors
    /// When the temporary directory fails or a path does not fit a tar archive.
    pub fn layer_files<'a>(mut self, files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>) -> io::Result<Self> {
        let mut tar = tar::Builder::new(LayerWriter::new()?);
        for (path, mode, content) in files {
            append(&mut tar, header(tar::EntryType::Regular, mode, content.len() as u64), path.as_ref(), content)?;
        }
        self.layers.push(tar.into_inner()?.finish()?);
        Ok(self)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When `out` or the temporary directory fails.
    pub fn write(mut self, out: impl Write) -> io::Result<()> {
        let config = serde_json::to_vec(&ImageConfig {
            created: Some(self.created.clone()),
            author: None,
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            variant: self.platform.variant.clone(),
            config: self.config.clone(),
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: self.layers.iter().map(|layer| layer.digest).collect(),
            },
            history: Vec::new(),
        })?;
        let layer = |layer: &Layer| descriptor(OCI_LAYER, layer.digest, layer.size);
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: descriptor(OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers: self.layers.iter().map(layer).collect(),
        })?;
        let index = serde_json::to_vec(&self.index(&manifest))?;
        let docker = serde_json::to_vec(&json!([{
            "Config": blob_path(Digest::of(&config)),
            "RepoTags": self.names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": self.layers.iter().map(|layer| blob_path(layer.digest)).collect::<Vec<_>>(),
        }]))?;

        let mut tar = tar::Builder::new(out);
        let mut blobs: BTreeMap<Digest, Content<'_>> = BTreeMap::new();
        for document in [&config, &manifest] {
            blobs.insert(Digest::of(document), Content::Bytes(document));
        }
        for layer in &mut self.layers {
            blobs.insert(layer.digest, Content::File(&mut layer.content, layer.size));
        }
        for (digest, content) in blobs {
            let path = blob_path(digest);
            match content {
                Content::Bytes(bytes) => document(&mut tar, &path, bytes)?,
                Content::File(file, size) => {
                    file.rewind()?;
                    append(&mut tar, header(tar::EntryType::Regular, 0o644, size), path.as_bytes(), file)?;
                }
            }
        }
        document(&mut tar, "index.json", &index)?;
        document(&mut tar, "manifest.json", &docker)?;
        document(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.into_inner()?.flush()
    }

    fn index(&self, manifest: &[u8]) -> Index {
        let unnamed = Descriptor {
            platform: Some(self.platform.clone()),
            ..descriptor(OCI_MANIFEST, Digest::of(manifest), manifest.len() as u64)
        };
        let manifests = entries(&unnamed, &self.names);
        Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests }
    }
}

/// The entries of an archive's index for one manifest: one per name, as `docker save` and containerd write them.
pub(super) fn entries<'a>(unnamed: &Descriptor, names: impl IntoIterator<Item = &'a Reference>) -> Vec<Descriptor> {
    let entry = |name: &Reference| {
        let mut annotations = BTreeMap::from([("io.containerd.image.name".to_owned(), name.to_string())]);
        annotations.extend(name.tag().map(|tag| ("org.opencontainers.image.ref.name".to_owned(), tag.to_owned())));
        Descriptor { annotations, ..unnamed.clone() }
    };
    let named: Vec<Descriptor> = names.into_iter().map(entry).collect();
    if named.is_empty() { vec![unnamed.clone()] } else { named }
}

enum Content<'a> {
    Bytes(&'a [u8]),
    File(&'a mut File, u64),
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
}

pub(super) fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A temporary file that knows the digest of what was written.
struct LayerWriter {
    file: io::BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl LayerWriter {
    fn new() -> io::Result<Self> {
        Ok(Self { file: io::BufWriter::new(tempfile::tempfile()?), hasher: Sha256::new(), size: 0 })
    }

    fn finish(self) -> io::Result<Layer> {
        Ok(Layer { content: self.file.into_inner()?, digest: Digest::from_hasher(self.hasher), size: self.size })
    }
}

impl Write for LayerWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

pub(super) fn append(
    tar: &mut tar::Builder<impl Write>,
    mut header: tar::Header,
    path: &[u8],
    content: impl Read,
) -> io::Result<()> {
    tar.append_data(&mut header, Path::new(OsStr::from_bytes(path)), content)
}

pub(super) fn document(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    append(tar, header(tar::EntryType::Regular, 0o644, content.len() as u64), path.as_bytes(), content)
}

/// Appends what `root/relative` holds, sorted by name. `links` remembers where a file with several names was first seen.
fn append_directory(
    tar: &mut tar::Builder<impl Write>,
    root: &Path,
    relative: &Path,
    links: &mut BTreeMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(relative))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let relative = relative.join(name);
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            continue;
        }
        let with = |kind, size| {
            let mut header = header(kind, metadata.mode() & 0o7777, size);
            header.set_uid(metadata.uid().into());
            header.set_gid(metadata.gid().into());
            header
        };
        if kind.is_symlink() {
            let mut header = with(tar::EntryType::Symlink, 0);
            tar.append_link(&mut header, &relative, fs::read_link(&path)?)?;
            continue;
        }
        let first = (metadata.nlink() > 1 && kind.is_file())
            .then(|| links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.clone()).clone());
        if let Some(first) = first.filter(|first| *first != relative) {
            let mut header = with(tar::EntryType::Link, 0);
            tar.append_link(&mut header, &relative, &first)?;
            continue;
        }
        let attributes = attributes(&path)?;
        if !attributes.is_empty() {
            tar.append_pax_extensions(attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        }
        if kind.is_dir() {
            let mut header = with(tar::EntryType::Directory, 0);
            tar.append_data(&mut header, &relative, io::empty())?;
            append_directory(tar, root, &relative, links)?;
        } else if kind.is_fifo() {
            let mut header = with(tar::EntryType::Fifo, 0);
            tar.append_data(&mut header, &relative, io::empty())?;
        } else {
            let mut header = with(tar::EntryType::Regular, metadata.len());
            tar.append_data(&mut header, &relative, File::open(&path)?)?;
        }
    }
    Ok(())
}

/// The attributes worth keeping, as PAX records.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = Vec::new();
    let length = rustix::fs::llistxattr(
        path,
        rustix::buffer::spare_capacity({
            names.reserve(64 << 10);
            &mut names
        }),
    );
    match length {
        Ok(_) => {}
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        if name == "security.capability" || name.starts_with("user.") {
            let mut value = Vec::with_capacity(64 << 10);
            rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
            found.push((format!("SCHILY.xattr.{name}"), value));
        }
    }
    found.sort();
    Ok(found)
}
