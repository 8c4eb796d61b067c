//! A connection to a peer that proved who it is, and its streams.

use super::{
    Alpn, Peer,
    error::{Close, describe, reason_bytes},
    limits,
};
use bytes::{Buf, Bytes};
use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};

/// A connection that this node dialled. Clones share it; it ends when the last is gone, or when one side closes it.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    quinn: quinn::Connection,
    alpn: Alpn,
    peer: Peer,
    opened: Instant,
    /// One permit for each stream that this node may use.
    free: Arc<Semaphore>,
    /// When the connection was last handed out or a stream ended.
    used: Mutex<Instant>,
}

impl Connection {
    pub(super) fn new(quinn: quinn::Connection, alpn: Alpn, peer: Peer) -> Self {
        let now = Instant::now();
        let free = Arc::new(Semaphore::new(limits::USED_STREAMS as usize));
        Self(Arc::new(Inner { quinn, alpn, peer, opened: now, free, used: Mutex::new(now) }))
    }

    /// Who is at the other end, by its certificate.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Where the peer is now.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        super::book::canonical(self.0.quinn.remote_address())
    }

    /// Opens a stream. The peer learns of it by the first byte. Waits for [`limits::FREE_STREAM_TIME`] while as many as may be are
    /// in use.
    ///
    /// # Errors
    /// The connection has ended, or no stream became free ([`io::ErrorKind::TimedOut`]).
    pub async fn open(&self) -> io::Result<(SendStream, RecvStream)> {
        let open = async {
            let permit = Arc::clone(&self.0.free).acquire_owned().await.expect("the semaphore is never closed");
            let used = Arc::new(Use { inner: Arc::clone(&self.0), _permit: permit });
            let (send, recv) = self.0.quinn.open_bi().await?;
            let send = SendStream { quinn: send, _used: Some(Arc::clone(&used)) };
            Ok((send, RecvStream::new(recv, Bytes::new(), Some(used))))
        };
        tokio::select! {
            opened = timeout(limits::FREE_STREAM_TIME, open) => opened.unwrap_or_else(|_| {
                let text = format!("all {} streams of this connection are in use", limits::USED_STREAMS);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }),
            error = self.0.quinn.closed() => Err(error.into()),
        }
    }

    /// Waits for the end of the connection and says why it came.
    pub async fn closed(&self) -> String {
        describe(&self.0.quinn.closed().await)
    }

    /// Why the connection has ended; `None` while it lasts.
    #[must_use]
    pub fn close_reason(&self) -> Option<String> {
        self.0.quinn.close_reason().map(|error| describe(&error))
    }

    /// Ends the connection and all its streams at once.
    pub fn close(&self, reason: &str) {
        self.close_as(Close::Done, reason);
    }

    pub(super) fn close_as(&self, code: Close, reason: &str) {
        self.0.quinn.close(code.code(), reason_bytes(reason));
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn age(&self) -> Duration {
        self.0.opened.elapsed()
    }

    /// Counts as use: the connection was handed out.
    pub(super) fn touch(&self) {
        self.0.touch();
    }

    /// When the connection will have been unused for `after`, as things stand.
    fn unused_at(&self, after: Duration) -> Instant {
        let in_use = self.0.free.available_permits() < limits::USED_STREAMS as usize;
        if in_use { Instant::now() + after } else { *self.0.used() + after }
    }

    pub(super) fn is_unused(&self, after: Duration) -> bool {
        self.unused_at(after) <= Instant::now()
    }

    /// Waits until the connection has ended or was unused for `after`.
    pub(super) async fn unused(&self, after: Duration) {
        while !self.is_unused(after) {
            tokio::select! {
                () = sleep_until(self.unused_at(after)) => {}
                _ = self.0.quinn.closed() => return,
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { alpn, peer, .. } = &*self.0;
        f.debug_struct("Connection").field("alpn", alpn).field("peer", peer).field("remote", &self.remote()).finish()
    }
}

impl Inner {
    fn used(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.used() = Instant::now();
    }
}

/// A stream's claim on its connection, shared by its halves.
struct Use {
    inner: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.inner.touch();
    }
}

/// The sending half of a stream. Dropping it finishes the stream: the peer gets all that was written, then the end.
pub struct SendStream {
    quinn: quinn::SendStream,
    _used: Option<Arc<Use>>,
}

impl SendStream {
    pub(super) fn new(quinn: quinn::SendStream) -> Self {
        Self { quinn, _used: None }
    }

    /// Says that nothing follows. Done by dropping as well.
    pub fn finish(&mut self) {
        // It can only be finished or stopped already, and either is what was asked for.
        let _ = self.quinn.finish();
    }

    /// Ends the stream so that the peer can tell it from a complete one.
    pub fn abort(&mut self) {
        let _ = self.quinn.reset(Close::Done.code());
    }

    /// Waits until the peer has everything or wants no more; true if it has everything. Goes on independently of the stream,
    /// so that who has nothing to send for a while notices that nobody listens.
    pub fn stopped(&self) -> impl Future<Output = bool> + Send + Sync + use<> {
        let stopped = self.quinn.stopped();
        async move { matches!(stopped.await, Ok(None)) }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().quinn), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().quinn), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

/// The receiving half of a stream. Dropping it tells the peer that no more is wanted.
pub struct RecvStream {
    /// What was read ahead.
    first: Bytes,
    quinn: quinn::RecvStream,
    _used: Option<Arc<Use>>,
}

impl RecvStream {
    fn new(quinn: quinn::RecvStream, first: Bytes, used: Option<Arc<Use>>) -> Self {
        Self { first, quinn, _used: used }
    }

    /// A stream on which something has come already.
    pub(super) fn begun(quinn: quinn::RecvStream, first: Bytes) -> Self {
        Self::new(quinn, first, None)
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            ready!(AsyncRead::poll_read(Pin::new(&mut this.quinn), cx, buf))?;
        } else {
            let size = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..size]);
            this.first.advance(size);
        }
        Poll::Ready(Ok(()))
    }
}
