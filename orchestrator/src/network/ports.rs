//! Ports that the node's own processes hold, so that a published port that is not free can be named with its holder.
//!
//! In: `/proc/thread-self/net/{tcp,tcp6,udp,udp6}`, and `/proc/<pid>/fd` on request. Out: [`HeldPort`]s. Called by the
//! agent. Formats: proc_pid_net(5) and the kernel's Documentation/networking/proc_net_tcp.rst.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use super::{NetworkError, Result};

/// How many descriptors are looked at for the holder of a socket: bounds the cost on a machine with very many.
const MAX_DESCRIPTORS: usize = 65_536;
/// `TCP_LISTEN` and `TCP_CLOSE`, the state of an unconnected UDP socket (include/net/tcp_states.h).
const LISTENING: u8 = 0x0a;
const UNCONNECTED: u8 = 0x07;

/// The protocol of a held port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Listening.
    Tcp,
    /// Bound and unconnected.
    Udp,
}

/// A port that a socket of this node holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The local address; unspecified means all.
    pub address: IpAddr,
    /// The socket's inode.
    pub inode: u64,
    /// Who holds it, when it was asked for and found.
    pub holder: Option<Holder>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub comm: String,
}

/// The ports held in the calling thread's network namespace, in order; without their holders. Blocks, but not for long.
///
/// # Errors
/// When the tables cannot be read.
pub fn held_ports() -> Result<Vec<HeldPort>> {
    let mut held = Vec::new();
    let tables = [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)];
    for (name, protocol) in tables {
        let path = Path::new("/proc/thread-self/net").join(name);
        match fs::read_to_string(&path) {
            Ok(table) => held.extend(table.lines().skip(1).filter_map(|line| parse(protocol, line))),
            // Without IPv6 its tables are absent.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetworkError::path("read", &path, error)),
        }
    }
    held.sort();
    Ok(held)
}

/// Finds the holders of `ports` by looking through the descriptors of all processes. Blocks for up to some 100 ms; what
/// is not found (another pid namespace, no permission, too many descriptors) stays `None`.
pub fn name_holders(ports: &mut [HeldPort]) {
    let mut wanted: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, port) in ports.iter().enumerate() {
        wanted.entry(port.inode).or_default().push(at);
    }
    let mut budget = MAX_DESCRIPTORS;
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if wanted.is_empty() || budget == 0 {
                return;
            }
            budget -= 1;
            let Some(inode) = fs::read_link(descriptor.path()).ok().and_then(|link| socket_inode(&link)) else {
                continue;
            };
            for at in wanted.remove(&inode).unwrap_or_default() {
                let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                ports[at].holder = Some(Holder { pid, comm: comm.trim().to_owned() });
            }
        }
    }
}

fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A line: `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`.
fn parse(protocol: Protocol, line: &str) -> Option<HeldPort> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let holds = match protocol {
        Protocol::Tcp => LISTENING,
        Protocol::Udp => UNCONNECTED,
    };
    if u8::from_str_radix(state, 16).ok()? != holds {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    Some(HeldPort {
        protocol,
        port: u16::from_str_radix(port, 16).ok()?,
        address: parse_address(address)?,
        inode: inode.parse().ok()?,
        holder: None,
    })
}

/// Words of 32 bits as the kernel holds them in memory (network byte order), printed as numbers of this machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    if !matches!(hex.len(), 8 | 32) {
        return None;
    }
    let mut octets = Vec::with_capacity(16);
    for word in hex.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        octets.extend_from_slice(&word.to_ne_bytes());
    }
    if let Ok(v4) = <[u8; 4]>::try_from(octets.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_and_bound_sockets_are_told_from_connections() {
        let listening =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let held = parse(Protocol::Tcp, listening).unwrap();
        assert_eq!((held.port, held.inode), (8080, 4711));
        if cfg!(target_endian = "little") {
            assert_eq!(held.address, IpAddr::from(Ipv4Addr::LOCALHOST));
        }
        assert_eq!(parse(Protocol::Tcp, &listening.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse(Protocol::Udp, &listening.replace(" 0A ", " 07 ")).unwrap().protocol, Protocol::Udp);
        assert_eq!(parse(Protocol::Udp, &listening.replace(" 0A ", " 01 ")), None);
    }

    #[test]
    fn damaged_lines_are_skipped() {
        for line in
            ["", "0:", "0: 0100007F 0 0A 0 0 0 0 0 1", "0: ZZ:1F90 0 0A 0 0 0 0 0 1", "0: 00:1F90 0 0A 0 0 0 0 0 1"]
        {
            assert_eq!(parse(Protocol::Tcp, line), None, "{line:?}");
        }
    }

    #[test]
    fn an_own_socket_is_found_with_its_holder() {
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut held: Vec<HeldPort> = held_ports().unwrap().into_iter().filter(|held| held.port == port).collect();
        assert!(held.iter().any(|held| held.address == IpAddr::from(Ipv4Addr::LOCALHOST)), "{held:?}");
        name_holders(&mut held);
        assert_eq!(held[0].holder.as_ref().map(|holder| holder.pid), Some(std::process::id()));
    }
}
