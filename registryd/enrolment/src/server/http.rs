//! Requests with JSON and their answers, alike on both listeners.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use mesh_shared::enrolment::{CA_UNAVAILABLE, MAX_BODY_BYTES};
use mesh_shared::local_api::{MESH_ERROR, Problem};
use serde::Serialize;

/// An answer with all of its body.
pub(super) type Answer = Response<Full<Bytes>>;

/// Reads a body within the limit; `None` where it is longer or breaks off.
pub(super) async fn read(body: Incoming) -> Option<Bytes> {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return None;
    }
    Some(Limited::new(body, MAX_BODY_BYTES).collect().await.ok()?.to_bytes())
}

/// 200 with a document.
pub(super) fn json(document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(body) => with(StatusCode::OK, "application/json", body),
        Err(_) => unavailable(),
    }
}

/// An answer that says what is wrong.
pub(super) fn problem(status: StatusCode, code: &'static str, title: &str, detail: &str) -> Answer {
    let problem = Problem::new(code, status.as_u16(), title, detail.into());
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut answer = with(status, "application/problem+json", body);
    answer.headers_mut().insert(MESH_ERROR, HeaderValue::from_static(code));
    answer
}

/// The CA cannot do it at present. The reason is in its log.
pub(super) fn unavailable() -> Answer {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        CA_UNAVAILABLE,
        "The CA cannot sign at present",
        "the CA's process cannot sign or read its folder; its log says why (journalctl -u mesh-ca on its host)",
    )
}

/// Nothing is there.
pub(super) fn not_found() -> Answer {
    problem(StatusCode::NOT_FOUND, "not_found", "No such path", "the CA's process answers nothing here")
}

fn with(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
