//! Headers that must not pass, those that the agent can trust, and targets.

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, FORWARDED, HOST, HeaderName, HeaderValue, MAX_FORWARDS, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Uri};
use http_body::Body;
use mesh_shared::{AgentName, Identity, NodeName};

use crate::tls::verify::PeerIdentity;

/// The verified identity of the peer.
pub const PEER_CN: HeaderName = HeaderName::from_static(mesh_shared::local_api::PEER_CN);
/// The peer's certificate in Envoy's form.
pub const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The peer's address.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The host that the peer asked for.
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What the peer spoke: always https.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Which agent a request is for.
pub const MESH_AGENT: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_AGENT);
/// The code of an error that a sidecar or registryd made.
pub const MESH_ERROR: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_ERROR);
/// The agent that calls: proved where `x-mesh-peer-cn` names it as well, else as the calling node says.
pub const MESH_FROM_AGENT: HeaderName = HeaderName::from_static("x-mesh-from-agent");
/// Which node an answer comes from.
pub const MESH_SERVED_BY: HeaderName = HeaderName::from_static("x-mesh-served-by");
/// The session whose requests go to one node.
pub const MESH_SESSION: HeaderName = HeaderName::from_static("x-mesh-session");
/// How the program that called the sidecar before spoke to it; it goes no further than the next sidecar.
const MESH_SCHEME: HeaderName = HeaderName::from_static("x-mesh-scheme");
/// The beginning of the path by which a program named the destination.
pub const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
/// Which node a request is for.
pub const MESH_NODE: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_NODE);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The agent that a request names in [`MESH_AGENT`]; `None` also for what is not the name of any.
pub fn named_agent(headers: &HeaderMap) -> Option<AgentName> {
    headers.get(MESH_AGENT)?.to_str().ok()?.parse().ok()
}

/// What concerns one connection only, apart from what `Connection` names.
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TE,
    UPGRADE,
    TRANSFER_ENCODING,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHORIZATION,
    HTTP2_SETTINGS,
];

/// Removes what concerns one connection only (RFC 9110, section 7.6.1): what `Connection` names, and the usual ones.
/// `TE: trailers` stays.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have one at most: looked for once, and not once for each.
    let mut unwanted: Vec<HeaderName> =
        headers.keys().filter(|name| HOP_BY_HOP.contains(name)).cloned().collect();
    if unwanted.contains(&CONNECTION) {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named = values.flat_map(|value| value.split(',')).map(str::trim);
        // The first is not a header, and the second is in the list.
        let named = named.filter(|name| !matches!(*name, "close" | "keep-alive"));
        unwanted.extend(named.filter_map(|name| name.parse().ok()));
    }
    for name in unwanted.iter().filter(|name| **name != TE) {
        headers.remove(name);
    }
    if unwanted.contains(&TE)
        && headers.get(TE).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers"))
    {
        let trailers = headers
            .get_all(TE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Who wrote the headers of a message, which decides what they may say in the mesh's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Whoever sends a request: a program of this host, or a peer.
    Caller,
    /// The agent behind this sidecar, in an answer; anybody at all, in trailers.
    Agent,
    /// A peer's sidecar, in an answer. What it says of its own errors passes.
    Sidecar,
}

/// Removes the headers that carry identity or say how a message was forwarded (`x-forwarded-*`, `forwarded`,
/// `x-real-ip`), and of `x-mesh-*` what their writer has no right to say.
///
/// Names that a server could take for one of these go too. CGI, WSGI and their like turn every byte of a name that is
/// not a letter or digit into `_` (RFC 3875, section 4.1.18), so all such bytes count as `-`.
pub fn remove_forged(headers: &mut HeaderMap, writer: Writer) {
    // Allocates only if something is found.
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| is_forged(name.as_str().as_bytes(), writer)).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

fn is_forged(name: &[u8], writer: Writer) -> bool {
    match name {
        [b'x', separator, ..] if !separator.is_ascii_alphanumeric() => {
            starts_like(name, b"x-forwarded-")
                || (name.len() == 9 && starts_like(name, b"x-real-ip"))
                || (starts_like(name, b"x-mesh-") && !may_say(writer, name))
        }
        _ => name == b"forwarded",
    }
}

/// Whether this is the beginning of a name, where every byte that is neither letter nor digit counts as `-`.
fn starts_like(name: &[u8], beginning: &[u8]) -> bool {
    let alike = |(a, b): (&u8, &u8)| a == b || (*b == b'-' && !a.is_ascii_alphanumeric());
    name.len() >= beginning.len() && name.iter().zip(beginning).all(alike)
}

/// Whether a header `x-mesh-…` may come from there. Spelled otherwise it may not, since a server could read it in
/// place of the one that is spelled right.
fn may_say(writer: Writer, name: &[u8]) -> bool {
    let reserved: &[&[u8]] = match writer {
        // The node was read by then.
        Writer::Caller => &[
            b"x-mesh-peer-cn",
            b"x-mesh-from-agent",
            b"x-mesh-node",
            b"x-mesh-scheme",
            b"x-mesh-error",
            b"x-mesh-retryable",
            b"x-mesh-served-by",
        ],
        Writer::Sidecar => &[b"x-mesh-peer-cn", b"x-mesh-from-agent", b"x-mesh-served-by"],
        Writer::Agent => return false,
    };
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') && !reserved.contains(&name)
}

/// What has no place in trailers (RFC 9110, section 6.5.1): they come after what it would change.
const NOT_IN_TRAILERS: [HeaderName; 11] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TRAILER,
];

/// Removes from trailers what may not be in the head either, or only there, on requests and answers alike.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    remove_forged(trailers, Writer::Agent);
    for name in NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// Tells the next sidecar how a program of this host named the destination: by plain HTTP, and by the beginning of a path,
/// if it was that, which says both.
pub fn set_way(headers: &mut HeaderMap, prefix: Option<HeaderValue>) {
    match prefix {
        Some(prefix) => headers.insert(FORWARDED_PREFIX, prefix),
        None => headers.insert(MESH_SCHEME, HeaderValue::from_static("http")),
    };
}

/// Replaces whatever the peer said about itself by what its handshake proved. `Host` is as the peer said it, without the
/// mesh's port, at which the agent's callers do not find it.
pub fn set_identity(headers: &mut HeaderMap, peer: &PeerIdentity) {
    let prefix = headers.remove(FORWARDED_PREFIX).filter(is_prefix);
    let agent = calling_agent(headers, peer);
    // A program that called its own sidecar spoke plain HTTP, and that is how links of the agent must lead back.
    let plain = prefix.is_some() || headers.get(MESH_SCHEME).is_some_and(|scheme| scheme == "http");
    let scheme = if plain { "http" } else { "https" };
    remove_forged(headers, Writer::Caller);
    let host = headers.get(HOST).map(without_mesh_port);
    let address = peer.address_header();
    headers.insert(PEER_CN, peer.cn_header());
    if let Some(agent) = agent {
        headers.insert(MESH_FROM_AGENT, agent);
    }
    headers.insert(CLIENT_CERTIFICATE, peer.certificate_header());
    let named = host.as_ref().map(HeaderValue::as_bytes);
    if let Some(forwarded) = forwarded(address.as_bytes(), named, scheme) {
        headers.insert(FORWARDED, forwarded);
    }
    headers.insert(FORWARDED_FOR, address);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(prefix) = prefix {
        headers.insert(FORWARDED_PREFIX, prefix);
    }
    if let Some(host) = host {
        headers.insert(HOST, host.clone());
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The agent that calls: as the certificate says, or as a node says of the agents on it.
fn calling_agent(headers: &HeaderMap, peer: &PeerIdentity) -> Option<HeaderValue> {
    match peer.identity() {
        Identity::Agent(..) => peer.agent_header(),
        Identity::Device(_) => None,
        Identity::Node(_) => {
            let mut said = headers.get_all(MESH_FROM_AGENT).iter();
            let first = said.next()?;
            let is_name = first.to_str().is_ok_and(AgentName::is_valid);
            (is_name && said.next().is_none()).then(|| first.clone())
        }
    }
}

/// Whether this is the beginning of a path that names a node or an agent, and nothing else.
fn is_prefix(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    text.strip_prefix("/nodes/").is_some_and(NodeName::is_valid)
        || text.strip_prefix("/agents/").is_some_and(AgentName::is_valid)
}

/// `ct111.mesh:3000` becomes `ct111.mesh`; any other host stays as it is.
fn without_mesh_port(host: &HeaderValue) -> HeaderValue {
    let bare = host.to_str().map(without_port).unwrap_or_default();
    let is_mesh = NodeName::is_mesh_host(bare) || AgentName::is_mesh_host(bare);
    let bare = is_mesh.then(|| HeaderValue::from_str(bare).ok());
    bare.flatten().unwrap_or_else(|| host.clone())
}

/// A host without the port behind it.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Whether this is gRPC proper, which is HTTP/2 by definition. gRPC-Web and its like go by either version, and have the
/// status in the body.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let media = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media.get(..GRPC.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(GRPC))
        && matches!(media.get(GRPC.len()), None | Some(b'+' | b';' | b' ' | b'\t'))
}

/// The value of `Forwarded` (RFC 7239, section 4) for a request that came by `scheme`. Hosts were checked and cannot end
/// a quoted text.
fn forwarded(address: &[u8], host: Option<&[u8]>, scheme: &str) -> Option<HeaderValue> {
    let host = host.unwrap_or_default();
    let mut value = Vec::with_capacity(40 + address.len() + host.len());
    // An IPv6 address stands in brackets, and these in quotes (section 6).
    let (open, close): (&[u8], &[u8]) =
        if address.contains(&b':') { (b"for=\"[", b"]\"") } else { (b"for=", b"") };
    for part in [open, address, close] {
        value.extend_from_slice(part);
    }
    if !host.is_empty() {
        for part in [b";host=\"", host, b"\""] {
            value.extend_from_slice(part);
        }
    }
    value.extend_from_slice(b";proto=");
    value.extend_from_slice(scheme.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(value)).ok()
}

/// Tells hyper's HTTP/1.1 client of a body whose length is not known. It would leave that of a GET or HEAD out
/// otherwise. In HTTP/2 the header must not be.
pub fn announce_body<B: Body>(request: &mut Request<B>) {
    if request.body().size_hint().exact().is_none() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Says in `Host` what a request says in `:authority` or in an absolute target, which win over `Host`, for the
/// HTTP/1.1 behind it (RFC 9113, section 8.3.1; RFC 9112, section 3.2.2).
pub fn set_host(request: &mut http::request::Parts) {
    let host = request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers.insert(HOST, host);
    }
}

/// Makes one field of the cookies that HTTP/2 may send one by one (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Made of valid values and a separator.
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Puts the parts of a target together; they were all part of valid URIs before.
pub fn absolute(scheme: Scheme, authority: Authority, path: Option<PathAndQuery>) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}

/// Takes scheme and authority off a target, as it is asked of a server (RFC 9112, section 3.2.1).
pub fn to_origin_form(uri: &mut Uri) {
    if uri.scheme().is_some() || uri.authority().is_some() {
        *uri = uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    }
}

/// Spells the path of a target otherwise; its query stays.
pub fn set_path(uri: &mut Uri, path: &'static str) {
    if uri.path() == path {
        return;
    }
    let spelled = match uri.query() {
        Some(query) => format!("{path}?{query}").parse().ok(),
        None => None,
    };
    *uri = Uri::from(spelled.unwrap_or_else(|| PathAndQuery::from_static(path)));
}

/// Whether `Connection` has this option.
pub fn connection_says(headers: &HeaderMap, option: &str) -> bool {
    let mut lines = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.any(|line| line.split(',').any(|each| each.trim_ascii().eq_ignore_ascii_case(option)))
}

/// Whether these headers speak of a change to the WebSocket protocol and to nothing else (RFC 6455, section 4.1).
pub fn name_websocket(headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(UPGRADE).iter();
    let (first, second) = (named.next(), named.next());
    first.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && second.is_none()
        && connection_says(headers, "upgrade")
}

/// Says that the connection is to become a WebSocket, or has become one.
pub fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn grpc_proper_is_told_from_what_looks_like_it() {
        let is = |media: &'static str| is_grpc(&map(&[("content-type", media)]));
        assert!(["application/grpc", "application/grpc+proto", "Application/gRPC; x=y"].into_iter().all(is));
        let others =
            ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "application/g", ""];
        assert!(!others.into_iter().any(is));
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn nothing_of_one_connection_passes() {
        let mut headers = map(&[
            ("connection", "close, x-private, te"),
            ("x-private", "1"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic Zm9v"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn names_that_a_server_could_take_for_ours_do_not_pass() {
        let forged = [
            ("x-mesh-peer-cn", "a"),
            ("x_mesh_peer_cn", "b"),
            ("x.mesh~peer!cn", "c"),
            ("x-mesh+peer-cn", "c"),
            ("x_forwarded_client_cert", "d"),
            ("x_forwarded-for", "e"),
            ("x-forwarded-proto", "f"),
            ("x.forwarded.host", "g"),
            ("x-forwarded-port", "h"),
            ("x-forwarded-prefix", "i"),
            ("x-forwarded-user", "j"),
            ("forwarded", "k"),
            ("x-real-ip", "l"),
            ("x_real_ip", "m"),
            ("x_mesh_agent", "n"),
            ("x.mesh.error", "o"),
            ("x_mesh_session", "p"),
            ("x-mesh-served-by", "q"),
            ("x-mesh-from-agent", "r"),
            ("x_mesh-from_agent", "s"),
        ];
        let kept = [
            ("x-real-ipv6", "kept"),
            ("x-meshed", "kept"),
            ("x_trace_id", "kept"),
            ("xx-mesh-peer-cn", "kept"),
            ("forwarded-by", "kept"),
            ("host", "kept"),
        ];
        for writer in [Writer::Caller, Writer::Agent, Writer::Sidecar] {
            let mut headers = map(&[&forged[..], &kept[..]].concat());
            remove_forged(&mut headers, writer);
            assert_eq!(headers, map(&kept), "{writer:?}");
        }
    }

    #[test]
    fn each_writer_may_say_its_own() {
        let all = [
            ("x-mesh-agent", "grok"),
            ("x-mesh-session", "7"),
            ("x-mesh-node", "ct111"),
            ("x-mesh-error", "peer_busy"),
            ("x-mesh-retryable", "true"),
            ("x-mesh-served-by", "ct111"),
        ];
        for (writer, left) in [
            (Writer::Caller, vec![all[0], all[1]]),
            (Writer::Agent, vec![]),
            (Writer::Sidecar, vec![all[0], all[1], all[2], all[3], all[4]]),
        ] {
            let mut headers = map(&all);
            remove_forged(&mut headers, writer);
            assert_eq!(headers, map(&left), "{writer:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_of_the_message_that_they_end() {
        let mut trailers = map(&[
            ("x-checksum", "7"),
            ("grpc-status", "0"),
            ("content-length", "5"),
            ("host", "x"),
            ("transfer-encoding", "chunked"),
            ("x-mesh-agent", "grok"),
            ("x!forwarded!for", "1.2.3.4"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("x-checksum", "7"), ("grpc-status", "0")]));
    }

    #[test]
    fn forwarded_has_the_standard_form() {
        let made = |address: &str, host: Option<&str>| {
            let value = forwarded(address.as_bytes(), host.map(str::as_bytes), "https").unwrap();
            value.to_str().unwrap().to_owned()
        };
        assert_eq!(
            made("10.0.0.7", Some("ct110.mesh:3000")),
            "for=10.0.0.7;host=\"ct110.mesh:3000\";proto=https"
        );
        assert_eq!(made("2001:db8::7", None), "for=\"[2001:db8::7]\";proto=https");
    }

    #[test]
    fn cookies_become_one_field() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3; d=4")]));
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let asked = |pairs: &[(&'static str, &'static str)]| name_websocket(&map(pairs));
        assert!(asked(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]));
        assert!(asked(&[("upgrade", "WebSocket"), ("connection", "keep-alive"), ("connection", "upgrade")]));
        for pairs in [
            vec![("upgrade", "websocket")],
            vec![("upgrade", "websocket"), ("connection", "keep-alive")],
            vec![("upgrade", "h2c"), ("connection", "upgrade")],
            vec![("upgrade", "websocket, h2c"), ("connection", "upgrade")],
            vec![("upgrade", "websocket/13"), ("connection", "upgrade")],
            vec![("upgrade", "websocket"), ("upgrade", "h2c"), ("connection", "upgrade")],
            vec![("connection", "upgrade")],
        ] {
            assert!(!asked(&pairs), "{pairs:?}");
        }
        let odd = HeaderValue::from_bytes(b"websocket\xa0").unwrap();
        let mut headers = map(&[("connection", "upgrade")]);
        headers.insert(UPGRADE, odd);
        assert!(!name_websocket(&headers));
    }
}
