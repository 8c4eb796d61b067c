//! A small encoder of nf_tables netlink messages and the socket they go over.
//!
//! In: tables, chains and rules as values. Out: one atomic transaction, or a dump. Called by `masquerade` and `doctor`.
//!
//! Sources: the kernel's include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h (numbers, attributes), netlink(7)
//! (framing). Numbers are in network byte order inside attributes and in host byte order in the netlink header.

use std::{io, time::Duration};

use rustix::{
    fd::OwnedFd,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt},
};

/// `NFPROTO_INET`: a table for both families.
pub(super) const FAMILY_INET: u8 = 1;
/// `NFPROTO_UNSPEC`: dumps of all families.
pub(super) const FAMILY_ANY: u8 = 0;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, as `meta nfproto` yields them.
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
/// `NF_INET_FORWARD` and `NF_INET_POST_ROUTING`.
pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_POSTROUTING: u32 = 4;
/// `NF_IP_PRI_NAT_SRC`.
pub(super) const PRIORITY_SRCNAT: u32 = 100;
/// `NF_DROP`, as a chain policy.
pub(super) const POLICY_DROP: u32 = 0;

/// Messages of the subsystem (`enum nf_tables_msg_types`).
pub(super) mod message {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const DEL_TABLE: u16 = 2;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const GET_RULE: u16 = 7;
}

/// Attributes of chains and rules (`enum nft_chain_attributes`, `nft_hook_attributes`, `nft_rule_attributes`).
pub(super) mod attribute {
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const RULE_USERDATA: u16 = 7;
}

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10; // NFNL_MSG_BATCH_BEGIN
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const NFGENMSG: usize = 4;
/// A netlink dump fills at most 32 KiB per datagram (the kernel's `netlink_dump`).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers at once; this only keeps a lost answer from hanging the caller.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Attributes under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// A number of 32 bits in network byte order.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its final NUL.
    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Expressions of rules, one function per kind, over register 1 (`NFT_REG_1`).
pub(super) mod expression {
    use super::Attributes;

    const REGISTER: u32 = 1;
    const META_OIFNAME: u32 = 7;
    const META_NFPROTO: u32 = 15;
    const NETWORK_HEADER: u32 = 1;
    /// `IFNAMSIZ`: names are compared whole, padded with zeros.
    const NAME_SIZE: usize = 16;

    /// How a register is compared (`enum nft_cmp_ops`).
    #[derive(Clone, Copy)]
    pub(in super::super) enum Compare {
        Equal = 0,
        Differs = 1,
    }

    /// The rule is for packets of one family.
    pub(in super::super) fn family_is(nfproto: u8) -> Vec<Attributes> {
        vec![meta(META_NFPROTO), compare(Compare::Equal, &[nfproto])]
    }

    /// The rule is for packets whose network header has `network` under `mask` at `offset`.
    pub(in super::super) fn header_matches(offset: u32, network: &[u8], mask: &[u8]) -> Vec<Attributes> {
        let length = network.len() as u32;
        let load =
            Attributes::default().number(1, REGISTER).number(2, NETWORK_HEADER).number(3, offset).number(4, length);
        let zero = vec![0; mask.len()];
        let bitwise = Attributes::default()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, length)
            .nested(4, value(mask))
            .nested(5, value(&zero));
        vec![named("payload", load), named("bitwise", bitwise), compare(Compare::Equal, network)]
    }

    /// The rule is for packets that do not leave by the interface.
    pub(in super::super) fn leaves_by_other_than(interface: &str) -> Vec<Attributes> {
        let mut name = interface.as_bytes().to_vec();
        name.resize(NAME_SIZE, 0);
        vec![meta(META_OIFNAME), compare(Compare::Differs, &name)]
    }

    /// Source NAT to the address of the interface the packet leaves by.
    pub(in super::super) fn masquerade() -> Attributes {
        named("masq", Attributes::default())
    }

    fn meta(key: u32) -> Attributes {
        named("meta", Attributes::default().number(1, REGISTER).number(2, key))
    }

    fn compare(how: Compare, with: &[u8]) -> Attributes {
        named("cmp", Attributes::default().number(1, REGISTER).number(2, how as u32).nested(3, value(with)))
    }

    fn value(bytes: &[u8]) -> Attributes {
        Attributes::default().bytes(1, bytes)
    }

    fn named(name: &str, data: Attributes) -> Attributes {
        Attributes::default().string(1, name).nested(2, data)
    }
}

/// Expressions as the list that a rule carries.
pub(super) fn expression_list(expressions: impl IntoIterator<Item = Attributes>) -> Attributes {
    const LIST_ELEMENT: u16 = 1; // NFTA_LIST_ELEM
    expressions.into_iter().fold(Attributes::default(), |list, one| list.nested(LIST_ELEMENT, one))
}

/// Messages that the kernel applies together or not at all.
#[derive(Default)]
pub(super) struct Transaction {
    requests: Vec<(u16, u16, u8, Attributes)>,
}

impl Transaction {
    /// Adds an object, appending it where order matters; for tables and chains, being there already is no error.
    pub(super) fn add(&mut self, message: u16, family: u8, attributes: Attributes) {
        self.requests.push((message, NLM_F_CREATE | NLM_F_APPEND, family, attributes));
    }

    /// Removes an object, which must exist.
    pub(super) fn remove(&mut self, message: u16, family: u8, attributes: Attributes) {
        self.requests.push((message, 0, family, attributes));
    }

    /// Applies the transaction in the calling thread's network namespace. Blocks, but not for long.
    ///
    /// # Errors
    /// The first error the kernel reports; nothing was changed then.
    pub(super) fn commit(self) -> io::Result<()> {
        let socket = open()?;
        let mut datagram = Vec::new();
        frame(&mut datagram, BATCH_BEGIN, NLM_F_REQUEST, 0, 0, SUBSYSTEM, &Attributes::default());
        let count = self.requests.len() as u32;
        for (sequence, (message, flags, family, attributes)) in (1..).zip(self.requests) {
            let kind = SUBSYSTEM << 8 | message;
            frame(&mut datagram, kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, family, 0, &attributes);
        }
        frame(&mut datagram, BATCH_END, NLM_F_REQUEST, count + 1, 0, SUBSYSTEM, &Attributes::default());
        send(&socket, &datagram, SendFlags::empty())?;

        let mut outstanding = count;
        while outstanding > 0 {
            for (kind, _, payload) in messages(&receive(&socket)?) {
                if kind == NLMSG_ERROR {
                    acknowledged(&payload)?;
                    outstanding = outstanding.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}

/// One object of a dump: its attributes, in the order the kernel sent them.
pub(super) struct Object {
    pub family: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Object {
    pub(super) fn bytes(&self, kind: u16) -> Option<&[u8]> {
        find(&self.attributes, kind)
    }

    pub(super) fn string(&self, kind: u16) -> Option<String> {
        let bytes = self.bytes(kind)?;
        let text = bytes.split(|&byte| byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A number inside a nested attribute.
    pub(super) fn nested_number(&self, outer: u16, inner: u16) -> Option<u32> {
        let attributes = parse_attributes(self.bytes(outer)?);
        find(&attributes, inner)?.try_into().ok().map(u32::from_be_bytes)
    }
}

/// Dumps objects in the calling thread's network namespace, those that `filter` names. Blocks, but not for long.
///
/// # Errors
/// What the kernel answers. A table that does not exist yields nothing.
pub(super) fn dump(message: u16, family: u8, filter: &Attributes) -> io::Result<Vec<Object>> {
    let socket = open()?;
    let mut datagram = Vec::new();
    frame(&mut datagram, SUBSYSTEM << 8 | message, NLM_F_REQUEST | NLM_F_DUMP, 1, family, 0, filter);
    send(&socket, &datagram, SendFlags::empty())?;
    let mut objects = Vec::new();
    loop {
        for (kind, _, payload) in messages(&receive(&socket)?) {
            match kind {
                NLMSG_DONE => return Ok(objects),
                NLMSG_ERROR => match acknowledged(&payload) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                    Ok(()) => return Ok(objects),
                },
                _ if payload.len() >= NFGENMSG => {
                    objects.push(Object { family: payload[0], attributes: parse_attributes(&payload[NFGENMSG..]) })
                }
                _ => {}
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let protocol = Some(netlink::NETFILTER);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_WITHIN))?;
    rustix::net::connect(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; RECEIVE_BUFFER];
    let (filled, length) = loop {
        match recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    debug_assert_eq!(filled, length, "RecvFlags::TRUNC is not set");
    buffer.truncate(length);
    Ok(buffer)
}

fn frame(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &Attributes) {
    let length = (HEADER + NFGENMSG + attributes.0.len()) as u32;
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes()); // port id: the kernel fills it in
    out.extend_from_slice(&[family, 0]); // nfgenmsg: family, version NFNETLINK_V0
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(&attributes.0);
}

/// Splits a datagram into (type, sequence, payload); what is damaged ends it.
fn messages(mut datagram: &[u8]) -> Vec<(u16, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(payload) = datagram.get(HEADER..length) else { break };
        found.push((kind, sequence, payload.to_vec()));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An error message begins with a negative errno, 0 being an acknowledgement.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn parse_attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(&[a, b, c, d]) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn find(attributes: &[(u16, Vec<u8>)], kind: u16) -> Option<&[u8]> {
    attributes.iter().find(|(found, _)| *found == kind).map(|(_, value)| value.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let attributes = Attributes::default()
            .string(1, "edged")
            .number(5, 0x0102_0304)
            .nested(4, Attributes::default().number(1, 7));
        assert_eq!(attributes.0.len() % 4, 0);
        let object = Object { family: FAMILY_INET, attributes: parse_attributes(&attributes.0) };
        assert_eq!(object.string(1).as_deref(), Some("edged"));
        assert_eq!(object.number(5), Some(0x0102_0304));
        assert_eq!(object.nested_number(4, 1), Some(7));
        assert_eq!(object.number(9), None);
    }

    #[test]
    fn damaged_datagrams_end_the_reading() {
        let mut datagram = Vec::new();
        frame(&mut datagram, NLMSG_DONE, 0, 3, 0, 0, &Attributes::default());
        let whole = datagram.len();
        datagram.extend_from_slice(&[255; 9]);
        assert_eq!(messages(&datagram).len(), 1);
        assert_eq!(messages(&datagram[..whole - 1]), []);
        assert_eq!(messages(&[0; HEADER]), [], "a length below the header's ends the reading");
        assert_eq!(parse_attributes(&[0, 0, 1, 0, 9, 9]), []);
    }
}
