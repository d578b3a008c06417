//! Where a request of this host wants to go. Pure: the request's head in, a destination out.
//!
//! In this order: the listener it came in on, a `.mesh` host (absolute form or `Host`), the path's prefix,
//! the headers. Hosts that are neither in the mesh nor this host itself are refused, so that no web page
//! can point a name of its own here (DNS rebinding).

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Uri};
use mesh_shared::config::ListenerTarget;
use mesh_shared::local_api::{CERTIFICATES, EVENTS, NODES, ROSTER_AGENTS};
use mesh_shared::{AgentName, NodeName};

use crate::error::ProxyError;
use crate::http::headers::{MESH_AGENT, MESH_NODE, without_port};

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A node by its name.
    Node(NodeName),
    /// Whichever node hosts the agent.
    Agent(AgentName),
    /// registryd of this host.
    Registry,
    /// This sidecar, which tells what certificates it saw.
    Certificates,
}

/// A destination, and how the caller named it.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where the request goes.
    pub to: Destination,
    /// The beginning of the path that named it and was taken out, such as `/nodes/ct111`.
    pub prefix: Option<HeaderValue>,
}

impl From<Destination> for Wanted {
    fn from(to: Destination) -> Self {
        Self { to, prefix: None }
    }
}

impl From<ListenerTarget> for Destination {
    fn from(target: ListenerTarget) -> Self {
        match target {
            ListenerTarget::Node(node) => Self::Node(node),
            ListenerTarget::Agent(agent) => Self::Agent(agent),
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => f.write_str(&node.mesh_host()),
            Self::Agent(agent) => f.write_str(&agent.mesh_host()),
            Self::Registry => f.write_str("registryd"),
            Self::Certificates => f.write_str("this sidecar"),
        }
    }
}

const NODE_PREFIX: &str = "/nodes/";
const AGENT_PREFIX: &str = "/agents/";
/// The port of `http://`.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Reads the destination, and takes a prefix that names it out of the path. The request was checked
/// ([`crate::http::message`]). `only`: where everything on this listener is sent. `on_unix_socket`: clients make up a host
/// there, such as `unix`. `is_mesh_port` says whether the mesh itself is at this port of a destination.
///
/// # Errors
/// None named, one that is not a name, a port behind which there is nothing, or a host outside the mesh.
pub fn read(
    request: &mut Parts,
    only: Option<&Destination>,
    on_unix_socket: bool,
    is_mesh_port: impl Fn(&Destination, u16) -> bool,
) -> Result<Wanted, ProxyError> {
    let named = match host(request, is_mesh_port) {
        Err(ProxyError::NotInMesh(host)) if on_unix_socket && !host.contains('.') => None,
        named => named?,
    };
    if let Some(only) = only {
        return match named {
            Some(other) if other != *only => Err(ProxyError::BadDestination(format!(
                "this connection leads to {only} only, but the request is for {other}"
            ))),
            _ => Ok(only.clone().into()),
        };
    }
    if let Some(named) = named {
        return Ok(named.into());
    }
    let path = request.uri.path();
    if let Some(rest) = path.strip_prefix(NODE_PREFIX) {
        let to = Destination::Node(first_segment(rest).parse().map_err(bad)?);
        let prefix = remove_prefix(&mut request.uri, NODE_PREFIX.len())?;
        return Ok(Wanted { to, prefix });
    }
    if let Some(rest) = path.strip_prefix(AGENT_PREFIX) {
        let to = Destination::Agent(first_segment(rest).parse().map_err(bad)?);
        let prefix = remove_prefix(&mut request.uri, AGENT_PREFIX.len())?;
        return Ok(Wanted { to, prefix });
    }
    if let Some(node) = header(&request.headers, &MESH_NODE)? {
        let node = NodeName::from_mesh_host(node).map_or_else(|| node.parse().map_err(bad), Ok)?;
        return Ok(Destination::Node(node).into());
    }
    if let Some(agent) = header(&request.headers, &MESH_AGENT)? {
        return Ok(Destination::Agent(agent.parse().map_err(bad)?).into());
    }
    match path {
        NODES | ROSTER_AGENTS | EVENTS => Ok(Destination::Registry.into()),
        CERTIFICATES => Ok(Destination::Certificates.into()),
        _ => Err(ProxyError::NoDestination),
    }
}

/// Where the tunnel leads that a CONNECT asks for, whose target is a host and a port.
///
/// # Errors
/// A host outside the mesh, another port, or a listener that leads elsewhere.
pub fn read_connect(
    request: &Parts,
    only: Option<&Destination>,
    is_mesh_port: impl Fn(&Destination, u16) -> bool,
) -> Result<Destination, ProxyError> {
    let named = host(request, is_mesh_port)?;
    match (named, only) {
        (Some(named), None) => Ok(named),
        (Some(named), Some(only)) if named == *only => Ok(named),
        (Some(named), Some(only)) => Err(ProxyError::BadDestination(format!(
            "this listener leads to {only} only, but the tunnel is for {named}"
        ))),
        (None, _) => Err(ProxyError::BadDestination(
            "a tunnel leads to <node>.mesh:80 or <agent>.agent.mesh:80; for this host itself, programs need no proxy: \
             set no_proxy=localhost,127.0.0.1"
                .into(),
        )),
    }
}

/// What the request's host names; `None` where the host is this one.
fn host(
    request: &Parts,
    is_mesh_port: impl Fn(&Destination, u16) -> bool,
) -> Result<Option<Destination>, ProxyError> {
    if let Some(scheme) = request.uri.scheme_str()
        && scheme != "http"
    {
        return Err(ProxyError::BadDestination(format!(
            "{scheme}:// cannot be used towards the sidecar; use http://, it makes the TLS itself"
        )));
    }
    // Where there are both, they are the same.
    let line = || request.headers.get(HOST).and_then(|line| line.to_str().ok());
    let target = request.uri.authority().map(Authority::as_str);
    let Some(target) = target.or_else(line) else {
        return Err(ProxyError::BadRequest("it has no Host".into()));
    };
    let host = without_port(target);
    let Some(named) = judge(host)? else { return Ok(None) };
    // Only the port is left, if there is one.
    let port = target.get(host.len() + 1..).unwrap_or_default();
    match port.parse() {
        _ if port.is_empty() => Ok(Some(named)),
        Ok(HTTP_PORT) => Ok(Some(named)),
        Ok(HTTPS_PORT) => Err(ProxyError::BadDestination(format!(
            "{named}:443 cannot be used towards the sidecar, which makes the TLS itself: write http:// in place of \
             https://, and so port 80"
        ))),
        Ok(port) if is_mesh_port(&named, port) => Ok(Some(named)),
        _ => Err(ProxyError::BadDestination(format!(
            "there is nothing for a program at port {port} of {named}: its agent is at port 80, http://{named}/"
        ))),
    }
}

/// A node or an agent of the mesh, or this host itself (`None`), or an error.
fn judge(host: &str) -> Result<Option<Destination>, ProxyError> {
    if let Some(node) = NodeName::from_mesh_host(host) {
        return Ok(Some(Destination::Node(node)));
    }
    if let Some(agent) = AgentName::from_mesh_host(host) {
        return Ok(Some(Destination::Agent(agent)));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let loopback = bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    if loopback { Ok(None) } else { Err(ProxyError::NotInMesh(host.into())) }
}

fn first_segment(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// `/nodes/ct111/api/x?y` becomes `/api/x?y`; gives what was taken out.
fn remove_prefix(uri: &mut Uri, prefix_len: usize) -> Result<Option<HeaderValue>, ProxyError> {
    let full = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = &full[prefix_len..];
    let rest = &rest[rest.find(['/', '?']).unwrap_or(rest.len())..];
    let prefix = HeaderValue::from_str(&full[..full.len() - rest.len()]).ok();
    let path = match rest.starts_with('/') {
        true => rest.parse::<PathAndQuery>(),
        false => format!("/{rest}").parse(),
    };
    let path = path.map_err(|error| ProxyError::BadRequest(format!("its path cannot be read: {error}")))?;
    *uri = Uri::from(path);
    Ok(prefix)
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Result<Option<&'h str>, ProxyError> {
    headers
        .get(name)
        .map(|value| {
            value.to_str().map_err(|_| ProxyError::BadDestination(format!("the header {name} is not text")))
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

    fn mesh_port(_: &Destination, port: u16) -> bool {
        port == 3000
    }

    /// The destination and the path that is left, or the error's code.
    fn read_from(target: &str, headers: &[(&str, &str)]) -> Result<(String, String), &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        check_request(&parts, false).map_err(|error| error.kind().code)?;
        let wanted = read(&mut parts, None, false, mesh_port).map_err(|error| error.kind().code)?;
        let text = match wanted.to {
            Destination::Node(node) => node.to_string(),
            Destination::Agent(agent) => format!("@{agent}"),
            Destination::Registry => "registry".into(),
            Destination::Certificates => "sidecar".into(),
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
            ("http://grok.agent.mesh/a", vec![("host", "grok.agent.mesh")], "@grok", "/a"),
            ("/a", vec![("host", "Grok_2.AGENT.mesh.:80")], "@Grok_2", "/a"),
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
            ("http://ct111.mesh:11434/", vec![("host", "ct111.mesh:11434")], "bad_destination"),
            ("/", vec![("host", "grok.agent.mesh:443")], "bad_destination"),
            ("/", vec![("host", "ct111.mesh:0x50")], "bad_request"),
            ("/", vec![("host", ".agent.mesh")], "not_in_mesh"),
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
        let node = Destination::Node("ct111".parse().unwrap());
        let parts = |host: &str| {
            let request = Request::builder().uri("/nodes/x/a").header("host", host).body(()).unwrap();
            read(&mut request.into_parts().0, Some(&node), false, mesh_port)
                .map_err(|error| error.kind().code)
        };
        assert_eq!(parts("127.0.0.1:3111"), Ok(node.clone().into()));
        assert_eq!(parts("ct111.mesh"), Ok(node.clone().into()));
        assert_eq!(parts("ct112.mesh"), Err("bad_destination"));
        assert_eq!(parts("example.org"), Err("not_in_mesh"));
    }

    #[test]
    fn what_named_it_is_remembered_and_taken_out() {
        let request =
            Request::builder().uri("/nodes/CT111/a?b").header("host", "localhost").body(()).unwrap();
        let wanted = read(&mut request.into_parts().0, None, false, mesh_port).unwrap();
        assert_eq!(wanted.prefix.unwrap(), "/nodes/CT111");
    }

    #[test]
    fn a_tunnel_leads_to_the_mesh_and_nowhere_else() {
        let to = |target: &str, only: Option<&Destination>| {
            let request = Request::connect(target).header("host", target).body(()).unwrap();
            read_connect(&request.into_parts().0, only, mesh_port).map_err(|error| error.kind().code)
        };
        let node = Destination::Node("ct111".parse().unwrap());
        assert_eq!(to("ct111.mesh:80", None), Ok(node.clone()));
        assert_eq!(to("ct111.mesh:3000", Some(&node)), Ok(node.clone()));
        assert_eq!(to("grok.agent.mesh:80", None), Ok(Destination::Agent("grok".parse().unwrap())));
        assert_eq!(to("grok.agent.mesh:80", Some(&node)), Err("bad_destination"));
        assert_eq!(to("ct111.mesh:443", None), Err("bad_destination"));
        assert_eq!(to("127.0.0.1:80", None), Err("bad_destination"));
        assert_eq!(to("example.org:80", None), Err("not_in_mesh"));
    }
}
