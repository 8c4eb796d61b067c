//! Published ports with real sockets: a client, a node and containers, each in a network namespace of its own.
//!
//! ```text
//! client ── up0 [node: dataplane] br0 ─┬─ container 1
//!                                      └─ container 2
//! ```
//!
//! Needs root, the `ip` command and a kernel with BPF; says why it is skipped otherwise.

#![expect(clippy::unwrap_used, reason = "a test may unwrap; the lint's own exception does not reach helpers of tests")]

mod rig;

use self::rig::{Rig, echo, rig, tcp_ask, udp_ask};
use orchestrator::dataplane::{Dataplane, DataplaneConfig, Mode, Reason};
use orchestrator_core::{
    forwarding::{Backend, BackendState, Table},
    model::Protocol,
};
use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
};

/// Port 8080 on port 80 of these containers.
fn published(rig: &Rig, containers: &[usize]) -> Table {
    let mut table = Table::default();
    for (protocol, base) in [(Protocol::Tcp, 10), (Protocol::Udp, 20)] {
        let backends = containers.iter().map(|number| {
            let container = &rig.containers[*number];
            let backend = Backend {
                v4: Some(container.v4),
                v6: Some(container.v6),
                port: 80,
                ifindex: container.ifindex,
                state: BackendState::Active,
            };
            (base + *number as u16, backend)
        });
        table.publish(protocol, 8080, None, backends);
    }
    table
}

fn serve(rig: &Rig, force: Option<Mode>, containers: &[usize]) -> Dataplane {
    let config = rig.config(force);
    let ifindexes: Vec<u32> = containers.iter().map(|number| rig.containers[*number].ifindex).collect();
    let table = published(rig, containers);
    rig.in_node(move || {
        let mut dataplane = Dataplane::open(config).unwrap();
        for ifindex in ifindexes {
            dataplane.attach_container(ifindex).unwrap();
        }
        dataplane.apply(&table).unwrap();
        assert_eq!(dataplane.observe().unwrap(), table);
        dataplane
    })
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn clients_reach_a_container_and_it_sees_their_address() {
    let Some(rig) = rig("reach", 1) else { return };
    let _server = echo(&rig, 0);
    for mode in [None, Some(Mode::Tcx), Some(Mode::Clsact)] {
        let dataplane = serve(&rig, mode, &[0]);
        let report = &dataplane.interfaces()[0];
        println!("asked for {mode:?}, got {report:?}");
        assert!(report.mode.is_some(), "{mode:?}: {report:?}");
        if mode.is_some() {
            assert_eq!(report.mode, mode, "{report:?}");
        }
        rig.in_client(move || {
            for to in ["10.99.0.1:8080", "[fd99::1]:8080"] {
                let (own, seen) = tcp_ask(address(to)).unwrap_or_else(|error| panic!("{mode:?} tcp {to}: {error}"));
                assert_eq!(seen, own, "{mode:?} tcp {to}");
                let (own, seen) = udp_ask(address(to)).unwrap_or_else(|error| panic!("{mode:?} udp {to}: {error}"));
                assert_eq!(seen, own, "{mode:?} udp {to}");
            }
        });
        let stats = dataplane.stats().unwrap();
        let tcp = stats.services[&(Protocol::Tcp, 8080)];
        assert_eq!((tcp.new_flows, tcp.no_backend), (2, 0));
        assert!(tcp.packets_in >= 6 && tcp.packets_out >= 4, "{tcp:?}");
        assert!(stats.reasons[&Reason::Delivered] >= 8, "{stats:?}");
        rig.in_node(move || dataplane.close_and_remove().unwrap());
    }
    assert!(!rig.pin_dir().exists());
}

#[test]
fn large_transfers_arrive_whole_in_both_directions() {
    let Some(rig) = rig("bulk", 1) else { return };
    let _server = echo(&rig, 0);
    let dataplane = serve(&rig, None, &[0]);
    rig.in_client(|| {
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| number as u8 ^ (number >> 8) as u8).collect();
        for to in ["10.99.0.1:8080", "[fd99::1]:8080"] {
            assert!(rig::tcp_echo(address(to), &sent).unwrap() == sent, "{to}");
        }
    });
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn the_node_itself_reaches_published_ports_on_every_own_address() {
    let Some(rig) = rig("host", 1) else { return };
    let _server = echo(&rig, 0);
    let dataplane = serve(&rig, None, &[0]);
    let refused: Vec<_> = dataplane.socket_hooks().iter().filter(|hook| hook.refused.is_some()).collect();
    assert!(refused.is_empty(), "{refused:?}");
    rig.in_node(|| {
        for to in ["127.0.0.1:8080", "[::1]:8080", "10.99.0.1:8080", "[fd99::1]:8080"] {
            let to = address(to);
            tcp_ask(to).unwrap_or_else(|error| panic!("tcp {to}: {error}"));
            udp_ask(to).unwrap_or_else(|error| panic!("udp {to}: {error}"));
            assert_eq!(rig::tcp_peer(to).unwrap(), to, "getpeername shows what was asked for");
            assert_eq!(rig::udp_sender(to).unwrap(), to, "answers come from where the question went");
        }
        let peer = rig::tcp_peer(address("0.0.0.0:8080")).unwrap();
        assert_eq!(peer, address("127.0.0.1:8080"), "the unspecified address means this host");
        // `::ffff:127.0.0.1` on an IPv6 socket.
        rig::tcp_peer(address("[::ffff:127.0.0.1]:8080")).unwrap();
        let error = TcpListener::bind("0.0.0.0:8080").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let error = TcpListener::bind("[::]:8080").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let error = TcpListener::bind("127.0.0.1:8080").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        TcpListener::bind("0.0.0.0:8081").unwrap();
    });
    // The same kernel and cgroup tree, another namespace: none of our business.
    rig.in_client(|| {
        let error = tcp_ask(address("127.0.0.1:8080")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        TcpListener::bind("0.0.0.0:8080").unwrap();
    });
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn containers_reach_published_ports_through_the_node() {
    let Some(rig) = rig("inner", 2) else { return };
    let _server = echo(&rig, 0);
    let config = rig.config(None);
    let ifindexes = [rig.containers[0].ifindex, rig.containers[1].ifindex];
    let table = published(&rig, &[0]);
    let dataplane = rig.in_node(move || {
        let mut dataplane = Dataplane::open(config).unwrap();
        for ifindex in ifindexes {
            dataplane.attach_container(ifindex).unwrap();
        }
        dataplane.apply(&table).unwrap();
        dataplane
    });
    // Itself included, which sees the address it asked for as its client's: its own would mean nothing.
    rig.in_container(0, || {
        for to in ["10.99.0.1:8080", "[fd99::1]:8080"] {
            let to = address(to);
            let (own, seen) = tcp_ask(to).unwrap_or_else(|error| panic!("tcp {to}: {error}"));
            assert_eq!(seen, SocketAddr::new(to.ip(), own.port()));
            let (own, seen) = udp_ask(to).unwrap_or_else(|error| panic!("udp {to}: {error}"));
            assert_eq!(seen, SocketAddr::new(to.ip(), own.port()));
        }
    });
    rig.in_container(1, || {
        for to in ["10.99.0.1:8080", "172.30.0.1:8080", "[fd99::1]:8080"] {
            let to = address(to);
            let (own, seen) = tcp_ask(to).unwrap_or_else(|error| panic!("tcp {to}: {error}"));
            assert_eq!(seen, own);
            let (own, seen) = udp_ask(to).unwrap_or_else(|error| panic!("udp {to}: {error}"));
            assert_eq!(seen, own);
        }
    });
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn connections_survive_the_owner_and_its_successor() {
    let Some(rig) = rig("pinned", 2) else { return };
    let (_first, _second) = (echo(&rig, 0), echo(&rig, 1));
    for mode in [None, Some(Mode::Clsact)] {
        survives(&rig, mode);
    }
}

fn survives(rig: &Rig, mode: Option<Mode>) {
    let dataplane = serve(rig, mode, &[0, 1]);
    let mut connection = rig.in_client(|| rig::Connection::open(address("10.99.0.1:8080")).unwrap());
    connection.exchange(b"before").unwrap();
    rig.in_node(move || drop(dataplane));
    connection.exchange(b"nobody owns it").unwrap();
    rig.in_client(|| tcp_ask(address("10.99.0.1:8080")).map(drop).unwrap());

    // The successor finds the table, flows included, and replaces the programs under the running connection.
    let expected = published(rig, &[0, 1]);
    let config = rig.config(mode);
    let dataplane = rig.in_node(move || {
        let dataplane = Dataplane::open(config).unwrap();
        assert_eq!(dataplane.observe().unwrap(), expected);
        dataplane
    });
    connection.exchange(b"after").unwrap();

    // A removed port is refused by the kernel, not swallowed.
    let mut dataplane = dataplane;
    let dataplane = rig.in_node(move || {
        dataplane.apply(&Table::default()).unwrap();
        dataplane
    });
    rig.in_client(|| {
        let error = tcp_ask(address("10.99.0.1:8080")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
    rig.in_node(move || dataplane.close_and_remove().unwrap());
    assert!(!rig.pin_dir().exists());
}

#[test]
fn draining_keeps_old_connections_and_sends_new_ones_elsewhere() {
    let Some(rig) = rig("drain", 2) else { return };
    let (_first, _second) = (echo(&rig, 0), echo(&rig, 1));
    let dataplane = serve(&rig, None, &[0, 1]);
    let mut old: Vec<_> =
        rig.in_client(|| (0..20).map(|_| rig::Connection::open(address("10.99.0.1:8080")).unwrap()).collect());
    let mut table = published(&rig, &[0, 1]);
    for slot in [10, 20] {
        table.backends.get_mut(&slot).unwrap().state = BackendState::Draining;
    }
    for slots in table.services.values_mut() {
        slots.retain(|slot| *slot == 11 || *slot == 21);
    }
    let mut dataplane = dataplane;
    let dataplane = rig.in_node(move || {
        dataplane.apply(&table).unwrap();
        dataplane
    });
    for connection in &mut old {
        connection.exchange(b"still here").unwrap();
    }
    let server = rig.containers[1].v4;
    let new = rig
        .in_client(|| (0..20).map(|_| rig::Connection::open(address("10.99.0.1:8080")).unwrap()).collect::<Vec<_>>());
    let on_second = |connections: &[rig::Connection]| {
        connections.iter().filter(|connection| connection.server == server.to_string()).count()
    };
    assert_eq!(on_second(&new), 20);
    assert!(on_second(&old) < 20, "both containers took connections before");
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn an_uplink_without_link_header_is_served() {
    let Some(rig) = rig("raw", 1) else { return };
    let _server = echo(&rig, 0);
    // The node's end of a tunnel; this test is the other end.
    let mut tunnel = rig.in_node(|| rig::tunnel("tun0", "10.98.0.1/24"));
    let config = DataplaneConfig { uplinks: Some(BTreeSet::from(["tun0".to_owned()])), ..rig.config(None) };
    let (ifindex, table) = (rig.containers[0].ifindex, published(&rig, &[0]));
    let dataplane = rig.in_node(move || {
        let mut dataplane = Dataplane::open(config).unwrap();
        dataplane.attach_container(ifindex).unwrap();
        dataplane.apply(&table).unwrap();
        dataplane
    });
    let report = &dataplane.interfaces()[0];
    assert_eq!(report.mode, Some(Mode::Tcx));
    assert!(report.why.starts_with("native xdp not used: on a virtual link"), "{}", report.why);

    let answer = rig::ask_through(&mut tunnel, [10, 98, 0, 2], [10, 98, 0, 1], 4000, 8080);
    assert_eq!(answer, "10.98.0.2:4000", "what the container saw, from 10.98.0.1:8080");
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn a_port_nobody_listens_on_in_the_container_is_refused_at_once() {
    let Some(rig) = rig("refused", 1) else { return };
    // No server: the container's kernel answers with RST and with an ICMP error that quotes its own address.
    let dataplane = serve(&rig, None, &[0]);
    let refused = || {
        for to in ["10.99.0.1:8080", "[fd99::1]:8080"] {
            let error = tcp_ask(address(to)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "tcp {to}");
            let error = udp_ask(address(to)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "udp {to}");
        }
    };
    rig.in_client(refused);
    assert_eq!(dataplane.stats().unwrap().reasons[&Reason::IcmpTranslated], 2);
    rig.in_node(move || dataplane.close_and_remove().unwrap());
}

#[test]
fn uplinks_are_found_and_let_go() {
    let Some(rig) = rig("uplinks", 0) else { return };
    let config = DataplaneConfig { uplinks: None, ..rig.config(Some(Mode::Tcx)) };
    let found = |dataplane: &Dataplane| {
        dataplane.interfaces().iter().map(|report| (report.name.clone(), report.mode)).collect::<Vec<_>>()
    };
    rig.in_node(move || {
        let mut dataplane = Dataplane::open(config).unwrap();
        assert_eq!(found(&dataplane), [], "no default route, no hardware");
        rig::ip(&["route", "add", "default", "via", "10.99.0.254"]);
        dataplane.refresh().unwrap();
        assert_eq!(found(&dataplane), [("up0".to_owned(), Some(Mode::Tcx))]);
        rig::ip(&["route", "del", "default"]);
        rig::ip(&["-6", "route", "add", "default", "via", "fd99::fe"]);
        dataplane.refresh().unwrap();
        assert_eq!(found(&dataplane), [("up0".to_owned(), Some(Mode::Tcx))]);
        rig::ip(&["-6", "route", "del", "default"]);
        dataplane.refresh().unwrap();
        assert_eq!(found(&dataplane), []);
        dataplane.close_and_remove().unwrap();
    });
}

#[test]
fn an_xdp_program_of_somebody_else_is_named_and_left_alone() {
    let Some(rig) = rig("busy", 1) else { return };
    let _server = echo(&rig, 0);
    // Somebody else is a second dataplane, which keeps the place it got first.
    let first = rig.config(Some(Mode::Xdp));
    let second = DataplaneConfig { pin_dir: first.pin_dir.with_file_name("second"), ..rig.config(Some(Mode::Xdp)) };
    let (ifindex, table) = (rig.containers[0].ifindex, published(&rig, &[0]));
    let (first, refused, second) = rig.in_node(move || {
        let first = Dataplane::open(first).unwrap();
        let refused = Dataplane::open(second.clone()).unwrap().interfaces()[0].clone();
        let mut second = Dataplane::open(DataplaneConfig { force: None, ..second }).unwrap();
        second.attach_container(ifindex).unwrap();
        second.apply(&table).unwrap();
        (first, refused, second)
    });
    assert_eq!(refused.mode, None);
    assert!(refused.why.starts_with("native xdp refused: another xdp program is attached already"), "{}", refused.why);
    assert_eq!(second.interfaces()[0].mode, Some(Mode::Tcx));
    rig.in_client(|| tcp_ask(address("10.99.0.1:8080")).map(drop).unwrap());
    rig.in_node(move || {
        second.close_and_remove().unwrap();
        assert_eq!(first.interfaces()[0].mode, Some(Mode::Xdp));
        first.close_and_remove().unwrap();
    });
}
