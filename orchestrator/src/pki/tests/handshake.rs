//! Real handshakes: a client and a server connection of rustls, pumped in memory until both are through or one refuses.

use super::*;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, pki_types::ServerName};

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
