//! Real handshakes: a client and a server connection of rustls, pumped in memory until both are through or one refuses.

use super::*;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, pki_types::ServerName};

/// What the two sides made of each other.
#[derive(Debug)]
pub(super) struct Met {
    /// The client's verdict, or the server's alert as the client saw it.
    pub(super) client: Result<(), String>,
    /// The server's verdict and whom it saw.
    pub(super) server: Result<Option<Subject>, String>,
}

impl Met {
    pub(super) fn both_agree(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }
}

pub(super) fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
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

pub(super) const ALPN: &[u8] = b"edge-node/1";

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
