//! What a node's certificate says, whether to believe it, and when to replace it.

use super::{LastSeen, key::node_id, utc};
use orchestrator_core::model::{ClusterId, Millis, NodeId, Role, UnixMillis};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring::ECDSA_P256_SHA256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::AttributeTypeAndValue};

/// How long before its issue a certificate begins, so that a peer's clock may be behind by as much.
pub const BACKDATE: Millis = Millis::from_secs(3600);
/// How long a node's certificate is valid unless the cluster's settings say otherwise: 90 days.
pub const DEFAULT_VALIDITY: Millis = Millis::from_secs(90 * 86_400);
/// The shortest validity: below an hour, clocks that differ and managers that are away would end memberships.
pub const MIN_VALIDITY: Millis = Millis::from_secs(3600);

/// Who a certificate is for, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The node; follows from the certificate's key.
    pub node: NodeId,
    /// The role it was issued for.
    pub role: Role,
    /// The cluster.
    pub cluster: ClusterId,
    /// Valid from here,
    pub not_before: UnixMillis,
    /// to here, inclusive.
    pub not_after: UnixMillis,
}

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It lacks a name that a node's certificate has, or has it twice.
    #[error("the certificate does not name one {what}")]
    Unnamed {
        /// Which.
        what: &'static str,
    },
    /// It has the name, and the name is none of ours.
    #[error("the certificate names the {what} {found:?}, which is none")]
    BadName {
        /// Which.
        what: &'static str,
        /// What it says.
        found: String,
    },
    /// Its name does not follow from its key.
    #[error("the certificate says it is of node {named}, but its key is that of node {keyed}")]
    NotItsKey {
        /// Whom it names.
        named: NodeId,
        /// Whose key it has.
        keyed: NodeId,
    },
    /// Nobody we trust signed it.
    #[error("the certificate of node {node} (cluster {cluster}) is not signed by the CA of this cluster")]
    Issuer {
        /// Whom it names.
        node: NodeId,
        /// The cluster that it names.
        cluster: ClusterId,
    },
    /// Its time is over.
    #[error("the certificate of node {node} ran out on {} (it is {} here)", utc(*.not_after), utc(*.now))]
    Expired {
        /// Whose.
        node: NodeId,
        /// When.
        not_after: UnixMillis,
        /// The time it was judged by.
        now: UnixMillis,
    },
    /// Its time has not come.
    #[error("the certificate of node {node} is not valid before {} (it is {} here): is a clock wrong?", utc(*.not_before), utc(*.now))]
    NotYetValid {
        /// Whose.
        node: NodeId,
        /// From when.
        not_before: UnixMillis,
        /// The time it was judged by.
        now: UnixMillis,
    },
    /// It is of another cluster.
    #[error("the certificate of node {node} is of cluster {found}, expected {expected}")]
    Cluster {
        /// Whose.
        node: NodeId,
        /// Its cluster.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
    /// Another node answered than was called.
    #[error("the certificate is for node {found}, expected {expected}")]
    Node {
        /// Who answered.
        found: NodeId,
        /// Who was called.
        expected: NodeId,
    },
    /// A worker where a manager was needed.
    #[error("node {node} is a worker, and only a manager can let others join")]
    NotManager {
        /// Who answered.
        node: NodeId,
    },
    /// The server is not of the cluster that the token was made for.
    #[error("the server does not show the CA that the join token names: the token is of another cluster")]
    ForeignToken,
    /// Sound in form, and not meant for this use.
    #[error("the certificate of node {node} cannot be used here: {why}")]
    Unfit {
        /// Whose.
        node: NodeId,
        /// The verifier's words.
        why: String,
    },
}

impl Subject {
    /// Reads a certificate. Says nothing about who signed it.
    ///
    /// # Errors
    /// It is no certificate, lacks a name, or its name does not follow from its key.
    pub fn of(certificate: &[u8]) -> Result<Self, Refusal> {
        let parsed = parse(certificate)?;
        let named: NodeId = name("node (CN)", parsed.subject().iter_common_name(), |text| text.parse().ok())?;
        let role = name("role (OU)", parsed.subject().iter_organizational_unit(), role_named)?;
        let cluster = cluster(&parsed)?;
        let keyed = node_id(parsed.public_key().raw);
        if keyed != named {
            return Err(Refusal::NotItsKey { named, keyed });
        }
        let validity = parsed.validity();
        let millis = |secs: i64| UnixMillis(u64::try_from(secs).unwrap_or(0).saturating_mul(1000));
        Ok(Self {
            node: named,
            role,
            cluster,
            not_before: millis(validity.not_before.timestamp()),
            not_after: millis(validity.not_after.timestamp()),
        })
    }
}

/// When to replace a certificate: after 50-80 % of the time from its issue to its end. `random` in 0..1 spreads the nodes
/// that were certified together.
#[must_use]
pub fn renew_at(subject: &Subject, random: f64) -> UnixMillis {
    // Counted from the issue: half of the whole span of an hour's certificate would be over when it is issued.
    let issued = (subject.not_before + BACKDATE).min(subject.not_after);
    let life = subject.not_after.since(issued).0 as f64;
    issued + Millis((life * (0.5 + 0.3 * random.clamp(0.0, 1.0))) as u64)
}

/// How a role is written in a certificate.
pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "edge-manager",
        Role::Worker => "edge-worker",
    }
}

fn role_named(text: &str) -> Option<Role> {
    [Role::Manager, Role::Worker].into_iter().find(|role| role_name(*role) == text)
}

/// The cluster that a CA's certificate names.
pub(super) fn cluster_of_ca(certificate: &[u8]) -> Result<ClusterId, Refusal> {
    let parsed = parse(certificate)?;
    if !parsed.is_ca() {
        return Err(Refusal::Unreadable("it is no certificate of a CA".into()));
    }
    cluster(&parsed)
}

/// A certificate that `ca` must have signed for this use, at the time that `time` tells.
///
/// # Errors
/// Why it is not accepted.
pub(super) fn judge(certificate: &[u8], ca: &[u8], usage: KeyUsage, time: &LastSeen) -> Result<Subject, Refusal> {
    let subject = Subject::of(certificate)?;
    let verdict = chain(certificate, ca, usage, time.now(), &subject);
    // To a clock that nobody has set, the CA's word for the time is the better one.
    if matches!(verdict, Err(Refusal::NotYetValid { .. })) && time.is_unset() {
        chain(certificate, ca, usage, subject.not_before, &subject)?;
        time.raise(subject.not_before);
        return Ok(subject);
    }
    verdict.map(|()| subject)
}

/// Whether `ca` itself signed the certificate of `subject`, for this use, in its cluster, and `now` is its time.
pub(super) fn chain(
    certificate: &[u8],
    ca: &[u8],
    usage: KeyUsage,
    now: UnixMillis,
    subject: &Subject,
) -> Result<(), Refusal> {
    let Subject { node, cluster, .. } = *subject;
    let expected = cluster_of_ca(ca)?;
    let (certificate, ca) = (CertificateDer::from(certificate), CertificateDer::from(ca));
    let unreadable = |error: webpki::Error| Refusal::Unreadable(error.to_string());
    let leaf = EndEntityCert::try_from(&certificate).map_err(unreadable)?;
    let anchor = anchor_from_trusted_cert(&ca).map_err(unreadable)?;
    let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    leaf.verify_for_usage(&[ECDSA_P256_SHA256], &[anchor], &[], at, usage, None, None).map_err(
        |error| match error {
            webpki::Error::CertExpired { .. } => Refusal::Expired { node, not_after: subject.not_after, now },
            webpki::Error::CertNotValidYet { .. } => Refusal::NotYetValid { node, not_before: subject.not_before, now },
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Refusal::Issuer { node, cluster }
            }
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
                Refusal::Unfit { node, why: "it was issued for another use".into() }
            }
            other => Refusal::Unfit { node, why: other.to_string() },
        },
    )?;
    if cluster != expected {
        return Err(Refusal::Cluster { node, found: cluster, expected });
    }
    Ok(())
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(Refusal::Unreadable("there are bytes after its end".into())),
        Err(error) => Err(Refusal::Unreadable(error.to_string())),
    }
}

fn cluster(certificate: &X509Certificate<'_>) -> Result<ClusterId, Refusal> {
    name("cluster (O)", certificate.subject().iter_organization(), |text| text.parse().ok())
}

fn name<'a, T>(
    what: &'static str,
    mut found: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, Refusal> {
    let (Some(only), None) = (found.next(), found.next()) else {
        return Err(Refusal::Unnamed { what });
    };
    let text = only.as_str().map_err(|_| Refusal::BadName { what, found: String::new() })?;
    read(text).ok_or_else(|| Refusal::BadName { what, found: text.chars().take(64).collect() })
}
