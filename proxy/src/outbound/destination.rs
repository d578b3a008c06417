//! Where a request of this host wants to go. Pure: the request's head in, a destination out.
//!
//! In this order: the listener it came in on, a `.mesh` host (absolute form or `Host`), the path's prefix,
//! the headers. Hosts that are neither in the mesh nor this host itself are refused, so that no web page
//! can point a name of its own here (DNS rebinding).

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri};
use mesh_shared::local_api::{EVENTS, NODES, ROSTER_AGENTS};
use mesh_shared::{AgentName, NodeName};

use crate::error::ProxyError;
use crate::http::headers::{MESH_AGENT, MESH_NODE};

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    /// A node by its name.
    Node(NodeName),
    /// Whichever node hosts the agent.
    Agent(AgentName),
    /// registryd of this host.
    Registry,
}

const NODE_PREFIX: &str = "/nodes/";
const AGENT_PREFIX: &str = "/agents/";

/// Reads the destination, and takes a prefix that names it out of the path. The request was checked
/// ([`crate::http::message`]).
///
/// # Errors
/// None named, one that is no name, or a host outside the mesh.
pub fn read(request: &mut Parts, only: Option<&NodeName>) -> Result<Destination, ProxyError> {
    if request.method == Method::CONNECT {
        return Err(ProxyError::ConnectNotSupported);
    }
    let named = host(request)?;
    if let Some(node) = only {
        return match named {
            Some(other) if other != *node => Err(ProxyError::BadDestination(format!(
                "this listener leads to {node} only, but the request is for {other}.mesh"
            ))),
            _ => Ok(Destination::Node(node.clone())),
        };
    }
    if let Some(node) = named {
        return Ok(Destination::Node(node));
    }
    let path = request.uri.path();
    if let Some(rest) = path.strip_prefix(NODE_PREFIX) {
        let node = first_segment(rest).parse().map_err(bad)?;
        remove_prefix(&mut request.uri, NODE_PREFIX.len())?;
        return Ok(Destination::Node(node));
    }
    if let Some(rest) = path.strip_prefix(AGENT_PREFIX) {
        let agent = first_segment(rest).parse().map_err(bad)?;
        remove_prefix(&mut request.uri, AGENT_PREFIX.len())?;
        return Ok(Destination::Agent(agent));
    }
    if let Some(node) = header(&request.headers, &MESH_NODE)? {
        return Ok(Destination::Node(
            NodeName::from_mesh_host(node).map_or_else(|| node.parse().map_err(bad), Ok)?,
        ));
    }
    if let Some(agent) = header(&request.headers, &MESH_AGENT)? {
        return Ok(Destination::Agent(agent.parse().map_err(bad)?));
    }
    match path {
        NODES | ROSTER_AGENTS | EVENTS => Ok(Destination::Registry),
        _ => Err(ProxyError::NoDestination),
    }
}

/// The node that the request's host names; `None` where the host is this one.
fn host(request: &Parts) -> Result<Option<NodeName>, ProxyError> {
    if let Some(scheme) = request.uri.scheme_str()
        && scheme != "http"
    {
        return Err(ProxyError::BadDestination(format!(
            "{scheme}:// cannot be used towards the sidecar; use http://, it makes the TLS itself"
        )));
    }
    // Where there are both, they are the same.
    let line = || request.headers.get(HOST).and_then(|line| line.to_str().ok()).map(without_port);
    match request.uri.host().or_else(line) {
        Some(host) => judge(host),
        None => Err(ProxyError::BadRequest("it has no Host".into())),
    }
}

/// A mesh node, or this host itself (`None`), or an error.
fn judge(host: &str) -> Result<Option<NodeName>, ProxyError> {
    if let Some(node) = NodeName::from_mesh_host(host) {
        return Ok(Some(node));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let loopback = bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    if loopback { Ok(None) } else { Err(ProxyError::NotInMesh(host.into())) }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn first_segment(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// `/nodes/ct111/api/x?y` becomes `/api/x?y`.
fn remove_prefix(uri: &mut Uri, prefix_len: usize) -> Result<(), ProxyError> {
    let full = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = &full[prefix_len..];
    let rest = &rest[rest.find(['/', '?']).unwrap_or(rest.len())..];
    let path = match rest.starts_with('/') {
        true => rest.parse::<PathAndQuery>(),
        false => format!("/{rest}").parse(),
    };
    let path = path.map_err(|error| ProxyError::BadRequest(format!("its path cannot be read: {error}")))?;
    *uri = Uri::from(path);
    Ok(())
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Result<Option<&'h str>, ProxyError> {
    headers
        .get(name)
        .map(|value| {
            value.to_str().map_err(|_| ProxyError::BadDestination(format!("the header {name} is no text")))
        })
        .transpose()
}

fn bad(error: mesh_shared::name::NameError) -> ProxyError {
    ProxyError::BadDestination(error.to_string())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::http::message::check_request;

    /// The destination and the path that is left, or the error's code.
    fn read_from(target: &str, headers: &[(&str, &str)]) -> Result<(String, String), &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        check_request(&parts, false).map_err(|error| error.parts().1)?;
        let destination = read(&mut parts, None).map_err(|error| error.parts().1)?;
        let text = match destination {
            Destination::Node(node) => node.to_string(),
            Destination::Agent(agent) => format!("@{agent}"),
            Destination::Registry => "registry".into(),
        };
        Ok((text, parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default()))
    }

    #[test]
    fn every_way_to_name_a_destination() {
        let here = ("host", "127.0.0.1:3001");
        for (target, headers, destination, path) in [
            ("http://ct111.mesh/a?b", vec![("host", "ct111.mesh")], "ct111", "/a?b"),
            ("http://CT111.mesh:3000/a", vec![("host", "ct111.mesh:3000")], "ct111", "/a"),
            ("/a", vec![("host", "ct111.mesh:80")], "ct111", "/a"),
            ("/nodes/ct111/a/b?c=/d", vec![here], "ct111", "/a/b?c=/d"),
            ("/nodes/ct111", vec![here], "ct111", "/"),
            ("/nodes/ct111?c", vec![here], "ct111", "/?c"),
            ("/agents/grok/api/message", vec![("host", "localhost")], "@grok", "/api/message"),
            ("/nodes/ct111/nodes/x", vec![("host", "[::1]:3001")], "ct111", "/nodes/x"),
            ("/a", vec![here, ("x-mesh-node", "ct111")], "ct111", "/a"),
            ("/a", vec![here, ("x-mesh-node", "ct111.mesh")], "ct111", "/a"),
            ("/a", vec![here, ("x-mesh-agent", "grok")], "@grok", "/a"),
            ("/mesh/nodes?agent=grok", vec![here], "registry", "/mesh/nodes?agent=grok"),
        ] {
            assert_eq!(
                read_from(target, &headers),
                Ok((destination.into(), path.into())),
                "{target} {headers:?}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let here = ("host", "127.0.0.1:3001");
        for (target, headers, code) in [
            ("http://example.org/", vec![("host", "example.org")], "not_in_mesh"),
            ("/", vec![("host", "example.org")], "not_in_mesh"),
            ("/", vec![("host", "ct111.mesh.example.org")], "not_in_mesh"),
            ("/", vec![("host", "192.168.1.1")], "not_in_mesh"),
            ("/", vec![("host", "127.0.0.1.example.org")], "not_in_mesh"),
            ("https://ct111.mesh/", vec![("host", "ct111.mesh")], "bad_destination"),
            ("http://ct111.mesh/", vec![("host", "example.org")], "bad_request"),
            ("http://ct111.mesh/", vec![], "bad_request"),
            ("/", vec![], "bad_request"),
            ("ct111.mesh:80", vec![here], "bad_request"),
            ("*", vec![here], "bad_request"),
            ("/", vec![here, here], "bad_request"),
            ("/", vec![here], "no_destination"),
            ("/nodes/", vec![here], "bad_destination"),
            ("/nodes/a_b/", vec![here], "bad_destination"),
            ("/agents//x", vec![here], "bad_destination"),
            ("/", vec![here, ("x-mesh-node", "a b")], "bad_destination"),
        ] {
            assert_eq!(read_from(target, &headers), Err(code), "{target} {headers:?}");
        }
    }

    #[test]
    fn a_listener_of_its_own_leads_to_one_node() {
        let node: NodeName = "ct111".parse().unwrap();
        let parts = |host: &str| {
            let request = Request::builder().uri("/nodes/x/a").header("host", host).body(()).unwrap();
            read(&mut request.into_parts().0, Some(&node)).map_err(|error| error.parts().1)
        };
        assert_eq!(parts("127.0.0.1:3111"), Ok(Destination::Node(node.clone())));
        assert_eq!(parts("ct111.mesh"), Ok(Destination::Node(node.clone())));
        assert_eq!(parts("ct112.mesh"), Err("bad_destination"));
        assert_eq!(parts("example.org"), Err("not_in_mesh"));
    }
}
