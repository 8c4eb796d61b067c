//! Asking the host's servers. In: a query as the client sent it. Out: an answer as a server sent it, under the client's
//! id. Everything between header and id stays untouched, so that record types and options we do not know pass.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    names::{HEADER, Transport},
    resolv_conf::ResolvConf,
};

/// A client waits 5 s (`RES_TIMEOUT`) before it asks again; three attempts fit into that.
const ATTEMPT: Duration = Duration::from_millis(1500);
const MAX_ATTEMPTS: usize = 3;
/// How old the knowledge of `resolv.conf` may be.
const REREAD_AFTER: Duration = Duration::from_secs(1);

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const TRUNCATED: u8 = 0x02;
const RESPONSE: u8 = 0x80;

/// The host's servers.
pub(super) struct Upstream {
    resolv_conf: PathBuf,
    /// Our own addresses: a host that asks us must not be asked by us.
    own: Vec<SocketAddr>,
    known: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Upstream {
    pub(super) fn new(resolv_conf: PathBuf, listen: Vec<IpAddr>, port: u16) -> Self {
        let own = listen.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        Upstream { resolv_conf, own, known: Mutex::new(None) }
    }

    /// Asks one server after the other; `None` when none of them answers. An answer that only says that the server is
    /// in trouble is given when no other server knows better.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport, limit: usize) -> Option<Vec<u8>> {
        let question = question_length(query)?;
        let servers = self.servers().await;
        let mut troubled = None;
        for server in servers.iter().cycle().take(MAX_ATTEMPTS.min(servers.len() * 2)) {
            let attempt = async {
                match transport {
                    Transport::Udp => ask_udp(*server, query, question, limit).await,
                    Transport::Tcp => ask_tcp(*server, query, question).await,
                }
            };
            let Ok(Ok(mut answer)) = timeout(ATTEMPT, attempt).await else { continue };
            answer[..2].copy_from_slice(&query[..2]);
            let answer = fit(answer, HEADER + question, limit);
            match answer[3] & 0x0f {
                NO_ERROR | NO_SUCH_NAME => return Some(answer),
                _ => troubled = Some(answer),
            }
        }
        troubled
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock().await;
        if let Some((read_at, servers)) = known.as_ref()
            && read_at.elapsed() < REREAD_AFTER
        {
            return servers.clone();
        }
        let mut servers = ResolvConf::read(&self.resolv_conf).await.servers;
        servers.retain(|server| !self.own.contains(server));
        *known = Some((Instant::now(), servers.clone()));
        servers
    }
}

/// From a socket and under an id of its own each time, so that an answer can hardly be forged (RFC 5452).
///
/// One byte beyond the limit is enough to see that an answer must be cut.
async fn ask_udp(server: SocketAddr, query: &[u8], question: usize, limit: usize) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let query = with_fresh_id(query);
    socket.send(&query).await?;
    let mut buffer = vec![0; limit + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&query, question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8], question: usize) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let query = with_fresh_id(query);
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query.as_slice()].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answers(&query, question, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn with_fresh_id(query: &[u8]) -> Vec<u8> {
    let mut query = query.to_vec();
    query[..2].copy_from_slice(&Message::query().metadata.id.to_be_bytes());
    query
}

/// Whether a packet is the answer to the query: same id, same question. Servers may change the case of a name.
fn answers(query: &[u8], question: usize, packet: &[u8]) -> bool {
    let end = HEADER + question;
    packet.len() >= end
        && packet[..2] == query[..2]
        && packet[2] & RESPONSE != 0
        && packet[HEADER..end].eq_ignore_ascii_case(&query[HEADER..end])
}

/// Cuts an answer behind its question when it is longer than the client can take.
fn fit(mut answer: Vec<u8>, question_end: usize, limit: usize) -> Vec<u8> {
    if answer.len() > limit {
        answer.truncate(question_end);
        answer[2] |= TRUNCATED;
        answer[6..HEADER].fill(0); // counts of answers, authorities and additionals
    }
    answer
}

/// The length of the one question: labels up to the root's, type and class (RFC 1035 §4.1.2).
fn question_length(query: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let label = usize::from(*query.get(at)?);
        at += 1 + label;
        match label {
            0 => break,
            1..=63 => {}
            _ => return None, // a pointer, which the only name of a query cannot be
        }
    }
    let end = at + 4;
    (end <= query.len()).then_some(end - HEADER)
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn only_the_answer_to_the_query_is_taken() {
        let query = query("example.org.");
        let question = question_length(&query).unwrap();
        assert_eq!(HEADER + question, query.len());
        let mut answer = query.clone();
        answer[2] |= RESPONSE;
        assert!(answers(&query, question, &answer));
        assert!(
            answers(&query, question, &answer.to_ascii_uppercase()) || answer[..2] != answer[..2].to_ascii_uppercase()
        );
        assert!(!answers(&query, question, &query), "a query is no answer");
        for at in [0, 1, HEADER + 2, answer.len() - 1] {
            let mut other = answer.clone();
            other[at] ^= 0x01;
            assert!(!answers(&query, question, &other), "byte {at}");
        }
        assert!(!answers(&query, question, &answer[..answer.len() - 1]));
    }

    #[test]
    fn an_answer_that_is_too_long_is_cut_behind_its_question() {
        let query = query("example.org.");
        let mut answer = query.clone();
        answer[7] = 40;
        answer.resize(700, 7);
        let cut = fit(answer.clone(), query.len(), 512);
        assert_eq!((cut.len(), cut[2] & TRUNCATED, cut[7]), (query.len(), TRUNCATED, 0));
        assert_eq!(fit(answer.clone(), query.len(), 700), answer);
    }

    #[test]
    fn questions_without_an_end_have_no_length() {
        let whole = query("a.example.");
        for cut in HEADER..whole.len() {
            assert_eq!(question_length(&whole[..cut]), None);
        }
        let mut pointer = whole;
        pointer[HEADER] = 0xc0;
        assert_eq!(question_length(&pointer), None);
    }
}
