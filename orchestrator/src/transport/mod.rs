//! What carries words between the parts of a cluster: one QUIC endpoint per node, on which every peer shows a certificate,
//! with one ALPN per protocol.
//!
//! In: credentials, the addresses of nodes, streams to open, calls to make. Out: streams with a peer that is known by its
//! certificate. Callers: `store` (raft), `leader` and `agent` (sessions), `daemon` (API requests between nodes, joining).
//!
//! - [`Endpoint`] binds, dials and serves; [`Connection`] is one dialled connection with its streams; [`frames`] are
//!   messages on a stream; [`AddressBook`] says where nodes may be; [`Discovery`] hears and says so by
//!   multicast.
//! - A dialled node is named by its id, never by its address, and its certificate must be that node's. Whoever dials shows
//!   a certificate too, but for [`Alpn::Join`]; [`Admit`] has the last word at every handshake. A first byte from the
//!   serving side says that the dialler is in; a refusal is a close with its reason, which the dialler's error shows.
//! - Addresses may change on either side. The dialler's change is QUIC's connection migration. When the serving side moves
//!   or restarts, the connection dies (by silence, or at once by a stateless reset), and the next dial asks the book.
//! - Everything a peer can make this node keep or do is bounded by [`limits`].
//!
//! Sessions between the leader and the agent of its own node stay within the process.

mod accept;
mod alpn;
mod book;
mod connection;
mod dial;
mod discovery;
mod endpoint;
mod error;
pub mod frames;
pub mod limits;
mod messages;
mod session;
mod socket;
#[cfg(test)]
mod tests;

pub use accept::{Admit, Refusals, Serve};
pub use alpn::Alpn;
pub use book::{AddressBook, Source};
pub use connection::{Connection, RecvStream, SendStream};
pub use discovery::{Announcement, Discovery, DiscoveryError, Found};
pub use endpoint::{Endpoint, EndpointConfig, EndpointError};
pub use error::{Attempt, CallError, ConnectError, Fault};
pub use session::{Message, Session, Sessions};

use crate::pki::{self, Subject};
use orchestrator_core::model::{NodeId, Role};
use rustls::pki_types::CertificateDer;

/// A node that has proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// The role that its certificate was issued for.
    pub role: Role,
}

/// The version of what both sides do before the first stream; sent by the serving side when it has admitted the dialler.
const WELCOME: u8 = 1;

/// Who is at the other end, if it showed a certificate, which TLS has verified.
fn identity(connection: &quinn::Connection) -> Result<Option<Peer>, pki::Refusal> {
    let Some(shown) = connection.peer_identity() else { return Ok(None) };
    let chain = shown.downcast::<Vec<CertificateDer<'static>>>().ok();
    let leaf = chain.as_ref().and_then(|chain| chain.first());
    let subject = leaf.map(|leaf| Subject::of(leaf)).transpose()?;
    Ok(subject.map(|Subject { node, role, .. }| Peer { node, role }))
}
