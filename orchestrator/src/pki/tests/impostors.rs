//! Certificates that no member has: each is shown by a server and by a client, in real handshakes, and refused by both
//! sides for its own reason.

use super::{
    handshake::{ALPN, meet},
    *,
};
use orchestrator_core::model::{NodeId, Secret};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    pki_types::CertificateDer,
    sign::{CertifiedKey, SingleCertAndKey},
};

/// An identity made by hand, to be shown by either side.
struct Shown {
    key: NodeKey,
    chain: Vec<CertificateDer<'static>>,
}

impl Shown {
    fn node(&self) -> NodeId {
        self.key.node_id()
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), self.key.signing())))
    }
}

impl From<Credentials> for Shown {
    fn from(member: Credentials) -> Self {
        let chain = [member.certificate(), member.ca()].map(|der| CertificateDer::from(der.to_vec()));
        Self { key: member.key().clone(), chain: chain.into() }
    }
}

/// A certificate signed by `signer`, as the authority would make it for a manager, but for what `edit`,
/// which is told the node's id, does.
fn forge(signer: &Ca, edit: impl FnOnce(&mut CertificateParams, &str)) -> Shown {
    let key = NodeKey::generate();
    let pair = key::pair(key.pkcs8()).unwrap();
    let mut params = likeness(&key);
    edit(&mut params, &key.node_id().to_string());
    let der = CertificateDer::from(signer.certificate.as_slice());
    let issuer = Issuer::from_ca_cert_der(&der, key::pair(&signer.key.0).unwrap()).unwrap();
    let leaf = params.signed_by(&pair, &issuer).unwrap().der().clone();
    Shown { key, chain: vec![leaf, CertificateDer::from(signer.certificate.clone())] }
}

fn likeness(key: &NodeKey) -> CertificateParams {
    let mut params = CertificateParams::new(vec![key.node_id().to_string()]).unwrap();
    params.not_before = date_time_ymd(2039, 12, 31);
    params.not_after = date_time_ymd(2040, 3, 1);
    params.distinguished_name = names(&key.node_id().to_string(), &["edge-manager"], &CLUSTER.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn names(node: &str, roles: &[&str], cluster: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, node);
    for (nth, role) in roles.iter().enumerate() {
        // The library keeps one name of a kind; the second goes in by its number (id-at-organizationalUnitName, X.520).
        let kind = if nth == 0 { DnType::OrganizationalUnitName } else { DnType::CustomDnType(vec![2, 5, 4, 11]) };
        names.push(kind, *role);
    }
    names.push(DnType::OrganizationName, cluster);
    names
}

/// What a member that calls makes of this server.
fn as_server(cluster: &Cluster, shown: &Shown, now: UnixMillis) -> String {
    let member = cluster.node(Role::Manager);
    let mut server = (*server_config(&member, &[ALPN], time(now))).clone();
    server.cert_resolver = shown.resolver();
    let met = meet(client_config(&member, shown.node(), ALPN, time(now)), Arc::new(server));
    met.client.expect_err("the server was believed")
}

/// What a member that is called makes of this client.
fn as_client(cluster: &Cluster, shown: &Shown, now: UnixMillis) -> String {
    let member = cluster.node(Role::Manager);
    let mut client = (*client_config(&member, member.subject().node, ALPN, time(START))).clone();
    client.client_auth_cert_resolver = shown.resolver();
    let met = meet(Arc::new(client), server_config(&member, &[ALPN], time(now)));
    met.server.expect_err("the client was believed")
}

/// Both ways around, with the same words.
fn refusal(cluster: &Cluster, shown: impl Into<Shown>, now: UnixMillis) -> String {
    let shown = shown.into();
    let text = as_server(cluster, &shown, now);
    assert_eq!(as_client(cluster, &shown, now), text);
    text.replace(&shown.node().to_string(), "X")
}

#[test]
fn a_sound_likeness_is_accepted_so_that_each_forgery_fails_for_its_own_reason() {
    let cluster = Cluster::new(CLUSTER);
    let shown = forge(&cluster.ca, |_, _| {});
    let member = cluster.node(Role::Manager);
    let mut server = (*server_config(&member, &[ALPN], time(START))).clone();
    server.cert_resolver = shown.resolver();
    let mut client = (*client_config(&member, shown.node(), ALPN, time(START))).clone();
    client.client_auth_cert_resolver = shown.resolver();
    let met = meet(Arc::new(client), Arc::new(server));
    assert!(met.both_agree(), "{met:?}");
}

#[test]
fn a_certificate_that_ran_out_is_refused_until_it_is_renewed() {
    let cluster = Cluster::new(CLUSTER);
    let old = cluster.certify(NodeKey::generate(), Role::Worker, START, HOUR);
    let later = START + HOUR + Millis(1000);
    assert_eq!(
        refusal(&cluster, old.clone(), later),
        "the certificate of node X ran out on 2040-01-01 01:00:00 UTC (it is 2040-01-01 01:00:01 UTC here)"
    );
    let renewed = cluster.certify(old.key().clone(), Role::Worker, later, HOUR);
    let manager = cluster.certify(NodeKey::generate(), Role::Manager, later, HOUR);
    let met = meet(
        client_config(&renewed, manager.subject().node, ALPN, time(later)),
        server_config(&manager, &[ALPN], time(later)),
    );
    assert_eq!(met.server, Ok(Some(*renewed.subject())));
    assert_eq!(renewed.subject().node, old.subject().node);
}

#[test]
fn a_certificate_of_tomorrow_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let early = cluster.certify(NodeKey::generate(), Role::Worker, START + DAY, DAY);
    assert_eq!(
        refusal(&cluster, early, START),
        "the certificate of node X is not valid before 2040-01-01 23:00:00 UTC (it is 2040-01-01 00:00:00 UTC here): is a \
         clock wrong?"
    );
}

#[test]
fn another_clusters_ca_is_refused_whatever_the_certificate_claims() {
    let (cluster, other) = (Cluster::new(CLUSTER), Cluster::new(ClusterId(78)));
    let foreign = "is not signed by the CA of this cluster";
    assert_eq!(
        refusal(&cluster, other.node(Role::Manager), START),
        format!("the certificate of node X (cluster {}) {foreign}", other.id)
    );
    let twin = Cluster::new(CLUSTER);
    assert_eq!(
        refusal(&cluster, twin.node(Role::Manager), START),
        format!("the certificate of node X (cluster {CLUSTER}) {foreign}")
    );
}

#[test]
fn a_self_signed_certificate_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let key = NodeKey::generate();
    let leaf = likeness(&key).self_signed(&key::pair(key.pkcs8()).unwrap()).unwrap().der().clone();
    let shown = Shown { key, chain: vec![leaf, CertificateDer::from(cluster.ca.certificate.clone())] };
    assert_eq!(
        refusal(&cluster, shown, START),
        format!("the certificate of node X (cluster {CLUSTER}) is not signed by the CA of this cluster")
    );
}

#[test]
fn a_certificate_signed_by_a_member_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let member = cluster.node(Role::Manager);
    let as_ca = Ca { certificate: member.certificate().to_vec(), key: Secret(member.key().pkcs8().to_vec()) };
    let mut shown = forge(&as_ca, |_, _| {});
    shown.chain.push(CertificateDer::from(cluster.ca.certificate.clone()));
    assert_eq!(
        refusal(&cluster, shown, START),
        format!("the certificate of node X (cluster {CLUSTER}) is not signed by the CA of this cluster")
    );
}

#[test]
fn the_ca_is_no_node() {
    let cluster = Cluster::new(CLUSTER);
    let key = NodeKey::from_pkcs8(&cluster.ca.key.0).unwrap();
    let shown = Shown { key, chain: vec![CertificateDer::from(cluster.ca.certificate.clone())] };
    assert_eq!(refusal(&cluster, shown, START), "the certificate names the node (CN) \"edge-ca\", which is none");
}

#[test]
fn names_that_are_missing_doubled_or_unknown_are_refused() {
    let cluster = Cluster::new(CLUSTER);
    let of = |roles: &[&str], of: &str| {
        let shown = forge(&cluster.ca, |params, node| params.distinguished_name = names(node, roles, of));
        refusal(&cluster, shown, START)
    };
    let own = CLUSTER.to_string();
    assert_eq!(of(&[], &own), "the certificate does not name one role (OU)");
    assert_eq!(of(&["edge-worker", "edge-manager"], &own), "the certificate does not name one role (OU)");
    assert_eq!(of(&["edge-king"], &own), "the certificate names the role (OU) \"edge-king\", which is none");
    assert_eq!(of(&["edge-worker"], "home"), "the certificate names the cluster (O) \"home\", which is none");
    assert_eq!(
        of(&["edge-worker"], &ClusterId(78).to_string()),
        format!("the certificate of node X is of cluster {}, expected {CLUSTER}", ClusterId(78))
    );
    let nameless = forge(&cluster.ca, |params, _| params.distinguished_name = DistinguishedName::new());
    assert_eq!(refusal(&cluster, nameless, START), "the certificate does not name one node (CN)");
}

#[test]
fn a_name_that_does_not_follow_from_the_key_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let victim = cluster.node(Role::Manager).subject().node;
    let shown = forge(&cluster.ca, |params, _| {
        params.distinguished_name = names(&victim.to_string(), &["edge-manager"], &CLUSTER.to_string());
    });
    assert_eq!(
        refusal(&cluster, shown, START),
        format!("the certificate says it is of node {victim}, but its key is that of node X")
    );
}

#[test]
fn a_certificate_for_another_use_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let shown = forge(&cluster.ca, |params, _| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    assert_eq!(
        refusal(&cluster, shown, START),
        "the certificate of node X cannot be used here: it was issued for another use"
    );
}

#[test]
fn a_certificate_without_its_key_proves_nothing() {
    let cluster = Cluster::new(CLUSTER);
    let victim = cluster.node(Role::Manager);
    let mut shown = Shown::from(victim.clone());
    shown.key = NodeKey::generate();
    let mut server = (*server_config(&victim, &[ALPN], time(START))).clone();
    server.cert_resolver = shown.resolver();
    let met = meet(client_config(&victim, victim.subject().node, ALPN, time(START)), Arc::new(server));
    assert_eq!(met.client, Err("invalid peer certificate: BadSignature".into()));
    assert!(as_client(&cluster, &shown, START).contains("BadSignature"));
}

#[test]
fn showing_the_right_ca_beside_a_foreign_certificate_does_not_help() {
    let (cluster, other) = (Cluster::new(CLUSTER), Cluster::new(CLUSTER));
    let member = other.node(Role::Manager);
    let mut shown = Shown::from(member.clone());
    shown.chain.push(CertificateDer::from(cluster.ca.certificate.clone()));
    let mut server = (*server_config(&member, &[ALPN], time(START))).clone();
    server.cert_resolver = shown.resolver();
    let met = meet(join_config(cluster.authority.digest(), ALPN, time(START)), Arc::new(server));
    assert_eq!(
        met.client,
        Err(format!(
            "the certificate of node {} (cluster {CLUSTER}) is not signed by the CA of this cluster",
            shown.node()
        ))
    );
}
