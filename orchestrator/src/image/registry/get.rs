//! Getting a document without trusting its length: a registry, or whoever sits before it, must not fill the node's memory.
//!
//! In: an address below the registry's; the credentials or the token of the repository. Out: the bytes, at most as many as
//! were allowed, or an error as `oci-client` would give it. Called by `registry` for manifests.

use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope};
use oci_client::secrets::RegistryAuth;
use reqwest::{Response, StatusCode};

use super::Repository;
use crate::image::digest::Digest;
use crate::image::manifest::ACCEPTED_MANIFESTS;

/// Bytes read of an answer that is an error; its message is cut much shorter.
pub(super) const ERROR_MAX: usize = 64 << 10;

impl Repository {
    /// Where the registry's API is, without a slash at the end.
    pub(super) fn base(&self, reference: &oci_client::Reference) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}/v2", reference.resolve_registry())
    }

    /// Gets a document of at most `most` bytes (OCI distribution specification 1.1, "pulling manifests").
    pub(super) async fn get(&self, url: &str, most: usize) -> Result<Vec<u8>, OciDistributionError> {
        let request = self.limited.get(url).header("accept", ACCEPTED_MANIFESTS.join(", "));
        // Redirected to another host, a request loses its credentials.
        let request = match (self.token.get(), &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(username, password)) => request.basic_auth(username, Some(password)),
            (None, _) => request,
        };
        let response = request.send().await?;
        let status = response.status();
        if status == StatusCode::OK {
            // What it says of a tag's manifest is all there is to compare it with.
            let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
            let expected = said.filter(|digest| digest.starts_with("sha256:")).map(str::to_owned);
            let body = read(response, most).await?.ok_or_else(|| {
                OciDistributionError::SpecViolationError(format!("more than {most} bytes, which are not accepted"))
            })?;
            let actual = Digest::of(&body).to_string();
            return match expected.filter(|expected| *expected != actual) {
                Some(expected) => Err(DigestError::VerificationError { expected, actual }.into()),
                None => Ok(body),
            };
        }
        let (url, body) = (url.to_owned(), read(response, ERROR_MAX).await?.unwrap_or_default());
        if status.is_client_error()
            && status != StatusCode::UNAUTHORIZED
            && let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(&body)
        {
            return Err(OciDistributionError::RegistryError { envelope, url });
        }
        let message = String::from_utf8_lossy(&body).into_owned();
        Err(OciDistributionError::ServerError { code: status.as_u16(), url, message })
    }
}

/// The body of an answer; `None` as soon as it is longer than `most`.
async fn read(mut response: Response, most: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}
