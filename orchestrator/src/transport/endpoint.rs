//! The endpoint: one UDP socket for everything that this node says to others and hears from them.

use super::{
    AddressBook, Admit, Alpn, Connection, Refusals, Serve, Source,
    accept::{self, Guests},
    book::canonical,
    dial::{Lines, failed},
    error::{CallError, Close, ConnectError, reason_bytes},
    frames::{self, FrameError},
    limits,
    socket::{self, ResetKey},
};
use crate::pki::{self, CaDigest, Credentials, LastSeen};
use orchestrator_core::model::NodeId;
use quinn::{
    IdleTimeout, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// What an endpoint is made of.
pub struct EndpointConfig {
    /// Where to listen. `[::]:PORT` takes IPv4 as well.
    pub listen: SocketAddr,
    /// The time by which certificates are judged.
    pub time: Arc<LastSeen>,
    /// Who may come in.
    pub admit: Arc<dyn Admit>,
    /// What is done for those who do.
    pub handlers: Arc<dyn Serve>,
}

/// The endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[error("listening on UDP {listen}")]
pub struct EndpointError {
    listen: SocketAddr,
    #[source]
    source: io::Error,
}

/// A node's end of all its connections. Clones share it; when the last is gone, or by [`Endpoint::close`], it ends. Handlers that
/// keep a clone keep it alive, so that only `close` ends it.
#[derive(Clone)]
pub struct Endpoint(Arc<Handle>);

/// Ends the endpoint with its last user; the tasks that serve it hold only what is inside.
struct Handle(Arc<Shared>);

pub(super) struct Shared {
    pub(super) quinn: quinn::Endpoint,
    pub(super) time: Arc<LastSeen>,
    pub(super) admit: Arc<dyn Admit>,
    pub(super) handlers: Arc<dyn Serve>,
    pub(super) book: AddressBook,
    pub(super) lines: Lines,
    pub(super) guests: Guests,
    credentials: Mutex<Option<Credentials>>,
    reset: Arc<ResetKey>,
}

impl Endpoint {
    /// Listens. Until there are credentials, nobody is let in and only [`connect_to`](Self::connect_to) dials.
    ///
    /// # Errors
    /// The address is taken or not this machine's.
    pub fn bind(config: EndpointConfig) -> Result<Self, EndpointError> {
        let listen = config.listen;
        let failed = |source| EndpointError { listen, source };
        let mut nobody_knows = [0; 32];
        rustix::rand::getrandom(&mut nobody_knows, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed(error.into()))?;
        let reset = ResetKey::new(nobody_knows);
        let socket = socket::open(listen).map_err(failed)?;
        let quinn = quinn::Endpoint::new(socket::config(Arc::clone(&reset)), None, socket, Arc::new(TokioRuntime))
            .map_err(failed)?;
        let shared = Arc::new(Shared {
            quinn,
            time: config.time,
            admit: config.admit,
            handlers: config.handlers,
            book: AddressBook::default(),
            lines: Lines::default(),
            guests: Guests::default(),
            credentials: Mutex::default(),
            reset,
        });
        tokio::spawn(accept::run(Arc::clone(&shared)));
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Who this node is from here on. New connections show the new certificate at once. Those that exist go on if it is
    /// still the same node, and end if it has joined another cluster or left.
    pub fn set_credentials(&self, credentials: Option<Credentials>) {
        let shared = &self.0.0;
        let server = credentials.as_ref().map(|credentials| {
            shared.reset.set(credentials.key().secret("stateless reset"));
            server(credentials, &shared.time)
        });
        let who = |credentials: &Credentials| (credentials.subject().cluster, credentials.subject().node);
        let after = credentials.as_ref().map(who);
        let before = std::mem::replace(&mut *shared.lock_credentials(), credentials);
        shared.quinn.set_server_config(server);
        if before.as_ref().map(who) != after {
            let reason = "this node has left the cluster";
            shared.lines.cut(|_| true, Close::Done, reason);
            shared.guests.cut(|_| true, Close::Done, reason);
        }
    }

    /// Where nodes may be found. What is learned there is tried at the next dial.
    #[must_use]
    pub fn book(&self) -> &AddressBook {
        &self.0.0.book
    }

    /// The connection to `node`, dialled if there is none. Who asks while a dial goes on waits for that one; who asks soon
    /// after one failed gets [`ConnectError::Waiting`] at once.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, node: NodeId, alpn: Alpn) -> Result<Connection, ConnectError> {
        self.0.0.line(node, alpn).await
    }

    /// How long [`connect`](Self::connect) will refuse to dial again, unless something new is learned of the node.
    #[must_use]
    pub fn retry_in(&self, node: NodeId, alpn: Alpn) -> Duration {
        self.0.0.lines.retry_in(node, alpn, &self.0.0.book)
    }

    /// Waits for as long as [`connect`](Self::connect) would refuse: between the dials of a loop that needs the node.
    pub async fn retry_due(&self, node: NodeId, alpn: Alpn) {
        self.0.0.due(node, alpn).await;
    }

    /// A connection on which to ask for membership: to whichever manager is at `addr`, if it is of the cluster whose CA has
    /// this digest.
    ///
    /// # Errors
    /// [`ConnectError::Failed`].
    pub async fn connect_to(&self, addr: SocketAddr, ca: &CaDigest) -> Result<Connection, ConnectError> {
        let shared = &self.0.0;
        let config = pki::join_config(*ca, Alpn::Join.name().as_bytes(), Arc::clone(&shared.time));
        let raced = shared.race(vec![addr], Alpn::Join, &client(config, Alpn::Join)).await;
        raced.map(|(connection, _)| connection).map_err(|attempts| failed("a manager".to_owned(), Alpn::Join, attempts))
    }

    /// Asks `node`: one frame there, one frame back. Dropping the future tells the node that the answer is not wanted.
    ///
    /// # Errors
    /// [`CallError`]; only after [`CallError::Connect`] it is sure that nothing was done.
    pub async fn call(&self, node: NodeId, alpn: Alpn, question: &[u8]) -> Result<Vec<u8>, CallError> {
        timeout(limits::CALL_TIME, self.ask(node, alpn, question))
            .await
            .unwrap_or(Err(CallError::TimedOut { node, after: limits::CALL_TIME }))
    }

    async fn ask(&self, node: NodeId, alpn: Alpn, question: &[u8]) -> Result<Vec<u8>, CallError> {
        let connection = self.connect(node, alpn).await.map_err(CallError::Connect)?;
        let lost = |source: FrameError| match connection.close_reason() {
            Some(reason) => CallError::Lost { node, reason },
            None => CallError::Frame { node, source },
        };
        let open = connection.open().await;
        let (mut send, mut recv) = open.map_err(|source| lost(FrameError::Io { what: "call", source }))?;
        let limit = alpn.frame_limit();
        let write = async {
            frames::write_bytes(&mut send, "call", limit, question).await?;
            send.finish();
            Ok(())
        };
        // At the same time: a node that begins to answer early must not wait for who waits for it.
        let ((), answer) = tokio::try_join!(write, frames::read_bytes(&mut recv, "answer", limit)).map_err(lost)?;
        Ok(answer)
    }

    /// Ends all connections with a node that is no longer a member, in both directions, and forgets its addresses. That new
    /// ones are refused is up to [`Admit`], which must know before this is called.
    pub fn drop_peer(&self, node: NodeId) {
        let reason = format!("node {node} is not a member of this cluster");
        self.0.0.lines.cut(|peer| peer == node, Close::Dropped, &reason);
        self.0.0.guests.cut(|peer| peer == Some(node), Close::Dropped, &reason);
        self.0.0.book.forget(node);
    }

    /// What was not let in so far.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.0.0.guests.refusals()
    }

    /// Where this endpoint listens.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.0.quinn.local_addr()
    }

    /// Ends all connections with `reason` and waits, briefly, until the peers know.
    pub async fn close(&self, reason: &str) {
        let shared = &self.0.0;
        shared.quinn.set_server_config(None);
        shared.lines.cut(|_| true, Close::Done, reason);
        shared.quinn.close(Close::Done.code(), reason_bytes(reason));
        if timeout(limits::CLOSE_TIME, shared.quinn.wait_idle()).await.is_err() {
            tracing::debug!("some peers did not acknowledge the goodbye");
        }
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("listen", &self.0.0.quinn.local_addr().ok()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.quinn.close(Close::Done.code(), b"the endpoint has ended");
    }
}

impl Shared {
    pub(super) fn credentials(&self) -> Option<Credentials> {
        self.lock_credentials().clone()
    }

    fn lock_credentials(&self) -> std::sync::MutexGuard<'_, Option<Credentials>> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node came in by itself from `from`: it can be dialled there.
    pub(super) fn heard_of(&self, node: NodeId, from: SocketAddr) {
        self.book.learn(node, canonical(from), Source::Seen);
        self.lines.forgive(node);
    }
}

/// Settings of the serving side. They hold for whoever comes, so they are those for strangers; what an admitted peer gets
/// beyond is given to it after the handshake.
fn server(credentials: &Credentials, time: &Arc<LastSeen>) -> quinn::ServerConfig {
    let names = Alpn::ALL.map(|alpn| alpn.name().as_bytes());
    let tls = pki::server_config(credentials, &names, Arc::clone(time));
    let tls = QuicServerConfig::try_from(tls).expect("the provider has the initial cipher suite");
    let mut transport = transport(Alpn::Join.idle_time());
    transport
        .max_concurrent_bidi_streams(limits::JOINING_STREAMS.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(limits::STRANGER_WINDOW.into());
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(limits::INCOMING)
        .incoming_buffer_size(limits::INCOMING_BYTES)
        .incoming_buffer_size_total(limits::INCOMING_BYTES * limits::INCOMING as u64);
    config
}

/// Settings of the dialling side. The serving side opens one stream, for the welcome, and none for requests.
pub(super) fn client(tls: Arc<rustls::ClientConfig>, alpn: Alpn) -> quinn::ClientConfig {
    let tls = QuicClientConfig::try_from(tls).expect("the provider has the initial cipher suite");
    let mut transport = transport(alpn.idle_time());
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .receive_window(limits::WINDOW.into())
        .keep_alive_interval(Some(alpn.keep_alive()));
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

fn transport(idle: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("it is seconds")))
        .stream_receive_window(limits::STREAM_WINDOW.into())
        .send_window(limits::SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        // The first retransmission then comes after 300 ms instead of a second: nodes are neighbours.
        .initial_rtt(Duration::from_millis(100));
    config
}
