//! Headers that must not pass, and those that the backend can trust.

use http::HeaderMap;
use http::header::{CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};

use crate::verify::PeerIdentity;

/// The verified identity of the peer.
pub const PEER_CN: HeaderName = HeaderName::from_static(mesh_shared::local_api::PEER_CN);
/// The peer's certificate in Envoy's form.
pub const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The peer's address.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Which agent a request is for.
pub const MESH_AGENT: HeaderName = HeaderName::from_static(mesh_shared::local_api::MESH_AGENT);
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

/// Removes what only a sidecar may say about a peer, whoever said it.
pub fn remove_identity(headers: &mut HeaderMap) {
    headers.remove(PEER_CN);
    headers.remove(CLIENT_CERTIFICATE);
    headers.remove(FORWARDED_FOR);
}

/// Replaces whatever the peer said about itself by what its handshake proved.
pub fn set_identity(headers: &mut HeaderMap, peer: &PeerIdentity) {
    headers.insert(PEER_CN, peer.cn_header());
    headers.insert(CLIENT_CERTIFICATE, peer.certificate_header());
    headers.insert(FORWARDED_FOR, peer.address_header());
}

/// Says in `Host` what an HTTP/2 request says in `:authority`, for the HTTP/1.1 behind it (RFC 9113, section 8.3.1).
pub fn set_host(request: &mut http::request::Parts) {
    if request.headers.contains_key(HOST) {
        return;
    }
    let host = request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers.insert(HOST, host);
    }
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
    fn an_upgrade_needs_both_headers() {
        assert!(wanted_upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(wanted_upgrade(&map(&[("upgrade", "h2c"), ("connection", "upgrade")])).is_none());
        assert!(
            wanted_upgrade(&map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]))
                .is_some()
        );
    }
}
