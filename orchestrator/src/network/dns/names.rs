//! The names of the cluster and what is answered for them. Pure: a query and a size in, a verdict out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};

use crate::network::{Subnet4, Subnet6};

/// Names and their addresses. Case does not matter; a final dot neither.
pub type Names = BTreeMap<String, Entry>;

/// The addresses of a name. A name without any exists, but has no address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Answers to A.
    pub v4s: Vec<Ipv4Addr>,
    /// Answers to AAAA.
    pub v6s: Vec<Ipv6Addr>,
}

/// Seconds an answer may be kept: addresses change with every task.
const TTL: u32 = 1;
/// Header (RFC 1035 §4.1.1).
pub(super) const HEADER: usize = 12;
/// What fits a datagram without EDNS (RFC 1035 §4.2.1).
pub(super) const PLAIN_UDP: usize = 512;
/// What we send and accept by UDP with EDNS: no fragments on any link (DNS flag day 2020).
const EDNS_UDP: u16 = 1232;
/// The size of an OPT record without options (RFC 6891 §6.1.2).
const OPT_SIZE: usize = 11;
/// The size of a record whose name is a pointer, without its data (RFC 1035 §4.1.3, §4.1.4).
const RECORD_SIZE: usize = 12;

/// How a query arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a packet.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Send this; the name is the cluster's.
    Answer(Vec<u8>),
    /// Ask the host's servers. The answer may have so many bytes.
    Forward { limit: usize },
    /// Send this; the packet is no query we serve.
    Malformed(Vec<u8>),
    /// Not even an error can be sent.
    Drop,
}

/// The names that are answered on this node.
#[derive(Debug)]
pub(super) struct Zone {
    subnet4: Subnet4,
    subnet6: Subnet6,
    names: Names,
    reverse: BTreeMap<IpAddr, Name>,
}

impl Zone {
    pub(super) fn new(subnet4: Subnet4, subnet6: Subnet6) -> Self {
        Zone { subnet4, subnet6, names: Names::new(), reverse: BTreeMap::new() }
    }

    /// The same zone with other names.
    pub(super) fn with_names(&self, names: Names) -> Self {
        let names: Names =
            names.into_iter().map(|(name, entry)| (name.trim_end_matches('.').to_lowercase(), entry)).collect();
        let mut reverse: BTreeMap<IpAddr, (usize, Name)> = BTreeMap::new();
        for (text, entry) in &names {
            let Ok(name) = Name::from_ascii(format!("{text}.")) else { continue };
            let sharers = entry.v4s.len().max(entry.v6s.len());
            let addresses = entry.v4s.iter().map(|v4| IpAddr::from(*v4)).chain(entry.v6s.iter().map(|v6| (*v6).into()));
            for address in addresses {
                // The most specific name wins: a container's own before its service's.
                let better = reverse.get(&address).is_none_or(|(fewest, _)| sharers < *fewest);
                if better {
                    reverse.insert(address, (sharers, name.clone()));
                }
            }
        }
        let reverse = reverse.into_iter().map(|(address, (_, name))| (address, name)).collect();
        Zone { names, reverse, ..*self }
    }

    /// Whether somebody with that address may ask.
    pub(super) fn serves(&self, client: IpAddr) -> bool {
        self.is_ours(client.to_canonical())
    }

    /// Decides on a packet. `turn` rises with every query, so that addresses take turns in being first.
    pub(super) fn decide(&self, packet: &[u8], transport: Transport, turn: usize) -> Verdict {
        // Answering an answer could go on for ever.
        if packet.len() < HEADER || packet[2] & 0x80 != 0 {
            return Verdict::Drop;
        }
        let Ok(query) = Message::from_vec(packet) else {
            let id = u16::from_be_bytes([packet[0], packet[1]]);
            let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            return error.to_vec().map_or(Verdict::Drop, Verdict::Malformed);
        };
        let refuse = |code| encode(reply(&query, code)).map_or(Verdict::Drop, Verdict::Malformed);
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = &query.queries[..] else { return refuse(ResponseCode::FormErr) };
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if question.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let limit = match (transport, &query.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().min(EDNS_UDP)).max(PLAIN_UDP),
        };
        match self.look_up(question, turn) {
            Found::Records(data) => encode(fill(&query, question, data, limit)).map_or(Verdict::Drop, Verdict::Answer),
            Found::NoSuchName => encode(reply(&query, ResponseCode::NXDomain)).map_or(Verdict::Drop, Verdict::Answer),
            Found::Foreign => Verdict::Forward { limit },
        }
    }

    fn look_up(&self, question: &Query, turn: usize) -> Found {
        let kind = question.query_type();
        let name = question.name().to_lowercase().to_ascii();
        if let Some(entry) = self.names.get(name.trim_end_matches('.')) {
            let mut data = Vec::new();
            if matches!(kind, RecordType::A | RecordType::ANY) {
                data.extend(rotated(&entry.v4s, turn).map(|v4| RData::A(A(v4))));
            }
            if matches!(kind, RecordType::AAAA | RecordType::ANY) {
                data.extend(rotated(&entry.v6s, turn).map(|v6| RData::AAAA(AAAA(v6))));
            }
            return Found::Records(data);
        }
        if let Some(address) = reverse_address(question.name()).filter(|address| self.is_ours(*address)) {
            let known = self.reverse.get(&address);
            return match known {
                Some(name) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                    Found::Records(vec![RData::PTR(PTR(name.clone()))])
                }
                Some(_) => Found::Records(Vec::new()),
                None => Found::NoSuchName,
            };
        }
        // A name without a dot is a service's or nobody's and stays on the node. Top-level domains are asked for with
        // these types by those who check signatures or walk down from the root.
        let infrastructure = matches!(kind, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY);
        if question.name().num_labels() == 1 && !infrastructure {
            return Found::NoSuchName;
        }
        Found::Foreign
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.subnet4.contains(v4),
            IpAddr::V6(v6) => self.subnet6.contains(v6),
        }
    }
}

enum Found {
    /// The name exists; it may have no record of the type.
    Records(Vec<RData>),
    NoSuchName,
    /// Others know.
    Foreign,
}

/// An answer without records, also for queries that nobody answers.
pub(super) fn failure(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).ok()?;
    let mut reply = reply(&query, code);
    reply.metadata.authoritative = false;
    encode(reply)
}

fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.metadata.response_code = code;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_UDP);
        reply.set_edns(edns);
    }
    reply
}

/// An answer with as many records as fit. When some do not, it says so (RFC 2181 §9) and the client asks again by TCP.
fn fill(query: &Message, question: &Query, data: Vec<RData>, limit: usize) -> Message {
    let mut message = reply(query, ResponseCode::NoError);
    let mut room = limit.saturating_sub(HEADER + question.name().len() + 4 + OPT_SIZE);
    for data in data {
        let size = RECORD_SIZE
            + match &data {
                RData::A(_) => 4,
                RData::AAAA(_) => 16,
                // Names are at most this long (RFC 1035 §2.3.4).
                _ => 255,
            };
        if size > room {
            message.metadata.truncation = true;
            break;
        }
        room -= size;
        message.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
    }
    message
}

fn encode(message: Message) -> Option<Vec<u8>> {
    message.to_vec().ok()
}

fn rotated<T: Copy>(all: &[T], turn: usize) -> impl Iterator<Item = T> {
    all.iter().copied().cycle().skip(turn % all.len().max(1)).take(all.len())
}

/// The address whose reverse name this is, when the name is a whole one.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    let whole = if net.addr().is_ipv4() { 32 } else { 128 };
    (net.prefix_len() == whole).then(|| net.addr())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        let entry = |v4s: &[u8], v6s: &[u16]| Entry {
            v4s: v4s.iter().map(|last| Ipv4Addr::new(10, 231, 0, *last)).collect(),
            v6s: v6s.iter().map(|last| Subnet6::DEFAULT.at(*last)).collect(),
        };
        let names = [
            ("Web", entry(&[2, 3, 4], &[2, 3])),
            ("tasks.web", entry(&[2, 3, 4], &[])),
            ("web-1.", entry(&[2], &[2])),
            ("idle", Entry::default()),
        ];
        Zone::new(Subnet4::DEFAULT, Subnet6::DEFAULT)
            .with_names(names.into_iter().map(|(name, entry)| (name.to_owned(), entry)).collect())
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(zone: &Zone, message: &Message, turn: usize) -> Message {
        match zone.decide(&message.to_vec().unwrap(), Transport::Udp, turn) {
            Verdict::Answer(bytes) | Verdict::Malformed(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn data(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn names_are_answered_in_any_case_and_in_turns() {
        let zone = zone();
        let first = ask(&zone, &query("WEB.", RecordType::A), 0);
        assert_eq!(data(&first), ["10.231.0.2", "10.231.0.3", "10.231.0.4"]);
        assert_eq!(data(&ask(&zone, &query("web.", RecordType::A), 4)), ["10.231.0.3", "10.231.0.4", "10.231.0.2"]);
        assert_eq!(data(&ask(&zone, &query("tasks.web.", RecordType::A), 3)).len(), 3);
        assert_eq!(data(&ask(&zone, &query("web.", RecordType::AAAA), 0)).len(), 2);
        assert!(first.answers.iter().all(|record| record.ttl <= 1 && record.name.to_ascii() == "WEB."));
        assert!(first.metadata.recursion_available && first.metadata.authoritative);
    }

    #[test]
    fn a_known_name_without_the_type_is_not_an_unknown_name() {
        let zone = zone();
        for (name, kind) in [("tasks.web.", RecordType::AAAA), ("web.", RecordType::MX), ("idle.", RecordType::A)] {
            let answer = ask(&zone, &query(name, kind), 0);
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0), "{name}");
        }
    }

    #[test]
    fn single_labels_stay_on_the_node_and_the_rest_is_forwarded() {
        let zone = zone();
        let answer = ask(&zone, &query("nobody.", RecordType::A), 0);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        for (name, kind) in [("example.org.", RecordType::A), ("org.", RecordType::DS), (".", RecordType::NS)] {
            let verdict = zone.decide(&query(name, kind).to_vec().unwrap(), Transport::Udp, 0);
            assert!(matches!(verdict, Verdict::Forward { limit: 512 }), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn addresses_have_the_most_specific_name() {
        let zone = zone();
        assert_eq!(data(&ask(&zone, &query("2.0.231.10.in-addr.arpa.", RecordType::PTR), 0)), ["web-1."]);
        assert_eq!(data(&ask(&zone, &query("4.0.231.10.in-addr.arpa.", RecordType::PTR), 0)), ["tasks.web."]);
        let unknown = ask(&zone, &query("99.0.231.10.in-addr.arpa.", RecordType::PTR), 0);
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        let foreign = query("1.2.0.192.in-addr.arpa.", RecordType::PTR).to_vec().unwrap();
        assert!(matches!(zone.decide(&foreign, Transport::Udp, 0), Verdict::Forward { .. }));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        let v4s = (0..200).map(|last| Ipv4Addr::new(10, 231, 1, last)).collect();
        let names = Names::from([("big".to_owned(), Entry { v4s, v6s: Vec::new() })]);
        let zone = zone().with_names(names);
        let plain = query("big.", RecordType::A);
        let mut edns = query("big.", RecordType::A);
        edns.set_edns({
            let mut edns = Edns::new();
            edns.set_max_payload(4096);
            edns
        });
        for (message, limit) in [(plain, 512), (edns, 1232)] {
            let packet = message.to_vec().unwrap();
            let Verdict::Answer(udp) = zone.decide(&packet, Transport::Udp, 7) else { panic!() };
            assert!(udp.len() <= limit && udp.len() > limit - 40, "{} of {limit}", udp.len());
            let answer = Message::from_vec(&udp).unwrap();
            assert!(answer.metadata.truncation);
            assert_eq!(answer.edns.is_some(), message.edns.is_some());
            let Verdict::Answer(tcp) = zone.decide(&packet, Transport::Tcp, 7) else { panic!() };
            let answer = Message::from_vec(&tcp).unwrap();
            assert_eq!((answer.answers.len(), answer.metadata.truncation), (200, false));
        }
    }

    #[test]
    fn what_we_do_not_serve_is_refused() {
        let zone = zone();
        let mut update = query("web.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        let mut two = query("web.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::NS));
        let mut chaos = Message::query();
        let mut question = Query::query(Name::from_ascii("version.bind.").unwrap(), RecordType::TXT);
        question.set_query_class(DNSClass::CH);
        chaos.add_query(question);
        let mut newer = query("web.", RecordType::A);
        newer.set_edns({
            let mut edns = Edns::new();
            edns.set_version(1);
            edns
        });
        let codes =
            [update, two, chaos, newer].map(|message| u16::from(ask(&zone, &message, 0).metadata.response_code));
        let expected =
            [ResponseCode::NotImp, ResponseCode::FormErr, ResponseCode::Refused, ResponseCode::BADVERS].map(u16::from);
        assert_eq!(codes, expected);
    }

    #[test]
    fn answers_are_never_answered() {
        let mut answer = query("web.", RecordType::A).to_vec().unwrap();
        answer[2] |= 0x80;
        assert!(matches!(zone().decide(&answer, Transport::Udp, 0), Verdict::Drop));
    }

    proptest! {
        #[test]
        fn any_packet_has_a_verdict(packet in proptest::collection::vec(any::<u8>(), 0..600), turn: usize) {
            zone().decide(&packet, Transport::Udp, turn);
            failure(&packet, ResponseCode::ServFail);
        }

        #[test]
        fn damaged_queries_have_a_verdict(at in 0_usize..40, value: u8, cut in 0_usize..40) {
            let mut packet = query("tasks.web.", RecordType::A).to_vec().unwrap();
            let length = packet.len();
            packet[at % length] = value;
            packet.truncate(length - cut % length);
            zone().decide(&packet, Transport::Tcp, 1);
        }
    }
}
