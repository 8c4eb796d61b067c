//! Dialling: one connection per node and protocol, shared by all who need it; the node's addresses tried in a staggered
//! race; waits between dials that fail.

use super::{
    Alpn, Connection, Peer,
    book::AddressBook,
    endpoint::Shared,
    error::{Attempt, Close, ConnectError, Fault, fault},
    identity, limits,
};
use crate::pki;
use futures_util::{StreamExt, stream::FuturesUnordered};
use orchestrator_core::model::NodeId;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

type Outcome = Result<Connection, ConnectError>;
type Waiter = watch::Receiver<Option<Outcome>>;

/// What is known of each line, that is, of each (node, protocol) that was ever dialled.
#[derive(Default)]
pub(super) struct Lines {
    lines: Mutex<BTreeMap<(NodeId, Alpn), Line>>,
    /// Wakes those who wait for [`Shared::due`].
    forgiven: Notify,
}

#[derive(Default)]
struct Line {
    live: Option<Connection>,
    dialling: Option<Waiter>,
    backoff: Option<Backoff>,
}

/// The wait after failures. Over as soon as the address book has news of the node.
struct Backoff {
    wait: Duration,
    until: Instant,
    news: u64,
    last: Arc<ConnectError>,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(NodeId, Alpn), Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node was heard of: waiting makes no sense any more.
    pub(super) fn forgive(&self, node: NodeId) {
        let mut lines = self.lock();
        for alpn in Alpn::ALL {
            if let Some(line) = lines.get_mut(&(node, alpn)) {
                line.backoff = None;
            }
        }
        drop(lines);
        self.forgiven.notify_waiters();
    }

    /// Closes and forgets all lines that `which` names; dials in progress come to nothing.
    pub(super) fn cut(&self, which: impl Fn(NodeId) -> bool, code: Close, reason: &str) {
        self.lock().retain(|(node, _), line| {
            let cut = which(*node);
            if cut && let Some(connection) = &line.live {
                connection.close_as(code, reason);
            }
            !cut
        });
    }

    /// How long until a dial makes sense.
    pub(super) fn retry_in(&self, node: NodeId, alpn: Alpn, book: &AddressBook) -> Duration {
        let lines = self.lock();
        let backoff = lines.get(&(node, alpn)).and_then(|line| line.backoff.as_ref());
        backoff.map_or(Duration::ZERO, |backoff| backoff.left(book.news(node)))
    }
}

impl Backoff {
    /// Follows `before` after one more failure.
    fn after(before: Option<&Self>, news: u64, last: Arc<ConnectError>) -> Self {
        let (shortest, longest) = limits::BACKOFF;
        let wait = before.filter(|before| before.news == news).map_or(shortest, |before| longest.min(before.wait * 2));
        Self { wait, until: Instant::now() + jitter(wait), news, last }
    }

    fn left(&self, news: u64) -> Duration {
        if news == self.news { self.until.saturating_duration_since(Instant::now()) } else { Duration::ZERO }
    }
}

/// Between half and all of `wait`, so that nodes that lost one peer together do not come back together.
fn jitter(wait: Duration) -> Duration {
    let mut random = [0; 2];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap_or_default();
    wait / 2 + wait / 2 * u32::from(u16::from_le_bytes(random)) / u32::from(u16::MAX)
}

impl Shared {
    /// The connection to `node`, dialled if there is none.
    pub(super) async fn line(self: &Arc<Self>, node: NodeId, alpn: Alpn) -> Outcome {
        let mut waiter = match self.ready_or_dialling(node, alpn)? {
            Ok(connection) => return Ok(connection),
            Err(waiter) => waiter,
        };
        match waiter.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("it was waited for"),
            Err(_) => Err(ConnectError::CalledOff),
        }
    }

    /// Never waits: a dial goes on in a task of its own, whoever gives up waiting for it.
    fn ready_or_dialling(
        self: &Arc<Self>,
        node: NodeId,
        alpn: Alpn,
    ) -> Result<Result<Connection, Waiter>, ConnectError> {
        let news = self.book.news(node);
        let mut lines = self.lines.lock();
        let line = lines.entry((node, alpn)).or_default();
        if let Some(connection) = &line.live {
            let Some(reason) = connection.close_reason() else {
                connection.touch();
                return Ok(Ok(connection.clone()));
            };
            if connection.age() < limits::STABLE {
                let attempt = Attempt { addr: connection.remote(), fault: Fault::Broken(reason) };
                let last = Arc::new(failed(format!("node {node}"), alpn, vec![attempt]));
                line.backoff = Some(Backoff::after(line.backoff.as_ref(), news, last));
            } else {
                line.backoff = None;
            }
            line.live = None;
        }
        // Without a sender the dial has died, which happens when the runtime ends only.
        if let Some(waiter) = line.dialling.as_ref().filter(|waiter| waiter.has_changed().is_ok()) {
            return Ok(Err(waiter.clone()));
        }
        if let Some(backoff) = &line.backoff {
            let retry_in = backoff.left(news);
            if !retry_in.is_zero() {
                return Err(ConnectError::Waiting { node, retry_in, last: Arc::clone(&backoff.last) });
            }
        }
        let (sender, waiter) = watch::channel(None);
        line.dialling = Some(waiter.clone());
        let shared = Arc::clone(self);
        tokio::spawn(async move { shared.dial(node, alpn, sender).await });
        Ok(Err(waiter))
    }

    /// Waits until a dial makes sense.
    pub(super) async fn due(&self, node: NodeId, alpn: Alpn) {
        loop {
            // Both count from here on, also what happens before they are awaited.
            let (forgiven, news) = (self.lines.forgiven.notified(), self.book.changed());
            let left = self.lines.retry_in(node, alpn, &self.book);
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = forgiven => {}
                () = news => {}
            }
        }
    }

    async fn dial(self: Arc<Self>, node: NodeId, alpn: Alpn, sender: watch::Sender<Option<Outcome>>) {
        self.guests.note_addresses(node, &self.book);
        // What is learned from here on is not part of this dial, and reason for another.
        let news = self.book.news(node);
        let outcome = self.try_dial(node, alpn).await;
        let outcome = self.keep(node, alpn, outcome, news, &sender.subscribe());
        if let (Ok(connection), Some(after)) = (&outcome, alpn.close_unused()) {
            let (shared, connection) = (Arc::clone(&self), connection.clone());
            tokio::spawn(async move { shared.close_unused(node, alpn, connection, after).await });
        }
        sender.send_replace(Some(outcome));
    }

    async fn try_dial(&self, node: NodeId, alpn: Alpn) -> Outcome {
        let credentials = self.credentials().ok_or(ConnectError::NotMember)?;
        let candidates = self.book.candidates(node);
        if candidates.is_empty() {
            return Err(ConnectError::NoAddress(node));
        }
        let config = pki::client_config(&credentials, node, alpn.name().as_bytes(), Arc::clone(&self.time));
        let config = super::endpoint::client(config, alpn);
        match self.race(candidates, alpn, &config).await {
            Ok((connection, addr)) => {
                self.book.worked(node, addr);
                tracing::debug!(%node, %alpn, %addr, "connected");
                Ok(connection)
            }
            Err(attempts) => {
                for attempt in &attempts {
                    self.book.failed(node, attempt.addr);
                }
                Err(failed(format!("node {node}"), alpn, attempts))
            }
        }
    }

    /// Notes how the dial went, unless the line was cut meanwhile: then the connection must not live.
    fn keep(&self, node: NodeId, alpn: Alpn, outcome: Outcome, news: u64, waiter: &Waiter) -> Outcome {
        let mut lines = self.lines.lock();
        let line = lines.get_mut(&(node, alpn));
        let ours = line.filter(|line| line.dialling.as_ref().is_some_and(|dialling| dialling.same_channel(waiter)));
        let Some(line) = ours else {
            if let Ok(connection) = &outcome {
                connection.close("the dial was called off");
            }
            return Err(ConnectError::CalledOff);
        };
        line.dialling = None;
        match &outcome {
            Ok(connection) => line.live = Some(connection.clone()),
            Err(error) => {
                tracing::debug!(%node, %alpn, %error, "not connected");
                line.backoff = Some(Backoff::after(line.backoff.as_ref(), news, Arc::new(error.clone())));
            }
        }
        outcome
    }

    /// Closes `connection` when nobody has used it for `after`.
    pub(super) async fn close_unused(&self, node: NodeId, alpn: Alpn, connection: Connection, after: Duration) {
        loop {
            connection.unused(after).await;
            // Under the lock nobody is handed the connection between this look at it and its end.
            let mut lines = self.lines.lock();
            if connection.close_reason().is_some() {
                return;
            }
            if !connection.is_unused(after) {
                continue;
            }
            if let Some(line) = lines.get_mut(&(node, alpn))
                && line.live.as_ref().is_some_and(|live| live.is(&connection))
            {
                line.live = None;
            }
            connection.close("unused");
            return;
        }
    }

    /// Tries `candidates` in their order. Each has its own time; the next one starts when the one before has had a head
    /// start or has failed (RFC 8305 section 5). The first that answers wins.
    pub(super) async fn race(
        &self,
        candidates: Vec<SocketAddr>,
        alpn: Alpn,
        config: &quinn::ClientConfig,
    ) -> Result<(Connection, SocketAddr), Vec<Attempt>> {
        let mut waiting = VecDeque::from(candidates);
        let mut running = FuturesUnordered::new();
        let mut attempts = Vec::new();
        let mut next = Instant::now();
        loop {
            if running.is_empty() || next <= Instant::now() {
                match waiting.pop_front() {
                    Some(addr) => running.push(async move { (addr, self.attempt(addr, alpn, config).await) }),
                    None if running.is_empty() => return Err(attempts),
                    None => {}
                }
                next = Instant::now() + limits::NEXT_ATTEMPT;
            }
            tokio::select! {
                Some((addr, result)) = running.next() => match result {
                    Ok(connection) => return Ok((connection, addr)),
                    Err(fault) => attempts.push(Attempt { addr, fault }),
                },
                () = sleep_until(next), if !waiting.is_empty() => {}
            }
        }
    }

    async fn attempt(&self, addr: SocketAddr, alpn: Alpn, config: &quinn::ClientConfig) -> Result<Connection, Fault> {
        timeout(limits::ATTEMPT_TIME, self.shake_hands(addr, alpn, config))
            .await
            .unwrap_or(Err(Fault::Silent(limits::ATTEMPT_TIME)))
    }

    async fn shake_hands(
        &self,
        addr: SocketAddr,
        alpn: Alpn,
        config: &quinn::ClientConfig,
    ) -> Result<Connection, Fault> {
        // The name is for SNI, which is off; the certificate is compared with the node that is wanted.
        let connecting = self.quinn.connect_with(config.clone(), addr, "edged");
        let connecting = connecting.map_err(|error| Fault::Broken(error.to_string()))?;
        let quinn = connecting.await.map_err(|error| fault(&error))?;
        let peer: Peer = identity(&quinn)
            .map_err(|refusal| Fault::Untrusted(refusal.to_string()))?
            .ok_or_else(|| Fault::Untrusted("the peer shows no certificate".to_owned()))?;
        // TLS is done for the dialler before the other side has seen its certificate. The welcome says that it has.
        let mut welcome = quinn.accept_uni().await.map_err(|error| fault(&error))?;
        let mut version = [0];
        match welcome.read_exact(&mut version).await {
            Ok(()) if version == [super::WELCOME] => Ok(Connection::new(quinn, alpn, peer)),
            Ok(()) => Err(Fault::Broken(format!("the peer greets with {}, not with {}", version[0], super::WELCOME))),
            Err(_) => Err(quinn
                .close_reason()
                .map_or_else(|| Fault::Broken("the peer does not greet".to_owned()), |error| fault(&error))),
        }
    }
}

pub(super) fn failed(peer: String, alpn: Alpn, attempts: Vec<Attempt>) -> ConnectError {
    ConnectError::Failed { peer, alpn, attempts: attempts.into() }
}
