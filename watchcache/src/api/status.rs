//! Failures of the front door itself, told as kube-apiserver tells its own: a `Status` object.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// Why a request failed, as `metav1.StatusReason` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 401: the client certificate was not accepted and there is no token to try.
    Unauthorized,
    /// 400: the request can't be passed on as it is.
    BadRequest,
    /// 413: the body is larger than allowed.
    RequestEntityTooLarge,
    /// 429: a limit of the front door is reached; nothing was passed on.
    TooManyRequests,
    /// 503: no kube-apiserver took the request; nothing was passed on.
    ServiceUnavailable,
    /// 502: a kube-apiserver may have acted on the request, and its answer is lost.
    BadGateway,
    /// 504: a kube-apiserver did not answer in time.
    Timeout,
}

impl Reason {
    /// The code of the answer.
    #[must_use]
    pub fn code(self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::RequestEntityTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::BadRequest => "BadRequest",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::TooManyRequests => "TooManyRequests",
            Self::ServiceUnavailable => "ServiceUnavailable",
            // Kubernetes has no reason of its own for a lost answer; controllers try an
            // InternalError again after looking at what is there.
            Self::BadGateway => "InternalError",
            Self::Timeout => "Timeout",
        }
    }

    /// Seconds until the client may send the same request again. client-go repeats any request
    /// whose answer has a Retry-After, also a POST
    /// (`k8s.io/client-go/rest/with_retry.go`), so only a request that no one acted on gets one.
    fn retry_after(self) -> Option<u32> {
        matches!(self, Self::TooManyRequests | Self::ServiceUnavailable).then_some(1)
    }
}

/// An answer of the front door's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub reason: Reason,
    /// One sentence for a person.
    pub message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u32,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The answer's code, headers and body (JSON, which every client reads).
    #[must_use]
    pub fn answer(&self) -> (StatusCode, HeaderMap, Bytes) {
        let retry_after = self.reason.retry_after();
        let status = Object {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &self.message,
            reason: self.reason.name(),
            details: retry_after.map(|retry_after_seconds| Details { retry_after_seconds }),
            code: self.reason.code().as_u16(),
        };
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&status).unwrap_or_default();
        (self.reason.code(), headers, body.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unauthorized_is_what_kube_apiserver_says() {
        let (code, headers, body) = Failure::new(Reason::Unauthorized, "Unauthorized").answer();
        assert_eq!(code, 401);
        assert!(!headers.contains_key(header::RETRY_AFTER));
        assert_eq!(
            body,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#
        );
    }

    #[test]
    fn only_requests_without_effect_say_when_to_retry() {
        for reason in [
            Reason::Unauthorized,
            Reason::BadRequest,
            Reason::RequestEntityTooLarge,
            Reason::TooManyRequests,
            Reason::ServiceUnavailable,
            Reason::BadGateway,
            Reason::Timeout,
        ] {
            let (_, headers, _) = Failure::new(reason, "x").answer();
            assert_eq!(
                headers.contains_key(header::RETRY_AFTER),
                matches!(reason, Reason::TooManyRequests | Reason::ServiceUnavailable)
            );
        }
    }
}
