//! TLS settings that hold a peer to its certificate. Made for QUIC (RFC 9001), which is TLS 1.3 without its records.

use super::{CaDigest, Credentials, LastSeen, Refusal, subject::judge};
use orchestrator_core::model::{NodeId, Role};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::TLS13,
};
use std::sync::Arc;
use webpki::KeyUsage;

/// What `rustls` puts before a verifier's own words.
const OTHER_ERROR: &str = "other error: ";

/// Settings of a member that others call. It shows its certificate and the CA's, which whoever joins recognises by the
/// token. It asks callers for a certificate: one that is shown must be sound and of this cluster; callers without one pass,
/// and the caller of this function admits them to `edge-join/1` and to nothing else. Roles and removed nodes are the
/// caller's to judge as well.
#[must_use]
pub fn server_config(credentials: &Credentials, alpns: &[&[u8]], time: Arc<LastSeen>) -> Arc<ServerConfig> {
    let verifier = Arc::new(Clients { ca: credentials.ca().into(), time: Arc::clone(&time) });
    let shown = certified(credentials, vec![der(credentials.certificate()), der(credentials.ca())]);
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    // A resumed session would skip the verdict on the client's certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Settings of a member that calls `expect`, whatever its address: the server must be that node of this cluster.
#[must_use]
pub fn client_config(credentials: &Credentials, expect: NodeId, alpn: &[u8], time: Arc<LastSeen>) -> Arc<ClientConfig> {
    let verifier = Servers { expected: Expected::Node { ca: credentials.ca().into(), node: expect }, time };
    let shown = certified(credentials, vec![der(credentials.certificate())]);
    client(verifier, alpn, |builder| builder.with_client_cert_resolver(shown))
}

/// Settings of a node that joins: it has no certificate, and knows the cluster by the CA's digest in its token. The server
/// must be a manager whose certificate is signed by that CA, which it must show.
#[must_use]
pub fn join_config(digest: CaDigest, alpn: &[u8], time: Arc<LastSeen>) -> Arc<ClientConfig> {
    client(Servers { expected: Expected::AnyManager(digest), time }, alpn, |builder| builder.with_no_client_auth())
}

/// A handshake's error in our own words, without what `rustls` puts before them.
#[must_use]
pub fn reason(text: &str) -> &str {
    text.split_once(OTHER_ERROR).map_or(text, |(_, reason)| reason)
}

fn client(
    verifier: Servers,
    alpn: &[u8],
    authenticate: impl FnOnce(rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>) -> ClientConfig,
) -> Arc<ClientConfig> {
    let time = Arc::clone(&verifier.time);
    let builder = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = authenticate(builder);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    // Peers are known by certificate; a name in the clear would tell listeners which node is called.
    config.enable_sni = false;
    Arc::new(config)
}

fn certified(credentials: &Credentials, chain: Vec<CertificateDer<'static>>) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, credentials.key().signing())))
}

fn der(certificate: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from(certificate.to_vec())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Judges the certificates of callers.
#[derive(Debug)]
struct Clients {
    ca: Vec<u8>,
    time: Arc<LastSeen>,
}

/// Judges the certificates of those who are called.
#[derive(Debug)]
struct Servers {
    expected: Expected,
    time: Arc<LastSeen>,
}

#[derive(Debug)]
enum Expected {
    /// This node, certified by this CA.
    Node { ca: Vec<u8>, node: NodeId },
    /// Any manager of the cluster whose CA has this digest.
    AnyManager(CaDigest),
}

impl Servers {
    fn judge(&self, leaf: &[u8], shown: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        match &self.expected {
            Expected::Node { ca, node } => {
                let subject = judge(leaf, ca, KeyUsage::server_auth(), &self.time)?;
                if subject.node != *node {
                    return Err(Refusal::Node { found: subject.node, expected: *node });
                }
            }
            Expected::AnyManager(digest) => {
                let ca = shown.iter().find(|ca| CaDigest::of(ca) == *digest).ok_or(Refusal::ForeignToken)?;
                let subject = judge(leaf, ca, KeyUsage::server_auth(), &self.time)?;
                if subject.role != Role::Manager {
                    return Err(Refusal::NotManager { node: subject.node });
                }
            }
        }
        Ok(())
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, shown).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _shown: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        judge(leaf, &self.ca, KeyUsage::client_auth(), &self.time).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl TimeProvider for LastSeen {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.now().0)))
    }
}

/// As `Other` and not as `InvalidCertificate`, which would show the words as Rust's debug text. QUIC carries the text to the
/// peer, who learns there what is wrong with its certificate.
fn refused(refusal: Refusal) -> Error {
    Error::Other(OtherError(Arc::new(refusal)))
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken".into())
}
