//! An error of a sidecar as an answer. Pure.
//!
//! It is `application/problem+json` (RFC 9457), except that a gRPC client gets gRPC's own form, since it shows nothing
//! else (gRPC over HTTP/2, "Responses").

use std::fmt::Write as _;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use mesh_shared::local_api::Problem;

use crate::error::{Kind, ProxyError};
use crate::http::headers::{MESH_ERROR, is_grpc};

/// Whether the same request can be sent again without the work being done twice.
pub const RETRYABLE: HeaderName = HeaderName::from_static("x-mesh-retryable");
/// The same in the form that OpenAI's and Anthropic's SDKs obey; without it they repeat what failed with 5xx.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How a client reads errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// By the status and the body.
    Problem,
    /// By `grpc-status` and `grpc-message` in an answer without a body.
    Grpc,
}

impl Form {
    /// That of whoever sends a request with these headers.
    pub fn of(request: &HeaderMap) -> Self {
        if is_grpc(request) { Self::Grpc } else { Self::Problem }
    }
}

/// The answer that tells of `error`.
pub fn answer(error: &ProxyError, form: Form) -> Response<Vec<u8>> {
    let &Kind { status, code, title, .. } = error.kind();
    let detail = error.to_string();
    let mut response = Response::new(Vec::new());
    match form {
        Form::Grpc => {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(error.grpc_status() as u16));
            // What is encoded is a valid value.
            if let Ok(message) = HeaderValue::try_from(percent_encoded(&detail)) {
                headers.insert(GRPC_MESSAGE, message);
            }
        }
        Form::Problem => {
            *response.status_mut() = status;
            let problem = Problem::new(code, status.as_u16(), title, detail);
            // A struct of texts cannot fail to serialize.
            *response.body_mut() = serde_json::to_vec(&problem).unwrap_or_default();
            let media = HeaderValue::from_static("application/problem+json");
            response.headers_mut().insert(CONTENT_TYPE, media);
        }
    }
    let headers = response.headers_mut();
    headers.insert(MESH_ERROR, HeaderValue::from_static(code));
    let safe = error.repeat_is_safe();
    headers.insert(RETRYABLE, HeaderValue::from_static(if safe { "true" } else { "false" }));
    if !safe {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    if status == StatusCode::TOO_MANY_REQUESTS
        || matches!(error, ProxyError::AgentBusy { .. } | ProxyError::PeerBusy { .. })
    {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Whether an answer is that of a sidecar whose agent does not accept connections, so that nothing of the request was
/// processed. Agents cannot say so: what their answers say of errors of the mesh is removed there.
pub fn says_agent_is_away(answer: &HeaderMap) -> bool {
    answer.get(MESH_ERROR).is_some_and(|code| code == "backend_unreachable")
        && answer.get(RETRYABLE).is_some_and(|safe| safe == "true")
}

/// As gRPC wants `grpc-message`: printable ASCII stands for itself, other bytes of the UTF-8 and `%` as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_away_is_told_from_other_errors() {
        let away =
            ProxyError::BackendUnreachable { address: "127.0.0.1:8080".into(), reason: "refused".into() };
        let busy = ProxyError::AgentBusy { most: 1, waited_ms: 1, key: "proxy.backend.max_requests" };
        for form in [Form::Problem, Form::Grpc] {
            assert!(says_agent_is_away(answer(&away, form).headers()));
            assert!(!says_agent_is_away(answer(&busy, form).headers()));
        }
    }

    #[test]
    fn a_grpc_message_is_encoded() {
        let error = ProxyError::BadDestination("100 % \u{e4}\n".into());
        let answer = answer(&error, Form::Grpc);
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
        assert_eq!(answer.headers()[GRPC_STATUS], "3");
        assert_eq!(answer.headers()[GRPC_MESSAGE], "100 %25 %C3%A4%0A");
        assert_eq!(answer.headers()[MESH_ERROR], "bad_destination");
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc");
    }
}
