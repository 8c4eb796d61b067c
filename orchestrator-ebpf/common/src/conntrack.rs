//! How long a flow is remembered. The programs and the sweeper ask the same function.

use crate::maps::TCP;

/// A SYN without ACK was seen in this direction.
pub const SYN: u8 = 1;
/// Any other segment, or any datagram, was seen.
pub const DATA: u8 = 2;
/// A FIN was seen.
pub const FIN: u8 = 4;
/// An RST was seen.
pub const RST: u8 = 8;

/// Above the kernel's first keepalive probe (7,200 s, tcp(7) `tcp_keepalive_time`): an idle connection with
/// keepalive is never forgotten.
pub const TCP_ESTABLISHED_SECONDS: u32 = 8000;
/// A handshake the client did not finish.
pub const TCP_HANDSHAKE_SECONDS: u32 = 60;
/// Both sides have closed, or one has reset: long enough for the last retransmissions.
pub const TCP_CLOSED_SECONDS: u32 = 10;
/// A datagram exchange with answers.
pub const UDP_ANSWERED_SECONDS: u32 = 60;
/// Datagrams nobody has answered.
pub const UDP_ONE_WAY_SECONDS: u32 = 30;

/// TCP header flag bits (RFC 9293 §3.1).
const TCP_FIN: u8 = 1;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;
const TCP_ACK: u8 = 16;

/// What a packet adds to the `seen` bits of its direction. `tcp_flags` is 0 for UDP.
#[inline(always)]
pub const fn seen(protocol: u8, tcp_flags: u8) -> u8 {
    if protocol != TCP {
        return DATA;
    }
    let opening = if is_opening(protocol, tcp_flags) { SYN } else { DATA };
    let fin = if tcp_flags & TCP_FIN != 0 { FIN } else { 0 };
    let rst = if tcp_flags & TCP_RST != 0 { RST } else { 0 };
    opening | fin | rst
}

/// Whether this is a client's first segment: SYN without ACK.
#[inline(always)]
pub const fn is_opening(protocol: u8, tcp_flags: u8) -> bool {
    protocol == TCP && tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether both sides are done with the connection, so that a new SYN is a new connection.
#[inline(always)]
pub const fn is_closed(protocol: u8, from_client: u8, from_backend: u8) -> bool {
    protocol == TCP && ((from_client | from_backend) & RST != 0 || from_client & from_backend & FIN != 0)
}

/// Seconds without a packet in either direction after which the flow is forgotten.
#[inline(always)]
pub const fn timeout(protocol: u8, from_client: u8, from_backend: u8) -> u32 {
    if protocol != TCP {
        return if from_backend != 0 { UDP_ANSWERED_SECONDS } else { UDP_ONE_WAY_SECONDS };
    }
    if is_closed(protocol, from_client, from_backend) {
        TCP_CLOSED_SECONDS
    } else if from_client & DATA == 0 {
        TCP_HANDSHAKE_SECONDS
    } else {
        TCP_ESTABLISHED_SECONDS
    }
}

/// Whether a flow last used at `last_seen` is forgotten at `now`; clocks that ran backwards forget nothing.
#[inline(always)]
pub const fn is_expired(now: u32, last_seen: u32, timeout: u32) -> bool {
    now.saturating_sub(last_seen) >= timeout
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::UDP;

    #[test]
    fn a_connection_lives_as_long_as_its_state_says() {
        assert_eq!(timeout(TCP, seen(TCP, TCP_SYN), 0), TCP_HANDSHAKE_SECONDS);
        assert_eq!(timeout(TCP, SYN, seen(TCP, TCP_SYN | TCP_ACK)), TCP_HANDSHAKE_SECONDS);
        assert_eq!(timeout(TCP, SYN | seen(TCP, TCP_ACK), DATA), TCP_ESTABLISHED_SECONDS);
        assert_eq!(timeout(TCP, SYN | DATA | FIN, DATA), TCP_ESTABLISHED_SECONDS, "half closed is open");
        assert_eq!(timeout(TCP, SYN | DATA | FIN, DATA | FIN), TCP_CLOSED_SECONDS);
        assert_eq!(timeout(TCP, SYN | DATA, DATA | RST), TCP_CLOSED_SECONDS);
    }

    #[test]
    fn datagrams_live_longer_when_answered() {
        assert_eq!(timeout(UDP, DATA, 0), UDP_ONE_WAY_SECONDS);
        assert_eq!(timeout(UDP, DATA, DATA), UDP_ANSWERED_SECONDS);
    }

    #[test]
    fn expiry_tolerates_a_clock_behind_the_entry() {
        assert!(!is_expired(5, 10, 1));
        assert!(!is_expired(69, 10, 60));
        assert!(is_expired(70, 10, 60));
    }
}
