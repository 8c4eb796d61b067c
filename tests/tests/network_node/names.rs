//! The resolver, asked from inside containers, with a server of the outside that it forwards to.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use orchestrator::network::{
    Attached, Attachment, Network, NetworkError,
    dns::{Entry, Names, Resolver, container_resolv_conf},
    netns,
};

use crate::support::{DEADLINE, NODE_V4, Node, OUTSIDE_V4, as_node, ip, ip_in, run};

struct Scene {
    network: Network,
    resolver: Resolver,
    a: Attached,
    resolv_conf: PathBuf,
}

/// A container, a resolver that knows the service `web`, and a host that uses the outside as its server.
async fn scene(node: &Node) -> Scene {
    let network = node.network().await;
    let a = network.attach(&Attachment { task: "a".to_owned(), index: 2 }).await.unwrap();
    let resolv_conf = node.folder().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {OUTSIDE_V4}\n")).unwrap();
    let resolver = Resolver::start(network.resolver_config(&resolv_conf)).await.unwrap();
    resolver.set(web(&[3, 4]));
    Scene { network, resolver, a, resolv_conf }
}

fn web(last: &[u8]) -> Names {
    let v4s = last.iter().map(|last| Ipv4Addr::new(10, 231, 0, *last)).collect();
    let v6s = last.iter().map(|last| format!("fdb7:2e1a:94c3::{last}").parse().unwrap()).collect();
    Names::from([("web".to_owned(), Entry { v4s, v6s })])
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask(from: &Path, gateway: IpAddr, message: &Message) -> Message {
    let packet = message.to_vec().unwrap();
    let answer = exchange(from, gateway, packet).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

async fn exchange(from: &Path, gateway: IpAddr, packet: Vec<u8>) -> Result<Vec<u8>, NetworkError> {
    netns::run(from, move || {
        let any: IpAddr = if gateway.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect((gateway, 53)).unwrap();
        socket.send(&packet).unwrap();
        let mut buffer = vec![0; 65_535];
        let length = socket
            .recv(&mut buffer)
            .map_err(|source| NetworkError::Io { tried: "get an answer".to_owned(), source })?;
        buffer.truncate(length);
        Ok(buffer)
    })
    .await
}

async fn ask_tcp(from: &Path, gateway: IpAddr, messages: Vec<Message>) -> Vec<Message> {
    netns::run(from, move || {
        let mut stream = TcpStream::connect((gateway, 53)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Ok(messages
            .into_iter()
            .map(|message| {
                write_framed(&mut stream, &message.to_vec().unwrap()).unwrap();
                Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()
            })
            .collect())
    })
    .await
    .unwrap()
}

fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes(), packet].concat())
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet)?;
    Ok(packet)
}

fn addresses(message: &Message) -> Vec<String> {
    let mut addresses: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    addresses.sort();
    addresses
}

/// Queries, and who sent them.
type Seen = Vec<(SocketAddr, Vec<u8>)>;

/// A name server in another namespace; it ends with its value.
struct FakeServer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// What a fake server does with a query; `true` is TCP.
type Script = fn(Message, bool) -> Option<Message>;

impl FakeServer {
    async fn start(netns_path: &Path, address: &str, script: Script) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let (udp, tcp) = netns::run(netns_path, move || {
            Ok((UdpSocket::bind((address, 53)).unwrap(), TcpListener::bind((address, 53)).unwrap()))
        })
        .await
        .unwrap();
        let tick = Some(Duration::from_millis(20));
        udp.set_read_timeout(tick).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        let (stopped, log) = (Arc::clone(&stop), Arc::clone(&seen));
        threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while !stopped.load(Ordering::SeqCst) {
                let Ok((length, client)) = udp.recv_from(&mut buffer) else { continue };
                log.lock().unwrap().push((client, buffer[..length].to_vec()));
                if let Some(answer) = script(Message::from_vec(&buffer[..length]).unwrap(), false) {
                    udp.send_to(&answer.to_vec().unwrap(), client).unwrap();
                }
            }
        }));
        let (stopped, log) = (Arc::clone(&stop), Arc::clone(&seen));
        threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let Ok((mut stream, client)) = tcp.accept() else {
                    std::thread::park_timeout(Duration::from_millis(20));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let packet = read_framed(&mut stream).unwrap();
                log.lock().unwrap().push((client, packet.clone()));
                if let Some(answer) = script(Message::from_vec(&packet).unwrap(), true) {
                    write_framed(&mut stream, &answer.to_vec().unwrap()).unwrap();
                }
            }
        }));
        FakeServer { stop, seen, threads }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_with(query: &Message, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_queries(query.queries.iter().cloned());
    for address in addresses {
        answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, RData::A(A(address))));
    }
    answer
}

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

fn knows_everything(query: Message, _: bool) -> Option<Message> {
    Some(answer_with(&query, [ELSEWHERE]))
}

fn is_silent(_: Message, _: bool) -> Option<Message> {
    None
}

fn is_in_trouble(query: Message, _: bool) -> Option<Message> {
    Some(Message::error_msg(query.metadata.id, query.metadata.op_code, ResponseCode::ServFail)).map(|mut answer| {
        answer.add_queries(query.queries);
        answer
    })
}

/// 100 addresses: by UDP only the notice that they do not fit.
fn has_much_to_say(query: Message, tcp: bool) -> Option<Message> {
    let mut answer = answer_with(&query, (0..if tcp { 100 } else { 0 }).map(|last| Ipv4Addr::new(198, 51, 100, last)));
    answer.metadata.truncation = !tcp;
    Some(answer)
}

/// More than a client can take in one datagram, and nothing that says so.
fn ignores_sizes(query: Message, _: bool) -> Option<Message> {
    Some(answer_with(&query, (0..100).map(|last| Ipv4Addr::new(198, 51, 100, last))))
}

/// The right id, but the answer to another question.
fn is_spoofed(query: Message, _: bool) -> Option<Message> {
    Some(answer_with(&query, [ELSEWHERE])).map(|mut answer| {
        answer.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
        answer
    })
}

#[test]
fn service_names_are_answered_on_both_families() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        for gateway in scene.network.gateways() {
            let a = ask(&scene.a.netns, gateway, &question("web.", RecordType::A)).await;
            assert_eq!(addresses(&a), ["10.231.0.3", "10.231.0.4"]);
            let aaaa = ask(&scene.a.netns, gateway, &question("WEB.", RecordType::AAAA)).await;
            assert_eq!(addresses(&aaaa), ["fdb7:2e1a:94c3::3", "fdb7:2e1a:94c3::4"]);
            let unknown = ask(&scene.a.netns, gateway, &question("db.", RecordType::A)).await;
            assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
            let txt = ask(&scene.a.netns, gateway, &question("web.", RecordType::TXT)).await;
            assert_eq!((txt.metadata.response_code, txt.answers.len()), (ResponseCode::NoError, 0));
        }
        scene.resolver.set(web(&[9]));
        let a = ask(&scene.a.netns, scene.network.gateways()[0], &question("web.", RecordType::A)).await;
        assert_eq!(addresses(&a), ["10.231.0.9"]);
        assert_eq!((scene.resolver.counters().answered, scene.resolver.counters().malformed), (9, 0));
    });
}

#[test]
fn the_c_library_of_a_container_finds_services() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let file = node.folder().join("container-resolv.conf");
        std::fs::write(&file, container_resolv_conf(&scene.network.gateways(), &["lan.example".to_owned()])).unwrap();
        // The mount namespace is the test's own.
        run(&format!("mount --bind {} /etc/resolv.conf", file.display()));
        let lookup = format!("nsenter --net={} getent ahostsv4 web", scene.a.netns.display());
        let found = tokio::task::spawn_blocking(move || run(&lookup)).await.unwrap();
        assert!(found.contains("10.231.0.3") && found.contains("10.231.0.4"), "{found}");
    });
}

#[test]
fn other_names_are_asked_of_the_hosts_server() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let server = FakeServer::start(&node.outside(), OUTSIDE_V4, knows_everything).await;
        let mut query = question("Example.org.", RecordType::A);
        query.set_edns({
            let mut edns = Edns::new();
            edns.set_max_payload(4000).set_dnssec_ok(true);
            edns
        });
        let answer = ask(&scene.a.netns, scene.network.gateways()[0], &query).await;
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(addresses(&answer), [ELSEWHERE.to_string()]);
        assert_eq!(answer.answers[0].ttl, 60, "the answer is passed on as it is");

        let (client, packet) = server.seen().remove(0);
        assert_eq!(client.ip(), NODE_V4.parse::<IpAddr>().unwrap());
        let sent = query.to_vec().unwrap();
        assert_eq!(packet[2..], sent[2..], "the query is passed on as it is, but for the id");

        let by_tcp = vec![query, question("example.net.", RecordType::A), question("web.", RecordType::A)];
        let answers = ask_tcp(&scene.a.netns, scene.network.gateways()[0], by_tcp).await;
        assert_eq!(answers.iter().map(|answer| answer.answers.len()).collect::<Vec<_>>(), [1, 1, 2]);
        ask(&scene.a.netns, scene.network.gateways()[0], &question("nobody.", RecordType::A)).await;
        assert_eq!(server.seen().len(), 3, "names without a dot never leave the node");
        assert_eq!(scene.resolver.counters().forwarded, 3);
    });
}

#[test]
fn ids_towards_the_outside_are_not_the_clients() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let server = FakeServer::start(&node.outside(), OUTSIDE_V4, knows_everything).await;
        let mut query = question("example.org.", RecordType::A);
        query.metadata.id = 7;
        for _ in 0..8 {
            ask(&scene.a.netns, scene.network.gateways()[0], &query).await;
        }
        let seen = server.seen();
        let ids: std::collections::BTreeSet<&[u8]> = seen.iter().map(|(_, packet)| &packet[..2]).collect();
        let ports: std::collections::BTreeSet<u16> = seen.iter().map(|(client, _)| client.port()).collect();
        assert!(ids.len() > 4 && ports.len() > 4, "{seen:?}");
    });
}

#[test]
fn an_answer_that_does_not_fit_comes_by_tcp() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let _server = FakeServer::start(&node.outside(), OUTSIDE_V4, has_much_to_say).await;
        let gateway = scene.network.gateways()[0];
        let query = question("big.example.", RecordType::A);
        assert!(ask(&scene.a.netns, gateway, &query).await.metadata.truncation);
        let answers = ask_tcp(&scene.a.netns, gateway, vec![query]).await;
        assert_eq!((answers[0].answers.len(), answers[0].metadata.truncation), (100, false));
    });
}

#[test]
fn an_answer_that_is_too_long_for_the_client_is_cut_and_says_so() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let _server = FakeServer::start(&node.outside(), OUTSIDE_V4, ignores_sizes).await;
        let gateway = scene.network.gateways()[0];
        let answer = ask(&scene.a.netns, gateway, &question("big.example.", RecordType::A)).await;
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (0, true));
    });
}

#[test]
fn servers_that_do_not_help_are_passed_over() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        ip_in(&node.outside(), "addr add 192.0.2.253/24 dev up0");
        std::fs::write(&scene.resolv_conf, format!("nameserver 192.0.2.253\nnameserver {OUTSIDE_V4}\n")).unwrap();
        for first in [is_silent as Script, is_in_trouble, is_spoofed] {
            let _first = FakeServer::start(&node.outside(), "192.0.2.253", first).await;
            let _second = FakeServer::start(&node.outside(), OUTSIDE_V4, knows_everything).await;
            let answer =
                ask(&scene.a.netns, scene.network.gateways()[0], &question("example.org.", RecordType::A)).await;
            assert_eq!(addresses(&answer), [ELSEWHERE.to_string()]);
        }
        // Nobody listens on either: refused at once.
        let answer = ask(&scene.a.netns, scene.network.gateways()[0], &question("example.org.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(scene.resolver.counters().failed, 1);
    });
}

#[test]
fn a_changed_resolv_conf_is_used() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let _server = FakeServer::start(&node.outside(), OUTSIDE_V4, knows_everything).await;
        let gateway = scene.network.gateways()[0];
        std::fs::write(&scene.resolv_conf, "# none\n").unwrap();
        let query = question("example.org.", RecordType::A);
        assert_eq!(ask(&scene.a.netns, gateway, &query).await.metadata.response_code, ResponseCode::ServFail);
        // A server that is ourselves is left out, or the query would go round in circles.
        std::fs::write(&scene.resolv_conf, format!("nameserver {gateway}\nnameserver {OUTSIDE_V4}\n")).unwrap();
        let begun = Instant::now();
        while ask(&scene.a.netns, gateway, &query).await.metadata.response_code != ResponseCode::NoError {
            assert!(begun.elapsed() < DEADLINE, "the new server is never asked");
        }
    });
}

#[test]
fn malformed_packets_are_counted_and_harm_nobody() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let gateway = scene.network.gateways()[0];
        let short = b"hello".to_vec();
        let mut loops = question("web.", RecordType::A).to_vec().unwrap();
        loops.truncate(12);
        loops.extend([0xc0, 12, 0, 1, 0, 1]); // a name that points at itself
        let answer = exchange(&scene.a.netns, gateway, loops.clone()).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
        netns::run(&scene.a.netns, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for packet in [Vec::new(), short, vec![0xff; 4096], vec![0; 12]] {
                socket.send_to(&packet, (gateway, 53)).unwrap();
            }
            let mut stream = TcpStream::connect((gateway, 53)).unwrap();
            write_framed(&mut stream, &[7; 3]).unwrap();
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection is closed");
            Ok(())
        })
        .await
        .unwrap();
        let answer = ask(&scene.a.netns, gateway, &question("web.", RecordType::A)).await;
        assert_eq!(answer.answers.len(), 2);
        assert_eq!(scene.resolver.counters().malformed, 6);
    });
}

#[test]
fn only_containers_are_answered() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let gateway = scene.network.gateways()[0];
        ip_in(&node.outside(), &format!("route add 10.231.0.0/16 via {NODE_V4}"));
        let packet = question("web.", RecordType::A).to_vec().unwrap();
        netns::run(&node.outside(), move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(&packet, (gateway, 53)).unwrap();
            Ok(())
        })
        .await
        .unwrap();
        let begun = Instant::now();
        while scene.resolver.counters().refused == 0 {
            assert!(begun.elapsed() < DEADLINE, "{:?}", scene.resolver.counters());
            tokio::task::yield_now().await;
        }
        assert_eq!(scene.resolver.counters().answered, 0);
    });
}

#[test]
fn the_resolver_outlives_its_bridge() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        ip("link del edge0");
        scene.network.ensure_base().await.unwrap();
        let a = scene.network.attach(&Attachment { task: "a".to_owned(), index: 2 }).await.unwrap();
        for gateway in scene.network.gateways() {
            let answer = ask(&a.netns, gateway, &question("web.", RecordType::A)).await;
            assert_eq!(answer.answers.len(), 2);
        }
    });
}

#[test]
fn a_port_that_is_taken_is_named_and_a_stopped_resolver_frees_it() {
    as_node(|node| async move {
        let scene = scene(&node).await;
        let config = scene.network.resolver_config(&scene.resolv_conf);
        let error = match Resolver::start(config.clone()).await {
            Ok(_) => panic!("two resolvers on one port"),
            Err(error) => error,
        };
        assert_eq!(error.to_string(), "cannot listen on 10.231.0.1:53 (udp)");
        drop(scene.resolver);
        let begun = Instant::now();
        while let Err(error) = Resolver::start(config.clone()).await {
            assert!(begun.elapsed() < DEADLINE, "{error}");
            tokio::task::yield_now().await;
        }
    });
}
