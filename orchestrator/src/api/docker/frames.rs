//! Docker's stream formats: multiplexed frames of 8-byte header and payload (API reference, "Attach to a container", stream
//! format), JSON lines, and bodies that end when the server stops.

use crate::api::{
    App,
    error::chain,
    node::{BoxStream, Failure, Stdio},
};
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use std::io;
use tokio::sync::mpsc;

/// Content type of frames.
pub(super) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// Content type of a terminal's bytes.
pub(super) const RAW: &str = "application/vnd.docker.raw-stream";
/// The stream number with which the server tells that it failed (moby `pkg/stdcopy`, Systemerr).
pub(crate) const SERVER_ERROR: u8 = 3;
/// Longest payload that is read: lines of logs are cut at 16 KiB, reads of an exec at 64 KiB.
const PAYLOAD_MAX: usize = 1 << 20;

/// One frame.
pub(super) fn frame(stream: Stdio, payload: &[u8]) -> Bytes {
    numbered(
        match stream {
            Stdio::Out => 1,
            Stdio::Err => 2,
        },
        payload,
    )
}

/// The frame that makes the client fail with this text.
pub(super) fn error_frame(failure: &Failure) -> Bytes {
    numbered(SERVER_ERROR, chain(failure).as_bytes())
}

fn numbered(stream: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + payload.len());
    out.put_u8(stream);
    out.put_slice(&[0, 0, 0]);
    out.put_u32(u32::try_from(payload.len()).expect("log lines and reads are far below 4 GiB"));
    out.put_slice(payload);
    out.freeze()
}

/// Takes one whole frame off the front: the number of its stream, and its payload. `None` while it is not whole.
///
/// # Errors
/// A frame longer than any that is written: the stream is something else.
pub(crate) fn take(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, String> {
    let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
    let number = header[0];
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if length > PAYLOAD_MAX {
        return Err(format!("a frame of {length} bytes, more than {PAYLOAD_MAX}: this is no log"));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    Ok(Some((number, buffer.split_to(length).freeze())))
}

/// What the number of a stream means.
pub(super) fn stdio(number: u8) -> Option<Stdio> {
    match number {
        1 => Some(Stdio::Out),
        2 => Some(Stdio::Err),
        _ => None,
    }
}

/// A body of bytes as they come, which ends when the server stops.
pub(super) fn body(
    app: &App,
    content_type: &'static str,
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response {
    let stop = app.shutdown.clone().cancelled_owned();
    let mut response = Body::from_stream(stream.take_until(Box::pin(stop))).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// One JSON value per line.
pub(super) fn json_lines(app: &App, values: impl Stream<Item = Value> + Send + 'static) -> Response {
    body(app, "application/json", values.map(|value| Ok(Bytes::from(format!("{value}\r\n")))))
}

/// The receiving end of a channel as a stream.
pub(super) fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<T> {
    Box::pin(futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_stream_and_length() {
        assert_eq!(&frame(Stdio::Err, b"hi\n")[..], b"\x02\0\0\0\0\0\0\x03hi\n");
    }
}
