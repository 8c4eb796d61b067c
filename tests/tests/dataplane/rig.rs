//! A client, a node and containers as network namespaces, and the smallest server and clients that say who saw whom.

use orchestrator::dataplane::{DataplaneConfig, Mode, Sizes};
use orchestrator_ebpf_common::checksum;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Container {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// Of the host side of its veth.
    pub(crate) ifindex: u32,
    namespace: String,
}

pub(crate) struct Rig {
    client: String,
    node: String,
    pub(crate) containers: Vec<Container>,
}

/// Builds the namespaces, or says why this machine cannot.
pub(crate) fn rig(name: &str, containers: usize) -> Option<Rig> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED: needs the ip command");
        return None;
    }
    // Short: an interface name has 15 characters.
    let id = format!("dp{}-{name}", std::process::id());
    let mut rig = Rig { client: format!("{id}-c"), node: format!("{id}-n"), containers: Vec::new() };
    for namespace in [&rig.client, &rig.node] {
        ip(&["netns", "add", namespace]);
        ip(&["-n", namespace, "link", "set", "lo", "up"]);
    }
    let (client, node) = (rig.client.clone(), rig.node.clone());
    ip(&["-n", &node, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", &client]);
    address(&node, "up0", &["10.99.0.1/24", "fd99::1/64"]);
    address(&client, "eth0", &["10.99.0.254/24", "fd99::fe/64"]);
    ip(&["-n", &node, "link", "add", "br0", "type", "bridge"]);
    address(&node, "br0", &["172.30.0.1/24", "fd30::1/64"]);
    for number in 0..containers {
        let (namespace, host) = (format!("{id}-{number}"), format!("v{number}"));
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&["-n", &node, "link", "add", &host, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &node, "link", "set", &host, "master", "br0", "up"]);
        let host_part = number as u8 + 2;
        let (v4, v6) =
            (Ipv4Addr::new(172, 30, 0, host_part), Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, host_part.into()));
        address(&namespace, "eth0", &[&format!("{v4}/24"), &format!("{v6}/64")]);
        ip(&["-n", &namespace, "route", "add", "default", "via", "172.30.0.1"]);
        ip(&["-n", &namespace, "-6", "route", "add", "default", "via", "fd30::1"]);
        let ifindex = in_namespace(&node, move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            rustix::net::netdevice::name_to_index(&socket, &host).unwrap()
        });
        rig.containers.push(Container { v4, v6, ifindex, namespace });
    }
    Some(rig)
}

impl Rig {
    pub(crate) fn pin_dir(&self) -> PathBuf {
        self.bpffs().join("node")
    }

    /// Where the dataplane mounts a bpffs: a place of our own, so that nothing stays mounted.
    fn bpffs(&self) -> PathBuf {
        std::env::temp_dir().join(format!("bpffs-{}", self.node))
    }

    pub(crate) fn config(&self, force: Option<Mode>) -> DataplaneConfig {
        DataplaneConfig {
            uplinks: Some(BTreeSet::from(["up0".to_owned()])),
            force,
            sizes: Sizes { flows: 1024, embryonic: 1024, sockets: 1024 },
            ..DataplaneConfig::new(self.pin_dir())
        }
    }

    pub(crate) fn in_client<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(&self.client, work)
    }

    pub(crate) fn in_node<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(&self.node, work)
    }

    pub(crate) fn in_container<T: Send + 'static>(
        &self,
        number: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        in_namespace(&self.containers[number].namespace, work)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.pin_dir().exists() {
            let pin_dir = self.pin_dir();
            if let Err(error) = self.in_node(move || orchestrator::dataplane::remove(&pin_dir)) {
                eprintln!("{error}");
            }
        }
        if self.bpffs().exists() {
            let _ = rustix::mount::unmount(self.bpffs(), rustix::mount::UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(self.bpffs());
        }
        let containers = self.containers.iter().map(|container| &container.namespace);
        for namespace in containers.chain([&self.client, &self.node]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Gives an interface its addresses, usable at once, and switches it on.
fn address(namespace: &str, interface: &str, addresses: &[&str]) {
    for address in addresses {
        let mut arguments = vec!["-n", namespace, "addr", "add", address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        ip(&arguments);
    }
    ip(&["-n", namespace, "link", "set", interface, "up"]);
}

/// Runs `work` on a thread of its own in a namespace.
fn in_namespace<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = thread::spawn(move || {
        enter(&namespace);
        work()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter(namespace: &File) {
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
}

/// A server on port 80 of a container, TCP and UDP, both families. It first tells who the client is and which address
/// the client reached, then echoes. Its threads end with the process.
pub(crate) fn echo(rig: &Rig, number: usize) -> Server {
    rig.in_container(number, || {
        for address in ["0.0.0.0:80", "[::]:80"] {
            let address: SocketAddr = address.parse().unwrap();
            let (listener, socket) = sockets(address);
            thread::spawn(move || {
                while let Ok((stream, peer)) = listener.accept() {
                    thread::spawn(move || answer(stream, peer));
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(peer.to_string().as_bytes(), peer);
                }
            });
        }
    });
    Server
}

/// Marks that a container serves.
pub(crate) struct Server;

/// Both sockets of one family only.
fn sockets(address: SocketAddr) -> (TcpListener, UdpSocket) {
    use rustix::net::{self, AddressFamily, SocketType, sockopt};
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let [stream, datagram] = [SocketType::STREAM, SocketType::DGRAM].map(|kind| {
        let socket = net::socket(family, kind, None).unwrap();
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true).unwrap();
        }
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        net::bind(&socket, &address).unwrap();
        socket
    });
    net::listen(&stream, 64).unwrap();
    (stream.into(), datagram.into())
}

fn answer(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let server = stream.local_addr()?.ip();
    stream.write_all(format!("{peer} {server}\n").as_bytes())?;
    let mut buffer = [0; 65536];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// A connection and what the server said at its beginning.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The client's address as the server saw it.
    pub(crate) seen: SocketAddr,
    /// The server's own address.
    pub(crate) server: String,
}

impl Connection {
    pub(crate) fn open(to: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
            greeting.push(byte[0]);
        }
        let greeting = String::from_utf8(greeting).map_err(io::Error::other)?;
        let (seen, server) = greeting.trim().split_once(' ').ok_or_else(|| io::Error::other("no greeting"))?;
        Ok(Self { stream, seen: seen.parse().map_err(io::Error::other)?, server: server.to_owned() })
    }

    /// Sends and waits for the echo.
    pub(crate) fn exchange(&mut self, text: &[u8]) -> io::Result<()> {
        self.stream.write_all(text)?;
        let mut echo = vec![0; text.len()];
        self.stream.read_exact(&mut echo)?;
        assert_eq!(echo, text);
        Ok(())
    }
}

/// The client's own address, and the one the server saw, over TCP.
pub(crate) fn tcp_ask(to: SocketAddr) -> io::Result<(SocketAddr, SocketAddr)> {
    let connection = Connection::open(to)?;
    Ok((connection.stream.local_addr()?, connection.seen))
}

/// What `getpeername` says.
pub(crate) fn tcp_peer(to: SocketAddr) -> io::Result<SocketAddr> {
    Connection::open(to)?.stream.peer_addr()
}

/// The client's own address, and the one the server saw, over UDP.
pub(crate) fn udp_ask(to: SocketAddr) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = datagram_socket(to)?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer)?;
    let seen = String::from_utf8_lossy(&answer[..length]).parse().map_err(io::Error::other)?;
    Ok((socket.local_addr()?, seen))
}

/// Who answers a datagram sent from a socket that is not connected.
pub(crate) fn udp_sender(to: SocketAddr) -> io::Result<SocketAddr> {
    let socket = datagram_socket(to)?;
    socket.send_to(b"?", to)?;
    Ok(socket.recv_from(&mut [0; 100])?.1)
}

/// Everything the server echoes of what is sent.
pub(crate) fn tcp_echo(to: SocketAddr, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = Connection::open(to)?.stream;
    let mut writer = stream.try_clone()?;
    let data = data.to_vec();
    let sender = thread::spawn(move || {
        writer.write_all(&data)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo)?;
    sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
    Ok(echo)
}

fn datagram_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A tun device in the calling thread's namespace, switched on; the file is its other end.
pub(crate) fn tunnel(name: &str, address: &str) -> File {
    /// `TUNSETIFF` (include/uapi/linux/if_tun.h).
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is complete and lives through the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    ip(&["addr", "add", address, "dev", name]);
    ip(&["link", "set", name, "up"]);
    file
}

/// Sends a datagram into a tunnel, and returns the text of the one that answers it.
pub(crate) fn ask_through(tunnel: &mut File, from: [u8; 4], to: [u8; 4], source: u16, destination: u16) -> String {
    let mut packet = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend(from);
    packet.extend(to);
    let sum = checksum::finish(checksum::add(0, &packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0, 9, 0, 0, b'?']);
    tunnel.write_all(&packet).unwrap();
    let mut buffer = [0; 2048];
    loop {
        let mut ready = [rustix::event::PollFd::new(tunnel, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_ne!(rustix::event::poll(&mut ready, Some(&timeout)).unwrap(), 0, "no answer");
        let length = tunnel.read(&mut buffer).unwrap();
        // The kernel also says things of its own, such as router solicitations.
        let addressed = [to, from].concat();
        if buffer[0] == 0x45 && buffer[12..20] == addressed && buffer[20..22] == destination.to_be_bytes() {
            return String::from_utf8_lossy(&buffer[28..length]).into_owned();
        }
    }
}
