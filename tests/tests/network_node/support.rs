//! A node for one test: namespaces, an uplink to an outside host, and small TCP and UDP conversations between them.

use std::{
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use orchestrator::network::{Network, NetworkConfig, NetworkError, netns};
use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::UnshareFlags,
};

/// No answer on this machine takes longer, unless there will be none.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) const NODE_V4: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8::1";
pub(crate) const OUTSIDE_V4: &str = "192.0.2.254";
pub(crate) const OUTSIDE_V6: &str = "2001:db8::fe";

/// The node a test runs in.
pub(crate) struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig::new("n1", self.folder.path().join("run"))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) async fn network(&self) -> Network {
        let network = Network::open(self.config()).await.unwrap();
        network.ensure_base().await.unwrap();
        network
    }

    /// The namespace of the host at the other end of the uplink.
    pub(crate) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }
}

/// Runs a test as a node. The thread's namespaces are inherited by the runtime it starts and end with it.
pub(crate) fn as_node<F>(test: impl FnOnce(Node) -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    if let Some(why) = cannot_run() {
        println!("SKIPPED: {why}");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: the FILES flag, which would break the sharing of file descriptors, is not set.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node { folder: tempfile::tempdir().unwrap() };
            let outside = node.outside();
            connect_outside(&outside).await;
            test(node).await;
            netns::delete(&outside).await.unwrap();
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn cannot_run() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    for tool in ["ip", "nft", "nsenter"] {
        if Command::new(tool).arg("--version").output().is_err() && Command::new(tool).arg("-V").output().is_err() {
            return Some(format!("the test tool {tool} is not installed"));
        }
    }
    None
}

async fn connect_outside(outside: &Path) {
    netns::ensure(outside).await.unwrap();
    ip("link set lo up");
    let namespace = outside.display();
    run(&format!("ip link add up0 type veth peer name up0 netns {namespace}"));
    ip(&format!("addr add {NODE_V4}/24 dev up0"));
    ip(&format!("addr add {NODE_V6}/64 dev up0 nodad"));
    ip("link set up0 up");
    ip_in(outside, "link set lo up");
    ip_in(outside, &format!("addr add {OUTSIDE_V4}/24 dev up0"));
    ip_in(outside, &format!("addr add {OUTSIDE_V6}/64 dev up0 nodad"));
    ip_in(outside, "link set up0 up");
    ip(&format!("route add default via {OUTSIDE_V4}"));
    ip(&format!("route add default via {OUTSIDE_V6}"));
}

/// Runs a command line in the node; it must succeed.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(arguments: &str) -> String {
    run(&format!("ip {arguments}"))
}

pub(crate) fn ip_in(namespace: &Path, arguments: &str) -> String {
    run(&format!("nsenter --net={} ip {arguments}", namespace.display()))
}

/// The names of all links, sorted.
pub(crate) fn link_names() -> Vec<String> {
    let mut names: Vec<String> = ip("-o link")
        .lines()
        .map(|line| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// Opens a TCP conversation from one namespace to a listener in another and sends a line each way. Returns the address
/// that the listener saw.
pub(crate) async fn converse(from: &Path, to: &Path, address: IpAddr) -> Result<IpAddr, NetworkError> {
    let failed = |tried: &str, source| NetworkError::Io { tried: tried.to_owned(), source };
    let listener =
        netns::run(to, move || TcpListener::bind(SocketAddr::new(address, 0)).map_err(|error| failed("listen", error)))
            .await?;
    let target = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + DEADLINE;
        let (mut stream, peer) = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                Err(_) => return None,
            }
        };
        stream.set_nonblocking(false).unwrap();
        let mut line = [0; 5];
        stream.read_exact(&mut line).ok()?;
        stream.write_all(&line).ok()?;
        Some(peer.ip())
    });
    netns::run(from, move || {
        let mut stream = TcpStream::connect_timeout(&target, DEADLINE).map_err(|error| failed("connect", error))?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut echo = [0; 5];
        stream
            .write_all(b"hello")
            .and_then(|()| stream.read_exact(&mut echo))
            .map_err(|error| failed("talk", error))?;
        assert_eq!(&echo, b"hello");
        Ok(())
    })
    .await?;
    Ok(tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap().expect("the listener saw nobody"))
}
