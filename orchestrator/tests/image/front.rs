//! A registry for tests (Debian's `docker-registry`) and a front before it that can break connections, tamper with content
//! and ask for tokens.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

/// Longer than anything takes that works.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
pub(super) const USER: &str = "ann";
pub(super) const PASSWORD: &str = "open sesame";
/// bcrypt of [`PASSWORD`], cost 4.
const PASSWORD_HASH: &str = "$2b$04$2jibS/hT1bDAUhB/zu03VuXcsDe2OzDfS0QqzpFArXjN/K.dNFCYG";
pub(super) const TOKEN: &str = "let-me-in";

/// A registry process, ended when dropped.
pub(super) struct Registry {
    process: Child,
    /// Where it listens.
    pub(super) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, with the reason printed, where the test cannot run.
    pub(super) fn start(password: bool) -> Option<Self> {
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
        let started =
            Command::new("docker-registry").arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
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
pub(super) enum Mode {
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
    /// Send manifests that never end.
    EndlessManifest,
    /// Ask for a token.
    Token,
    /// Fail so many requests first.
    Busy(usize),
}

/// An HTTP proxy before the registry.
pub(super) struct Front {
    upstream: SocketAddr,
    /// Where it listens.
    pub(super) address: SocketAddr,
    mode: Mutex<Mode>,
    /// First byte asked for of each request for a blob, by digest.
    blobs: Mutex<Vec<(String, u64)>>,
    client: Client<HttpConnector, Body>,
}

impl Front {
    /// Starts it before `registry`.
    pub(super) async fn start(registry: &Registry) -> Arc<Self> {
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

    /// Changes what it does from the next request on.
    pub(super) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// The requests for blobs since the last call.
    pub(super) fn take_blobs(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut *self.blobs.lock().unwrap())
    }

    async fn serve(State(front): State<Arc<Self>>, request: Request) -> Response {
        let mode = *front.mode.lock().unwrap();
        let path = request.uri().path().to_owned();
        match mode {
            Mode::Token => {
                if path == "/token" {
                    let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
                    let known =
                        request.headers().get(header::AUTHORIZATION).is_some_and(|value| value == expected.as_str());
                    let scope = request.uri().query().unwrap_or_default().contains("repository%3Ateam%2Fapp%3Apull");
                    return if known && scope {
                        json!({"token": TOKEN}).to_string().into_response()
                    } else {
                        StatusCode::UNAUTHORIZED.into_response()
                    };
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
            let range = request
                .headers()
                .get(header::RANGE)
                .and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
            front.blobs.lock().unwrap().push((path.rsplit('/').next().unwrap().to_owned(), range.unwrap_or(0)));
        }
        let response = front.forward(request).await;
        let (mut parts, body) = response.into_parts();
        let large = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
            .unwrap_or(0)
            > 4096;
        let body = match mode {
            Mode::Break(after) if is_blob && large => cut(body, after, false),
            Mode::Stall(after) if is_blob && large => cut(body, after, true),
            Mode::TamperLayer if is_blob && large => tamper(body),
            Mode::TamperManifest if path.contains("/manifests/") => tamper(body),
            Mode::EndlessManifest if path.contains("/manifests/") => {
                parts.headers.remove(header::CONTENT_LENGTH);
                let spaces = futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![b' '; 1 << 16])));
                Body::from_stream(body.into_data_stream().chain(spaces))
            }
            Mode::Longer if is_blob && large => {
                parts.headers.remove(header::CONTENT_LENGTH);
                Body::from_stream(
                    body.into_data_stream().chain(futures_util::stream::iter([Ok(Bytes::from(vec![0; 1 << 20]))])),
                )
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
