//! The sockets of the resolver: UDP and TCP loops that hand packets to the names and, if need be, upstream.
//!
//! Everything is bounded: queries on their way upstream, connections, and how long a connection may be silent.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Counts, Names, count,
    names::{Transport, Verdict, Zone, failure},
    upstream::Upstream,
};

/// Queries on their way upstream at once; each holds a socket and two packets for some milliseconds.
const MAX_FORWARDS: usize = 128;
/// Connections at once, of all containers together.
const MAX_CONNECTIONS: usize = 64;
/// RFC 7766 §6.2.3 asks for a timeout of some seconds.
const IDLE: Duration = Duration::from_secs(10);
/// A query by UDP is never longer: one name and a few options.
const MAX_UDP_QUERY: usize = 4096;
/// How long to pause when the kernel has no descriptors left, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all loops of a resolver share.
pub(super) struct Shared {
    zone: RwLock<Arc<Zone>>,
    upstream: Upstream,
    turn: AtomicUsize,
    forwards: Semaphore,
    connections: Arc<Semaphore>,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn new(zone: Zone, upstream: Upstream) -> Self {
        Shared {
            zone: RwLock::new(Arc::new(zone)),
            upstream,
            turn: AtomicUsize::new(0),
            forwards: Semaphore::new(MAX_FORWARDS),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            counts: Counts::default(),
        }
    }

    pub(super) fn set_names(&self, names: Names) {
        let zone = self.zone().with_names(names);
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    fn zone(&self) -> Arc<Zone> {
        Arc::clone(&self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn decide(&self, packet: &[u8], transport: Transport) -> Verdict {
        let verdict = self.zone().decide(packet, transport, self.turn.fetch_add(1, Ordering::Relaxed));
        match verdict {
            Verdict::Answer(_) => count(&self.counts.answered),
            Verdict::Malformed(_) | Verdict::Drop => count(&self.counts.malformed),
            Verdict::Forward { .. } => {}
        }
        verdict
    }

    /// Asks upstream, unless too many do; what cannot be answered is SERVFAIL.
    async fn forward(&self, packet: &[u8], transport: Transport, limit: usize) -> Option<Vec<u8>> {
        let Ok(_permit) = self.forwards.try_acquire() else {
            count(&self.counts.overloaded);
            return failure(packet, ResponseCode::ServFail);
        };
        match self.upstream.ask(packet, transport, limit).await {
            Some(answer) => {
                count(&self.counts.forwarded);
                Some(answer)
            }
            None => {
                count(&self.counts.failed);
                failure(packet, ResponseCode::ServFail)
            }
        }
    }

    fn is_client(&self, address: SocketAddr) -> bool {
        let client = self.zone().serves(address.ip());
        if !client {
            count(&self.counts.refused);
        }
        client
    }
}

/// Answers datagrams until it is aborted.
pub(super) async fn serve_udp(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_UDP_QUERY];
    loop {
        // Cancel-safe because both `recv_from` and `join_next` are.
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = forwards.join_next() => continue,
        };
        // An error here is about an earlier datagram to somebody who is gone.
        let Ok((length, client)) = received else { continue };
        if !shared.is_client(client) {
            continue;
        }
        let packet = &buffer[..length];
        match shared.decide(packet, Transport::Udp) {
            // An answer that cannot be sent is lost, as the network may lose it; the client asks again.
            Verdict::Answer(answer) | Verdict::Malformed(answer) => drop(socket.send_to(&answer, client).await),
            Verdict::Forward { limit } if forwards.len() < 2 * MAX_FORWARDS => {
                let (shared, socket, packet) = (Arc::clone(&shared), Arc::clone(&socket), packet.to_vec());
                forwards.spawn(async move {
                    if let Some(answer) = shared.forward(&packet, Transport::Udp, limit).await {
                        drop(socket.send_to(&answer, client).await);
                    }
                });
            }
            Verdict::Forward { .. } => count(&shared.counts.overloaded),
            Verdict::Drop => {}
        }
    }
}

/// Accepts connections until it is aborted.
pub(super) async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut conversations = JoinSet::new();
    loop {
        // Cancel-safe because both `accept` and `join_next` are.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = conversations.join_next() => continue,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !shared.is_client(client) {
            continue;
        }
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            count(&shared.counts.overloaded);
            continue;
        };
        let shared = Arc::clone(&shared);
        conversations.spawn(async move {
            // A conversation ends with an error when the client goes away or sends nonsense: nobody needs to know.
            let _ = converse(&shared, stream).await;
            drop(permit);
        });
    }
}

/// Answers the queries of a connection one after the other, each behind its length (RFC 1035 §4.2.2).
async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let packet = timeout(IDLE, read_packet(&mut stream)).await??;
        let answer = match shared.decide(&packet, Transport::Tcp) {
            Verdict::Answer(answer) | Verdict::Malformed(answer) => Some(answer),
            Verdict::Forward { limit } => shared.forward(&packet, Transport::Tcp, limit).await,
            Verdict::Drop => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}
