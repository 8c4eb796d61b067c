//! What a failed request is answered with: a status code and `{"message": …}`, in Docker's words where users know them.

use super::node::{Failure, ProposeError};
use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use orchestrator_core::model::Invalid;
use std::error::Error;

/// A failed request.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What was tried and why it failed.
    pub message: String,
    /// Nothing was done, because this node does not lead: the request may be tried again at the one that does.
    pub not_leader: bool,
}

/// Marks an answer with [`ApiError::not_leader`], from node to node; users' clients never see it.
pub(super) const NOT_LEADER: HeaderName = HeaderName::from_static("edged-not-leader");

impl ApiError {
    /// Any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), not_leader: false }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: exists, in use, or changed meanwhile.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 501: this version cannot do it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message = %self.message, "request failed");
        }
        let mut response = (self.status, Json(serde_json::json!({ "message": self.message }))).into_response();
        if self.not_leader {
            response.headers_mut().insert(NOT_LEADER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = match &failure {
            Failure::NotFound(_) => StatusCode::NOT_FOUND,
            Failure::Conflict(_) => StatusCode::CONFLICT,
            Failure::Invalid(_) => StatusCode::BAD_REQUEST,
            Failure::Denied(_) => StatusCode::FORBIDDEN,
            Failure::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Failure::Unavailable(_) | Failure::NotLeader(_) => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let not_leader = matches!(failure, Failure::NotLeader(_));
        Self { not_leader, ..Self::new(status, chain(&failure)) }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        Failure::from(error).into()
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.to_string())
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
