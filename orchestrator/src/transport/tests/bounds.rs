//! What strangers, slow peers and noise can do.

use super::*;
use futures_util::FutureExt;
use std::net::UdpSocket;

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    pages * rustix::param::page_size()
}

/// Reproducible noise (xorshift64, Marsaglia 2003).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Random bytes, every other time behind the beginning of a QUIC packet of some kind.
    fn datagram(&mut self) -> Vec<u8> {
        let size = usize::try_from(self.next() % 1400).unwrap() + 1;
        let mut bytes = (0..size).map(|_| self.next() as u8).collect::<Vec<_>>();
        let start: &[u8] = match self.next() % 6 {
            0 => &[0xc0, 0, 0, 0, 1, 8],
            1 => &[0xe0, 0, 0, 0, 1, 8],
            2 => &[0xc0, 0xfa, 0xce, 0xb0, 0x0c, 20],
            3 => &[0x40],
            _ => &[],
        };
        let start = &start[..start.len().min(size)];
        bytes[..start.len()].copy_from_slice(start);
        bytes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_neither_stops_calls_nor_takes_memory() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"warm up").await.unwrap();
    let before = resident();
    let target = a.addr();
    let noise = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for _ in 0..20_000 {
            // A full socket buffer refuses some.
            let _ = socket.send_to(&noise.datagram(), target);
        }
    });
    let mut calls = 0;
    while !noise.is_finished() || calls < 50 {
        b.ask(&a, b"through the noise").await.unwrap();
        calls += 1;
    }
    noise.await.unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    assert_eq!(a.endpoint.shared().guests.count(), 1);
    assert_eq!(a.echo.served().len(), calls + 1);
}

/// The first packets of `count` connections that never go on.
async fn first_packets(world: &World, count: usize) -> Vec<Vec<u8>> {
    let recorder = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let attacker = world.stranger();
    let tls = pki::join_config(Authority::open(&world.ca).unwrap().digest(), b"edge-join/1", world.time());
    let mut packets = BTreeMap::new();
    let mut held = Vec::new();
    let mut buffer = vec![0; 2048];
    while packets.len() < count {
        let config = endpoint::client(Arc::clone(&tls), Alpn::Join);
        let connecting = attacker.endpoint.shared().quinn.connect_with(config, recorder.local_addr().unwrap(), "edged");
        held.push(connecting.unwrap());
        let (size, _) = recorder.recv_from(&mut buffer).await.unwrap();
        // By destination connection id, of which quinn makes 20 bytes: the same packet comes again.
        packets.insert(buffer[6..26].to_vec(), buffer[..size].to_vec());
    }
    packets.into_values().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_leave_room_and_go_away() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let packets = first_packets(&world, 1_000).await;
    let attacker = UdpSocket::bind("127.0.0.1:0").unwrap();
    for packet in &packets {
        attacker.send_to(packet, a.addr()).unwrap();
        assert!(a.endpoint.shared().guests.handshakes() <= limits::UNVALIDATED_HANDSHAKES);
    }
    until("the places for the unproven are taken", || {
        a.endpoint.shared().guests.handshakes() >= limits::UNVALIDATED_HANDSHAKES
    })
    .await;
    b.ask(&a, b"by way of Retry").await.unwrap();
    until("the half-open ones are given up", || a.endpoint.shared().guests.handshakes() == 0).await;
    let refusals = a.endpoint.refusals();
    assert!(refusals.handshakes >= limits::UNVALIDATED_HANDSHAKES as u64 && refusals.peers == 0, "{refusals:?}");
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let connection = b.endpoint.connect(a.id(), Alpn::Api).await.unwrap();
    let (_unused_send, mut unused) = connection.open().await.unwrap();
    let (mut send, mut recv) = connection.open().await.unwrap();
    // The use of a stream opens those before it.
    send.write_all(b"x").await.unwrap();
    assert_eq!(recv.read_u8().await.unwrap(), b'x');
    let mut nothing = Vec::new();
    unused.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty());
    assert_eq!(a.echo.served().len(), 1);
    assert_eq!(a.endpoint.refusals(), Refusals { streams: 1, ..Refusals::default() });
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_for_a_free_one() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let connection = b.endpoint.connect(a.id(), Alpn::Api).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..limits::USED_STREAMS {
        let (mut send, recv) = connection.open().await.unwrap();
        send.write_all(b"x").await.unwrap();
        streams.push((send, recv));
    }
    until("all are served", || a.echo.served().len() == limits::USED_STREAMS as usize).await;
    let mut waiting = Box::pin(connection.open());
    assert!(waiting.as_mut().now_or_never().is_none());
    streams.pop();
    drop(waiting.await.unwrap());
    // One free stream is enough for as many calls as one likes, one after the other.
    for i in 0..100 {
        assert_eq!(b.endpoint.call(a.id(), Alpn::Api, &[i]).await.unwrap(), [i]);
    }
}

#[tokio::test]
async fn a_connection_in_use_is_not_unused() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let connection = b.endpoint.connect(a.id(), Alpn::Api).await.unwrap();
    let stream = connection.open().await.unwrap();
    let short = Duration::from_millis(20);
    assert!(tokio::time::timeout(short * 5, connection.unused(short)).await.is_err());
    drop(stream);
    connection.unused(short).await;
}

#[tokio::test]
async fn an_unused_connection_is_closed_and_replaced() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let connection = b.endpoint.connect(a.id(), Alpn::Api).await.unwrap();
    let shared = Arc::clone(b.endpoint.shared());
    shared.close_unused(a.id(), Alpn::Api, connection.clone(), Duration::from_millis(1)).await;
    assert_eq!(connection.closed().await, "closed by this node");
    assert!(!b.endpoint.connect(a.id(), Alpn::Api).await.unwrap().is(&connection));
}

#[tokio::test]
async fn one_node_cannot_take_all_connections() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let credentials = b.credentials.clone().unwrap();
    let tls = pki::client_config(&credentials, a.id(), b"edge-node/1", world.time());
    let config = endpoint::client(tls, Alpn::Node);
    let dial = || b.endpoint.shared().race(vec![a.addr()], Alpn::Node, &config);
    let mut held = Vec::new();
    for _ in 0..limits::CONNECTIONS_PER_NODE {
        held.push(dial().await.unwrap());
    }
    let attempts = dial().await.unwrap_err();
    assert_eq!(attempts[0].fault, Fault::Refused(format!("node {} has 32 connections already", b.id())));
    drop(held);
    until("they are gone", || a.endpoint.shared().guests.count() == 0).await;
    dial().await.unwrap();
}

#[tokio::test]
async fn one_machine_cannot_keep_others_from_joining() {
    let world = World::new();
    let (a, joiner) = (world.manager(), world.stranger());
    let digest = Authority::open(&world.ca).unwrap().digest();
    let mut held = Vec::new();
    for _ in 0..limits::JOINING_PER_ADDRESS {
        held.push(joiner.endpoint.connect_to(a.addr(), &digest).await.unwrap());
    }
    let error = joiner.endpoint.connect_to(a.addr(), &digest).await.unwrap_err();
    assert_eq!(error.refusal(), Some("4 nodes are joining from 127.0.0.1 already"));
    let elsewhere = world.listen("127.0.0.2:0".parse().unwrap());
    elsewhere.endpoint.connect_to(a.addr(), &digest).await.unwrap();
}

#[tokio::test]
async fn oversized_calls_and_answers_are_refused_by_number() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let limit = Alpn::Api.frame_limit();
    let error = b.endpoint.call(a.id(), Alpn::Api, &vec![0; limit + 1]).await.unwrap_err();
    assert!(text(error).contains("the call has 1048577 bytes; the limit is 1048576"));
    assert!(a.echo.served().is_empty());
}
