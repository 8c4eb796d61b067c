//! How much of a node's memory and time its peers, and those who are not, can take. A manager with 1 GiB of memory serves
//! a hundred nodes; what is sized here is what they may take at most, not what they do.

use std::time::Duration;

/// Connections to this node, all protocols together: a manager of 250 nodes has three with each.
pub const CONNECTIONS: usize = 1_024;

/// Of these, those of nodes without a certificate. Joining takes a second, so a rack of nodes that join at once waits little.
pub const JOINING: usize = 64;

/// Of these, those from one address, so that one machine cannot keep all others out.
pub const JOINING_PER_ADDRESS: usize = 4;

/// Of these, those of one node: four protocols, and what a node that restarts over and over leaves behind until it is found
/// dead.
pub const CONNECTIONS_PER_NODE: usize = 32;

/// Handshakes in progress. Each holds some 30 KiB, which is 8 MiB.
pub const HANDSHAKES: usize = 256;

/// Handshakes in progress above which a peer must prove its address first (a Retry packet, RFC 9000 section 8.1.2), so that forged
/// addresses cost this node no memory.
pub const UNVALIDATED_HANDSHAKES: usize = 32;

/// Handshakes in progress from one proven address. A node has one for each of its protocols.
pub const HANDSHAKES_PER_ADDRESS: usize = 32;

/// Time for a handshake, which takes two round trips and three signatures: 50 ms on the slowest board.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Streams that a peer may have in use per connection.
pub const STREAMS: u32 = 64;

/// Of these, how many this node uses of its own connections. quinn tells a peer of freed streams only when more than an eighth
/// of all are free again, so that the last eighth may look used for ever when the others are.
pub const USED_STREAMS: u32 = STREAMS - STREAMS / 8;

/// Time to wait for a stream where all are in use.
pub const FREE_STREAM_TIME: Duration = Duration::from_secs(10);

/// Streams in use of a connection without a certificate: one request, and one more after a mistake.
pub const JOINING_STREAMS: u32 = 2;

/// Time that a connection without a certificate may last.
pub const JOINING_TIME: Duration = Duration::from_secs(60);

/// Streams that are served at once, all peers together; more wait in their connections.
pub const SERVED_STREAMS: usize = 4_096;

/// Time in which a peer that has opened a stream must say something on it.
pub const FIRST_BYTE_TIME: Duration = Duration::from_secs(10);

/// Time in which a frame that has begun must be complete: a snapshot of 5 MB over a wireless link of 2 Mbit/s.
pub const FRAME_TIME: Duration = Duration::from_secs(30);

/// Time for a call from the first packet to the last.
pub const CALL_TIME: Duration = Duration::from_secs(60);

/// Bytes that a peer may send on a stream before they are read: 50 MB/s at the 20 ms of a bad wireless link.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// The same for all streams of a connection.
pub const WINDOW: u32 = 4 << 20;

/// The same before a peer has been admitted, and for those without a certificate: one request to join.
pub const STRANGER_WINDOW: u32 = 64 << 10;

/// Bytes that wait for a peer's acknowledgement, per connection.
pub const SEND_WINDOW: u64 = 1 << 20;

/// Connection attempts that wait for the accepting task, which only ever hands them on, and the bytes they may bring along.
pub const INCOMING: usize = 64;
/// See [`INCOMING`]: 0-RTT data, which nobody here sends.
pub const INCOMING_BYTES: u64 = 16 << 10;

/// Kernel buffer for datagrams that wait for this process; rides out 50 ms without the processor under 10,000 datagrams a
/// second. The kernel gives no more than its `rmem_max`.
pub const SOCKET_BUFFER: usize = 1 << 20;

/// Time for one address of a node to answer.
pub const ATTEMPT_TIME: Duration = Duration::from_secs(3);

/// Time after which the next address of a node is tried as well (the Connection Attempt Delay of RFC 8305 section 5).
pub const NEXT_ATTEMPT: Duration = Duration::from_millis(250);

/// Shortest and longest time between failed dials.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(8));

/// A connection that ended sooner than this counts as a failed dial.
pub const STABLE: Duration = Duration::from_secs(1);

/// A connection for calls that nobody used for this long is closed.
pub const UNUSED: Duration = Duration::from_secs(60);

/// Addresses kept per node.
pub const ADDRESSES: usize = 8;

/// Of these, those that were only announced by multicast.
pub const FOUND_ADDRESSES: usize = 4;

/// Nodes that are only known by multicast announcements.
pub const FOUND_NODES: usize = 256;

/// Time for connections to say goodbye when the endpoint closes.
pub const CLOSE_TIME: Duration = Duration::from_secs(1);
