//! Saving of images: from the store to one tar that is an OCI image layout and a `docker save` archive at once, which
//! `load`, `docker load` and OCI tools read.
//!
//! In: names or ids. Out: a stream of bytes, made while it is read: nothing is copied to disk first. Called by `Images`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::json;

use super::archive::{append, blob_path, descriptor, document, entries, header};
use super::digest::Digest;
use super::error::Error;
use super::manifest::{Descriptor, Index, OCI_INDEX};
use super::reference::Reference;
use super::store::{Image, Lease, Store};

/// Images that are complete here and stay so while they are saved.
pub struct Archive {
    store: Arc<Store>,
    /// With the names they are saved under: none if an image was asked for by its id alone.
    images: Vec<(Image, BTreeSet<Reference>)>,
    _lease: Lease,
}

impl Archive {
    /// Finds the images; the same one under several names is saved once.
    ///
    /// # Errors
    /// As for [`Images::get`](super::Images::get), or a layer is here unpacked only.
    pub(crate) fn open(store: &Arc<Store>, names: &[String]) -> Result<Self, Error> {
        let mut lease = store.lease();
        let mut images: BTreeMap<Digest, (Image, BTreeSet<Reference>)> = BTreeMap::new();
        for name in names {
            let found = store.get(name)?;
            lease.add(blobs(&found).map(|blob| blob.digest).chain([found.manifest_digest]));
            // Again, now that nothing of it can go any more.
            let image = store.get(name)?;
            if image.id != found.id {
                return Err(Error::NoSuchImage { name: name.clone() });
            }
            if let Some(layer) = blobs(&image).find(|blob| !store.content.has_blob(blob)) {
                return Err(Error::Incomplete { image: name.clone(), layer: layer.digest });
            }
            let (_, tags) = images.entry(image.id).or_insert_with(|| (image.clone(), BTreeSet::new()));
            let tag = name.parse::<Reference>().ok().and_then(|name| name.tagged());
            tags.extend(tag.filter(|tag| image.tags.contains(tag)));
        }
        Ok(Self { store: Arc::clone(store), images: images.into_values().collect(), _lease: lease })
    }

    /// Writes the archive. Blocking.
    ///
    /// # Errors
    /// `out` fails, or a blob cannot be read.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let mut written = BTreeSet::new();
        let (mut manifests, mut docker) = (Vec::new(), Vec::new());
        for (image, tags) in &self.images {
            let manifest = self.store.content.read_blob(image.manifest_digest).map_err(io::Error::other)?;
            if written.insert(image.manifest_digest) {
                document(&mut tar, &blob_path(image.manifest_digest), &manifest)?;
            }
            for blob in blobs(image).filter(|blob| written.insert(blob.digest)) {
                let file = self.store.content.open_blob(blob.digest).map_err(io::Error::other)?;
                let header = header(tar::EntryType::Regular, 0o644, blob.size);
                append(&mut tar, header, blob_path(blob.digest).as_bytes(), file)?;
            }
            let unnamed = Descriptor {
                platform: Some(image.config.platform()),
                ..descriptor(&image.manifest.media_type, image.manifest_digest, manifest.len() as u64)
            };
            manifests.extend(entries(&unnamed, tags));
            docker.push(json!({
                "Config": blob_path(image.id),
                "RepoTags": tags.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": image.manifest.layers.iter().map(|layer| blob_path(layer.digest)).collect::<Vec<_>>(),
            }));
        }
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests };
        document(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        document(&mut tar, "manifest.json", &serde_json::to_vec(&docker)?)?;
        document(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.into_inner()?.flush()
    }
}

/// What an image has beside its manifest.
fn blobs(image: &Image) -> impl Iterator<Item = &Descriptor> {
    image.manifest.layers.iter().chain([&image.manifest.config])
}
