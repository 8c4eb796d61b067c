//! The serving side: who may come in, how many at a time, and their streams.
//!
//! An attempt becomes a handshake if there is room (an unproven address must prove itself first when many are under way),
//! a handshake becomes a guest if [`Admit`] says so, and each stream of a guest becomes one call of [`Serve`].

use super::{
    AddressBook, Alpn, Peer, RecvStream, SendStream, Source, WELCOME,
    book::canonical,
    endpoint::Shared,
    error::{Close, describe, reason_bytes},
    identity, limits,
};
use async_trait::async_trait;
use orchestrator_core::model::NodeId;
use quinn::{Incoming, crypto::rustls::HandshakeData};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

/// What is done for peers.
#[async_trait]
pub trait Serve: Send + Sync {
    /// One stream, from its first byte to its end. `peer` is `None` only for [`Alpn::Join`]. The future is dropped when the
    /// connection ends.
    async fn serve(&self, alpn: Alpn, peer: Option<Peer>, remote: SocketAddr, stream: (SendStream, RecvStream));
}

/// Who may come in. Asked at every handshake of a peer with a certificate, after the certificate was found good.
pub trait Admit: Send + Sync {
    /// # Errors
    /// Why not; the peer is told.
    fn admit(&self, alpn: Alpn, peer: &Peer) -> Result<(), String>;
}

/// How often something was not let in, since the endpoint was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Attempts to connect while there were as many connections or handshakes as may be.
    pub full: u64,
    /// Handshakes that failed or took too long; what is wrong with a certificate shows here.
    pub handshakes: u64,
    /// Peers that may not come in: those [`Admit`] refused, those without a certificate, those with too many connections.
    pub peers: u64,
    /// Streams on which nothing came in time.
    pub streams: u64,
}

/// Everyone who is at the door or within.
pub(super) struct Guests {
    lobby: Mutex<Lobby>,
    served: Arc<Semaphore>,
}

#[derive(Default)]
struct Lobby {
    handshakes: usize,
    by_address: BTreeMap<IpAddr, usize>,
    guests: BTreeMap<u64, Guest>,
    next: u64,
    refusals: Refusals,
}

struct Guest {
    quinn: quinn::Connection,
    peer: Option<Peer>,
}

impl Default for Guests {
    fn default() -> Self {
        Self { lobby: Mutex::default(), served: Arc::new(Semaphore::new(limits::SERVED_STREAMS)) }
    }
}

/// What is done with an attempt to connect.
#[derive(Debug, PartialEq, Eq)]
enum Door {
    Open,
    ProveAddress,
    Full,
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Lobby> {
        self.lobby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refusals(&self) -> Refusals {
        self.lock().refusals
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().guests.len()
    }

    #[cfg(test)]
    pub(super) fn handshakes(&self) -> usize {
        self.lock().handshakes
    }

    /// Closes the connections of all guests that `which` names.
    pub(super) fn cut(&self, which: impl Fn(Option<NodeId>) -> bool, code: Close, reason: &str) {
        for guest in self.lock().guests.values().filter(|guest| which(guest.peer.map(|peer| peer.node))) {
            guest.quinn.close(code.code(), reason_bytes(reason));
        }
    }

    /// Tells the book where connections of `node` come from now: they may have migrated.
    pub(super) fn note_addresses(&self, node: NodeId, book: &AddressBook) {
        let lobby = self.lock();
        for guest in lobby.of_node(node).filter(|guest| guest.quinn.close_reason().is_none()) {
            book.learn(node, canonical(guest.quinn.remote_address()), Source::Seen);
        }
    }
}

impl Lobby {
    fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Guest> {
        self.guests.values().filter(move |guest| guest.peer.is_some_and(|peer| peer.node == node))
    }

    fn door(&self, from: IpAddr, proven: bool) -> Door {
        let connections = self.handshakes + self.guests.len();
        let many = self.by_address.get(&from).is_some_and(|count| *count >= limits::HANDSHAKES_PER_ADDRESS);
        if self.handshakes >= limits::HANDSHAKES || connections >= limits::CONNECTIONS || many && proven {
            Door::Full
        } else if !proven && (many || self.handshakes >= limits::UNVALIDATED_HANDSHAKES) {
            Door::ProveAddress
        } else {
            Door::Open
        }
    }
}

/// A handshake's claim on its place in the lobby.
struct Place {
    shared: Arc<Shared>,
    /// Counted only when proven: forged addresses take no place from their owners.
    address: Option<IpAddr>,
}

impl Place {
    fn take(shared: &Arc<Shared>, lobby: &mut Lobby, address: Option<IpAddr>) -> Self {
        lobby.handshakes += 1;
        if let Some(address) = address {
            *lobby.by_address.entry(address).or_default() += 1;
        }
        Self { shared: Arc::clone(shared), address }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lobby = self.shared.guests.lock();
        lobby.handshakes -= 1;
        if let Some(address) = self.address
            && let Some(count) = lobby.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                lobby.by_address.remove(&address);
            }
        }
    }
}

/// A guest's entry in the lobby.
struct Entry<'a> {
    guests: &'a Guests,
    number: u64,
}

impl<'a> Entry<'a> {
    /// # Errors
    /// There are as many of its kind as may be.
    fn make(guests: &'a Guests, quinn: quinn::Connection, peer: Option<Peer>) -> Result<Self, String> {
        let mut lobby = guests.lock();
        let from = canonical(quinn.remote_address()).ip();
        let joining = |guest: &&Guest| guest.peer.is_none();
        let from_there = |guest: &&Guest| canonical(guest.quinn.remote_address()).ip() == from;
        match peer {
            None if lobby.guests.values().filter(joining).count() >= limits::JOINING => {
                return Err(format!("{} nodes are joining already, try again in a moment", limits::JOINING));
            }
            None if lobby.guests.values().filter(joining).filter(from_there).count() >= limits::JOINING_PER_ADDRESS => {
                return Err(format!("{} nodes are joining from {from} already", limits::JOINING_PER_ADDRESS));
            }
            Some(peer) if lobby.of_node(peer.node).count() >= limits::CONNECTIONS_PER_NODE => {
                return Err(format!("node {} has {} connections already", peer.node, limits::CONNECTIONS_PER_NODE));
            }
            None | Some(_) => {}
        }
        let number = lobby.next;
        lobby.next += 1;
        lobby.guests.insert(number, Guest { quinn, peer });
        Ok(Self { guests, number })
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.guests.lock().guests.remove(&self.number);
    }
}

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let quinn = shared.quinn.clone();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            incoming = quinn.accept() => match incoming {
                Some(incoming) => consider(&shared, incoming, &mut tasks),
                None => break,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    // All connections are closed: their tasks end by themselves.
    while tasks.join_next().await.is_some() {}
}

fn consider(shared: &Arc<Shared>, incoming: Incoming, tasks: &mut JoinSet<()>) {
    let address = canonical(incoming.remote_address()).ip();
    let proven = incoming.remote_address_validated();
    let place = {
        let mut lobby = shared.guests.lock();
        match lobby.door(address, proven) {
            Door::Open => Ok(Place::take(shared, &mut lobby, proven.then_some(address))),
            Door::Full => {
                lobby.refusals.full += 1;
                Err(Door::Full)
            }
            closed => Err(closed),
        }
    };
    match place {
        Ok(place) => {
            tasks.spawn(receive(incoming, place));
        }
        Err(Door::ProveAddress) => {
            // Fails for proven addresses only.
            let _ = incoming.retry();
        }
        Err(_) => incoming.refuse(),
    }
}

/// Everything from the first packet of a connection to its end.
async fn receive(incoming: Incoming, place: Place) {
    let shared = Arc::clone(&place.shared);
    let from = canonical(incoming.remote_address());
    let handshake = async { incoming.accept()?.await };
    let shaken = timeout(limits::HANDSHAKE_TIME, handshake).await;
    let shaken = shaken.map_or_else(|_| Err("not finished in time".to_owned()), |done| done.map_err(|e| describe(&e)));
    let quinn = match shaken {
        Ok(quinn) => quinn,
        Err(reason) => {
            tracing::debug!(%from, reason, "no connection came of a handshake");
            shared.guests.lock().refusals.handshakes += 1;
            return;
        }
    };
    if let Err(reason) = host(&shared, &quinn, place).await {
        tracing::debug!(%from, reason, "refused a connection");
        shared.guests.lock().refusals.peers += 1;
        quinn.close(Close::Refused.code(), reason_bytes(&reason));
    }
}

/// Lets a peer in and serves it until its connection ends.
async fn host(shared: &Arc<Shared>, quinn: &quinn::Connection, place: Place) -> Result<(), String> {
    let alpn = protocol(quinn).ok_or("no protocol was agreed upon")?;
    let peer = identity(quinn).map_err(|refusal| refusal.to_string())?;
    let guests = &shared.guests;
    // In the book of guests before the question, so that a removal after the answer finds it there.
    let entry = Entry::make(guests, quinn.clone(), peer)?;
    drop(place);
    match &peer {
        Some(peer) => shared.admit.admit(alpn, peer)?,
        None if alpn.needs_certificate() => return Err(format!("{alpn} needs a certificate")),
        None => {}
    }
    if let Some(peer) = peer {
        quinn.set_receive_window(limits::WINDOW.into());
        quinn.set_max_concurrent_bi_streams(limits::STREAMS.into());
        shared.heard_of(peer.node, quinn.remote_address());
    }
    timeout(limits::HANDSHAKE_TIME, welcome(quinn)).await.map_err(|_| "the welcome was not taken")?;
    let serve = serve(shared, quinn, alpn, peer);
    if peer.is_some() {
        serve.await;
    } else if timeout(limits::JOINING_TIME, serve).await.is_err() {
        quinn.close(Close::Done.code(), b"joining takes too long");
    }
    drop(entry);
    let Some(error) = quinn.close_reason() else { return Ok(()) };
    if let Some(peer) = peer {
        tracing::debug!(node = %peer.node, %alpn, reason = %describe(&error), "a peer's connection ended");
        // It may have migrated. Whom this node itself has cut off is not looked for.
        if error != quinn::ConnectionError::LocallyClosed {
            shared.book.learn(peer.node, canonical(quinn.remote_address()), Source::Seen);
        }
    }
    Ok(())
}

async fn welcome(quinn: &quinn::Connection) {
    // Fails when the connection has ended, which serving sees as well.
    if let Ok(mut stream) = quinn.open_uni().await {
        let _ = stream.write_all(&[WELCOME]).await;
    }
}

fn protocol(quinn: &quinn::Connection) -> Option<Alpn> {
    let data = quinn.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Alpn::of(&data.protocol?)
}

/// Serves the streams of a guest; what is still being served when its connection ends is dropped.
async fn serve(shared: &Arc<Shared>, quinn: &quinn::Connection, alpn: Alpn, peer: Option<Peer>) {
    let mut tasks = JoinSet::new();
    loop {
        let (send, recv) = tokio::select! {
            stream = quinn.accept_bi() => match stream {
                Ok(stream) => stream,
                Err(_) => return,
            },
            Some(_) = tasks.join_next() => continue,
        };
        let permit = Arc::clone(&shared.guests.served).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (shared, remote) = (Arc::clone(shared), canonical(quinn.remote_address()));
        tasks.spawn(async move {
            let _permit = permit;
            match begin(send, recv).await {
                Some(stream) => shared.handlers.serve(alpn, peer, remote, stream).await,
                None => shared.guests.lock().refusals.streams += 1,
            }
        });
    }
}

/// Waits for the first bytes: a stream that says nothing, or is taken back, is given up.
async fn begin(send: quinn::SendStream, mut recv: quinn::RecvStream) -> Option<(SendStream, RecvStream)> {
    let first = timeout(limits::FIRST_BYTE_TIME, recv.read_chunk(usize::MAX, true)).await.ok()?.ok()?;
    let first = first.map(|chunk| chunk.bytes).unwrap_or_default();
    Some((SendStream::new(send), RecvStream::begun(recv, first)))
}
