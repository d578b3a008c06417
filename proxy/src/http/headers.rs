//! Headers that must not pass, those that the backend can trust, and targets.

use http::header::{
    CONNECTION, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Uri};

use crate::tls::verify::PeerIdentity;

/// The verified identity of the peer.
pub const PEER_CN: HeaderName = HeaderName::from_static(mesh_shared::local_api::PEER_CN);
/// The peer's certificate in Envoy's form.
pub const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The peer's address.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Which agent a request is for.
pub const MESH_AGENT: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_AGENT);
/// The code of an error that a sidecar or registryd made.
pub const MESH_ERROR: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_ERROR);
/// Which node an answer comes from.
pub const MESH_SERVED_BY: HeaderName = HeaderName::from_static("x-mesh-served-by");
/// Which node a request is for.
pub const MESH_NODE: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_NODE);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what concerns one connection only (RFC 9110, section 7.6.1): what `Connection` names, the
/// usual ones, and `Expect`, which the server side has answered by itself. `TE: trailers` stays.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        headers.remove(CONNECTION);
        for name in named {
            if name != TE {
                headers.remove(name);
            }
        }
    }
    for name in [
        UPGRADE,
        TRANSFER_ENCODING,
        EXPECT,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHORIZATION,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
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

const IDENTITY: [HeaderName; 3] = [PEER_CN, CLIENT_CERTIFICATE, FORWARDED_FOR];

/// Removes what only a sidecar may say about a peer, whoever said it, and what a server could take for it: CGI,
/// and WSGI after it, tell `-` and `_` in names not apart (RFC 3875, section 4.1.18).
pub fn remove_identity(headers: &mut HeaderMap) {
    let alike = |name: &HeaderName| {
        let same = |a: u8, b: u8| a == b || (a == b'_' && b == b'-');
        let name = name.as_str().as_bytes();
        IDENTITY
            .iter()
            .map(|guarded| guarded.as_str().as_bytes())
            .any(|guarded| name.len() == guarded.len() && name.iter().zip(guarded).all(|(a, b)| same(*a, *b)))
    };
    while let Some(name) = headers.keys().find(|name| alike(name)).cloned() {
        headers.remove(name);
    }
}

/// Removes from trailers what may not be in the head either, on requests and answers alike.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    remove_identity(trailers);
    trailers.remove(MESH_ERROR);
}

/// Replaces whatever the peer said about itself by what its handshake proved.
pub fn set_identity(headers: &mut HeaderMap, peer: &PeerIdentity) {
    remove_identity(headers);
    headers.insert(PEER_CN, peer.cn_header());
    headers.insert(CLIENT_CERTIFICATE, peer.certificate_header());
    headers.insert(FORWARDED_FOR, peer.address_header());
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

/// The protocol a client wants to change to (RFC 9110, section 7.8), if `Connection` asks for it too.
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")));
    // h2c by upgrade was dropped by RFC 9113, section 3.1; such a request is served as HTTP/1.1.
    (asked && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Asks the next hop for the same change of protocol.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
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
    fn names_that_a_server_could_take_for_an_identity_do_not_pass() {
        let mut headers = map(&[
            ("x-mesh-peer-cn", "a"),
            ("x_mesh_peer_cn", "b"),
            ("x-mesh_peer-cn", "c"),
            ("x_forwarded_client_cert", "d"),
            ("x_forwarded-for", "e"),
            ("x_mesh_peer", "kept"),
            ("x_trace_id", "kept"),
        ]);
        remove_identity(&mut headers);
        assert_eq!(headers, map(&[("x_mesh_peer", "kept"), ("x_trace_id", "kept")]));
    }

    #[test]
    fn cookies_become_one_field() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3; d=4")]));
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert!(wanted_upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(wanted_upgrade(&map(&[("upgrade", "h2c"), ("connection", "upgrade")])).is_none());
        assert!(
            wanted_upgrade(&map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]))
                .is_some()
        );
    }
}
