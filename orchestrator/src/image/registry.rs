//! The client side of an OCI registry: one repository, one set of credentials.
//!
//! In: a reference and credentials. Out: manifests, blobs on disk, and errors by what the user can do. Requests,
//! authentication and redirects are `oci-client`'s; retries, resuming, limits and the kinds of errors are ours.
//! Protocol: OCI distribution specification 1.1. Used by `pull` and `push`.

mod failure;
mod get;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::sync::mpsc;

use self::failure::Failure;
use self::get::ERROR_MAX;
use super::content::Download;
use super::digest::Digest;
use super::error::Error;
use super::manifest::{DOCUMENT_MAX, Descriptor};
use super::progress::{Event, Phase, Progress};
use super::reference::Reference;
use super::store::Store;

/// Attempts in a row without progress before a registry counts as unreachable.
const ATTEMPTS: u32 = 4;
/// Attempts for one blob however much progress they make: a link that breaks this often is not one.
const BLOB_ATTEMPTS: u32 = 100;
/// Wait before the second attempt; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("edged/", env!("CARGO_PKG_VERSION"));
/// Pieces between the network and the disk; bounds memory to about 8 × 64 KiB per layer.
const PIECES: usize = 8;
/// Bytes between two progress events of a layer.
const PROGRESS_STEP: u64 = 256 << 10;

/// How to prove who is asking.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password (or access token in its place), for basic authentication and for token servers.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// A bearer token that the registry takes as it is.
    Bearer(String),
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic {{ username: {username:?}, .. }}"),
            Self::Bearer(_) => f.write_str("Bearer(..)"),
        }
    }
}

/// One repository of one registry.
#[derive(Clone)]
pub(crate) struct Repository {
    client: Client,
    /// For what `client` would read to whatever length it has.
    limited: reqwest::Client,
    plain: bool,
    /// What the registry's token server gave, if there is one.
    token: Arc<OnceLock<String>>,
    host: String,
    repository: String,
    /// The image as the user named it, for messages.
    image: String,
    auth: RegistryAuth,
}

impl Repository {
    /// The repository of `reference` on `host`, which is its registry or a mirror of it.
    pub(crate) fn new(
        reference: &Reference,
        host: &str,
        credentials: Option<&Credentials>,
        insecure: &[String],
    ) -> Result<Self, Error> {
        // Whoever installs a provider first wins; all of ours are ring's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = is_loopback(host) || insecure.iter().any(|registry| registry == host);
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        let no_tls = |error: &dyn fmt::Display| Error::Registry {
            image: reference.familiar(),
            registry: host.to_owned(),
            reason: format!("no TLS client can be made (are the `ca-certificates` installed?): {error}"),
        };
        let client = Client::try_from(config).map_err(|error| no_tls(&error))?;
        let limited = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(USER_AGENT)
            .build()
            .map_err(|error| no_tls(&error))?;
        let auth = match credentials {
            None => RegistryAuth::Anonymous,
            Some(Credentials::Basic { username, password }) => RegistryAuth::Basic(username.clone(), password.clone()),
            Some(Credentials::Bearer(token)) => RegistryAuth::Bearer(token.clone()),
        };
        Ok(Self {
            client,
            limited,
            plain,
            token: Arc::default(),
            host: host.to_owned(),
            repository: reference.repository().to_owned(),
            image: reference.familiar(),
            auth,
        })
    }

    fn by_digest(&self, digest: Digest) -> oci_client::Reference {
        oci_client::Reference::with_digest(self.host.clone(), self.repository.clone(), digest.to_string())
    }

    fn by_tag(&self, tag: &str) -> oci_client::Reference {
        oci_client::Reference::with_tag(self.host.clone(), self.repository.clone(), tag.to_owned())
    }

    /// Gets a token if the registry wants one. Later requests use it.
    pub(crate) async fn authenticate(&self, operation: RegistryOperation) -> Result<(), Error> {
        let any = self.by_tag("latest");
        let token = self.retry(|| self.client.auth(&any, &self.auth, operation)).await?;
        // Whoever asks twice gets the same rights.
        let _ = token.map(|token| self.token.set(token));
        Ok(())
    }

    /// Asks whether the registry takes the credentials.
    pub(crate) async fn log_in(&self) -> Result<(), Error> {
        self.authenticate(RegistryOperation::Pull).await?;
        let base = format!("{}/", self.base(&self.by_tag("latest")));
        self.retry(|| self.get(&base, ERROR_MAX)).await.map(drop)
    }

    /// The manifest or index of a tag or digest, with the digest its bytes have.
    pub(crate) async fn manifest(&self, tag: Option<&str>, digest: Option<Digest>) -> Result<(Vec<u8>, Digest), Error> {
        let reference = match (digest, tag) {
            (Some(digest), _) => self.by_digest(digest),
            (None, tag) => self.by_tag(tag.unwrap_or(super::reference::DEFAULT_TAG)),
        };
        let wanted = reference.digest().or(reference.tag()).unwrap_or_default();
        let url = format!("{}/{}/manifests/{wanted}", self.base(&reference), reference.repository());
        let content = self.retry(|| self.get(&url, DOCUMENT_MAX)).await?;
        let actual = Digest::of(&content);
        match digest {
            Some(expected) if expected != actual => Err(self.wrong_digest(&expected, &actual)),
            _ => Ok((content, actual)),
        }
    }

    /// Brings a blob into the store, going on where an earlier attempt ended.
    pub(crate) async fn fetch(
        &self,
        store: &Arc<Store>,
        descriptor: &Descriptor,
        progress: &Progress,
    ) -> Result<(), Error> {
        let open = {
            let (store, descriptor) = (Arc::clone(store), descriptor.clone());
            move || store.content.download(&descriptor)
        };
        let mut download = blocking(open.clone()).await?;
        // What an earlier attempt left may have been damaged, so a wrong digest is final only for a fresh download.
        let mut fresh = download.offset() == 0;
        let (mut failures, mut attempts) = (0, 0);
        loop {
            if download.missing() == 0 {
                let store = Arc::clone(store);
                match blocking(move || store.content.finish(download)).await? {
                    Ok(()) => return Ok(()),
                    Err(actual) if fresh => return Err(self.wrong_digest(&descriptor.digest, &actual)),
                    Err(_) => {
                        download = blocking(open.clone()).await?;
                        fresh = true;
                        continue;
                    }
                }
            }
            let before = download.offset();
            let (returned, result) = self.attempt(download, descriptor, progress).await?;
            download = returned;
            let Err(failure) = result else { continue };
            failures = if download.offset() > before { 1 } else { failures + 1 };
            attempts += 1;
            if attempts >= BLOB_ATTEMPTS {
                return Err(self.error(failure));
            }
            self.back_off(failure, failures).await?;
        }
    }

    /// One request for the rest of a blob. Gives the download back with as much as came.
    async fn attempt(
        &self,
        mut download: Download,
        descriptor: &Descriptor,
        progress: &Progress,
    ) -> Result<(Download, Result<(), Failure>), Error> {
        let reference = self.by_digest(descriptor.digest);
        let digest = descriptor.digest.to_string();
        let opened = self.client.pull_blob_stream_partial(&reference, digest.as_str(), download.offset(), None).await;
        let stream = match opened {
            Ok(BlobResponse::Partial(stream)) => stream.stream,
            Ok(BlobResponse::Full(stream)) => {
                download.restart()?;
                stream.stream
            }
            Err(error) => return Ok((download, Err(error.into()))),
        };
        self.receive(download, stream, descriptor, progress).await
    }

    /// Moves a stream to disk: the network on this task, hashing and writing on a blocking thread.
    async fn receive(
        &self,
        mut download: Download,
        mut stream: BoxStream<'static, std::io::Result<Bytes>>,
        descriptor: &Descriptor,
        progress: &Progress,
    ) -> Result<(Download, Result<(), Failure>), Error> {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES);
        let mut missing = download.missing();
        let (layer, total, progress) = (descriptor.digest, descriptor.size, Arc::clone(progress));
        let writer = tokio::task::spawn_blocking(move || -> Result<Download, Error> {
            let mut told = None;
            while let Some(piece) = receiver.blocking_recv() {
                download.append(&piece)?;
                let current = download.offset();
                if told.is_none_or(|told| current >= told + PROGRESS_STEP) || current == total {
                    progress(Event { layer, phase: Phase::Downloading, current, total });
                    told = Some(current);
                }
            }
            Ok(download)
        });
        let mut result = Ok(());
        while missing > 0 {
            match stream.next().await {
                Some(Ok(mut piece)) => {
                    // The digest tells whether this was all; more than the manifest says is never written.
                    piece.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
                    missing -= piece.len() as u64;
                    // The writer is gone only if it failed; its error comes below.
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
                Some(Err(error)) => {
                    result = Err(Failure::Network(error.into()));
                    break;
                }
                None => {
                    result = Err(Failure::Network("the connection ended within a layer".into()));
                    break;
                }
            }
        }
        drop(sender);
        let download = writer.await.map_err(|error| self.refused(format!("the download was stopped: {error}")))??;
        Ok((download, result))
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: Digest) -> Result<bool, Error> {
        let reference = self.by_digest(digest);
        let text = digest.to_string();
        self.retry(|| self.client.blob_exists(&reference, &text)).await
    }

    /// Sends a blob in one request.
    pub(crate) async fn send_blob(
        &self,
        store: &Arc<Store>,
        descriptor: &Descriptor,
        progress: &Progress,
    ) -> Result<(), Error> {
        let reference = self.by_digest(descriptor.digest);
        let (layer, total) = (descriptor.digest, descriptor.size);
        let text = layer.to_string();
        let mut failures = 0;
        loop {
            let store = Arc::clone(store);
            let file = blocking(move || store.content.open_blob(layer)).await?;
            let pieces = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 64 << 10);
            let progress = Arc::clone(progress);
            let (mut current, mut told) = (0, 0);
            let pieces = pieces.map(move |piece| {
                current += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                if current >= told + PROGRESS_STEP || current == total {
                    progress(Event { layer, phase: Phase::Uploading, current, total });
                    told = current;
                }
                piece.map_err(OciDistributionError::IoError)
            });
            match self.client.push_blob_stream(&reference, pieces, &text, Some(total)).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    failures += 1;
                    self.back_off(error.into(), failures).await?;
                }
            }
        }
    }

    /// Sends a manifest and gives it a tag.
    pub(crate) async fn send_manifest(&self, tag: &str, media_type: &str, content: Vec<u8>) -> Result<(), Error> {
        let reference = self.by_tag(tag);
        let media_type = media_type
            .parse::<hyper::header::HeaderValue>()
            .map_err(|_| self.refused(format!("{media_type:?} is not a media type")))?;
        let content = Bytes::from(content);
        self.retry(|| self.client.push_manifest_raw(&reference, content.clone(), media_type.clone())).await.map(drop)
    }

    /// Repeats a request until it succeeds, fails for good, or has failed too often.
    async fn retry<T, F: Future<Output = Result<T, OciDistributionError>>>(
        &self,
        request: impl Fn() -> F,
    ) -> Result<T, Error> {
        let mut failures = 0;
        loop {
            match request().await {
                Ok(value) => return Ok(value),
                Err(error) => {
                    failures += 1;
                    self.back_off(error.into(), failures).await?;
                }
            }
        }
    }

    /// Waits before the next attempt, unless there is no point in one.
    async fn back_off(&self, failure: Failure, failures: u32) -> Result<(), Error> {
        if !failure.is_transient() || failures >= ATTEMPTS {
            return Err(self.error(failure));
        }
        tracing::debug!(image = self.image, registry = self.host, failures, "registry request failed, trying again");
        tokio::time::sleep((BACKOFF * 2u32.saturating_pow(failures - 1)).min(BACKOFF_MAX)).await;
        Ok(())
    }

    fn error(&self, failure: Failure) -> Error {
        let (image, registry) = (self.image.clone(), self.host.clone());
        match failure {
            Failure::Network(source) => Error::Unreachable { image, registry, source },
            Failure::Busy(reason) | Failure::Refused(reason) => Error::Registry { image, registry, reason },
            Failure::NotFound => Error::NotFound { image, registry },
            Failure::Unauthorized => Error::Unauthorized { image, registry },
            Failure::WrongDigest { expected, actual } => Error::WrongDigest { image, expected, actual },
        }
    }

    fn refused(&self, reason: String) -> Error {
        self.error(Failure::Refused(reason))
    }

    fn wrong_digest(&self, expected: &Digest, actual: &Digest) -> Error {
        Error::WrongDigest { image: self.image.clone(), expected: expected.to_string(), actual: actual.to_string() }
    }
}

/// Runs blocking work of the store.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and nobody will see this.
            Err(error) => Err(Error::Io {
                action: "work in",
                path: "the image store".to_owned(),
                source: std::io::Error::other(error),
            }),
        },
    }
}

/// Whether a registry host (with or without port) is this machine, which speaks plain HTTP.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.example.com",
            "128.0.0.1",
            "[2001:db8::1]:5000",
            "10.0.0.1:5000",
            "127.example.com",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn credentials_do_not_show_their_secret() {
        let basic = Credentials::Basic { username: "ann".to_owned(), password: "hunter2".to_owned() };
        assert_eq!(
            format!("{basic:?} {:?}", Credentials::Bearer("hunter2".to_owned())),
            "Basic { username: \"ann\", .. } Bearer(..)"
        );
    }
}
