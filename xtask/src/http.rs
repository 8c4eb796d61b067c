//! The few lines of HTTP that xtask speaks: one request per connection, over a unix or TCP socket.
//!
//! Comes in: a stream, method, path and body. Goes out: status and body. HTTP/1.0 (RFC 1945) is asked for, so that a
//! server neither keeps the connection nor chunks the body.

use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// A local daemon answers at once; a longer silence is an error worth showing.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status code, e.g. 200.
    pub(crate) status: u16,
    /// The body, as text.
    pub(crate) body: String,
}

/// `GET path` from the server that listens on a unix socket.
pub(crate) fn get(socket: &Path, path: &str) -> Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    ask(stream, path).with_context(|| format!("GET {path} from {}", socket.display()))
}

fn ask(mut stream: impl Read + Write, path: &str) -> Result<Answer> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parsed(&String::from_utf8_lossy(&answer))
}

fn parsed(answer: &str) -> Result<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of header")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status code")?;
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_read_from_an_answer() {
        let answer =
            parsed("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n{\"message\":\"no\"}").unwrap();
        assert_eq!(answer, Answer { status: 404, body: "{\"message\":\"no\"}".to_owned() });
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert_eq!(parsed("HTTP/1.1 200 OK\r\n").unwrap_err().to_string(), "the answer has no end of header");
    }
}
