//! Why a registry did not do what it was asked, by what to do next.
//!
//! In: an error of `oci-client`. Out: a [`Failure`], which says whether to try again and becomes an
//! [`Error`](super::Error) once image and registry are put to it. Called by `registry`.

use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope, OciErrorCode};

/// Why a request failed.
pub(super) enum Failure {
    /// The connection failed; another may not.
    Network(Box<dyn std::error::Error + Send + Sync>),
    /// The registry is overloaded or broken for the moment.
    Busy(String),
    /// It has no such thing.
    NotFound,
    /// It wants other credentials.
    Unauthorized,
    /// What came is not what its digest says.
    WrongDigest { expected: String, actual: String },
    /// Anything else it said.
    Refused(String),
}

impl Failure {
    /// Whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Network(_) | Self::Busy(_))
    }

    fn from_status(status: u16, message: String) -> Self {
        match status {
            401 | 403 => Self::Unauthorized,
            404 => Self::NotFound,
            416 => Self::Refused("it has less content than the manifest says".to_owned()),
            429 | 500..=599 => Self::Busy(message),
            _ => Self::Refused(message),
        }
    }

    fn from_envelope(envelope: &OciEnvelope) -> Self {
        use OciErrorCode as Code;
        let message = envelope.errors.iter().map(|error| one_line(&error.message)).collect::<Vec<_>>().join("; ");
        match envelope.errors.first().map(|error| &error.code) {
            Some(
                Code::ManifestUnknown
                | Code::NameUnknown
                | Code::NotFound
                | Code::BlobUnknown
                | Code::ManifestBlobUnknown,
            ) => Self::NotFound,
            Some(Code::Unauthorized | Code::Denied) => Self::Unauthorized,
            Some(Code::Toomanyrequests) => Self::Busy(message),
            _ => Self::Refused(message),
        }
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Self {
        use OciDistributionError as E;
        match error {
            E::ImageManifestNotFoundError(_) => Self::NotFound,
            E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => Self::Unauthorized,
            E::DigestError(DigestError::VerificationError { expected, actual }) => {
                Self::WrongDigest { expected, actual }
            }
            E::RegistryError { envelope, .. } => Self::from_envelope(&envelope),
            E::ServerError { code, message, .. } => {
                Self::from_status(code, format!("status {code}: {}", one_line(&message)))
            }
            E::RequestError(error) => match error.status() {
                Some(status) => Self::from_status(status.as_u16(), format!("status {status}")),
                None if error.is_builder() => Self::Refused(error.to_string()),
                None => Self::Network(error.into()),
            },
            E::IoError(error) => Self::Network(error.into()),
            other => Self::Refused(one_line(&other.to_string())),
        }
    }
}

/// Registries answer with pages of HTML at times.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}
