//! The paths that belong to the mesh and not to the agent (reference document, "Endpoints").

use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use mesh_shared::local_api;
use serde::Serialize;

use crate::error::ProxyError;
use crate::http::body::ResponseBody;
use crate::tls::verify::PeerIdentity;

/// Liveness probe of a node.
pub const PING: &str = "/api/mesh/ping";
/// Where agents take tasks.
const MESSAGE: &str = "/api/message";

/// Who answers a path of the mesh.
#[derive(Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// This sidecar.
    Ping,
    /// registryd, on the same path of its socket.
    Registry,
}

/// Whether a request hands a task to the agent.
pub fn is_delegation<B>(request: &Request<B>) -> bool {
    request.uri().path() == MESSAGE && request.method() == Method::POST
}

/// Who answers; `None`: the agent.
///
/// # Errors
/// A path of the mesh with another method than its own.
pub fn endpoint(request: &Parts) -> Result<Option<Endpoint>, ProxyError> {
    let path = request.uri.path();
    let (endpoint, path, allowed) = match path {
        PING => (Endpoint::Ping, PING, Method::GET),
        local_api::MESH => (Endpoint::Registry, local_api::MESH, Method::GET),
        local_api::JOIN => (Endpoint::Registry, local_api::JOIN, Method::POST),
        local_api::AGENTS => (Endpoint::Registry, local_api::AGENTS, Method::GET),
        _ => return Ok(None),
    };
    let head = request.method == Method::HEAD && allowed == Method::GET;
    match request.method == allowed || head {
        true => Ok(Some(endpoint)),
        false => Err(ProxyError::MethodNotAllowed {
            path,
            allowed: if allowed == Method::GET { "GET" } else { "POST" },
        }),
    }
}

#[derive(Serialize)]
struct Ping<'a> {
    status: &'static str,
    ok: bool,
    node: &'a str,
    tls: bool,
    cn: &'a str,
}

/// The answer to a ping: this node, and who asks.
pub fn ping(node: &str, peer: &PeerIdentity) -> Response<ResponseBody> {
    let answer = Ping { status: "ok", ok: true, node, tls: true, cn: peer.name() };
    // A struct of texts cannot fail to serialize.
    let mut response = Response::new(ResponseBody::full(serde_json::to_vec(&answer).unwrap_or_default()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
