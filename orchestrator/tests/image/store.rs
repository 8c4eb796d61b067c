//! Images from archives to mounted roots: loading, names, removal, crash leftovers, overlay mounts.
//!
//! Needs root (owners, mounts); says so and passes where there is none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use orchestrator::image::archive::Builder;
use orchestrator::image::{
    Config, Digest, Error, Event, Image, Images, Mounted, Phase, Platform, Progress, Reference, silent,
};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::json;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: owners and mounts need root");
    }
    root
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// An image of two layers: one shared by all of these, one with `content`.
fn archive(name: Option<&str>, content: &str) -> Vec<u8> {
    archive_for(Platform::host(), name, content)
}

fn archive_for(platform: Platform, name: Option<&str>, content: &str) -> Vec<u8> {
    let mut builder = Builder::new(platform)
        .layer_files([("etc/base", 0o644, &b"base"[..]), ("bin/su", 0o4755, b"#!")])
        .and_then(|builder| builder.layer_files([("content", 0o600, content.as_bytes())]))
        .unwrap();
    builder.config.entrypoint = vec!["/bin/su".to_owned()];
    builder.config.env = vec!["A=b".to_owned()];
    builder = name.into_iter().fold(builder, |builder, name| builder.name(reference(name)));
    let mut archive = Vec::new();
    builder.write(&mut archive).unwrap();
    archive
}

async fn load(images: &Images, archive: Vec<u8>) -> Image {
    let mut loaded = images.load(Cursor::new(archive), &silent()).await.unwrap();
    assert_eq!(loaded.len(), 1);
    loaded.remove(0).image
}

/// The files of an uncompressed tar.
fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.insert(name, content);
    }
    members
}

fn tar_of(members: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn archives_of_all_kinds_load_to_the_same_image() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let plain = archive(Some("app:v1"), "one");
    let expected = load(&images, plain.clone()).await;
    assert_eq!(expected.tags.iter().map(Reference::familiar).collect::<Vec<_>>(), ["app:v1"]);
    assert_eq!(expected.config.config.entrypoint, ["/bin/su"]);
    assert_eq!(expected.config.config.env, ["A=b"]);

    let gzip = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = compress_to_vec(&plain[..], CompressionLevel::Fastest);
    let all = members(&plain);
    let without = |names: &[&str]| tar_of(all.clone().into_iter().filter(|(name, _)| !names.contains(&name.as_str())));
    // The order of members is the writer's.
    let reversed = tar_of(all.clone().into_iter().rev());
    for archive in [gzip, zstd, reversed, without(&["manifest.json"])] {
        assert_eq!(load(&images, archive).await, expected);
    }
    // `docker save` before OCI layouts has no manifest; the id, which comes from the configuration, is the same.
    let docker_only = load(&images, without(&["index.json", "oci-layout"])).await;
    assert_eq!((docker_only.id, &docker_only.tags, docker_only.config), (expected.id, &expected.tags, expected.config));
    assert_eq!(images.list().len(), 1);
}

#[tokio::test]
async fn saved_images_load_as_they_were() {
    if !is_root() {
        return;
    }
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = Images::open(state.path(), Config::default()).unwrap();
    let one = load(&images, archive(Some("app:v1"), "one")).await;
    images.tag("app:v1", &reference("app:stable")).await.unwrap();
    let two = load(&images, archive(None, "two")).await;
    let save = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut archive = Vec::new();
        images.save(&names).unwrap().write(&mut archive).unwrap();
        archive
    };

    let saved = save(&["app:v1", "app:stable", &two.id.to_string(), "app:v1"]);
    let all = members(&saved);
    // Two manifests, two configurations, two layers of their own and one that they share.
    assert_eq!(all.keys().filter(|name| name.starts_with("blobs/sha256/")).count(), 7);
    let docker: serde_json::Value = serde_json::from_slice(&all["manifest.json"]).unwrap();
    let tags: Vec<_> = docker.as_array().unwrap().iter().map(|image| image["RepoTags"].clone()).collect();
    assert!(tags.contains(&json!(["app:stable", "app:v1"])) && tags.contains(&json!([])), "{docker}");

    let docker_only =
        tar_of(all.clone().into_iter().filter(|(name, _)| !["index.json", "oci-layout"].contains(&name.as_str())));
    for archive in [saved, docker_only] {
        let fresh = tempfile::tempdir_in(other.path()).unwrap();
        let fresh = Images::open(fresh.path(), Config::default()).unwrap();
        fresh.load(Cursor::new(archive), &silent()).await.unwrap();
        let mut expected = vec![(one.id, 2), (two.id, 0)];
        expected.sort();
        assert_eq!(fresh.list().iter().map(|image| (image.id, image.tags.len())).collect::<Vec<_>>(), expected);
    }
    // Only the names that were asked for.
    let docker: serde_json::Value = serde_json::from_slice(&members(&save(&["app:v1"]))["manifest.json"]).unwrap();
    assert_eq!(docker[0]["RepoTags"], json!(["app:v1"]));
    let names = ["app:v1".to_owned(), "gone".to_owned()];
    assert!(matches!(images.save(&names), Err(Error::NoSuchImage { .. })));
}

#[tokio::test]
async fn old_docker_archives_with_linked_layers_load() {
    if !is_root() {
        return;
    }
    let all = members(&archive(None, "one"));
    let manifest: serde_json::Value = serde_json::from_slice(&all["manifest.json"]).unwrap();
    let blob = |path: &serde_json::Value| all[path.as_str().unwrap()].clone();
    let mut config: serde_json::Value = serde_json::from_slice(&blob(&manifest[0]["Config"])).unwrap();
    let (first, layer) = (config["rootfs"]["diff_ids"][0].clone(), blob(&manifest[0]["Layers"][0]));
    config["rootfs"]["diff_ids"] = json!([first, first]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("a/layer.tar", &layer);
    add("config.json", config.to_string().as_bytes());
    let list =
        json!([{"Config": "config.json", "RepoTags": ["old:1", "older:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    add("manifest.json", list.to_string().as_bytes());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();

    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let image = load(&images, tar.into_inner().unwrap()).await;
    assert_eq!(image.tags, ["old:1", "older:1"].map(reference).into());
    assert_eq!(image.config.rootfs.diff_ids.len(), 2);
}

#[tokio::test]
async fn the_nodes_platform_is_chosen_from_an_archive() {
    if !is_root() {
        return;
    }
    let foreign = || "linux/s390x".parse::<Platform>().unwrap();
    let (own, other) = (members(&archive(None, "own")), members(&archive_for(foreign(), None, "other")));
    let entry = |members: &BTreeMap<String, Vec<u8>>| {
        serde_json::from_slice::<serde_json::Value>(&members["index.json"]).unwrap()["manifests"][0].clone()
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry(&other), entry(&own)]}).to_string().into_bytes();
    let digest = Digest::of(&index);
    let top = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": index.len(),
        "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"}}]});
    let blobs = |members: BTreeMap<String, Vec<u8>>| members.into_iter().filter(|(name, _)| name.starts_with("blobs/"));
    let rest =
        [("index.json".to_owned(), top.to_string().into_bytes()), (format!("blobs/sha256/{}", digest.hex()), index)];
    let archive = tar_of(blobs(own).chain(blobs(other)).chain(rest));

    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let image = load(&images, archive).await;
    assert_eq!(image.config.platform(), Platform::host());
    assert!(image.tags.contains(&reference("multi:1")));

    let error = images.load(Cursor::new(archive_for(foreign(), Some("far:1"), "x")), &silent()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("image far:1 has no variant for {}; it has linux/s390x", Platform::host()));
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let good = archive(Some("app:v1"), "one");
    let all = members(&good);
    let config: serde_json::Value = serde_json::from_slice(&all["manifest.json"]).unwrap();
    let layer = config[0]["Layers"][1].as_str().unwrap().to_owned();
    let without_layer = tar_of(all.clone().into_iter().filter(|(name, _)| *name != layer));
    let mut tampered = all.clone();
    tampered.get_mut(&layer).unwrap()[600] ^= 1;
    // Without the index only the diff id tells that the layer is not the image's.
    let mut tampered_docker = tampered.clone();
    tampered_docker.retain(|name, _| name != "index.json" && name != "oci-layout");
    for (archive, expected) in [
        (b"hello".to_vec(), "not an image archive: malformed tar archive"),
        (Vec::new(), "neither index.json nor manifest.json"),
        (tar_of([]), "neither index.json nor manifest.json"),
        (tar_of([("manifest.json".to_owned(), b"[]".to_vec())]), "neither index.json nor manifest.json"),
        (tar_of([("index.json".to_owned(), br#"{"schemaVersion":2,"manifests":[]}"#.to_vec())]), "has no image"),
        (
            tar_of([("manifest.json".to_owned(), br#"[{"Config":"../../etc/passwd","Layers":[]}]"#.to_vec())]),
            "which it does not have",
        ),
        (without_layer, "layer sha256:"),
        (tar_of(tampered), "layer sha256:"),
        (tar_of(tampered_docker), "cannot be unpacked"),
        (good[..good.len() / 2].to_vec(), "ends within"),
    ] {
        let error = images.load(Cursor::new(archive), &silent()).await.unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains(expected), "{text} should say {expected:?}");
    }
    // A member that takes the place of another does not take its digest.
    let forged = all.iter().map(|(name, content)| (name.clone(), content.clone()));
    let forged = tar_of(forged.chain([(layer.clone(), b"forged".to_vec())]));
    let error = images.load(Cursor::new(forged), &silent()).await.unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    assert!(!fs::exists(state.path().join("images").join(&layer)).unwrap());
    assert_eq!(images.list(), []);
    assert_eq!(fs::read_dir(state.path().join("images/tmp")).unwrap().count(), 0);
    images.prune(true).await.unwrap();
    let usage = images.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.layers), (0, 0));
}

#[tokio::test]
async fn names_move_share_layers_and_are_removed() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let one = load(&images, archive(Some("app:v1"), "one")).await;
    let two = load(&images, archive(Some("app:v2"), "two")).await;
    assert_eq!(one.config.rootfs.diff_ids[0], two.config.rootfs.diff_ids[0]);
    let layers = || fs::read_dir(state.path().join("images/layers")).unwrap().count();
    assert_eq!(layers(), 3, "the common layer is there once");

    images.tag("app:v1", &reference("app:stable")).await.unwrap();
    assert_eq!(images.get("app:stable").unwrap().id, one.id);
    assert_eq!(images.get(&one.id.to_string()).unwrap().id, one.id);
    assert_eq!(images.get(&one.id.short()).unwrap().id, one.id);
    assert!(matches!(images.get("nosuch"), Err(Error::NoSuchImage { .. })));
    assert!(matches!(images.get("No Such"), Err(Error::InvalidReference(_))));

    assert!(matches!(images.remove(&one.id.short(), false).await, Err(Error::SeveralNames { .. })));
    let removed = images.remove("app:stable", false).await.unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["docker.io/library/app:stable".to_owned()], vec![]));

    // Another image takes the tag; the old one stays without a name until pruned.
    let three = load(&images, archive(Some("app:v1"), "three")).await;
    assert_eq!(images.get("app:v1").unwrap().id, three.id);
    assert_eq!(images.get(&one.id.short()).unwrap().tags.len(), 0);
    let pruned = images.prune(false).await.unwrap();
    assert_eq!(pruned.deleted, [one.id]);
    assert!(pruned.reclaimed > 0);
    assert_eq!(layers(), 3);

    images.remove("app:v1", false).await.unwrap();
    images.remove("app:v2", false).await.unwrap();
    assert_eq!((images.list().len(), layers()), (0, 0));
    assert_eq!(fs::read_dir(state.path().join("images/blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_store_survives_crashes_and_damage() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let path = |relative: &str| state.path().join("images").join(relative);
    let images = Images::open(state.path(), Config::default()).unwrap();
    let image = load(&images, archive(Some("app:v1"), "one")).await;
    let damaged = load(&images, archive(Some("bad:v1"), "two")).await;
    assert!(matches!(Images::open(state.path(), Config::default()), Err(Error::Locked { .. })));
    drop(images);

    // What a crash leaves: half a layer, half a file, half an index that was never renamed.
    fs::create_dir_all(path("tmp/.tmpX/layer/fs/etc")).unwrap();
    fs::write(path("tmp/.tmpY"), "half").unwrap();
    fs::write(path("tmp/.tmpZ"), "{\"version\":1,").unwrap();
    // What a worn card leaves: a manifest cut short.
    let manifest = path("blobs/sha256").join(damaged.manifest_digest.hex());
    fs::write(&manifest, &fs::read(&manifest).unwrap()[..20]).unwrap();

    let images = Images::open(state.path(), Config::default()).unwrap();
    assert_eq!(images.list(), std::slice::from_ref(&image));
    assert_eq!(fs::read_dir(path("tmp")).unwrap().count(), 0);

    // Loading again repairs it: the damaged blob is replaced.
    assert_eq!(load(&images, archive(Some("bad:v1"), "two")).await, damaged);
    drop(images);
    // A layer that is gone takes its image with it, and only that.
    fs::remove_dir_all(path("layers").join(damaged.config.rootfs.diff_ids[1].hex())).unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    assert_eq!(images.list(), [image]);
    drop(images);
    fs::write(path("index.json"), "{").unwrap();
    assert!(
        matches!(Images::open(state.path(), Config::default()), Err(Error::Io { .. })),
        "a damaged index is not silently emptied"
    );
}

#[tokio::test]
async fn loading_tells_what_happens_to_each_layer() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let progress: Progress = {
        let events = Arc::clone(&events);
        Arc::new(move |event: Event| events.lock().unwrap().push(event.phase))
    };
    images.load(Cursor::new(archive(Some("app:v1"), "one")), &progress).await.unwrap();
    images.load(Cursor::new(archive(Some("app:v2"), "two")), &progress).await.unwrap();
    let expected =
        [Phase::Unpacking, Phase::Done, Phase::Unpacking, Phase::Done, Phase::Exists, Phase::Unpacking, Phase::Done];
    assert_eq!(*events.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    rustix::mount::mount("tmpfs", state.path(), "tmpfs", rustix::mount::MountFlags::empty(), c"size=2m").unwrap();
    let _cleanup = Unmount(state.path());
    let images = Images::open(state.path(), Config::default()).unwrap();
    let small = load(&images, archive(Some("app:v1"), "one")).await;
    // One fails while it is spooled, the other, whose content is mostly zeros, while it is unpacked.
    let large = archive(Some("large:v1"), &"x".repeat(4 << 20));
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&archive(Some("large:v1"), &"x".repeat(1200 << 10))).unwrap();
    for archive in [large, compressed.finish().unwrap()] {
        let error = images.load(Cursor::new(archive), &silent()).await.unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
        assert!(error.to_string().contains("edgectl image prune"), "{error}");
    }
    assert_eq!(fs::read_dir(state.path().join("images/tmp")).unwrap().count(), 0);
    images.prune(false).await.unwrap();
    assert_eq!(images.list(), [small]);
    load(&images, archive(Some("app:v2"), "two")).await;
}

/// Undoes a mount whatever happens to the test.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn roots_are_mounted_written_kept_and_discarded() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let image = load(&images, archive(Some("app:v1"), "one")).await;
    let target = state.path().join("containers/web.1.x/rootfs");
    let _cleanup = Unmount(&target);
    images.mount(image.id, "web.1.x", &target).await.unwrap();
    images.mount(image.id, "web.1.x", &target).await.unwrap();
    let expected = Mounted { task: "web.1.x".to_owned(), target: target.clone() };
    assert_eq!(images.mounted().await.unwrap(), std::slice::from_ref(&expected), "mounting twice mounts once");
    assert_eq!(fs::read_to_string(target.join("content")).unwrap(), "one");
    let mode = |path: &str| std::os::unix::fs::MetadataExt::mode(&fs::metadata(target.join(path)).unwrap()) & 0o7777;
    assert_eq!((mode("bin/su"), mode("content"), mode("")), (0o4755, 0o600, 0o755));
    fs::write(target.join("content"), "changed").unwrap();
    fs::remove_file(target.join("etc/base")).unwrap();

    // In use, by name and by the kernel, also for a daemon that has just started.
    assert_eq!(images.users(image.id), ["web.1.x"]);
    drop(images);
    let images = Images::open(state.path(), Config::default()).unwrap();
    assert_eq!(images.mounted().await.unwrap(), [expected]);
    let error = images.remove("app:v1", true).await.unwrap_err();
    assert_eq!(error.to_string(), "image app:v1 is in use by web.1.x: remove the service or task first");
    assert_eq!(images.prune(true).await.unwrap().deleted, []);

    images.unmount("web.1.x").await.unwrap();
    images.unmount("web.1.x").await.unwrap();
    assert_eq!((images.mounted().await.unwrap(), images.tasks().await.unwrap()), (vec![], vec!["web.1.x".to_owned()]));
    images.mount(image.id, "web.1.x", &target).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("content")).unwrap(), "changed", "what the task wrote is kept");
    assert!(!fs::exists(target.join("etc/base")).unwrap());

    // A second task of the image sees nothing of it, and a mount with open files goes too.
    let other = state.path().join("other");
    let _cleanup_other = Unmount(&other);
    images.mount(image.id, "web.2.y", &other).await.unwrap();
    assert_eq!(fs::read_to_string(other.join("content")).unwrap(), "one");
    let held = fs::File::open(other.join("content")).unwrap();
    for task in ["web.1.x", "web.2.y", "web.2.y", "never"] {
        images.discard(task).await.unwrap();
    }
    drop(held);
    assert_eq!(
        (images.mounted().await.unwrap(), images.tasks().await.unwrap(), images.users(image.id)),
        (vec![], vec![], vec![])
    );
    images.remove("app:v1", false).await.unwrap();
    assert!(matches!(images.mount(image.id, "web.3.z", &target).await, Err(Error::NoSuchImage { .. })));
}

#[tokio::test]
async fn many_layers_and_whiteouts_are_merged() {
    if !is_root() {
        return;
    }
    const LAYERS: usize = 120;
    let mut builder = Builder::new(Platform::host()).name(reference("deep:1"));
    for layer in 0..LAYERS {
        let content = layer.to_string();
        let hidden = format!("gone/.wh.{}", layer.saturating_sub(1));
        let mut files = vec![
            ("top".to_owned(), content.clone()),
            (format!("kept/{layer}"), content.clone()),
            (format!("gone/{layer}"), content),
        ];
        if layer > 0 {
            files.push((hidden, String::new()));
        }
        if layer == LAYERS / 2 {
            files.push(("kept/.wh..wh..opq".to_owned(), String::new()));
        }
        builder = builder
            .layer_files(files.iter().map(|(path, content)| (path.as_str(), 0o644, content.as_bytes())))
            .unwrap();
    }
    let mut archive = Vec::new();
    builder.write(&mut archive).unwrap();

    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    let image = load(&images, archive).await;
    let target = state.path().join("root");
    let _cleanup = Unmount(&target);
    images.mount(image.id, "deep", &target).await.unwrap();
    let names = |path: &str| {
        let mut names: Vec<usize> = fs::read_dir(target.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        names.sort_unstable();
        names
    };
    assert_eq!(fs::read_to_string(target.join("top")).unwrap(), (LAYERS - 1).to_string());
    assert_eq!(names("gone"), [LAYERS - 1]);
    assert_eq!(names("kept"), (LAYERS / 2..LAYERS).collect::<Vec<_>>());
    images.discard("deep").await.unwrap();
}

#[test]
fn equal_directories_give_equal_archives() {
    let write = |directory: &Path| {
        fs::create_dir_all(directory.join("b/c")).unwrap();
        fs::write(directory.join("b/file"), "x").unwrap();
        fs::hard_link(directory.join("b/file"), directory.join("b/again")).unwrap();
        std::os::unix::fs::symlink("/b/file", directory.join("a")).unwrap();
        let mut archive = Vec::new();
        Builder::new(Platform::host())
            .name(reference("app:1"))
            .layer_directory(directory)
            .unwrap()
            .write(&mut archive)
            .unwrap();
        archive
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(Digest::of(&write(one.path())), Digest::of(&write(two.path())));
}
