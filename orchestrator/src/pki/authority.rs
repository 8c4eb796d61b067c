//! The cluster's certificate authority: made once by the first node, kept in the replicated state, used by whoever leads.

use super::{
    BACKDATE, CaDigest, END_OF_TIME_SECS, KeyError, MIN_VALIDITY, NodeKey, Refusal, key,
    subject::{cluster_of_ca, role_name},
    utc,
};
use orchestrator_core::model::{Ca, ClusterId, Millis, Role, Secret, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use std::{fmt, time::Duration};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256},
    prelude::{FromDer, X509Certificate},
};

/// 20 years, in which no node that is left alone loses its cluster.
const CA_VALIDITY: Millis = Millis::from_secs(20 * 365 * 86_400);
/// The largest request that is looked at. A request with a P-256 key and no names has some 230 bytes; names that other
/// tools add fit as well.
pub const MAX_CSR_BYTES: usize = 2048;

/// A certificate authority that can sign.
pub struct Authority {
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    cluster: ClusterId,
    not_after: UnixMillis,
}

/// What is kept as the cluster's CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate is damaged.
    #[error("the cluster's CA certificate cannot be used")]
    Certificate(#[source] Refusal),
    /// The key is damaged.
    #[error("the cluster's CA key cannot be used")]
    Key(#[source] KeyError),
    /// They are not a pair.
    #[error("the cluster's CA key does not belong to the CA's certificate")]
    Mismatch,
    /// The library refused.
    #[error("making the cluster's CA certificate")]
    Making(#[source] rcgen::Error),
}

/// A request for a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It is longer than any honest one.
    #[error("the certificate request has {0} bytes, more than {MAX_CSR_BYTES}")]
    TooLarge(usize),
    /// It is no request.
    #[error("the certificate request cannot be read: {0}")]
    Unreadable(String),
    /// Its key is of another kind.
    #[error("the certificate request has a key of {0}, and nodes have P-256 keys")]
    KeyKind(String),
    /// It is signed in another way.
    #[error("the certificate request is signed by {0}, and not by ECDSA with SHA-256")]
    SignatureKind(String),
    /// Whoever sent it does not have the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// The cluster is another.
    #[error("asked for a certificate of cluster {asked}, and this is the CA of {own}")]
    Cluster {
        /// The cluster asked for.
        asked: ClusterId,
        /// The CA's.
        own: ClusterId,
    },
    /// Too short a time.
    #[error("certificates are valid for an hour at least, not for {} seconds", .0.0 / 1000)]
    Validity(Millis),
    /// The CA's own time is over.
    #[error("the cluster's CA certificate ran out on {}", utc(*.0))]
    Expired(UnixMillis),
    /// The library refused.
    #[error("signing the certificate")]
    Signing(#[source] rcgen::Error),
}

impl Authority {
    /// A new authority for `cluster`, valid for 20 years from an hour before `now`.
    ///
    /// # Errors
    /// The library failed to sign.
    pub fn create(cluster: ClusterId, now: UnixMillis) -> Result<Ca, AuthorityError> {
        let key = NodeKey::generate();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "edge-ca");
        params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
        params.serial_number = Some(serial());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, backdated(now), now + CA_VALIDITY);
        let pair = key::pair(key.pkcs8()).map_err(AuthorityError::Key)?;
        let certificate = params.self_signed(&pair).map_err(AuthorityError::Making)?;
        Ok(Ca { certificate: certificate.der().to_vec(), key: Secret(key.pkcs8().to_vec()) })
    }

    /// The authority that is kept as `ca`.
    ///
    /// # Errors
    /// Either half is damaged, or they do not fit.
    pub fn open(ca: &Ca) -> Result<Self, AuthorityError> {
        let cluster = cluster_of_ca(&ca.certificate).map_err(AuthorityError::Certificate)?;
        let unreadable = |error: String| AuthorityError::Certificate(Refusal::Unreadable(error));
        let (_, parsed) = X509Certificate::from_der(&ca.certificate).map_err(|error| unreadable(error.to_string()))?;
        let pair = key::pair(&ca.key.0).map_err(AuthorityError::Key)?;
        if pair.subject_public_key_info() != parsed.public_key().raw {
            return Err(AuthorityError::Mismatch);
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let der = CertificateDer::from(ca.certificate.as_slice());
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { certificate: ca.certificate.clone(), issuer, cluster, not_after: UnixMillis(not_after * 1000) })
    }

    /// By which tokens name this authority.
    #[must_use]
    pub fn digest(&self) -> CaDigest {
        CaDigest::of(&self.certificate)
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A certificate for whoever signed `csr`, named by its key, valid from an hour before `now` to `validity` after it,
    /// or to the end of the CA. What the request asks for beside its key is ignored.
    ///
    /// # Errors
    /// What is wrong with the request; nothing was signed.
    pub fn issue(
        &self,
        csr: &[u8],
        cluster: ClusterId,
        role: Role,
        now: UnixMillis,
        validity: Millis,
    ) -> Result<Vec<u8>, IssueError> {
        if cluster != self.cluster {
            return Err(IssueError::Cluster { asked: cluster, own: self.cluster });
        }
        if validity < MIN_VALIDITY {
            return Err(IssueError::Validity(validity));
        }
        if self.not_after < now {
            return Err(IssueError::Expired(self.not_after));
        }
        let public = public_key(csr)?;
        let node = key::node_id(&public.subject_public_key_info()).to_string();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.clone());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role_name(role));
        params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
        params.subject_alt_names = vec![SanType::DnsName(node.try_into().map_err(IssueError::Signing)?)];
        params.serial_number = Some(serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, backdated(now), (now + validity).min(self.not_after));
        let certificate = params.signed_by(&public, &self.issuer).map_err(IssueError::Signing)?;
        Ok(certificate.der().to_vec())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

/// The public key of a request that its owner signed.
fn public_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    if csr.len() > MAX_CSR_BYTES {
        return Err(IssueError::TooLarge(csr.len()));
    }
    let request = match X509CertificationRequest::from_der(csr) {
        Ok(([], request)) => request,
        Ok(_) => return Err(IssueError::Unreadable("there are bytes after its end".into())),
        Err(error) => return Err(IssueError::Unreadable(error.to_string())),
    };
    let key = &request.certification_request_info.subject_pki;
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(IssueError::KeyKind(format!("algorithm {}", key.algorithm.algorithm)));
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if curve.as_ref() != Some(&OID_EC_P256) {
        let curve = curve.map_or_else(|| "no name".into(), |curve| curve.to_string());
        return Err(IssueError::KeyKind(format!("an elliptic curve named {curve}")));
    }
    let signed_by = &request.signature_algorithm.algorithm;
    if *signed_by != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(IssueError::SignatureKind(format!("algorithm {signed_by}")));
    }
    // Also finds points that are not on the curve.
    request.verify_signature().map_err(|_| IssueError::Signature)?;
    let public = SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| IssueError::Unreadable(error.to_string()))?;
    // The id follows from the key's bytes: one key in two encodings would be two nodes.
    if public.subject_public_key_info() != key.raw {
        return Err(IssueError::KeyKind("a form that is not the shortest".into()));
    }
    Ok(public)
}

/// 128 random bits: RFC 5280 section 4.1.2.2 wants serial numbers unique, positive and at most 20 bytes.
fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    super::random(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn backdated(now: UnixMillis) -> UnixMillis {
    UnixMillis(now.0.saturating_sub(BACKDATE.0))
}

fn valid(params: &mut CertificateParams, from: UnixMillis, to: UnixMillis) {
    let epoch = date_time_ymd(1970, 1, 1);
    let since = |at: UnixMillis| Duration::from_secs((at.0 / 1000).min(END_OF_TIME_SECS));
    params.not_before = epoch + since(from);
    params.not_after = epoch + since(to);
}
