//! The tc and XDP programs, packet by packet (`BPF_PROG_TEST_RUN`): bytes and maps in; verdict, bytes, counters out.
//!
//! Needs root and a kernel with BPF; says why it is skipped otherwise. Each test has a network namespace of its own, a
//! node at 10.99.0.1 and fd99::1, and containers 172.30.0.2… and fd30::2….

mod frame;

use self::frame::{Frame, L4, Tcp};
use super::{Dataplane, DataplaneConfig, Reason, Sizes};
use aya::{
    maps::MapError,
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use orchestrator_core::{
    forwarding::{Backend, BackendState, Table, maglev},
    model::Protocol,
};
use orchestrator_ebpf_common::{
    conntrack, hash,
    maps::{Address, FROM_BACKEND, FROM_CLIENT, Flow, FlowKey, TCP, UDP, port_to_wire},
};
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    thread,
};

/// Verdicts of tc programs.
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;
const XDP_PASS: u32 = 2;

const CLIENT: &str = "10.99.0.254";
const NODE: &str = "10.99.0.1";
const CLIENT6: &str = "fd99::fe";
const NODE6: &str = "fd99::1";

/// A dataplane without hooks, and its programs.
struct Bench {
    dataplane: Dataplane,
    pin_dir: PathBuf,
}

/// Runs a test in a network namespace of its own, or says why it cannot.
fn bench(name: &str, test: impl FnOnce(&mut Bench) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return;
    }
    let bpffs = std::env::temp_dir().join(format!("bpffs-{}-{name}", std::process::id()));
    let pin_dir = bpffs.join("node");
    let thread = thread::spawn(move || {
        // SAFETY: only this thread's network namespace changes, and nothing else runs on it.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
        let config = DataplaneConfig {
            uplinks: Some(BTreeSet::new()),
            cgroup_root: Some(PathBuf::from("/nowhere")),
            sizes: Sizes { flows: 4096, embryonic: 4096, sockets: 64 },
            ..DataplaneConfig::new(pin_dir.clone())
        };
        let mut bench = Bench { dataplane: Dataplane::open(config).unwrap(), pin_dir };
        let local: BTreeSet<IpAddr> = [NODE, NODE6].map(|address| address.parse().unwrap()).into();
        bench.dataplane.tables.set_local_addresses(&local).unwrap();
        test(&mut bench);
    });
    let result = thread.join();
    let _ = rustix::mount::unmount(&bpffs, rustix::mount::UnmountFlags::DETACH);
    let _ = std::fs::remove_dir(&bpffs);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = super::remove(&self.pin_dir);
    }
}

impl Bench {
    /// Publishes port 8080 of both protocols on these backends; UDP's numbers are 100 higher.
    fn publish(&mut self, backends: &[u16]) {
        self.publish_with(8080, backends, &[]);
    }

    fn publish_with(&mut self, port: u16, active: &[u16], draining: &[u16]) {
        let mut table = Table::default();
        self.add(&mut table, port, active, draining);
        self.dataplane.tables.apply(&table).unwrap();
    }

    fn add(&self, table: &mut Table, port: u16, active: &[u16], draining: &[u16]) {
        for (protocol, base) in [(Protocol::Tcp, 0), (Protocol::Udp, 100)] {
            let backend = |slot: &u16, state| (slot + base, backend(*slot, state));
            let active = active.iter().map(|slot| backend(slot, BackendState::Active));
            let draining = draining.iter().map(|slot| backend(slot, BackendState::Draining));
            table.publish(protocol, port, None, active.chain(draining));
        }
    }

    /// Runs a tc program; the verdict and the frame it left.
    fn tc(&mut self, program: &str, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &SchedClassifier = self.dataplane.hooks.programs.program(program).unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn uplink(&mut self, frame: &Frame) -> (u32, Vec<u8>) {
        self.tc("edged_uplink", &frame.bytes())
    }

    fn container(&mut self, frame: &Frame) -> (u32, Vec<u8>) {
        self.tc("edged_container", &frame.bytes())
    }

    fn xdp(&mut self, frame: &[u8]) -> u32 {
        let program: &Xdp = self.dataplane.hooks.programs.program("edged_xdp").unwrap().try_into().unwrap();
        program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() }).unwrap().return_value
    }

    /// Runs a client's frame and says which container it went to.
    fn delivered(&mut self, frame: &Frame) -> IpAddr {
        let (verdict, out) = self.uplink(frame);
        assert_eq!(verdict, REDIRECT, "{:?}", self.reasons());
        Frame::parse(&out).destination
    }

    fn passes(&mut self, frame: &[u8], reason: Reason) {
        let before = self.count(reason);
        let (verdict, out) = self.tc("edged_uplink", frame);
        assert_eq!(verdict, PASS, "{reason:?}");
        assert_eq!(out, frame, "{reason:?}: left as it was");
        assert_eq!(self.count(reason), before + 1, "{reason:?}: {:?}", self.reasons());
        assert_eq!(self.xdp(frame), XDP_PASS);
    }

    fn count(&self, reason: Reason) -> u64 {
        self.reasons().get(&reason).copied().unwrap_or(0)
    }

    fn reasons(&self) -> std::collections::BTreeMap<Reason, u64> {
        self.dataplane.stats().unwrap().reasons
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        let flows = &self.dataplane.flows;
        match flows.established.get(key, 0).or_else(|_| flows.embryonic.get(key, 0)) {
            Ok(flow) => Some(flow),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn is_established(&self, key: &FlowKey) -> bool {
        self.dataplane.flows.established.get(key, 0).is_ok()
    }
}

fn container_v4(slot: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, (slot >> 8) as u8, slot as u8)
}

fn container_v6(slot: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, slot)
}

fn backend(slot: u16, state: BackendState) -> Backend {
    Backend { v4: Some(container_v4(slot)), v6: Some(container_v6(slot)), port: 80, ifindex: 1, state }
}

fn key(frame: &Frame, direction: u8) -> FlowKey {
    let (protocol, source, destination) = match &frame.l4 {
        L4::Tcp(tcp) => (TCP, tcp.source, tcp.destination),
        L4::Udp { source, destination, .. } => (UDP, *source, *destination),
        L4::Raw { .. } => panic!("no ports"),
    };
    let client = (Address::from(frame.source), port_to_wire(source));
    let node = (Address::from(frame.destination), port_to_wire(destination));
    let (peer, own) = if direction == FROM_CLIENT { (client, node) } else { (node, client) };
    FlowKey { peer: peer.0, own: own.0, peer_port: peer.1, own_port: own.1, protocol, direction, reserved: 0 }
}

fn syn(port: u16) -> Frame {
    Frame::tcp(CLIENT, NODE, Tcp { source: port, destination: 8080, flags: frame::SYN })
}

fn ack(port: u16) -> Frame {
    Frame::tcp(CLIENT, NODE, Tcp { source: port, destination: 8080, flags: frame::ACK })
}

/// The container's frame that answers a client's frame.
fn answer(frame: &Frame, from: IpAddr, flags: u8) -> Frame {
    let l4 = match &frame.l4 {
        L4::Tcp(tcp) => L4::Tcp(Tcp { source: 80, destination: tcp.source, flags }),
        L4::Udp { source, .. } => L4::Udp { source: 80, destination: *source, checksum: true },
        L4::Raw { .. } => panic!("no ports"),
    };
    Frame { source: from, destination: frame.source, l4, ..frame.clone() }
}

#[test]
fn what_is_not_for_a_published_port_passes_untouched() {
    bench("pass", |bench| {
        bench.publish(&[2]);
        let service = syn(4000);
        bench.passes(&Frame { ethertype: Some(0x0806), ..service.clone() }.bytes(), Reason::NotIp);
        let other_port = Frame::tcp(CLIENT, NODE, Tcp { source: 4000, destination: 22, flags: frame::SYN });
        bench.passes(&other_port.bytes(), Reason::NotService);
        for to in ["10.99.0.2", "224.0.0.1", "255.255.255.255"] {
            let foreign = Frame { destination: to.parse().unwrap(), ..service.clone() };
            bench.passes(&foreign.bytes(), Reason::NotService);
        }
        let ping = Frame { l4: L4::Raw { protocol: 1, bytes: vec![8, 0, 0, 0, 0, 0, 0, 0] }, ..service.clone() };
        bench.passes(&ping.bytes(), Reason::Protocol);
        let gre = Frame { l4: L4::Raw { protocol: 47, bytes: vec![0; 20] }, ..service.clone() };
        bench.passes(&gre.bytes(), Reason::Protocol);
        // A tagged frame is the VLAN interface's business. (The test runner leaves the tags in the frame.)
        for tags in [vec![7], vec![7, 8]] {
            bench.passes(&Frame { tags, ..service.clone() }.bytes(), Reason::Vlan);
        }
    });
}

#[test]
fn frames_cut_short_anywhere_pass_untouched() {
    bench("short", |bench| {
        bench.publish(&[2]);
        for whole in [syn(4000).bytes(), Frame::udp(CLIENT6, NODE6, 4000, 8080).bytes()] {
            // The last byte the program needs is TCP's flags, or the end of UDP's ports.
            let needed = if whole[12] == 8 { 48 } else { 58 };
            for length in 14..needed {
                assert_eq!(bench.xdp(&whole[..length]), XDP_PASS, "{length}");
            }
            // The test runner itself refuses a tc frame that ends before its IP header does.
            let header = if whole[12] == 8 { 34 } else { 54 };
            for length in header..needed {
                let (verdict, out) = bench.tc("edged_uplink", &whole[..length]);
                assert_eq!(verdict, PASS, "{length}");
                assert_eq!(out, whole[..length]);
            }
        }
    });
}

#[test]
fn lengths_that_contradict_each_other_pass_untouched() {
    bench("malformed", |bench| {
        bench.publish(&[2]);
        for (offset, value) in [(14, 0x44), (14, 0x65), (14, 0x40)] {
            let mut bytes = syn(4000).bytes();
            bytes[offset] = value;
            bench.passes(&bytes, Reason::Malformed);
        }
        let mut bytes = syn(4000).bytes();
        bytes[16..18].copy_from_slice(&19_u16.to_be_bytes());
        bench.passes(&bytes, Reason::Malformed);
        // First and later fragments are left to the kernel, which puts them together.
        for fragment in [0x2000_u16, 0x00b9, 0x20b9] {
            let mut bytes = syn(4000).bytes();
            bytes[20..22].copy_from_slice(&fragment.to_be_bytes());
            bench.passes(&bytes, Reason::Fragment);
        }
    });
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    bench("options", |bench| {
        bench.publish(&[2]);
        for words in 1..=10 {
            let frame = Frame { options: vec![1; words * 4], ..syn(4000 + words as u16) };
            let (verdict, out) = bench.uplink(&frame);
            assert_eq!(verdict, REDIRECT, "{words}");
            assert_eq!(Frame::parse(&out).destination, IpAddr::V4(container_v4(2)));
            assert!(frame::checksums_are_valid(&out), "{words}");
        }
        let v6 = Frame::tcp(CLIENT6, NODE6, Tcp { source: 4000, destination: 8080, flags: frame::SYN });
        for count in 1..=4 {
            let frame = Frame { extensions: vec![60; count], ..v6.clone() };
            assert_eq!(bench.delivered(&frame), IpAddr::V6(container_v6(2)), "{count}");
        }
        bench.passes(&Frame { extensions: vec![60; 5], ..v6.clone() }.bytes(), Reason::ExtensionHeaders);
        bench.passes(&Frame { extensions: vec![60, 44], ..v6 }.bytes(), Reason::Fragment);
    });
}

#[test]
fn delivery_changes_the_destination_and_keeps_checksums_right() {
    bench("dnat", |bench| {
        bench.publish(&[2]);
        let v6 = Frame::tcp(CLIENT6, NODE6, Tcp { source: 4000, destination: 8080, flags: frame::SYN });
        let udp = Frame::udp(CLIENT, NODE, 4000, 8080);
        for (frame, slot) in [(syn(4000), 2), (v6, 2), (udp, 2), (Frame::udp(CLIENT6, NODE6, 4000, 8080), 2)] {
            let to = if frame.destination.is_ipv4() { container_v4(slot).into() } else { container_v6(slot).into() };
            let (verdict, out) = bench.uplink(&frame);
            assert_eq!(verdict, REDIRECT);
            let expected = Frame { destination: to, ..frame.clone() }.with_destination_port(80);
            assert_eq!(out, expected.bytes());

            // The answer bears the address and port the client used.
            let reply = answer(&frame, to, frame::SYN | frame::ACK);
            let (verdict, out) = bench.container(&reply);
            assert_eq!(verdict, REDIRECT);
            let expected = Frame { source: frame.destination, ..reply }.with_source_port(8080);
            assert_eq!(out, expected.bytes());
        }
        let without = Frame {
            l4: L4::Udp { source: 4001, destination: 8080, checksum: false },
            ..Frame::udp(CLIENT, NODE, 0, 0)
        };
        let (verdict, out) = bench.uplink(&without);
        assert_eq!((verdict, &out[40..42]), (REDIRECT, &[0, 0][..]), "no UDP checksum stays none");
        let stats = bench.dataplane.stats().unwrap().services[&(Protocol::Udp, 8080)];
        assert_eq!((stats.new_flows, stats.packets_in, stats.packets_out), (3, 3, 2));
    });
}

#[test]
fn new_flows_go_where_the_reference_says() {
    bench("maglev", |bench| {
        let slots = [2, 3, 4, 5, 6];
        bench.publish(&slots);
        let table = maglev(&slots.into());
        for number in 0..1000_u32 {
            let source = Ipv4Addr::from(0x0a63_0100 + number * 7919);
            let frame = Frame { source: source.into(), ..syn(1024 + number as u16) };
            let (word, shift) = hash::place(hash::flow(&key(&frame, FROM_CLIENT)));
            let expected = table[(word * 4 + shift / 16) as usize];
            assert_eq!(bench.delivered(&frame), IpAddr::V4(container_v4(expected)), "{source}");
        }
    });
}

#[test]
fn a_flow_stays_where_it_is_when_the_table_changes() {
    bench("sticky", |bench| {
        bench.publish(&[2, 3, 4]);
        let ports = 5000..5100;
        let before: Vec<_> = ports.clone().map(|port| bench.delivered(&syn(port))).collect();
        bench.publish(&[2, 3, 4, 5, 6, 7]);
        for (port, container) in ports.clone().zip(&before) {
            assert_eq!(bench.delivered(&syn(port)), *container, "a repeated SYN");
            assert_eq!(bench.delivered(&ack(port)), *container, "the next segment");
        }
        // Draining: old flows stay, new ones go elsewhere. Gone: its flows choose anew.
        bench.publish_with(8080, &[3, 4], &[2]);
        for (port, container) in ports.clone().zip(&before) {
            assert_eq!(bench.delivered(&ack(port)), *container, "draining");
        }
        for port in 6000..6100 {
            assert_ne!(bench.delivered(&syn(port)), IpAddr::V4(container_v4(2)));
        }
        bench.publish(&[3, 4]);
        for port in ports {
            assert_ne!(bench.delivered(&ack(port)), IpAddr::V4(container_v4(2)));
        }
    });
}

#[test]
fn a_flow_nobody_remembers_finds_its_backend_again() {
    bench("midflow", |bench| {
        bench.publish(&[2, 3, 4, 5]);
        for port in 5000..5050 {
            let container = bench.delivered(&syn(port));
            for slot in 2..=5 {
                bench.dataplane.forget_backend(slot).unwrap();
            }
            assert_eq!(bench.flow(&key(&syn(port), FROM_CLIENT)), None);
            assert_eq!(bench.delivered(&ack(port)), container);
        }
    });
}

#[test]
fn without_a_backend_the_kernel_refuses() {
    bench("nobody", |bench| {
        bench.publish(&[]);
        bench.passes(&syn(4000).bytes(), Reason::NoBackend);
        let v6 = Frame::udp(CLIENT6, NODE6, 4000, 8080);
        bench.passes(&v6.bytes(), Reason::NoBackend);
        bench.publish_with(8080, &[], &[2]);
        bench.passes(&syn(4001).bytes(), Reason::NoBackend);
        assert_eq!(bench.dataplane.stats().unwrap().services[&(Protocol::Tcp, 8080)].no_backend, 2);
    });
}

#[test]
fn opening_packets_alone_never_reach_the_table_of_established_flows() {
    bench("flood", |bench| {
        bench.publish(&[2, 3]);
        for port in 1000..3000 {
            bench.delivered(&syn(port));
        }
        let mut established = 0;
        bench.dataplane.flows.for_each(|key, _| established += usize::from(bench.is_established(key))).unwrap();
        assert_eq!(established, 0);

        let container = bench.delivered(&syn(4000));
        bench.container(&answer(&syn(4000), container, frame::SYN | frame::ACK));
        assert!(!bench.is_established(&key(&syn(4000), FROM_CLIENT)), "the client has not answered");
        bench.delivered(&ack(4000));
        let reply = answer(&syn(4000), container, frame::ACK);
        assert!(bench.is_established(&key(&syn(4000), FROM_CLIENT)));
        assert!(bench.is_established(&key(&reply, FROM_BACKEND)));
    });
}

#[test]
fn flows_end_after_the_time_their_state_gives() {
    bench("timeouts", |bench| {
        bench.publish(&[2]);
        let container = IpAddr::V4(container_v4(2));
        let open = |bench: &mut Bench, port| {
            bench.delivered(&syn(port));
            bench.container(&answer(&syn(port), container, frame::SYN | frame::ACK));
            bench.delivered(&ack(port));
        };
        let fin =
            |port| Frame::tcp(CLIENT, NODE, Tcp { source: port, destination: 8080, flags: frame::FIN | frame::ACK });
        bench.delivered(&syn(1));
        open(bench, 2);
        open(bench, 3);
        bench.delivered(&fin(3));
        open(bench, 4);
        bench.delivered(&fin(4));
        bench.container(&answer(&syn(4), container, frame::FIN | frame::ACK));
        open(bench, 5);
        bench.container(&answer(&syn(5), container, frame::RST));
        bench.uplink(&Frame::udp(CLIENT, NODE, 6, 8080));
        let udp = Frame::udp(CLIENT, NODE, 7, 8080);
        bench.uplink(&udp);
        bench.container(&answer(&udp, container, 0));

        let mut passed = 0;
        let expected = [
            (conntrack::TCP_CLOSED_SECONDS, vec![4, 5]),
            (conntrack::UDP_ONE_WAY_SECONDS, vec![6]),
            (conntrack::TCP_HANDSHAKE_SECONDS, vec![1, 7]),
            (conntrack::TCP_ESTABLISHED_SECONDS, vec![2, 3]),
        ];
        for (seconds, ended) in expected {
            // A little before, nothing has ended; the machine may have taken a few seconds to get here.
            bench.dataplane.set_clock_offset(seconds - 5).unwrap();
            assert_eq!(bench.dataplane.sweep().unwrap().removed, 0, "{seconds}");
            bench.dataplane.set_clock_offset(seconds + 1).unwrap();
            let swept = bench.dataplane.sweep().unwrap();
            assert_eq!(swept.removed, 2 * ended.len(), "{seconds}");
            passed += ended.len();
            assert_eq!(swept.remaining, 2 * (7 - passed));
            for port in ended {
                for frame in [syn(port), Frame::udp(CLIENT, NODE, port, 8080)] {
                    assert_eq!(bench.flow(&key(&frame, FROM_CLIENT)), None, "{port}");
                }
            }
        }
    });
}

#[test]
fn a_client_port_used_again_is_a_new_connection_once_the_old_one_is_closed() {
    bench("reuse", |bench| {
        bench.publish(&[2]);
        let container = bench.delivered(&syn(4000));
        bench.container(&answer(&syn(4000), container, frame::RST));
        bench.publish(&[3]);
        assert_eq!(bench.delivered(&syn(4000)), IpAddr::V4(container_v4(3)));
        assert_eq!(bench.dataplane.stats().unwrap().services[&(Protocol::Tcp, 8080)].new_flows, 2);
    });
}

#[test]
fn one_container_behind_two_ports_never_sees_two_connections_as_one() {
    bench("collision", |bench| {
        let mut table = Table::default();
        bench.add(&mut table, 8080, &[2], &[]);
        bench.add(&mut table, 9090, &[2], &[]);
        bench.dataplane.tables.apply(&table).unwrap();
        let first = syn(4000);
        let second = Frame::tcp(CLIENT, NODE, Tcp { source: 4000, destination: 9090, flags: frame::SYN });
        let container = bench.delivered(&first);
        bench.container(&answer(&first, container, frame::SYN | frame::ACK));
        assert_eq!(bench.uplink(&second).0, DROP);
        assert_eq!(bench.count(Reason::TupleCollision), 1);
        // Once the first is over, the second may have the place.
        bench.container(&answer(&first, container, frame::RST));
        assert_eq!(bench.delivered(&second), container);
    });
}

#[test]
fn errors_quote_what_their_receiver_sent() {
    bench("icmp", |bench| {
        bench.publish(&[2]);
        let v6 = Frame::udp(CLIENT6, NODE6, 4000, 8080);
        for (frame, router) in
            [(syn(4000), "10.99.0.77"), (Frame::udp(CLIENT, NODE, 4000, 8080), "10.99.0.77"), (v6, "fd99::77")]
        {
            let container = bench.delivered(&frame);
            let reply = answer(&frame, container, frame::ACK);
            let (_, on_the_wire) = bench.container(&reply);

            // From a router to the node about a reply, for the container.
            let error = Frame::error(router, &on_the_wire);
            let (verdict, out) = bench.uplink(&error);
            assert_eq!(verdict, REDIRECT);
            let expected = Frame { destination: container, ..Frame::error(router, &reply.bytes()) };
            frame::assert_same_error(&out, &expected.bytes());

            // From the container about the client's packet, for the client.
            let (_, delivered) = bench.uplink(&frame);
            let error = Frame::error(&container.to_string(), &delivered);
            let (verdict, out) = bench.container(&error);
            assert_eq!(verdict, REDIRECT);
            let expected = Frame { source: frame.destination, ..Frame::error(NODE, &frame.bytes()) };
            frame::assert_same_error(&out, &expected.bytes());
        }
        assert_eq!(bench.count(Reason::IcmpTranslated), 6);
        // About a flow nobody knows, and about the node's own: the kernel's.
        let stranger = Frame::error("10.99.0.77", &answer(&syn(4999), NODE.parse().unwrap(), frame::ACK).bytes());
        bench.passes(&stranger.bytes(), Reason::NotService);
    });
}

#[test]
fn xdp_chooses_what_tc_delivers() {
    bench("xdp", |bench| {
        bench.publish(&[2, 3, 4]);
        for port in 4000..4050 {
            assert_eq!(bench.xdp(&syn(port).bytes()), XDP_PASS);
            let flow = bench.flow(&key(&syn(port), FROM_CLIENT)).expect("xdp has remembered its choice");
            assert_eq!(bench.delivered(&syn(port)), IpAddr::from(flow.address));
        }
        assert_eq!(bench.count(Reason::XdpLocal), 50);
        assert_eq!(bench.dataplane.stats().unwrap().services[&(Protocol::Tcp, 8080)].new_flows, 50);
    });
}

#[test]
fn random_bytes_never_abort_or_redirect() {
    bench("fuzz", |bench| {
        bench.publish(&[2]);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 400,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let bytes = prop::collection::vec(any::<u8>(), 60..200);
        // Half of them with a beginning that leads deep into the parser.
        let strategy = (bytes, 0..4_usize);
        let bench = std::cell::RefCell::new(bench);
        runner
            .run(&strategy, |(mut bytes, kind)| {
                if let Some(ethertype) = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]].get(kind) {
                    bytes[12..14].copy_from_slice(ethertype);
                }
                let mut bench = bench.borrow_mut();
                prop_assert_eq!(bench.xdp(&bytes), XDP_PASS);
                for program in ["edged_uplink", "edged_container", "edged_uplink_raw"] {
                    let (verdict, out) = bench.tc(program, &bytes);
                    prop_assert_eq!(verdict, PASS);
                    prop_assert_eq!(&out, &bytes);
                }
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn programs_stay_within_their_budget() {
    /// What the verifier may have to look at per program; kernels refuse at a million.
    const INSTRUCTIONS: u32 = 20_000;
    bench("budget", |bench| {
        for (name, program) in bench.dataplane.hooks.programs.programs() {
            let Ok(info) = program.info() else { continue };
            let verified = info.verified_instruction_count().unwrap();
            println!("{name}: {verified} instructions verified, {} bytes", info.size_jitted());
            assert!(verified < INSTRUCTIONS, "{name}: {verified}");
        }
    });
}
