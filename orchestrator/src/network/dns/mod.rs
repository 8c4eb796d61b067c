//! The node's resolver: answers containers for the names of the cluster, and asks the host's servers for all others.
//!
//! In: queries over UDP and TCP on the bridge's gateway addresses, [`Names`] from the agent, the host's `resolv.conf`.
//! Out: answers. Called by the agent, which also writes each container's `resolv.conf` with [`container_resolv_conf`].
//!
//! ```text
//!  container ──► gateway:53 ──► names ── known ──► answer
//!                                 └───── unknown ─► the host's servers ──► their answer, as it is
//! ```
//!
//! Messages: RFC 1035; EDNS: RFC 6891; TCP: RFC 7766.

mod names;
mod resolv_conf;
mod server;
mod upstream;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::{TcpListener, UdpSocket};

pub use names::{Entry, Names};
pub use resolv_conf::{ResolvConf, container_resolv_conf};

use super::{NetworkError, Result, Subnet4, Subnet6};
use names::Zone;
use server::Shared;
use upstream::Upstream;

/// The port of DNS (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// What a resolver needs to know.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Where it listens, usually the bridge's addresses.
    pub listen: Vec<IpAddr>,
    /// The port it listens on, usually [`PORT`].
    pub port: u16,
    /// Only clients with an address in the container subnets are answered; reverse names in them stay on the node.
    pub subnet4: Subnet4,
    /// The IPv6 container subnet.
    pub subnet6: Subnet6,
    /// The host's `resolv.conf`, whose servers are asked for other names. It is read again when it changes.
    pub resolv_conf: PathBuf,
}

/// A running resolver; it ends with its value.
pub struct Resolver {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What a resolver has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Queries that were answered from the names of the cluster.
    pub answered: u64,
    /// Queries that were answered by one of the host's servers.
    pub forwarded: u64,
    /// Queries that none of the host's servers answered.
    pub failed: u64,
    /// Packets that are no DNS query.
    pub malformed: u64,
    /// Packets from addresses that are no container's.
    pub refused: u64,
    /// Queries and connections that were turned away because too many were under way.
    pub overloaded: u64,
}

impl Resolver {
    /// Binds the sockets and begins to answer, at first without names. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetworkError::Listen`] when an address is not there yet or another server has the port.
    pub async fn start(config: ResolverConfig) -> Result<Self> {
        let upstream = Upstream::new(config.resolv_conf, config.listen.clone(), config.port);
        let shared = Arc::new(Shared::new(Zone::new(config.subnet4, config.subnet6), upstream));
        let mut tasks = Vec::new();
        for address in config.listen {
            let address = SocketAddr::new(address, config.port);
            let failed = |protocol| move |source| NetworkError::Listen { address, protocol, source };
            let udp = UdpSocket::bind(address).await.map_err(failed("udp"))?;
            let tcp = TcpListener::bind(address).await.map_err(failed("tcp"))?;
            tasks.push((udp, tcp));
        }
        let tasks = tasks
            .into_iter()
            .flat_map(|(udp, tcp)| {
                [
                    tokio::spawn(server::serve_udp(Arc::clone(&shared), udp)),
                    tokio::spawn(server::serve_tcp(Arc::clone(&shared), tcp)),
                ]
            })
            .collect();
        Ok(Resolver { shared, tasks })
    }

    /// Replaces all names. Queries that arrive from now on get the new answers.
    pub fn set(&self, names: Names) {
        self.shared.set_names(names);
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.counts.read()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    malformed: AtomicU64,
    refused: AtomicU64,
    overloaded: AtomicU64,
}

impl Counts {
    fn read(&self) -> Counters {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            answered: read(&self.answered),
            forwarded: read(&self.forwarded),
            failed: read(&self.failed),
            malformed: read(&self.malformed),
            refused: read(&self.refused),
            overloaded: read(&self.overloaded),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
