//! What the authority signs and what it refuses.

use super::*;
use orchestrator_core::model::Secret;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
use std::sync::LazyLock;

static SHARED: LazyLock<Cluster> = LazyLock::new(|| Cluster::new(CLUSTER));

fn refusal(csr: &[u8]) -> String {
    SHARED.authority.issue(csr, CLUSTER, Role::Worker, START, DEFAULT_VALIDITY).unwrap_err().to_string()
}

fn csr_of(kind: &'static SignatureAlgorithm) -> Vec<u8> {
    let pair = KeyPair::generate_for(kind).unwrap();
    CertificateParams::default().serialize_request(&pair).unwrap().der().to_vec()
}

/// `bytes` with `old`, which must be there, replaced by `new`.
fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(old.len()).rposition(|window| window == old).unwrap();
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

#[test]
fn a_certificate_says_who_for_what_and_when() {
    let key = NodeKey::generate();
    let der = SHARED.authority.issue(&key.csr(), CLUSTER, Role::Manager, START, DAY).unwrap();
    let expected = Subject {
        node: key.node_id(),
        role: Role::Manager,
        cluster: CLUSTER,
        not_before: before(START, HOUR),
        not_after: START + DAY,
    };
    assert_eq!(Subject::of(&der), Ok(expected));
}

#[test]
fn the_same_key_stays_the_same_node() {
    let key = NodeKey::generate();
    let again = NodeKey::from_pkcs8(key.pkcs8()).unwrap();
    assert_eq!(again.node_id(), key.node_id());
    let first = SHARED.certify(key, Role::Worker, START, DAY);
    let second = SHARED.certify(again, Role::Manager, START + DAY, DAY);
    assert_eq!(first.subject().node, second.subject().node);
    assert_ne!(first.certificate(), second.certificate());
}

#[test]
fn what_a_request_asks_for_beside_its_key_is_ignored() {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "0000000000000000000000001");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "edge-manager");
    let csr = params.serialize_request(&pair).unwrap();
    let der = SHARED.authority.issue(csr.der(), CLUSTER, Role::Worker, START, DAY).unwrap();
    let subject = Subject::of(&der).unwrap();
    assert_eq!(subject.role, Role::Worker);
    assert_eq!(subject.node, NodeKey::from_pkcs8(pair.serialized_der()).unwrap().node_id());
}

#[test]
fn keys_of_other_kinds_are_refused() {
    assert_eq!(
        refusal(&csr_of(&PKCS_ECDSA_P384_SHA384)),
        "the certificate request has a key of an elliptic curve named 1.3.132.0.34, and nodes have P-256 keys"
    );
    assert_eq!(
        refusal(&csr_of(&PKCS_ED25519)),
        "the certificate request has a key of algorithm 1.3.101.112, and nodes have P-256 keys"
    );
}

#[test]
fn another_signature_algorithm_is_refused() {
    // ecdsa-with-SHA256 and ecdsa-with-SHA384 (RFC 5758 section 3.2) differ in the last arc.
    let [sha256, sha384] = [2, 3].map(|arc| [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, arc]);
    let csr = replaced(&NodeKey::generate().csr(), &sha256, &sha384);
    assert_eq!(
        refusal(&csr),
        "the certificate request is signed by algorithm 1.2.840.10045.4.3.3, and not by ECDSA with SHA-256"
    );
}

#[test]
fn a_request_with_somebody_elses_key_is_refused() {
    let (own, other) = (NodeKey::generate(), NodeKey::generate());
    let point = |key: &NodeKey| key::pair(key.pkcs8()).unwrap().public_key_raw().to_vec();
    let csr = replaced(&own.csr(), &point(&own), &point(&other));
    assert_eq!(refusal(&csr), "the certificate request is not signed by its own key");
    let nowhere = replaced(&own.csr(), &point(&own)[1..], &[0xff; 64]);
    assert_eq!(refusal(&nowhere), "the certificate request is not signed by its own key");
}

#[test]
fn oversized_and_trailing_bytes_are_refused() {
    let mut csr = NodeKey::generate().csr();
    csr.push(0);
    assert_eq!(refusal(&csr), "the certificate request cannot be read: there are bytes after its end");
    csr.resize(MAX_CSR_BYTES + 1, 0);
    assert_eq!(refusal(&csr), "the certificate request has 2049 bytes, more than 2048");
    assert!(refusal(&[]).starts_with("the certificate request cannot be read: "));
}

#[test]
fn another_clusters_name_and_too_short_a_time_are_refused() {
    let csr = NodeKey::generate().csr();
    let other = SHARED.authority.issue(&csr, ClusterId(78), Role::Worker, START, DAY);
    assert_eq!(
        other.unwrap_err().to_string(),
        format!("asked for a certificate of cluster {}, and this is the CA of {CLUSTER}", ClusterId(78))
    );
    let short = SHARED.authority.issue(&csr, CLUSTER, Role::Worker, START, Millis::from_secs(3599));
    assert_eq!(short.unwrap_err().to_string(), "certificates are valid for an hour at least, not for 3599 seconds");
}

#[test]
fn no_certificate_outlives_the_authority() {
    let csr = NodeKey::generate().csr();
    let end = START + Millis::from_secs(20 * 365 * 86_400);
    let issue = |now| SHARED.authority.issue(&csr, CLUSTER, Role::Worker, now, DAY);
    let last = Subject::of(&issue(before(end, HOUR)).unwrap()).unwrap();
    assert_eq!(last.not_after, end);
    let after = issue(UnixMillis(end.0 + 1000)).unwrap_err();
    assert_eq!(after.to_string(), "the cluster's CA certificate ran out on 2059-12-27 00:00:00 UTC");
}

#[test]
fn an_authority_whose_halves_do_not_fit_is_not_opened() {
    let (one, other) = (Authority::create(CLUSTER, START).unwrap(), Authority::create(CLUSTER, START).unwrap());
    let open = |ca: Ca| Authority::open(&ca).unwrap_err();
    let mixed = open(Ca { certificate: one.certificate.clone(), key: other.key });
    assert!(matches!(mixed, AuthorityError::Mismatch), "{mixed}");
    let no_key = open(Ca { certificate: one.certificate.clone(), key: Secret(vec![1, 2, 3]) });
    assert!(matches!(no_key, AuthorityError::Key(_)), "{no_key}");
    let cut = open(Ca { certificate: one.certificate[..100].to_vec(), key: one.key.clone() });
    assert!(matches!(cut, AuthorityError::Certificate(_)), "{cut}");
    let leaf = open(Ca { certificate: SHARED.node(Role::Manager).certificate().to_vec(), key: one.key });
    assert!(matches!(leaf, AuthorityError::Certificate(_)), "{leaf}");
}

#[test]
fn an_authority_at_the_end_of_time_makes_no_panic() {
    for now in [UnixMillis(0), UnixMillis(253_402_300_799_000), UnixMillis(u64::MAX)] {
        let ca = Authority::create(CLUSTER, now).unwrap();
        let authority = Authority::open(&ca).unwrap();
        let _ = authority.issue(&NodeKey::generate().csr(), CLUSTER, Role::Worker, now, Millis(u64::MAX));
    }
}

proptest! {
    #[test]
    fn a_changed_request_is_refused_or_still_its_signers(at: prop::sample::Index, bit in 0u8..8) {
        let key = NodeKey::generate();
        let mut csr = key.csr();
        let at = at.index(csr.len());
        csr[at] ^= 1 << bit;
        if let Ok(der) = SHARED.authority.issue(&csr, CLUSTER, Role::Worker, START, DAY) {
            prop_assert_eq!(Subject::of(&der).unwrap().node, key.node_id());
        }
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(SHARED.authority.issue(&bytes, CLUSTER, Role::Worker, START, DAY).is_err());
        prop_assert!(Subject::of(&bytes).is_err());
    }

    #[test]
    fn a_changed_certificate_is_refused(at: prop::sample::Index, bit in 0u8..8) {
        let node = SHARED.node(Role::Worker);
        let mut der = node.certificate().to_vec();
        let at = at.index(der.len());
        der[at] ^= 1 << bit;
        prop_assert!(Credentials::new(node.key().clone(), der, node.ca().to_vec()).is_err());
    }
}
