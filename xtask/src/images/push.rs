//! Pushing an archive's image to a registry that a place of the lab reaches, by the distribution spec 1.1 (push.md).
//!
//! Comes in: an archive of `super::archive`, a place, a repository's URL. Goes out: the image in the registry. curl does
//! the talking, since the registry is in another network namespace.

use super::archive::MANIFEST;
use crate::{lab, process};
use anyhow::{Context, Result};
use lab::topology::{Folder, Place};
use std::{
    fs::{self, File},
    path::Path,
};

/// Pushes the image of an archive as `http://REGISTRY/v2/NAME`, tag `latest`.
pub(crate) fn push(folder: &Folder, from: Place, archive: &Path, registry: &str, name: &str) -> Result<()> {
    let scratch = super::Scratch::new("push")?;
    let archive_file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    tar::Archive::new(archive_file).unpack(scratch.path()).with_context(|| format!("unpack {}", archive.display()))?;
    let index = read_json(&scratch.path().join("index.json"))?;
    let manifest_digest = index["manifests"][0]["digest"].as_str().context("the archive's index names no manifest")?;
    let manifest_path = blob(scratch.path(), manifest_digest);
    let manifest = read_json(&manifest_path)?;
    let layers = manifest["layers"].as_array().context("the manifest has no layers")?.iter();
    let repository = format!("http://{registry}/v2/{name}");
    for descriptor in layers.chain([&manifest["config"]]) {
        let digest = descriptor["digest"].as_str().context("a descriptor has no digest")?;
        let location = curl(
            folder,
            from,
            &["--request", "POST", "--write-out", "%header{location}", &format!("{repository}/blobs/uploads/")],
        )?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let to = format!("{location}{separator}digest={digest}");
        put(folder, from, &blob(scratch.path(), digest), "application/octet-stream", &to)?;
    }
    put(folder, from, &manifest_path, MANIFEST, &format!("{repository}/manifests/latest"))
}

fn put(folder: &Folder, from: Place, file: &Path, media_type: &str, url: &str) -> Result<()> {
    let file = file.to_string_lossy();
    let media_type = format!("Content-Type: {media_type}");
    curl(folder, from, &["--header", &media_type, "--upload-file", &file, url]).map(drop)
}

fn curl(folder: &Folder, from: Place, args: &[&str]) -> Result<String> {
    let words: Vec<&str> =
        ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null"].iter().chain(args).copied().collect();
    process::output(&mut lab::command_in(folder, from, &words)?)
}

fn blob(folder: &Path, digest: &str) -> std::path::PathBuf {
    folder.join("blobs").join(digest.replace(':', "/"))
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}
