//! `whoami`: a tiny HTTP server that says who answers and which client it saw.
//!
//! Comes in: HTTP/1 requests on a port (first argument, default 80), any method and path, and datagrams on the same UDP
//! port. Goes out: four lines of text.
//! What it knows of its task and node comes from the environment, `EDGE_TASK` and `EDGE_NODE`. Started as the first
//! process of a container by the demo, by tests and by whoever wants to see a cluster answer.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::Duration,
};

/// A client that is silent for longer is not coming back.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request that is read; longer ones are cut off.
const MAX_HEAD: u64 = 64 * 1024;

fn main() -> ExitCode {
    end_when_told();
    let port = match env::args().nth(1).map(|port| port.parse::<u16>()).transpose() {
        Ok(port) => port.unwrap_or(80),
        Err(error) => {
            eprintln!("whoami: the port: {error}");
            return ExitCode::from(2);
        }
    };
    // The unspecified IPv6 address takes IPv4 as well (ipv6(7), IPV6_V6ONLY off), if there is IPv6 at all.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("whoami: listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)));
    match socket {
        Ok(socket) => drop(thread::spawn(move || answer_datagrams(&socket))),
        Err(error) => {
            eprintln!("whoami: listen on UDP port {port}: {error}");
            return ExitCode::FAILURE;
        }
    }
    println!("whoami: listening on port {port}");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                thread::spawn(move || {
                    // A client that goes away in the middle is its own affair.
                    let _ = answer(stream);
                });
            }
            Err(error) => eprintln!("whoami: accept: {error}"),
        }
    }
    ExitCode::SUCCESS
}

/// The first process of a container gets no default action for signals: without this it would not end on SIGTERM.
fn end_when_told() {
    extern "C" fn end(_signal: libc::c_int) {
        // SAFETY: _exit(2) is async-signal-safe and takes any number.
        unsafe { libc::_exit(0) }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler has the type that signal(2) asks for and calls only an async-signal-safe function.
        unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
    }
}

/// Answers each datagram with one.
fn answer_datagrams(socket: &UdpSocket) {
    let mut question = [0; 2048];
    loop {
        match socket.recv_from(&mut question) {
            Ok((_, client)) => {
                if let Err(error) = socket.send_to(body(client.ip(), client.port()).as_bytes(), client) {
                    eprintln!("whoami: answer {client}: {error}");
                }
            }
            // The kernel tells of an earlier answer that found nobody (udp(7)).
            Err(error) => eprintln!("whoami: receive: {error}"),
        }
    }
}

/// Answers requests on one connection until the client closes it or asks for that.
fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        let body = body(client.ip(), client.port());
        let close = closes(&head);
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        writer.write_all(answer.as_bytes())?;
        println!("{} {}", client.ip().to_canonical(), head.lines().next().unwrap_or_default());
        if close {
            break;
        }
    }
    Ok(())
}

/// Reads to the empty line that ends a request's head; none when the client has closed the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    let mut limited = reader.take(MAX_HEAD);
    loop {
        let before = head.len();
        if limited.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim_end().is_empty() {
            return Ok(Some(head));
        }
    }
}

/// Whether the connection ends with this answer: HTTP/1.0 does unless asked otherwise, and a body is not read here.
fn closes(head: &str) -> bool {
    let head = head.to_ascii_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let old = head.lines().next().is_some_and(|line| line.ends_with("http/1.0"));
    let has_body =
        header("content-length:").is_some_and(|length| length != "0") || header("transfer-encoding:").is_some();
    has_body || header("connection:").map_or(old, |value| value == "close")
}

fn body(client: IpAddr, port: u16) -> String {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let variable = |name| env::var(name).unwrap_or_else(|_| "-".to_owned());
    format!(
        "hostname: {}\ntask: {}\nnode: {}\nclient: {} port {port}\n",
        hostname.trim(),
        variable("EDGE_TASK"),
        variable("EDGE_NODE"),
        client.to_canonical(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_and_the_next_one_stays() {
        let mut input = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\n".as_bytes();
        assert_eq!(read_head(&mut input).unwrap().unwrap(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(read_head(&mut input).unwrap().unwrap(), "GET /b HTTP/1.1\r\n\r\n");
        assert_eq!(read_head(&mut input).unwrap(), None);
    }

    #[test]
    fn a_connection_is_kept_only_where_both_sides_know_where_a_request_ends() {
        assert!(!closes("GET / HTTP/1.1\r\n\r\n"));
        assert!(closes("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"));
        assert!(closes("GET / HTTP/1.0\r\n\r\n"));
        assert!(closes("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"));
    }

    #[test]
    fn the_client_is_shown_by_its_own_family() {
        let mapped: IpAddr = "::ffff:10.99.0.254".parse().unwrap();
        assert!(body(mapped, 7).contains("client: 10.99.0.254 port 7\n"));
    }
}
