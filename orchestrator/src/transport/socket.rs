//! The UDP socket of the endpoint, and what of it outlives a restart.

use super::limits::SOCKET_BUFFER;
use quinn::{
    EndpointConfig,
    crypto::{CryptoError, HmacKey},
};
use quinn_proto::HashedConnectionIdGenerator;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use sha2::{Digest, Sha256};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, PoisonError, RwLock},
};
use subtle::ConstantTimeEq;

/// A socket at `addr`. `[::]` means IPv4 as well, and IPv4 only where there is no IPv6.
pub(super) fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    match try_open(addr) {
        Err(error) if addr.is_ipv6() && addr.ip().is_unspecified() && no_ipv6(&error) => {
            tracing::debug!(%error, "no IPv6 here, listening on IPv4 only");
            try_open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port())))
        }
        other => other,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(code, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

fn try_open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if addr.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
    bind(&socket, &addr)?;
    Ok(socket.into())
}

/// Tells connection ids of ours from noise, so that noise gets no answer. Not a secret; the same for all nodes and all
/// starts, so that a restarted node knows the connections that it has lost.
const CONNECTION_ID_KEY: u64 = 0x6564_6765_642f_3031;

pub(super) fn config(reset: Arc<ResetKey>) -> EndpointConfig {
    let mut config = EndpointConfig::new(reset);
    config.cid_generator(|| Box::new(HashedConnectionIdGenerator::from_key(CONNECTION_ID_KEY)));
    config
}

/// Makes the tokens of stateless resets (RFC 9000 section 10.3), with which a node that has restarted tells its peers
/// that their connections are gone; without them they would notice by silence only. The key follows from the node's
/// private key, so it is the same after a restart, and only the node knows it. HMAC-SHA-256 (RFC 2104).
pub(super) struct ResetKey(RwLock<[u8; 32]>);

/// Block of SHA-256 in bytes.
const BLOCK: usize = 64;

impl ResetKey {
    pub(super) fn new(key: [u8; 32]) -> Arc<Self> {
        Arc::new(Self(RwLock::new(key)))
    }

    pub(super) fn set(&self, key: [u8; 32]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    fn mac(&self, data: &[u8]) -> [u8; 32] {
        let key = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        let pad = |with: u8| {
            let mut block = [with; BLOCK];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(data).finalize();
        Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(&self.mac(data));
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if bool::from(self.mac(data).as_slice().ct_eq(signature)) { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_those_of_the_standard() {
        // RFC 4231 section 4.3, test case 2.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let key = ResetKey::new(key);
        assert_eq!(hex::encode(key.mac(b"what do ya want for nothing?")), expected);
        let mut out = [0; 32];
        key.sign(b"x", &mut out);
        assert!(key.verify(b"x", &out).is_ok() && key.verify(b"y", &out).is_err());
    }

    #[test]
    fn the_wildcard_socket_takes_both_families() {
        let socket = open("[::]:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        socket.set_nonblocking(false).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let mut buffer = [0; 8];
        let (size, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((size, super::super::book::canonical(from)), (5, sender.local_addr().unwrap()));
    }
}
