//! Image archives: one tar that is both an OCI image layout and what `docker save` writes.
//!
//! Comes in: a folder with the image's files and its configuration. Goes out: the archive, with one uncompressed layer;
//! equal files give equal bytes. Formats: OCI image spec 1.1 (image-layout.md, config.md, manifest.md), and Docker's
//! `manifest.json` beside it, which carries the name.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The `config` object of an image configuration; absent fields are left out.
#[derive(Serialize, Deserialize, Default, Debug, Clone)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

/// Writes the archive of an image called `name:latest` whose files are those below `root`.
pub(crate) fn write(archive: &Path, name: &str, root: &Path, config: &Config) -> Result<()> {
    // Put in place when whole: a broken archive would be taken for a fresh one.
    let part = archive.with_extension("part");
    fill(&part, name, root, config).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, archive).with_context(|| format!("put {} in place", archive.display()))
}

fn fill(part: &Path, name: &str, root: &Path, config: &Config) -> Result<()> {
    let layer_path = part.with_extension("layer");
    let (layer_digest, layer_size) = layer(&layer_path, root)?;
    let image = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": format!("cargo xtask images {name}") }],
    });
    let image = image.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest(&image), image.len() as u64),
        "layers": [descriptor(LAYER, &layer_digest, layer_size)],
    });
    let manifest = manifest.to_string();
    let mut entry = descriptor(MANIFEST, &digest(&manifest), manifest.len() as u64);
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{name}:latest"),
        "org.opencontainers.image.ref.name": "latest",
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    let docker = json!([{
        "Config": blob(&digest(&image)),
        "RepoTags": [format!("{name}:latest")],
        "Layers": [blob(&layer_digest)],
    }]);
    let mut tar = tar::Builder::new(File::create(part)?);
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut tar, "index.json", index.as_bytes())?;
    add(&mut tar, "manifest.json", docker.to_string().as_bytes())?;
    add(&mut tar, &blob(&digest(&manifest)), manifest.as_bytes())?;
    add(&mut tar, &blob(&digest(&image)), image.as_bytes())?;
    let header = &mut header(layer_size);
    tar.append_data(header, blob(&layer_digest), File::open(&layer_path)?)?;
    tar.into_inner()?.flush()?;
    fs::remove_file(&layer_path)?;
    Ok(())
}

/// Writes a folder's files as a layer; its digest and length in bytes.
fn layer(path: &Path, root: &Path) -> Result<(String, u64)> {
    let mut tar =
        crate::process::command("tar", ["--create", "--sort=name", "--mtime=@0", "--numeric-owner", "--format=pax"]);
    // Without these two the archive would name the time and the process that made it.
    tar.arg("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime");
    tar.arg("--file").arg(path).arg("--directory").arg(root).arg(".");
    crate::process::output(&mut tar)?;
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok((hex::encode(hash.finalize()), file.seek(SeekFrom::End(0))?))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn add(tar: &mut tar::Builder<File>, path: &str, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64), path, content)?;
    Ok(())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// The processor's name as images have it (Go's GOARCH).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_whole_and_the_same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("hello"), "world").unwrap();
        let config = Config { cmd: vec!["/hello".to_owned()], ..Config::default() };
        let [first, second] = ["a.tar", "b.tar"].map(|name| folder.path().join(name));
        write(&first, "hello", &root, &config).unwrap();
        write(&second, "hello", &root, &config).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

        // Every blob is what its name says.
        let mut archive = tar::Archive::new(File::open(&first).unwrap());
        let mut blobs = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if path.starts_with("blobs/sha256") {
                blobs += 1;
                assert_eq!(path.file_name().unwrap().to_str().unwrap(), hex::encode(Sha256::digest(&content)));
            }
        }
        assert_eq!(blobs, 3);
    }
}
