//! Reading requests: query parameters as Docker's clients write them, filters, and JSON bodies whose mistakes are named.

use super::{
    error::ApiError,
    node::{Credentials, UnixNanos},
    time,
};
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, request::Parts},
};
use base64::Engine as _;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, convert::Infallible};

/// Largest JSON body: a service spec with thousands of labels and environment entries fits; a body is held in memory.
pub const BODY_MAX: usize = 4 << 20;

/// The query string.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or("")))
    }
}

impl Params {
    /// Reads `a=b&c=d`; of a repeated key the last counts.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The value of `key`; `None` if absent or empty.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether `key` is switched on, in Docker's sense: anything but absent, `0`, `no`, `false`, `none`.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.text(key).is_some_and(|value| {
            !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
        })
    }

    /// The number that `key` has.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        self.text(key)
            .map(|text| text.parse().map_err(|_| ApiError::invalid(format!("invalid {key}: {text:?} is no number"))))
            .transpose()
    }

    /// The point in time that `key` has; 0 counts as absent.
    pub(crate) fn instant(&self, key: &str) -> Result<Option<UnixNanos>, ApiError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let at = time::parse(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid {key}: {text:?} is neither Unix time nor RFC 3339")))?;
        Ok(Some(at).filter(|at| *at != 0))
    }

    /// The filters, all of which must be among `known`.
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Filters, ApiError> {
        let filters = Filters::parse(self.text("filters").unwrap_or(""))?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => Err(ApiError::invalid(format!("invalid filter '{unknown}'"))),
            None => Ok(filters),
        }
    }
}

/// Percent-decodes a part of a query string.
#[must_use]
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'+', _, _) => out.push(b' '),
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes a value for a query string.
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// Docker's filters: values of one key are alternatives, keys add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads `{"key":{"value":true}}` or the older `{"key":["value"]}`.
    fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bad = || ApiError::invalid(format!("invalid filters: {text:?} must be {{\"key\":{{\"value\":true}}}}"));
        let Ok(Value::Object(map)) = serde_json::from_str(text) else { return Err(bad()) };
        let mut filters = BTreeMap::new();
        for (key, values) in map {
            let values = match values {
                Value::Object(values) => {
                    values.into_iter().filter(|(_, on)| on != &Value::Bool(false)).map(|(value, _)| value).collect()
                }
                Value::Array(values) => values
                    .iter()
                    .map(|value| value.as_str().map(str::to_owned).ok_or_else(bad))
                    .collect::<Result<_, _>>()?,
                _ => return Err(bad()),
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    /// The values of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether `key` is absent or `test` holds for one of its values.
    pub fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let values = self.get(key);
        values.is_empty() || values.iter().any(|value| test(value))
    }

    /// Whether the labels satisfy all of `key`'s values: `label` or `label=value`.
    #[must_use]
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }
}

/// A JSON body. Refused: no JSON, a field of the wrong type, and a field that asks for something we do not have; each is
/// named. Fields that ask for nothing (null, false, 0, "", [], {}) may be there whatever they are called.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: Serialize + DeserializeOwned + Default> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        parse_body(read_body(request.into_body()).await?.as_ref()).map(Self)
    }
}

/// Reads a body of at most [`BODY_MAX`] bytes.
pub(crate) async fn read_body(body: Body) -> Result<bytes::Bytes, ApiError> {
    to_bytes(body, BODY_MAX).await.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {BODY_MAX} bytes or broke off"),
        )
    })
}

/// Parses and checks a JSON body; an empty one is an empty object.
pub(crate) fn parse_body<T: Serialize + DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    strip_nulls(&mut value);
    let parsed: T = serde_path_to_error::deserialize(&value)
        .map_err(|error| ApiError::invalid(format!("invalid {}: {}", error.path(), error.inner())))?;
    let kept = serde_json::to_value(&parsed).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    match unknown(&value, &kept, "") {
        Some(path) => Err(ApiError::invalid(format!("invalid {path}: not supported yet"))),
        None => Ok(parsed),
    }
}

/// Removes nulls: Go's clients write them for absent values.
pub fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.values().all(asks_for_nothing),
    }
}

/// The path of the first field of `given` that `kept` has lost although it asks for something.
fn unknown(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match kept.get(key) {
                Some(kept) => unknown(value, kept, &path),
                None => (!asks_for_nothing(value)).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(at, (given, kept))| unknown(given, kept, &format!("{path}[{at}]"))),
        _ => None,
    }
}

/// The credentials in `X-Registry-Auth`: base64 of JSON, `e30=` (an empty object) for none.
pub(crate) fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, ApiError> {
    let Some(header) = headers.get("x-registry-auth") else { return Ok(None) };
    let bad = |why: &str| ApiError::invalid(format!("invalid X-Registry-Auth: {why}"));
    let text = header.to_str().map_err(|_| bad("not text"))?.trim().trim_end_matches('=');
    if text.is_empty() {
        return Ok(None);
    }
    let url_safe = text.replace('+', "-").replace('/', "_");
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(url_safe).map_err(|_| bad("not base64"))?;
    let mut value: Value = serde_json::from_slice(&json).map_err(|_| bad("not JSON"))?;
    strip_nulls(&mut value);
    let credentials: Credentials = serde_json::from_value(value).map_err(|_| bad("wrong fields"))?;
    let anonymous = Credentials { serveraddress: String::new(), ..credentials.clone() } == Credentials::default();
    Ok((!anonymous).then_some(credentials))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::docker::spec::ServiceSpec;

    #[test]
    fn a_body_is_refused_by_the_name_of_its_first_mistake() {
        let cases = [
            ("{", "invalid JSON"),
            (r#"{"Name":5}"#, "invalid Name:"),
            (r#"{"Mode":{"Replicated":{"Replicas":-1}}}"#, "invalid Mode.Replicated.Replicas:"),
            (r#"{"TaskTemplate":{"Networks":[{"Target":"n"}]}}"#, "invalid TaskTemplate.Networks: not supported"),
            (
                r#"{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Target":"/a","ClusterOptions":{"X":1}}]}}}"#,
                "invalid TaskTemplate.ContainerSpec.Mounts[0].ClusterOptions: not supported",
            ),
        ];
        for (body, start) in cases {
            let error = parse_body::<ServiceSpec>(body.as_bytes()).unwrap_err();
            assert!(error.message.starts_with(start), "{body}: {}", error.message);
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn fields_that_ask_for_nothing_are_ignored() {
        let body = br#"{"Name":"web","Labels":null,"Networks":[],"TaskTemplate":{"Networks":null,"X":{"Y":0}}}"#;
        assert_eq!(parse_body::<ServiceSpec>(body).unwrap().name, "web");
    }

    #[test]
    fn filters_are_read_in_both_forms() {
        let params = Params::parse("filters=%7B%22name%22%3A%7B%22a%22%3Atrue%7D%7D&x=1&y=false&z");
        assert_eq!(params.filters(&["name"]).unwrap().get("name"), ["a"]);
        assert!(params.filters(&["id"]).unwrap_err().message.contains("invalid filter 'name'"));
        assert!(params.flag("x") && !params.flag("y") && !params.flag("z"));
        assert_eq!(Filters::parse(r#"{"name":["a","b"]}"#).unwrap().get("name"), ["a", "b"]);
    }

    #[test]
    fn empty_credentials_are_none() {
        let with = |text: &str| HeaderMap::from_iter([("x-registry-auth".parse().unwrap(), text.parse().unwrap())]);
        assert_eq!(credentials(&with("e30=")).unwrap(), None);
        let encoded = base64::engine::general_purpose::URL_SAFE.encode(r#"{"username":"me","password":"p"}"#);
        assert_eq!(credentials(&with(&encoded)).unwrap().unwrap().username, "me");
        assert!(credentials(&with("!!")).is_err());
    }
}
