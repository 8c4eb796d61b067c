//! The API's client: HTTP/1.1 over the daemon's unix socket, one connection per request.

use super::{Error, Result};
use crate::api::request::strip_nulls;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Either, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::{io::AsyncReadExt, net::UnixStream};

/// Bytes read at a time from a file or pipe that is sent.
const UPLOAD_CHUNK: usize = 64 << 10;

/// Where the daemon is.
pub(super) struct Client {
    socket: PathBuf,
}

type Body = Either<Full<Bytes>, BoxBody<Bytes, io::Error>>;

impl Client {
    pub(super) fn new(host: &str) -> Result<Self> {
        let path = host.strip_prefix("unix://").unwrap_or(host);
        if !path.starts_with('/') {
            return Err(Error::usage(format!("cannot use host {host:?}: it must be unix:///PATH")));
        }
        Ok(Self { socket: Path::new(path).into() })
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        let socket = self.socket.display();
        Error::new(match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "permission denied on {socket}: run as root or join the group that owns it (ls -l {socket}; usermod -aG GROUP $USER)"
            ),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("cannot reach edged at {socket}: is it running? (systemctl status edged)")
            }
            _ => format!("cannot reach edged at {socket}: {error}"),
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let lost = |error: hyper::Error| Error::new(format!("the connection to edged broke: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(lost)
    }

    fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Result<Request<Body>> {
        let mut builder = Request::builder().method(method).uri(path).header(header::HOST, "edged");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(body).map_err(|error| Error::usage(format!("cannot ask for {path}: {error}")))
    }

    /// Sends a request; an answer that is an error becomes one.
    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>> {
        let response = self.send(Self::request(method, path, headers, body)?).await?;
        let status = response.status();
        if status.is_success() || status == hyper::StatusCode::SWITCHING_PROTOCOLS || status.is_redirection() {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let message =
            serde_json::from_slice::<Value>(&bytes).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        let message = message.unwrap_or_else(|| format!("edged answered {status}"));
        Err(Error { message, code: 1, status: Some(status.as_u16()) })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.get_with(path, &[]).await
    }

    pub(super) async fn get_with<T: DeserializeOwned>(&self, path: &str, headers: &[(&str, &str)]) -> Result<T> {
        parse(self.call(Method::GET, path, headers, Either::Left(Full::default())).await?, path).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        parse(self.call(Method::POST, path, JSON, json_body(body)?).await?, path).await
    }

    /// For answers whose content does not matter.
    pub(super) async fn post_only(&self, path: &str, body: &impl Serialize) -> Result {
        let response = self.call(Method::POST, path, JSON, json_body(body)?).await?;
        drain(response).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(self.call(Method::DELETE, path, &[], Either::Left(Full::default())).await?, path).await
    }

    pub(super) async fn delete_only(&self, path: &str) -> Result {
        drain(self.call(Method::DELETE, path, &[], Either::Left(Full::default())).await?).await
    }

    /// The answer's body as it comes.
    pub(super) async fn stream(&self, path: &str) -> Result<impl Stream<Item = io::Result<Bytes>> + Unpin + use<>> {
        Ok(chunks(self.call(Method::GET, path, &[], Either::Left(Full::default())).await?))
    }

    /// JSON lines that a transfer answers with.
    pub(super) async fn transfer(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<impl Stream<Item = Result<Value>> + Unpin + use<>> {
        Ok(json_lines(chunks(self.call(Method::POST, path, headers, Either::Left(Full::default())).await?)))
    }

    /// Sends what `reader` yields and gives the JSON lines of the answer.
    pub(super) async fn upload<R: tokio::io::AsyncRead + Send + Sync + Unpin + 'static>(
        &self,
        path: &str,
        reader: R,
    ) -> Result<impl Stream<Item = Result<Value>> + Unpin + use<R>> {
        let frames = futures_util::stream::try_unfold(reader, |mut reader| async move {
            let mut buffer = bytes::BytesMut::with_capacity(UPLOAD_CHUNK);
            let length = reader.read_buf(&mut buffer).await?;
            Ok((length > 0).then(|| (Frame::data(buffer.freeze()), reader)))
        });
        let body = BodyExt::boxed(StreamBody::new(Box::pin(frames)));
        let headers = [("content-type", "application/x-tar")];
        Ok(json_lines(chunks(self.call(Method::POST, path, &headers, Either::Right(body)).await?)))
    }

    /// Turns the connection into a stream of bytes.
    pub(super) async fn hijack(&self, path: &str, body: &impl Serialize) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
        let headers = [("content-type", "application/json"), ("connection", "Upgrade"), ("upgrade", "tcp")];
        let response = self.call(Method::POST, path, &headers, json_body(body)?).await?;
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| Error::new(format!("edged did not open a stream: {error}")))?;
        Ok(TokioIo::new(upgraded))
    }
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

fn json_body(body: &impl Serialize) -> Result<Body> {
    let bytes = serde_json::to_vec(body).map_err(|error| Error::new(format!("cannot write the request: {error}")))?;
    Ok(Either::Left(Full::from(bytes)))
}

async fn drain(response: Response<Incoming>) -> Result {
    response.into_body().collect().await.map_err(|error| Error::new(format!("the answer broke off: {error}")))?;
    Ok(())
}

async fn parse<T: DeserializeOwned>(response: Response<Incoming>, path: &str) -> Result<T> {
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(|error| Error::new(format!("the answer to {path} broke off: {error}")))?
        .to_bytes();
    let bad = |error: serde_json::Error| Error::new(format!("cannot read the answer to {path}: {error}"));
    let mut value: Value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).map_err(bad)? };
    strip_nulls(&mut value);
    serde_json::from_value(value).map_err(bad)
}

fn chunks(response: Response<Incoming>) -> impl Stream<Item = io::Result<Bytes>> + Unpin + use<> {
    Box::pin(response.into_body().into_data_stream().map_err(io::Error::other))
}

/// Splits bytes into lines of JSON. A line that tells an error ends the stream with it.
pub(super) fn json_lines(
    chunks: impl Stream<Item = io::Result<Bytes>> + Unpin,
) -> impl Stream<Item = Result<Value>> + Unpin {
    let state = (chunks, Vec::new(), false);
    Box::pin(futures_util::stream::unfold(state, |(mut chunks, mut buffer, done)| async move {
        if done {
            return None;
        }
        loop {
            if let Some(end) = buffer.iter().position(|byte: &u8| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let item = parse_line(&line);
                let failed = item.is_err();
                return Some((item, (chunks, buffer, failed)));
            }
            match chunks.next().await {
                Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Some((Err(Error::new(format!("the answer broke off: {error}"))), (chunks, buffer, true)));
                }
                None if buffer.iter().all(u8::is_ascii_whitespace) => return None,
                None => buffer.push(b'\n'),
            }
        }
    }))
}

fn parse_line(line: &[u8]) -> Result<Value> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| Error::new(format!("cannot read the answer: {error}")))?;
    match value["error"].as_str() {
        Some(error) => Err(Error::new(error)),
        None => Ok(value),
    }
}

/// Docker's form of filters, from `key=value` arguments; empty for none.
pub(super) fn filters(arguments: &[String]) -> Result<String> {
    let mut map = serde_json::Map::new();
    for argument in arguments {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("invalid filter {argument:?}: it must be KEY=VALUE")))?;
        let values = map.entry(key.trim().to_lowercase()).or_insert_with(|| Value::Object(Default::default()));
        if let Value::Object(values) = values {
            values.insert(value.trim().into(), true.into());
        }
    }
    if map.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("filters={}", crate::api::request::encode(&Value::Object(map).to_string())))
}
