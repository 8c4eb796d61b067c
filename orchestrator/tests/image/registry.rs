//! Pulling and pushing against a real registry on loopback, behind a front that misbehaves.
//!
//! Needs root (layers have owners) and the registry; says so and passes where one is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Cursor;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use orchestrator::image::archive::Builder;
use orchestrator::image::{
    Config, Credentials, Digest, Error, Event, Image, Images, Phase, Platform, Policy, Progress, Reference, silent,
};
use serde_json::json;

use super::front::{DEADLINE, Front, Mode, PASSWORD, Registry, TOKEN, USER};

/// A store of its own.
struct Node {
    images: Images,
    state: tempfile::TempDir,
}

impl Node {
    fn new(platform: Platform) -> Self {
        let state = tempfile::tempdir().unwrap();
        let images = Images::open(state.path(), Config { platform, ..Config::default() }).unwrap();
        Self { images, state }
    }

    fn host() -> Self {
        Self::new(Platform::host())
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.state.path().join("images/blobs/sha256")).unwrap().count()
    }
}

/// Bytes that do not compress and differ by seed.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(seed);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Loads an image of three large layers on a node of its own and pushes it under `name`.
async fn publish(name: &str, platform: Platform, seed: u8, credentials: Option<&Credentials>) -> Image {
    let reference: Reference = name.parse().unwrap();
    let mut builder = Builder::new(platform.clone()).name(reference.clone());
    for layer in 0..3 {
        let content = noise(seed.wrapping_add(layer), (1 << 20) + usize::from(layer) * 1000);
        builder = builder.layer_files([(format!("layer{layer}").as_str(), 0o644, &content[..])]).unwrap();
    }
    let mut archive = Vec::new();
    builder.write(&mut archive).unwrap();
    let node = Node::new(platform);
    node.images.load(Cursor::new(archive), &silent()).await.unwrap();
    node.images.push(&reference, credentials, &silent()).await.unwrap()
}

async fn pull(node: &Node, name: &str) -> Result<Image, Error> {
    node.images.pull(&name.parse().unwrap(), None, None, Policy::Always, &silent()).await
}

fn basic(password: &str) -> Credentials {
    Credentials::Basic { username: USER.to_owned(), password: password.to_owned() }
}

#[tokio::test]
async fn an_image_is_pushed_and_pulled_and_shares_what_is_there() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    let pushed = publish(&name, Platform::host(), 1, None).await;

    let node = Node::host();
    let pulled = pull(&node, &name).await.unwrap();
    assert_eq!((pulled.id, pulled.manifest_digest, pulled.size), (pushed.id, pushed.manifest_digest, pushed.size));
    assert_eq!(pulled.tags, [name.parse().unwrap()].into());
    assert_eq!(
        fs::read(layer_path(&node, pulled.config.rootfs.diff_ids[2]).join("layer2")).unwrap(),
        noise(3, (1 << 20) + 2000)
    );
    assert_eq!(front.take_blobs().len(), 4, "three layers and the configuration, once each");

    // Nothing is fetched again, neither by tag nor by digest; two pulls at once fetch everything once.
    pull(&node, &name).await.unwrap();
    let pinned: Reference = format!("{}/team/app@{}", front.address, pushed.manifest_digest).parse().unwrap();
    let resolved = node.images.resolve(&name.parse().unwrap(), None).await.unwrap();
    assert_eq!((resolved.digest, resolved.platforms), (pushed.manifest_digest, vec![Platform::host()]));
    assert_eq!(front.take_blobs(), []);
    let fresh = Node::host();
    let (one, two) = tokio::join!(pull(&fresh, &name), pull(&fresh, &name));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(front.take_blobs().len(), 4);

    // What is here needs no registry.
    drop(registry);
    for (reference, policy) in
        [(name.parse().unwrap(), Policy::IfMissing), (pinned.clone(), Policy::IfMissing), (pinned, Policy::Always)]
    {
        assert_eq!(node.images.pull(&reference, None, None, policy, &silent()).await.unwrap().id, pushed.id);
    }
}

fn layer_path(node: &Node, diff_id: Digest) -> PathBuf {
    node.state.path().join("images/layers").join(diff_id.hex()).join("fs")
}

#[tokio::test]
async fn basic_authentication_is_honoured() {
    let Some(registry) = Registry::start(true) else { return };
    let name = format!("{}/team/app:v1", registry.address);
    let pushed = publish(&name, Platform::host(), 1, Some(&basic(PASSWORD))).await;
    let node = Node::host();
    let reference: Reference = name.parse().unwrap();
    for credentials in [None, Some(basic("wrong"))] {
        let error =
            node.images.pull(&reference, credentials.as_ref(), None, Policy::Always, &silent()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("needs credentials"), "{error}");
    }
    let pulled = node.images.pull(&reference, Some(&basic(PASSWORD)), None, Policy::Always, &silent()).await.unwrap();
    assert_eq!(pulled.id, pushed.id);
}

#[tokio::test]
async fn token_authentication_is_honoured() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    let pushed = publish(&name, Platform::host(), 1, None).await;
    front.set(Mode::Token);
    let node = Node::host();
    let reference: Reference = name.parse().unwrap();
    for credentials in [None, Some(basic("wrong")), Some(Credentials::Bearer("wrong".to_owned()))] {
        let error =
            node.images.pull(&reference, credentials.as_ref(), None, Policy::Always, &silent()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    }
    for credentials in [basic(PASSWORD), Credentials::Bearer(TOKEN.to_owned())] {
        let pulled = node.images.pull(&reference, Some(&credentials), None, Policy::Always, &silent()).await.unwrap();
        assert_eq!(pulled.id, pushed.id);
        node.images.remove(&name, true).await.unwrap();
    }
}

#[tokio::test]
async fn broken_downloads_go_on_where_they_broke() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    publish(&name, Platform::host(), 1, None).await;
    front.set(Mode::Break(400 << 10));
    let node = Node::host();
    pull(&node, &name).await.unwrap();
    let mut starts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    front.take_blobs().into_iter().for_each(|(digest, start)| starts.entry(digest).or_default().push(start));
    let resumed: Vec<&Vec<u64>> = starts.values().filter(|starts| starts.len() > 1).collect();
    assert_eq!(resumed.len(), 3, "each layer broke: {starts:?}");
    for starts in resumed {
        assert!(starts.is_sorted_by(|a, b| a < b), "every request starts further on: {starts:?}");
    }
}

#[tokio::test]
async fn a_stopped_pull_is_continued_by_the_next_process() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    publish(&name, Platform::host(), 1, None).await;
    front.set(Mode::Stall(600 << 10));
    let Node { images, state } = Node::host();
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let progress: Progress = Arc::new(move |event: Event| _ = sender.send(event));
    let reference = name.parse().unwrap();
    let far_enough = async {
        let mut far = BTreeSet::new();
        while far.len() < 3 {
            let event = events.recv().await.unwrap();
            if event.phase == Phase::Downloading && event.current >= 256 << 10 {
                far.insert(event.layer);
            }
        }
    };
    tokio::select! {
        result = images.pull(&reference, None, None, Policy::Always, &progress) => panic!("the pull ended: {result:?}"),
        result = tokio::time::timeout(DEADLINE, far_enough) => result.unwrap(),
    }
    assert_eq!(images.list(), []);
    drop(images);
    front.set(Mode::Pass);
    front.take_blobs();
    // The writers end soon after the pull; until then they hold the store.
    let end = Instant::now() + DEADLINE;
    let images = loop {
        match Images::open(state.path(), Config::default()) {
            Ok(images) => break images,
            Err(Error::Locked { .. }) if Instant::now() < end => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(images.usage().await.unwrap().downloads >= 3 * (256 << 10));
    let node = Node { images, state };
    pull(&node, &name).await.unwrap();
    let starts: Vec<u64> = front.take_blobs().into_iter().map(|(_, start)| start).filter(|start| *start > 0).collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts.iter().all(|start| *start >= 256 << 10), "{starts:?}");
    assert_eq!(node.images.usage().await.unwrap().downloads, 0);
}

#[tokio::test]
async fn damaged_beginnings_are_fetched_again() {
    let Some(registry) = Registry::start(false) else { return };
    let name = format!("{}/team/app:v1", registry.address);
    let pushed = publish(&name, Platform::host(), 1, None).await;
    let node = Node::host();
    let path =
        |layer: usize| node.state.path().join("images/downloads").join(pushed.manifest.layers[layer].digest.hex());
    fs::write(path(0), vec![0; 1000]).unwrap();
    fs::write(path(1), vec![0; 8 << 20]).unwrap();
    fs::write(path(2), vec![0; usize::try_from(pushed.manifest.layers[2].size).unwrap()]).unwrap();
    assert_eq!(pull(&node, &name).await.unwrap().id, pushed.id);
}

#[tokio::test]
async fn content_that_was_damaged_later_is_fetched_again() {
    let Some(registry) = Registry::start(false) else { return };
    let name = format!("{}/team/app:v1", registry.address);
    let pushed = publish(&name, Platform::host(), 1, None).await;
    let Node { images, state } = Node::host();
    images.pull(&name.parse().unwrap(), None, None, Policy::Always, &silent()).await.unwrap();
    drop(images);
    for damaged in [pushed.id, pushed.manifest_digest, pushed.manifest.layers[0].digest] {
        let path = state.path().join("images/blobs/sha256").join(damaged.hex());
        let mut content = fs::read(&path).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(&path, content).unwrap();
    }
    fs::remove_dir_all(state.path().join("images/layers").join(pushed.config.rootfs.diff_ids[0].hex())).unwrap();
    let images = Images::open(state.path(), Config::default()).unwrap();
    assert_eq!(images.list(), [], "what is damaged is not offered");
    let node = Node { images, state };
    assert_eq!(pull(&node, &name).await.unwrap().id, pushed.id);
    let layer = layer_path(&node, pushed.config.rootfs.diff_ids[0]).join("layer0");
    assert_eq!(Digest::of(&fs::read(layer).unwrap()), Digest::of(&noise(1, 1 << 20)));
}

#[tokio::test]
async fn registries_are_asked_whether_they_take_credentials() {
    let Some(registry) = Registry::start(true) else { return };
    let front = Front::start(&registry).await;
    let node = Node::host();
    let reference: Reference = format!("{}/team/app", front.address).parse().unwrap();
    // By a password file first, then by a token server.
    for mode in [Mode::Pass, Mode::Token] {
        front.set(mode);
        let refused = node.images.log_in(&reference, &basic("wrong")).await;
        assert!(matches!(refused, Err(Error::Unauthorized { .. })), "{refused:?}");
        if mode == Mode::Pass {
            node.images.log_in(&reference, &basic(PASSWORD)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_manifest_without_end_is_refused() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    let image = publish(&name, Platform::host(), 1, None).await;
    front.set(Mode::EndlessManifest);
    let node = Node::host();
    let pinned = format!("{}/team/app@{}", front.address, image.manifest_digest);
    for name in [&name, &pinned] {
        let refused = tokio::time::timeout(DEADLINE, pull(&node, name)).await.expect("it does not read on");
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    }
}

#[tokio::test]
async fn tampered_content_is_never_used() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let name = format!("{}/team/app:v1", front.address);
    publish(&name, Platform::host(), 1, None).await;
    let node = Node::host();
    for mode in [Mode::TamperLayer, Mode::TamperManifest] {
        front.set(mode);
        let error = pull(&node, &name).await.unwrap_err();
        assert!(matches!(error, Error::WrongDigest { .. }), "{error:?}");
    }
    assert_eq!(node.images.list(), []);
    assert_eq!(fs::read_dir(node.state.path().join("images/layers")).unwrap().count(), 0);
    node.images.prune(true).await.unwrap();
    assert_eq!(node.blobs(), 0);
    // What follows a layer is not read.
    front.set(Mode::Longer);
    pull(&node, &name).await.unwrap();
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index_or_the_choice_is_listed() {
    let Some(registry) = Registry::start(false) else { return };
    let address = registry.address;
    let mut entries = Vec::new();
    for (seed, platform) in [(10, "linux/arm64/v8"), (20, "linux/arm/v7"), (30, "linux/amd64")] {
        let platform: Platform = platform.parse().unwrap();
        let image =
            publish(&format!("{address}/team/app:{}", platform.architecture), platform.clone(), seed, None).await;
        let size = serde_json::to_vec(&image.manifest).unwrap().len();
        entries.push(json!({"mediaType": image.manifest.media_type, "digest": image.manifest_digest, "size": size, "platform": platform}));
    }
    entries.push(
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": entries[0]["digest"], "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"}}),
    );
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
    let request = Request::put(format!("http://{address}/v2/team/app/manifests/multi"))
        .header(header::CONTENT_TYPE, media_type)
        .body(Body::from(index.clone()))
        .unwrap();
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.unwrap();
    assert_eq!(
        response.status(),
        StatusCode::CREATED,
        "{:?}",
        response.into_body().collect().await.unwrap().to_bytes()
    );

    let name = format!("{address}/team/app:multi");
    let digest = Digest::of(index.as_bytes());
    for (own, expected) in [("linux/amd64", 2), ("linux/arm64", 0), ("linux/arm/v7", 1)] {
        let node = Node::new(own.parse().unwrap());
        let image = pull(&node, &name).await.unwrap();
        assert_eq!(json!(image.manifest_digest), entries[expected]["digest"], "{own}");
        let pinned: Reference = format!("{address}/team/app@{digest}").parse().unwrap();
        assert_eq!(node.images.get(&pinned.to_string()).unwrap().id, image.id, "known by the digest of the index too");
        let removed = node.images.remove(&pinned.to_string(), false).await.unwrap();
        assert_eq!((removed.untagged, removed.deleted), (vec![pinned.to_string()], vec![]), "the tag keeps it");
        let resolved = node.images.resolve(&name.parse().unwrap(), None).await.unwrap();
        let platforms: Vec<String> = resolved.platforms.iter().map(Platform::to_string).collect();
        assert_eq!(
            (resolved.digest, platforms.join(" ").as_str()),
            (digest, "linux/arm64/v8 linux/arm/v7 linux/amd64")
        );
    }
    let node = Node::new("linux/riscv64".parse().unwrap());
    let expected = |image: &str, has: &str| {
        format!("image {address}/team/app:{image} has no variant for linux/riscv64; it has {has}")
    };
    assert_eq!(
        pull(&node, &name).await.unwrap_err().to_string(),
        expected("multi", "linux/amd64, linux/arm/v7, linux/arm64/v8")
    );
    assert_eq!(
        pull(&node, &format!("{address}/team/app:amd64")).await.unwrap_err().to_string(),
        expected("amd64", "linux/amd64")
    );
}

#[tokio::test]
async fn what_cannot_be_had_is_said_in_one_line() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let node = Node::host();
    let name = format!("{}/team/app:v1", front.address);
    let error = pull(&node, &name).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("image {name} not found: registry {} has no such repository, tag or digest", front.address)
    );
    let pushed = publish(&name, Platform::host(), 1, None).await;
    let unknown = format!("{}/team/app@{}", front.address, Digest::of(b"nothing"));
    assert!(matches!(pull(&node, &unknown).await.unwrap_err(), Error::NotFound { .. }));

    // A registry that is busy for a moment is asked again, one that stays so is named.
    front.set(Mode::Busy(2));
    assert_eq!(pull(&node, &name).await.unwrap().id, pushed.id);
    front.set(Mode::Busy(1000));
    let error = pull(&node, &name).await.unwrap_err();
    assert!(matches!(&error, Error::Registry { reason, .. } if reason.contains("503")), "{error:?}");

    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).unwrap();
    let error = pull(&node, &format!("{free}/app")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&free.to_string()) && !error.to_string().contains('\n'), "{error}");
    let error = pull(&node, "nowhere.invalid/app").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_without_credentials() {
    let (Some(mirror), Some(origin)) = (Registry::start(false), Registry::start(true)) else { return };
    let front = Front::start(&mirror).await;
    let pushed = publish(&format!("{}/team/app:v1", mirror.address), Platform::host(), 1, None).await;
    let only_origin =
        publish(&format!("{}/team/own:v1", origin.address), Platform::host(), 2, Some(&basic(PASSWORD))).await;
    let state = tempfile::tempdir().unwrap();
    let mirrors = BTreeMap::from([(origin.address.to_string(), vec![front.address.to_string()])]);
    let images = Images::open(state.path(), Config { mirrors, ..Config::default() }).unwrap();
    let pull = async |repository: &str| {
        let reference: Reference = format!("{}/team/{repository}:v1", origin.address).parse().unwrap();
        let image = images.pull(&reference, Some(&basic(PASSWORD)), None, Policy::Always, &silent()).await.unwrap();
        assert!(image.tags.contains(&reference), "known by the name of the registry, not the mirror's");
        image.id
    };
    assert_eq!((pull("app").await, pull("own").await), (pushed.id, only_origin.id));
    assert_eq!(front.take_blobs().len(), 4);
}
