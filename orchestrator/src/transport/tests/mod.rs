//! Endpoints that speak real QUIC over loopback, with certificates made for the test.

mod bounds;
mod moves;
mod multicast;
mod peers;

use super::*;
use crate::pki::{Authority, Credentials, LastSeen, NodeKey};
use async_trait::async_trait;
use orchestrator_core::model::{Ca, ClusterId, Millis, UnixMillis};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

const DAY: Millis = Millis(86_400_000);

/// A cluster's authority, and the time that all its nodes see.
struct World {
    cluster: ClusterId,
    ca: Ca,
    now: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let cluster = ClusterId(0xc1);
        let now = crate::clock::now();
        let ca = Authority::create(cluster, now).unwrap();
        Self { cluster, ca, now: Arc::new(AtomicU64::new(now.0)), dir: tempfile::tempdir().unwrap() }
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(self.now.load(Ordering::Relaxed))
    }

    fn time(&self) -> Arc<LastSeen> {
        let now = Arc::clone(&self.now);
        Arc::new(LastSeen::with_clock(self.dir.path(), move || UnixMillis(now.load(Ordering::Relaxed))).unwrap())
    }

    fn credentials(&self, role: Role) -> Credentials {
        self.certify(NodeKey::generate(), role)
    }

    fn certify(&self, key: NodeKey, role: Role) -> Credentials {
        let authority = Authority::open(&self.ca).unwrap();
        let certificate = authority.issue(&key.csr(), self.cluster, role, self.now(), DAY).unwrap();
        Credentials::new(key, certificate, self.ca.certificate.clone()).unwrap()
    }

    /// A node without credentials that listens on an address of its own.
    fn stranger(&self) -> Node {
        self.listen("127.0.0.1:0".parse().unwrap())
    }

    fn listen(&self, listen: SocketAddr) -> Node {
        let rules = Arc::new(Rules::default());
        let echo = Arc::new(Echo::default());
        let endpoint = Endpoint::bind(EndpointConfig {
            listen,
            time: self.time(),
            admit: Arc::clone(&rules) as Arc<dyn Admit>,
            handlers: Arc::clone(&echo) as Arc<dyn Serve>,
        });
        Node { endpoint: endpoint.unwrap(), rules, echo, credentials: None }
    }

    fn node(&self, role: Role) -> Node {
        self.stranger().with(self.credentials(role))
    }

    fn manager(&self) -> Node {
        self.node(Role::Manager)
    }
}

struct Node {
    endpoint: Endpoint,
    rules: Arc<Rules>,
    echo: Arc<Echo>,
    credentials: Option<Credentials>,
}

impl Node {
    fn with(mut self, credentials: Credentials) -> Self {
        self.endpoint.set_credentials(Some(credentials.clone()));
        self.credentials = Some(credentials);
        self
    }

    fn id(&self) -> NodeId {
        self.credentials.as_ref().unwrap().subject().node
    }

    fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    fn knows(&self, other: &Self) {
        self.endpoint.book().learn(other.id(), other.addr(), Source::Assigned);
    }

    async fn ask(&self, other: &Self, question: &[u8]) -> Result<Vec<u8>, CallError> {
        self.endpoint.call(other.id(), Alpn::Raft, question).await
    }
}

/// Admits all but whom it was told not to.
#[derive(Default)]
struct Rules(Mutex<BTreeMap<NodeId, String>>);

impl Rules {
    fn refuse(&self, node: NodeId, why: &str) {
        self.0.lock().unwrap().insert(node, why.to_owned());
    }
}

impl Admit for Rules {
    fn admit(&self, _: Alpn, peer: &Peer) -> Result<(), String> {
        self.0.lock().unwrap().get(&peer.node).map_or(Ok(()), |why| Err(why.clone()))
    }
}

/// Sends back what comes until the end, and notes from whom it came.
#[derive(Default)]
struct Echo(Mutex<Vec<(Alpn, Option<Peer>, SocketAddr)>>);

impl Echo {
    fn served(&self) -> Vec<(Alpn, Option<Peer>, SocketAddr)> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Serve for Echo {
    async fn serve(
        &self,
        alpn: Alpn,
        peer: Option<Peer>,
        remote: SocketAddr,
        (mut send, mut recv): (SendStream, RecvStream),
    ) {
        self.0.lock().unwrap().push((alpn, peer, remote));
        let _ = tokio::io::copy(&mut recv, &mut send).await;
    }
}

/// The text of an error with its causes.
fn text(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

/// Waits until `holds`, for as long as nothing on loopback takes.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        // Between two looks.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
