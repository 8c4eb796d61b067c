//! Who is who in a cluster: its certificate authority, the nodes' keys and certificates, the tokens that let a node in, the
//! TLS settings that hold peers to all of it, and the time by which certificates are judged.
//!
//! In: the cluster's CA (replicated state), the node's state directory, the kernel's randomness, the time of day. Out: DER
//! certificates, `rustls` settings, verdicts on peers as [`Refusal`]. Callers: `transport` (TLS settings), `daemon` (init,
//! join, renewal), the leader (issuing). Nothing here is async and nothing here opens a connection.
//!
//! The rules in one place:
//! - Keys are P-256, and a node *is* its key: the [`NodeId`](orchestrator_core::model::NodeId) is the first 128 bits of the
//!   SHA-256 of the key's DER SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), big-endian. Joining again with the same key
//!   is joining as the same node, and a certificate whose name does not follow from its key is refused.
//! - A certificate says CN = node id, OU = `edge-manager` or `edge-worker`, O = cluster id, and the node id again as
//!   dNSName. It begins an hour before it was issued, so that clocks may differ by that much.
//! - One CA signs nodes directly; chains with anything in between are refused, and so is a certificate signed by a node.
//! - TLS 1.3 only, and no session is ever resumed: every connection is judged anew by certificate and time.

mod authority;
mod credentials;
mod key;
mod last_seen;
mod subject;
mod tls;
mod token;

pub use authority::{Authority, AuthorityError, IssueError, MAX_CSR_BYTES};
pub use credentials::{Credentials, CredentialsError};
pub use key::{KeyError, NodeKey};
pub use last_seen::{LastSeen, LastSeenError};
pub use subject::{BACKDATE, DEFAULT_VALIDITY, MIN_VALIDITY, Refusal, Subject, renew_at};
pub use tls::{client_config, join_config, reason, server_config};
pub use token::{BadToken, CaDigest, Token, granted, new_secret};

use orchestrator_core::model::UnixMillis;

/// The last second that a certificate can express: 9999-12-31 23:59:59 (RFC 5280 section 4.1.2.5).
const END_OF_TIME_SECS: u64 = 253_402_300_799;

/// `at` as people read it, in UTC.
pub(crate) fn utc(at: UnixMillis) -> String {
    let secs = (at.0 / 1000).min(END_OF_TIME_SECS);
    let at = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(secs);
    let (h, m, s) = at.to_hms();
    format!("{:04}-{:02}-{:02} {h:02}:{m:02}:{s:02} UTC", at.year(), u8::from(at.month()), at.day())
}

/// Fills `bytes` from the kernel (getrandom(2)); blocks only before the pool is seeded at boot.
fn random(bytes: &mut [u8]) {
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())
        .expect("up to 256 bytes come whole once the pool is seeded");
}

#[cfg(test)]
mod tests;
