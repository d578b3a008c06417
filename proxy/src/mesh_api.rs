//! The paths that belong to the mesh and not to the agent (reference document, "Endpoints").

use std::borrow::Cow;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use mesh_shared::live::MESH_LIVE;
use mesh_shared::local_api::{OF_MESH, PING};
use mesh_shared::{enrolment, local_api};
use serde::Serialize;

use crate::error::ProxyError;
use crate::http::body::ResponseBody;
use crate::http::message;
use crate::tls::verify::PeerIdentity;

/// Where agents take tasks.
const MESSAGE: &str = "/api/message";

/// Who answers a path of the mesh.
#[derive(Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// This sidecar.
    Ping,
    /// This sidecar: the revocation lists that it knows.
    Lists,
    /// The CA, on the same path of its socket, if it runs on this host.
    Ca,
    /// registryd, on the same path of its socket.
    Registry,
    /// This sidecar: what it carries.
    Live,
}

/// Whether a request hands a task to the agent, however its path is spelled.
pub fn is_delegation<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && known(request.uri().path()) == Some(MESSAGE)
}

/// Who answers, and the endpoint's path as it is usually spelled; `None`: the agent.
///
/// Another spelling of such a path is answered as the path itself is. The agent never sees it: it could take a request
/// for one that the sidecar has checked.
///
/// # Errors
/// A path of the mesh with another method than its own.
pub fn endpoint(request: &Parts) -> Result<Option<(Endpoint, &'static str)>, ProxyError> {
    let Some(path) = known(request.uri.path()) else { return Ok(None) };
    let (endpoint, allowed) = match path {
        PING => (Endpoint::Ping, "GET"),
        MESH_LIVE => (Endpoint::Live, "GET"),
        local_api::CRL => (Endpoint::Lists, "GET and POST"),
        enrolment::BUNDLE_PATH => (Endpoint::Ca, "GET"),
        enrolment::RENEW_PATH => (Endpoint::Ca, "POST"),
        local_api::MESH | local_api::AGENTS => (Endpoint::Registry, "GET"),
        local_api::JOIN => (Endpoint::Registry, "POST"),
        _ => return Ok(None),
    };
    let is_allowed = match request.method {
        Method::GET | Method::HEAD => allowed != "POST",
        Method::POST => allowed != "GET",
        _ => false,
    };
    match is_allowed {
        true => Ok(Some((endpoint, path))),
        false => Err(ProxyError::MethodNotAllowed { path, allowed }),
    }
}

/// Whether the mesh answers this path itself, with whatever method and however it is spelled: no agent sees the request.
pub fn is_path_of_mesh(path: &str) -> bool {
    known(path).is_some_and(|path| path != MESSAGE)
}

/// Whether what other nodes carry is asked for, however the path is spelled.
pub fn asks_for_live_view(request: &Parts) -> bool {
    known(request.uri.path()) == Some(MESH_LIVE)
}

/// Which of the paths that mean something here a server would take this one for.
pub fn known(path: &str) -> Option<&'static str> {
    let find = |path: &str| [MESSAGE].into_iter().chain(OF_MESH).find(|known| *known == path);
    match message::usual_path(path) {
        Cow::Borrowed(path) => find(path),
        Cow::Owned(path) => find(&path),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, path: &str) -> Parts {
        Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0
    }

    #[test]
    fn no_spelling_of_a_delegation_is_overlooked() {
        for path in [
            "/api/message",
            "/api/message?x=1",
            "/api/message/",
            "//api/message",
            "/api//message",
            "/api/./message",
            "/x/../api/message",
            "/api/m%65ssage",
            "/api%2fmessage",
            "/api/%6D%65ssage/",
            "/api/m%2565ssage",
            "/API/Message",
            "/api\\message",
            "/api;v=1/message;x",
            "/api/message/%2e",
            "/../api/message",
        ] {
            assert!(is_delegation(&Request::post(path).body(()).unwrap()), "{path}");
        }
        for path in ["/api/message2", "/api/messages/", "/api/message/x", "/api", "/", "/x/api/message"] {
            assert!(!is_delegation(&Request::post(path).body(()).unwrap()), "{path}");
        }
        assert!(!is_delegation(&Request::get("/api/message").body(()).unwrap()));
    }

    #[test]
    fn every_spelling_of_an_endpoint_is_that_endpoint() {
        for path in [
            "/api/mesh/ping",
            "/api/mesh/ping/",
            "//api/mesh/ping",
            "/api/mesh/%70ing",
            "/API/mesh/x/../ping",
        ] {
            let found = endpoint(&parts(Method::GET, path)).unwrap();
            assert_eq!(found, Some((Endpoint::Ping, PING)), "{path}");
        }
        for path in ["/api/mesh/crl", "/API/mesh/crl/", "//api/mesh/%63rl"] {
            for method in [Method::GET, Method::HEAD, Method::POST] {
                let found = endpoint(&parts(method, path)).unwrap();
                assert_eq!(found, Some((Endpoint::Lists, local_api::CRL)), "{path}");
            }
            assert!(endpoint(&parts(Method::PUT, path)).is_err(), "{path}");
        }
        for path in ["/api/mesh/ca/renew", "/api/mesh/CA/./renew/", "/api/mesh/ca%2frenew"] {
            let found = endpoint(&parts(Method::POST, path)).unwrap();
            assert_eq!(found, Some((Endpoint::Ca, enrolment::RENEW_PATH)), "{path}");
            assert!(endpoint(&parts(Method::GET, path)).is_err(), "{path}");
        }
        for path in ["/api/mesh/join/", "/api/mesh;x/join", "/api/./mesh/join"] {
            let found = endpoint(&parts(Method::POST, path)).unwrap();
            assert_eq!(found, Some((Endpoint::Registry, local_api::JOIN)), "{path}");
            assert!(endpoint(&parts(Method::GET, path)).is_err(), "{path}");
        }
        for path in ["/api/mesh/other", "/api/mesh/pings", "/api/mesh/ping/x", "*"] {
            assert_eq!(endpoint(&parts(Method::OPTIONS, path)).unwrap(), None, "{path}");
        }
    }
}
