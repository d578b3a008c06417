//! The span of an exchange, in the words of OpenTelemetry's semantic conventions for HTTP. Pure.
//!
//! There is one for each exchange in each sidecar. The two of a call are its two sides: the calling sidecar's is the
//! client's, the called one's the server's. Nothing of headers, bodies and queries is in them.

use http::{Method, Version};
use mesh_shared::logging::Excerpt;
use mesh_telemetry::{KeyValue, Span, SpanKind};

use crate::access_log::{Account, End};
use crate::caller::Caller;
use crate::mesh_api;
use crate::metrics::{Direction, Outcome};

/// Longest path, in characters.
const MOST_CHARS: usize = 200;

/// The span of an exchange over this `version` of HTTP that ends now.
pub fn of(account: &Account, caller: &Caller, version: Version, end: &End) -> Span {
    let (figures, direction) = (&end.figures, caller.direction());
    let (kind, scheme) = match direction {
        Direction::Inbound => (SpanKind::Server, "https"),
        Direction::Outbound => (SpanKind::Client, "http"),
    };
    let (method, code) = (method(&account.method), account.code());
    let route = mesh_api::known(account.uri.path());
    // More than most have.
    let mut attributes = Vec::with_capacity(24);
    attributes.extend([
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.scheme", scheme),
        KeyValue::new("network.protocol.version", if version == Version::HTTP_2 { "2" } else { "1.1" }),
        KeyValue::new("http.request.body.size", whole(figures.bytes_in)),
        KeyValue::new("http.response.body.size", whole(figures.bytes_out)),
        KeyValue::new("mesh.direction", direction.as_str()),
        KeyValue::new("mesh.outcome", figures.outcome.as_str()),
    ]);
    if account.method != Method::CONNECT {
        let path = Excerpt { text: account.uri.path(), max_chars: MOST_CHARS };
        attributes.push(KeyValue::new("url.path", path.to_string()));
    }
    match caller {
        Caller::Peer(peer) => {
            attributes.push(KeyValue::new("mesh.peer", peer.name().to_owned()));
            if let Ok(address) = peer.address_header().to_str() {
                attributes.push(KeyValue::new("network.peer.address", address.to_owned()));
            }
            attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        }
        Caller::Program(program) => {
            if let Some(agent) = &program.acts_as {
                attributes.push(KeyValue::new("mesh.as_agent", agent.identity.clone()));
            }
            if let Some(node) = &account.node {
                attributes.push(KeyValue::new("server.address", node.mesh_host()));
                attributes.push(KeyValue::new("mesh.peer", node.to_string()));
            }
            attributes.push(KeyValue::new("mesh.attempts", i64::from(account.attempts)));
        }
    }
    if let Some(agent) = &account.agent {
        attributes.push(KeyValue::new("mesh.agent", agent.to_string()));
    }
    if let Some(status) = figures.status {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
    }
    if let Some(code) = code {
        attributes.push(KeyValue::new("mesh.code", code.to_owned()));
    }
    if let Some(first_byte) = figures.first_byte {
        attributes.push(KeyValue::new("mesh.first_byte_ms", first_byte.as_millis() as i64));
    }
    // What the caller did wrong is not a failure of who was called.
    let fails_from = if kind == SpanKind::Server { 500 } else { 400 };
    let error = match (figures.outcome, figures.status) {
        (Outcome::CutByUpstream | Outcome::CutBySidecar, _) => Some(figures.outcome.as_str().to_owned()),
        (Outcome::CutByCaller, _) => None,
        (_, Some(status)) if status >= fails_from => {
            Some(code.map_or_else(|| status.to_string(), str::to_owned))
        }
        _ => None,
    };
    if let Some(error) = &error {
        attributes.push(KeyValue::new("error.type", error.clone()));
    }
    let name = match route {
        Some(route) => format!("{method} {route}").into(),
        // As the conventions have it where the name would otherwise be one of many.
        None if method == OTHER => "HTTP".into(),
        None => method.into(),
    };
    Span { context: account.trace, kind, name, took: figures.took, attributes, error }
}

const OTHER: &str = "_OTHER";

/// The method, if it is one of those that the conventions know.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        "CONNECT" => "CONNECT",
        "TRACE" => "TRACE",
        _ => OTHER,
    }
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
