//! Real handshakes: a client and a server connection of rustls, pumped in memory until both are through or one refuses.

use super::*;
use orchestrator_core::model::{NodeId, Secret};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName},
    sign::{CertifiedKey, SingleCertAndKey},
};

/// What the two sides made of each other.
#[derive(Debug)]
struct Met {
    /// The client's verdict, or the server's alert as the client saw it.
    client: Result<(), String>,
    /// The server's verdict and whom it saw.
    server: Result<Option<Subject>, String>,
}

impl Met {
    fn both_agree(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }
}

fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
    let name = ServerName::try_from("node").unwrap();
    let mut client = Connection::from(ClientConnection::new(client, name).unwrap());
    let mut server = Connection::from(ServerConnection::new(server).unwrap());
    let mut met = Met { client: Ok(()), server: Ok(None) };
    // A refusing side says so in an alert, which has to reach the other one: every flight is delivered.
    for _ in 0..8 {
        met.client = met.client.and(carry(&mut server, &mut client));
        if let Err(error) = carry(&mut client, &mut server) {
            met.server = met.server.and(Err(error));
        }
    }
    assert!(!met.both_agree() || !client.is_handshaking() && !server.is_handshaking(), "stuck");
    if met.both_agree() {
        met.server = Ok(server.peer_certificates().map(|chain| Subject::of(&chain[0]).unwrap()));
    }
    met
}

fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), String> {
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight).unwrap();
    }
    let mut flight = flight.as_slice();
    while !flight.is_empty() {
        to.read_tls(&mut flight).unwrap();
        to.process_new_packets().map_err(|error| reason(&error.to_string()).to_owned())?;
    }
    Ok(())
}

const ALPN: &[u8] = b"edge-node/1";

#[test]
fn members_of_a_cluster_meet_and_know_each_other() {
    let cluster = Cluster::new(CLUSTER);
    let (manager, worker) = (cluster.node(Role::Manager), cluster.node(Role::Worker));
    let time = time(START);
    let met = meet(
        client_config(&worker, manager.subject().node, ALPN, Arc::clone(&time)),
        server_config(&manager, &[ALPN], time),
    );
    assert_eq!(met.client, Ok(()));
    assert_eq!(met.server, Ok(Some(*worker.subject())));
}

#[test]
fn whoever_has_a_token_and_no_certificate_meets_a_manager() {
    let cluster = Cluster::new(CLUSTER);
    let manager = cluster.node(Role::Manager);
    let met =
        meet(join_config(cluster.authority.digest(), ALPN, time(START)), server_config(&manager, &[ALPN], time(START)));
    assert_eq!(met.client, Ok(()));
    assert_eq!(met.server, Ok(None));
}

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

/// A certificate signed by `signer`, as the authority would make it for a manager, but for what `edit` does.
fn forge(signer: &Ca, edit: impl FnOnce(&mut CertificateParams)) -> Shown {
    let key = NodeKey::generate();
    let pair = key::pair(key.pkcs8()).unwrap();
    let mut params = likeness(&key);
    edit(&mut params);
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
    for role in roles {
        names.push(DnType::OrganizationalUnitName, *role);
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
    let shown = forge(&cluster.ca, |_| {});
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
fn clocks_may_differ_by_an_hour() {
    let cluster = Cluster::new(CLUSTER);
    let (manager, worker) = (cluster.node(Role::Manager), cluster.node(Role::Worker));
    let met = meet(
        client_config(&worker, manager.subject().node, ALPN, time(before(START, HOUR))),
        server_config(&manager, &[ALPN], time(START + HOUR)),
    );
    assert!(met.both_agree(), "{met:?}");
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
    let mut shown = forge(&as_ca, |_| {});
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
    let of = |roles: &[&str], cluster_name: &str| {
        let key = NodeKey::generate();
        let mut params = likeness(&key);
        params.distinguished_name = names(&key.node_id().to_string(), roles, cluster_name);
        let der = CertificateDer::from(cluster.ca.certificate.as_slice());
        let issuer = Issuer::from_ca_cert_der(&der, key::pair(&cluster.ca.key.0).unwrap()).unwrap();
        let leaf = params.signed_by(&key::pair(key.pkcs8()).unwrap(), &issuer).unwrap().der().clone();
        refusal(&cluster, Shown { key, chain: vec![leaf] }, START)
    };
    let own = CLUSTER.to_string();
    assert_eq!(of(&[], &own), "the certificate does not name one role (OU)");
    assert_eq!(of(&["edge-king"], &own), "the certificate names the role (OU) \"edge-king\", which is none");
    assert_eq!(of(&["edge-worker"], "home"), "the certificate names the cluster (O) \"home\", which is none");
    assert_eq!(
        of(&["edge-worker"], &ClusterId(78).to_string()),
        format!("the certificate of node X is of cluster {}, expected {CLUSTER}", ClusterId(78))
    );
    let nameless = forge(&cluster.ca, |params| params.distinguished_name = DistinguishedName::new());
    assert_eq!(refusal(&cluster, nameless, START), "the certificate does not name one node (CN)");
}

#[test]
fn a_name_that_does_not_follow_from_the_key_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let victim = cluster.node(Role::Manager).subject().node;
    let shown = forge(&cluster.ca, |params| {
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
    let shown = forge(&cluster.ca, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    assert_eq!(
        refusal(&cluster, shown, START),
        "the certificate of node X cannot be used here: it was issued for another use"
    );
}

#[test]
fn whoever_answers_for_another_node_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let (called, answers, caller) =
        (cluster.node(Role::Manager), cluster.node(Role::Manager), cluster.node(Role::Worker));
    let met = meet(
        client_config(&caller, called.subject().node, ALPN, time(START)),
        server_config(&answers, &[ALPN], time(START)),
    );
    assert_eq!(
        met.client,
        Err(format!("the certificate is for node {}, expected {}", answers.subject().node, called.subject().node))
    );
    assert!(met.server.is_err());
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
fn joining_meets_managers_of_the_tokens_cluster_only() {
    let (cluster, other) = (Cluster::new(CLUSTER), Cluster::new(ClusterId(78)));
    let join = |server: &Credentials| {
        meet(join_config(cluster.authority.digest(), ALPN, time(START)), server_config(server, &[ALPN], time(START)))
            .client
    };
    assert_eq!(join(&cluster.node(Role::Manager)), Ok(()));
    let worker = cluster.node(Role::Worker);
    assert_eq!(
        join(&worker),
        Err(format!("node {} is a worker, and only a manager can let others join", worker.subject().node))
    );
    let foreign = "the server does not show the CA that the join token names: the token is of another cluster";
    assert_eq!(join(&other.node(Role::Manager)), Err(foreign.into()));
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

#[test]
fn a_node_whose_clock_is_in_1970_joins_and_takes_the_time_from_the_certificate() {
    let cluster = Cluster::new(CLUSTER);
    let manager = cluster.node(Role::Manager);
    let unset = time(UnixMillis(0));
    let met = meet(
        join_config(cluster.authority.digest(), ALPN, Arc::clone(&unset)),
        server_config(&manager, &[ALPN], time(START)),
    );
    assert_eq!(met.client, Ok(()));
    assert_eq!(unset.now(), manager.subject().not_before);

    // Nobody else can tell it the time.
    let unset = time(UnixMillis(0));
    let liar = Cluster::new(CLUSTER).node(Role::Manager);
    let met = meet(
        client_config(&cluster.node(Role::Worker), liar.subject().node, ALPN, Arc::clone(&unset)),
        server_config(&liar, &[ALPN], time(START)),
    );
    assert!(met.client.is_err());
    assert!(unset.now() < before(START, DAY));
}

#[test]
fn a_protocol_that_the_server_does_not_speak_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let member = cluster.node(Role::Manager);
    let met = meet(
        client_config(&member, member.subject().node, b"edge-raft/1", time(START)),
        server_config(&member, &[ALPN], time(START)),
    );
    assert_eq!(met.server, Err("peer doesn't support any known protocol".into()));
}

#[test]
fn no_session_is_resumed_so_that_every_handshake_is_judged() {
    let cluster = Cluster::new(CLUSTER);
    let (manager, worker) = (cluster.node(Role::Manager), cluster.node(Role::Worker));
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::at(START);
    let server = server_config(&manager, &[ALPN], Arc::new(clock.last_seen(dir.path())));
    let client = client_config(&worker, manager.subject().node, ALPN, time(START));
    assert!(meet(Arc::clone(&client), Arc::clone(&server)).both_agree());
    clock.set(worker.subject().not_after + DAY);
    assert!(meet(client, server).server.unwrap_err().contains("ran out on"));
}
