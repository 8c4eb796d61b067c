//! Pulling and pushing against a real registry (Debian's `docker-registry`) on loopback, behind a front that can break
//! connections, tamper with content and ask for tokens.
//!
//! Needs root (layers have owners) and the registry; says so and passes where one is missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use orchestrator::image::archive::Builder;
use orchestrator::image::{Config, Credentials, Digest, Error, Event, Image, Images, Phase, Platform, Policy, Progress, Reference, silent};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(20);
const USER: &str = "ann";
const PASSWORD: &str = "open sesame";
/// bcrypt of [`PASSWORD`], cost 4.
const PASSWORD_HASH: &str = "$2b$04$2jibS/hT1bDAUhB/zu03VuXcsDe2OzDfS0QqzpFArXjN/K.dNFCYG";
const TOKEN: &str = "let-me-in";

/// A registry process, ended when dropped.
struct Registry {
    process: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, with the reason printed, where the test cannot run.
    fn start(password: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: unpacking sets owners, which needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).unwrap();
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": directory.path().join("data")}},
            "http": {"addr": address.to_string()},
        });
        if password {
            let path = directory.path().join("htpasswd");
            fs::write(&path, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
        }
        let path = directory.path().join("config.yml");
        // JSON is YAML.
        fs::write(&path, config.to_string()).unwrap();
        let started = Command::new("docker-registry").arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(process) = started else {
            println!("SKIPPED: no docker-registry on this machine (apt-get install docker-registry)");
            return None;
        };
        let registry = Self { process, address, _directory: directory };
        let end = Instant::now() + DEADLINE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "the registry did not start");
            std::thread::yield_now();
        }
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the front does to layers on their way.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Pass,
    /// Break every connection after so many bytes of a blob.
    Break(usize),
    /// Stop sending after so many bytes of a blob and keep the connection open.
    Stall(usize),
    /// Change a byte of large blobs.
    TamperLayer,
    /// Change a byte of manifests.
    TamperManifest,
    /// Send more than there is.
    Longer,
    /// Ask for a token.
    Token,
    /// Fail so many requests first.
    Busy(usize),
}

/// An HTTP proxy before the registry.
struct Front {
    upstream: SocketAddr,
    address: SocketAddr,
    mode: Mutex<Mode>,
    /// First byte asked for of each request for a blob, by digest.
    blobs: Mutex<Vec<(String, u64)>>,
    client: Client<HttpConnector, Body>,
}

impl Front {
    async fn start(registry: &Registry) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let front = Arc::new(Self {
            upstream: registry.address,
            address: listener.local_addr().unwrap(),
            mode: Mutex::new(Mode::Pass),
            blobs: Mutex::default(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        });
        let router = axum::Router::new().fallback(Self::serve).with_state(Arc::clone(&front));
        tokio::spawn(async move { axum::serve(listener, router).await });
        front
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn take_blobs(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut *self.blobs.lock().unwrap())
    }

    async fn serve(State(front): State<Arc<Self>>, request: Request) -> Response {
        let mode = *front.mode.lock().unwrap();
        let path = request.uri().path().to_owned();
        match mode {
            Mode::Token => {
                if path == "/token" {
                    let expected = format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{USER}:{PASSWORD}")));
                    let known = request.headers().get(header::AUTHORIZATION).is_some_and(|value| value == expected.as_str());
                    let scope = request.uri().query().unwrap_or_default().contains("repository%3Ateam%2Fapp%3Apull");
                    return if known && scope { json!({"token": TOKEN}).to_string().into_response() } else { StatusCode::UNAUTHORIZED.into_response() };
                }
                let bearer = format!("Bearer {TOKEN}");
                if request.headers().get(header::AUTHORIZATION).is_none_or(|value| value != bearer.as_str()) {
                    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"test\"", front.address);
                    return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
                }
            }
            Mode::Busy(0) => front.set(Mode::Pass),
            Mode::Busy(count) => {
                front.set(Mode::Busy(count - 1));
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            _ => {}
        }
        let is_blob = path.contains("/blobs/sha256:");
        if is_blob && request.method() == "GET" {
            let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
            front.blobs.lock().unwrap().push((path.rsplit('/').next().unwrap().to_owned(), range.unwrap_or(0)));
        }
        let response = front.forward(request).await;
        let (mut parts, body) = response.into_parts();
        let large = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0) > 4096;
        let body = match mode {
            Mode::Break(after) if is_blob && large => cut(body, after, false),
            Mode::Stall(after) if is_blob && large => cut(body, after, true),
            Mode::TamperLayer if is_blob && large => tamper(body),
            Mode::TamperManifest if path.contains("/manifests/") => tamper(body),
            Mode::Longer if is_blob && large => {
                parts.headers.remove(header::CONTENT_LENGTH);
                Body::from_stream(body.into_data_stream().chain(futures_util::stream::iter([Ok(Bytes::from(vec![0; 1 << 20]))])))
            }
            _ => body,
        };
        Response::from_parts(parts, body)
    }

    async fn forward(&self, mut request: Request) -> Response {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = format!("http://{}{path}", self.upstream).parse().unwrap();
        // The registry makes upload addresses from the host it is asked by, so `Host` stays.
        if *self.mode.lock().unwrap() == Mode::Token {
            request.headers_mut().remove(header::AUTHORIZATION);
        }
        match self.client.request(request).await {
            Ok(response) => response.map(Body::new),
            Err(_) => StatusCode::BAD_GATEWAY.into_response(),
        }
    }
}

/// The beginning of a body, and then an error or nothing for ever.
fn cut(body: Body, after: usize, stall: bool) -> Body {
    let mut left = after;
    let pieces = body.into_data_stream().map(move |piece| {
        let mut piece = piece.map_err(std::io::Error::other)?;
        if left == 0 {
            return Err(std::io::Error::other("cut"));
        }
        piece.truncate(left);
        left -= piece.len();
        Ok(piece)
    });
    if !stall {
        return Body::from_stream(pieces);
    }
    let kept = pieces.take_while(|piece| std::future::ready(piece.is_ok()));
    Body::from_stream(kept.chain(futures_util::stream::pending()))
}

fn tamper(body: Body) -> Body {
    let mut first = true;
    Body::from_stream(body.into_data_stream().map(move |piece| {
        let mut piece = piece?.to_vec();
        if std::mem::take(&mut first) {
            let middle = piece.len() / 2;
            piece[middle] ^= 1;
        }
        Ok::<_, axum::Error>(Bytes::from(piece))
    }))
}

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
    assert_eq!(fs::read(layer_path(&node, pulled.config.rootfs.diff_ids[2]).join("layer2")).unwrap(), noise(3, (1 << 20) + 2000));
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
    for (reference, policy) in [(name.parse().unwrap(), Policy::IfMissing), (pinned.clone(), Policy::IfMissing), (pinned, Policy::Always)] {
        assert_eq!(node.images.pull(&reference, None, None, policy, &silent()).await.unwrap().id, pushed.id);
    }
}

fn layer_path(node: &Node, diff_id: Digest) -> std::path::PathBuf {
    Path::new(node.state.path()).join("images/layers").join(diff_id.hex()).join("fs")
}

#[tokio::test]
async fn basic_authentication_is_honoured() {
    let Some(registry) = Registry::start(true) else { return };
    let name = format!("{}/team/app:v1", registry.address);
    let pushed = publish(&name, Platform::host(), 1, Some(&basic(PASSWORD))).await;
    let node = Node::host();
    let reference: Reference = name.parse().unwrap();
    for credentials in [None, Some(basic("wrong"))] {
        let error = node.images.pull(&reference, credentials.as_ref(), None, Policy::Always, &silent()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("edgectl login"), "{error}");
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
        let error = node.images.pull(&reference, credentials.as_ref(), None, Policy::Always, &silent()).await.unwrap_err();
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
    let progress: Progress = Arc::new(move |event: Event| drop(sender.send(event)));
    {
        let reference = name.parse().unwrap();
        let pull = images.pull(&reference, None, None, Policy::Always, &progress);
        tokio::pin!(pull);
        let mut far = std::collections::BTreeSet::new();
        while far.len() < 3 {
            tokio::select! {
                result = &mut pull => panic!("the pull ended: {result:?}"),
                event = events.recv() => {
                    let event = event.unwrap();
                    if event.phase == Phase::Downloading && event.current >= 256 << 10 {
                        far.insert(event.layer);
                    }
                }
                () = tokio::time::sleep(DEADLINE) => panic!("no progress"),
            }
        }
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
    let path = |layer: usize| node.state.path().join("images/downloads").join(pushed.manifest.layers[layer].digest.hex());
    fs::write(path(0), vec![0; 1000]).unwrap();
    fs::write(path(1), vec![0; 8 << 20]).unwrap();
    fs::write(path(2), vec![0; usize::try_from(pushed.manifest.layers[2].size).unwrap()]).unwrap();
    assert_eq!(pull(&node, &name).await.unwrap().id, pushed.id);
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
        let image = publish(&format!("{address}/team/app:{}", platform.architecture), platform.clone(), seed, None).await;
        let size = serde_json::to_vec(&image.manifest).unwrap().len();
        entries.push(json!({"mediaType": image.manifest.media_type, "digest": image.manifest_digest, "size": size, "platform": platform}));
    }
    entries.push(json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": entries[0]["digest"], "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"}}));
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
    let request = Request::put(format!("http://{address}/v2/team/app/manifests/multi"))
        .header(header::CONTENT_TYPE, media_type)
        .body(Body::from(index.clone()))
        .unwrap();
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED, "{:?}", response.into_body().collect().await.unwrap().to_bytes());

    let name = format!("{address}/team/app:multi");
    let digest = Digest::of(index.as_bytes());
    for (own, expected) in [("linux/amd64", 2), ("linux/arm64", 0), ("linux/arm/v7", 1)] {
        let node = Node::new(own.parse().unwrap());
        let image = pull(&node, &name).await.unwrap();
        assert_eq!(json!(image.manifest_digest), entries[expected]["digest"], "{own}");
        let pinned: Reference = format!("{address}/team/app@{digest}").parse().unwrap();
        assert_eq!(node.images.get(&pinned.to_string()).unwrap().id, image.id, "known by the digest of the index too");
        let resolved = node.images.resolve(&name.parse().unwrap(), None).await.unwrap();
        let platforms: Vec<String> = resolved.platforms.iter().map(Platform::to_string).collect();
        assert_eq!((resolved.digest, platforms.join(" ").as_str()), (digest, "linux/arm64/v8 linux/arm/v7 linux/amd64"));
    }
    let node = Node::new("linux/riscv64".parse().unwrap());
    let expected = |image: &str, has: &str| format!("image {address}/team/app:{image} has no variant for linux/riscv64; it has {has}");
    assert_eq!(pull(&node, &name).await.unwrap_err().to_string(), expected("multi", "linux/amd64, linux/arm/v7, linux/arm64/v8"));
    assert_eq!(pull(&node, &format!("{address}/team/app:amd64")).await.unwrap_err().to_string(), expected("amd64", "linux/amd64"));
}

#[tokio::test]
async fn what_cannot_be_had_is_said_in_one_line() {
    let Some(registry) = Registry::start(false) else { return };
    let front = Front::start(&registry).await;
    let node = Node::host();
    let name = format!("{}/team/app:v1", front.address);
    let error = pull(&node, &name).await.unwrap_err();
    assert_eq!(error.to_string(), format!("image {name} not found: registry {} has no such repository, tag or digest", front.address));
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
    let only_origin = publish(&format!("{}/team/own:v1", origin.address), Platform::host(), 2, Some(&basic(PASSWORD))).await;
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
