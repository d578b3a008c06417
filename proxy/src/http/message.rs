//! The first check of every request: it must have exactly one interpretation, the same for this sidecar and for every server
//! behind it. Pure.
//!
//! hyper and h2 refuse much by themselves. This module checks what they accept and another server could interpret differently
//! (RFC 9112, section 11; RFC 9113, section 10.3).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method, Version};

use crate::error::ProxyError;
use crate::http::headers::{MESH_AGENT, MESH_NODE, MESH_SESSION, connection_says};

/// The longest registered one has 17 bytes (`UPDATEREDIRECTREF`).
const MAX_METHOD_BYTES: usize = 32;

/// Headers that name one thing. Of two lines this sidecar could take one and a server the other.
const SINGLE: [HeaderName; 5] = [HOST, CONTENT_LENGTH, MESH_AGENT, MESH_NODE, MESH_SESSION];

/// Lets a request pass that everybody reads in the same way. To be asked before its headers are changed; `has_body`
/// tells whether anything follows them.
///
/// # Errors
/// `BadRequest`, with what is wrong. Fails closed.
pub fn check_request(request: &Parts, has_body: bool) -> Result<(), ProxyError> {
    check(request, has_body).map_err(|wrong| ProxyError::BadRequest(wrong.into()))
}

fn check(request: &Parts, has_body: bool) -> Result<(), Cow<'static, str>> {
    // Many servers do not read it, and take it for the next request (RFC 9110, section 9.3.2).
    if has_body && request.method == Method::HEAD {
        return Err("it is a HEAD request with a body".into());
    }
    // The same of a tunnel's first bytes (section 9.3.6).
    if has_body && request.method == Method::CONNECT {
        return Err("it is a CONNECT request with a body".into());
    }
    if request.method.as_str().len() > MAX_METHOD_BYTES {
        return Err(format!("its method is longer than {MAX_METHOD_BYTES} bytes").into());
    }
    check_repetition(&request.headers)?;
    check_length(&request.headers)?;
    check_target(request)?;
    check_host(request)?;
    Ok(())
}

fn check_repetition(headers: &HeaderMap) -> Result<(), Cow<'static, str>> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    match SINGLE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        Some(name) if *name == HOST => Err("it has more than one Host header".into()),
        Some(name) => Err(format!("it has more than one {name} header").into()),
        None => Ok(()),
    }
}

/// Where the body ends (RFC 9112, section 6.3).
fn check_length(headers: &HeaderMap) -> Result<(), Cow<'static, str>> {
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        let canonical = match length.as_bytes() {
            [b'0'] => true,
            [first, rest @ ..] => matches!(first, b'1'..=b'9') && rest.iter().all(u8::is_ascii_digit),
            [] => false,
        };
        if !canonical {
            return Err("its Content-Length is not a plain number".into());
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("it has a transfer coding other than chunked, which goes no further than one hop".into());
    }
    if headers.contains_key(CONNECTION) {
        for needed in ["host", "content-length"] {
            if connection_says(headers, needed) {
                return Err(format!("its Connection header names {needed}, which every hop needs").into());
            }
        }
        // Rules judge a request by these, and they would be taken out afterwards.
        for judged in [&MESH_AGENT, &MESH_NODE, &MESH_SESSION] {
            if connection_says(headers, judged.as_str()) {
                return Err(format!("its Connection header names {judged}, by which it is judged").into());
            }
        }
    }
    Ok(())
}

/// The form of the target (RFC 9112, section 3.2).
fn check_target(request: &Parts) -> Result<(), Cow<'static, str>> {
    let uri = &request.uri;
    if request.method == Method::CONNECT {
        let port = uri.authority().and_then(|authority| authority.port());
        return match (port, uri.scheme(), uri.path_and_query()) {
            (Some(_), None, None) => Ok(()),
            _ => Err("its target is not a host and a port".into()),
        };
    }
    let path = uri.path();
    if !path.starts_with('/') && (path != "*" || request.method != Method::OPTIONS) {
        return Err("its target is neither a path nor a URL".into());
    }
    match uri.scheme() {
        Some(scheme) if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS => {
            Err("its target is a URL of another scheme than http and https".into())
        }
        _ => Ok(()),
    }
}

/// Whom it is for. The target and `Host` must agree where there are both.
fn check_host(request: &Parts) -> Result<(), Cow<'static, str>> {
    let line = request.headers.get(HOST);
    let target = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let needed = request.version == Version::HTTP_11 || target.is_none();
    let line = match line {
        None if needed => return Err("it has no Host".into()),
        None => None,
        Some(line) => Some(line.as_bytes()),
    };
    if [target, line].into_iter().flatten().any(|host| !is_host(host)) {
        return Err("its host is not a name or an address, with a port if need be".into());
    }
    match (target, line) {
        (Some(target), Some(line)) if !is_same_host(target, line) => {
            Err("its target and its Host header name different hosts".into())
        }
        _ => Ok(()),
    }
}

/// Whether this is `name`, `1.2.3.4` or `[::1]`, with or without a port: no user, no list, no escapes.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = split_port(host);
    let port_is_number =
        port.is_none_or(|port| matches!(port.len(), 1..=5) && port.iter().all(u8::is_ascii_digit));
    let name_is_good = match name {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
        }
        name => !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b)),
    };
    port_is_number && name_is_good
}

fn split_port(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    let name_end = host.iter().rposition(|byte| *byte == b']').unwrap_or(0);
    match host[name_end..].iter().position(|byte| *byte == b':') {
        Some(colon) => (&host[..name_end + colon], Some(&host[name_end + colon + 1..])),
        None => (host, None),
    }
}

/// Clients leave the usual port out.
fn is_same_host(one: &[u8], other: &[u8]) -> bool {
    let usual = |port: &&[u8]| *port != b"80" && *port != b"443";
    let ((one, one_port), (other, other_port)) = (split_port(one), split_port(other));
    one.eq_ignore_ascii_case(other) && one_port.filter(usual) == other_port.filter(usual)
}

/// The path as common servers and routers understand it: escapes undone, empty and `.` segments and parameters
/// (`;…`) left out, `..` resolved, `\` as `/`, in lower case and without `/` at its end. Only to be compared with.
pub fn usual_path(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let mut before = 0;
    let plain = bytes.iter().all(|&byte| {
        let unusual = matches!(byte, b'A'..=b'Z' | b'%' | b'\\' | b';')
            || (before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        !unusual
    });
    if plain && (bytes.len() == 1 || before != b'/') {
        return Cow::Borrowed(path);
    }
    // Some servers stand behind others, and each undoes escapes.
    let mut decoded = decode(bytes);
    for _ in 0..2 {
        decoded = decode(&decoded);
    }
    decoded.make_ascii_lowercase();
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/' || *byte == b'\\') {
        match segment.split(|byte| *byte == b';').next().unwrap_or_default() {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut usual = String::with_capacity(decoded.len() + 1);
    for segment in segments {
        usual.push('/');
        usual.push_str(&String::from_utf8_lossy(segment));
    }
    Cow::Owned(if usual.is_empty() { "/".into() } else { usual })
}

fn decode(escaped: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|value| value as u8);
    let mut decoded = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let mut byte = *first;
        if let (b'%', [high, low, tail @ ..]) = (byte, tail)
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            byte = high << 4 | low;
            rest = tail;
        }
        decoded.push(byte);
    }
    decoded
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn verdict(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut request = Request::builder().version(version).method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0, false).map_err(Into::into)
    }

    const HERE: (&str, &str) = ("host", "ct110.mesh");

    #[test]
    fn ordinary_requests_pass() {
        let (http10, http11, http2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        for (version, method, target, headers) in [
            (http11, "GET", "/", vec![HERE]),
            (http11, "GET", "/a//b/../c?d=e#f", vec![("host", "127.0.0.1:8080")]),
            (http11, "GET", "/", vec![("host", "[::1]:3001")]),
            (http11, "GET", "/", vec![("host", "my_agent")]),
            (http11, "OPTIONS", "*", vec![HERE]),
            (http11, "GET", "http://ct110.mesh/", vec![("host", "CT110.mesh:80")]),
            (http11, "GET", "https://ct110.mesh:3000/", vec![("host", "ct110.mesh:3000")]),
            (http11, "CONNECT", "ct110.mesh:80", vec![("host", "ct110.mesh:80")]),
            (http11, "POST", "/", vec![HERE, ("transfer-encoding", "Chunked")]),
            (http11, "POST", "/", vec![HERE, ("content-length", "0")]),
            (http11, "POST", "/", vec![HERE, ("content-length", "1050"), ("accept", "a"), ("accept", "b")]),
            (http11, "GET", "/", vec![HERE, ("connection", "close, x-private, te")]),
            (http10, "GET", "http://ct110.mesh/", vec![]),
            (http2, "GET", "https://ct110.mesh/", vec![]),
            (http2, "GET", "https://ct110.mesh/", vec![HERE]),
            (http2, "GET", "/", vec![HERE]),
        ] {
            assert_eq!(verdict(version, method, target, &headers), Ok(()), "{method} {target} {headers:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_does_not_pass() {
        let long = "X".repeat(33);
        for (method, target, headers, wrong) in [
            (long.as_str(), "/", vec![HERE], "method"),
            ("GET", "/", vec![], "no Host"),
            ("GET", "http://ct110.mesh/", vec![], "no Host"),
            ("GET", "/", vec![HERE, HERE], "more than one Host"),
            ("GET", "/", vec![("host", "")], "not a name"),
            ("GET", "/", vec![("host", "a,b")], "not a name"),
            ("GET", "/", vec![("host", "a b")], "not a name"),
            ("GET", "/", vec![("host", "user@ct110.mesh")], "not a name"),
            ("GET", "/", vec![("host", "ct110.mesh/x")], "not a name"),
            ("GET", "/", vec![("host", "ct110.mesh:")], "not a name"),
            ("GET", "/", vec![("host", "ct110.mesh:80:80")], "not a name"),
            ("GET", "/", vec![("host", "ct110.mesh:123456")], "not a name"),
            ("GET", "/", vec![("host", "ct110.mesh:+80")], "not a name"),
            ("GET", "/", vec![("host", "[::1")], "not a name"),
            ("GET", "/", vec![("host", "[::1]x")], "not a name"),
            ("GET", "/", vec![("host", "::1")], "not a name"),
            ("GET", "/", vec![("host", "ct%2e.mesh")], "not a name"),
            ("GET", "http://user@ct110.mesh/", vec![HERE], "not a name"),
            ("GET", "http://ct110.mesh/", vec![("host", "ct111.mesh")], "different hosts"),
            ("GET", "http://ct110.mesh:81/", vec![HERE], "different hosts"),
            ("GET", "ftp://ct110.mesh/", vec![HERE], "another scheme"),
            ("GET", "ct110.mesh:80", vec![HERE], "neither a path"),
            ("CONNECT", "ct110.mesh", vec![HERE], "a host and a port"),
            ("CONNECT", "http://ct110.mesh:80/", vec![HERE], "a host and a port"),
            ("CONNECT", "/nodes/ct110", vec![HERE], "a host and a port"),
            ("CONNECT", "user@ct110.mesh:80", vec![HERE], "not a name"),
            ("CONNECT", "ct111.mesh:80", vec![HERE], "different hosts"),
            ("GET", "*", vec![HERE], "neither a path"),
            ("POST", "/", vec![HERE, ("content-length", "05")], "plain number"),
            ("POST", "/", vec![HERE, ("content-length", "")], "plain number"),
            ("POST", "/", vec![HERE, ("content-length", "+5")], "plain number"),
            ("POST", "/", vec![HERE, ("content-length", "5, 5")], "plain number"),
            ("POST", "/", vec![HERE, ("content-length", "5"), ("content-length", "5")], "more than one"),
            ("POST", "/", vec![HERE, ("transfer-encoding", "gzip, chunked")], "transfer coding"),
            ("POST", "/", vec![HERE, ("transfer-encoding", "chunked, chunked")], "transfer coding"),
            (
                "POST",
                "/",
                vec![HERE, ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
                "transfer coding",
            ),
            ("POST", "/", vec![HERE, ("connection", "close, Host")], "names host"),
            ("POST", "/", vec![HERE, ("connection", "content-length")], "names content-length"),
            ("POST", "/", vec![HERE, ("x-mesh-agent", "a"), ("x-mesh-agent", "b")], "more than one"),
        ] {
            let said = verdict(Version::HTTP_11, method, target, &headers);
            assert!(
                said.as_ref().is_err_and(|said| said.contains(wrong)),
                "{method} {target} {headers:?}: {said:?}"
            );
        }
        assert!(verdict(Version::HTTP_2, "GET", "/", &[]).is_err());
        let parts = |method, target| Request::builder().method(method).uri(target).header(HERE.0, HERE.1);
        let parts = |method, target| parts(method, target).body(()).unwrap().into_parts().0;
        for (method, target) in [("HEAD", "/"), ("CONNECT", "ct110.mesh:80")] {
            assert!(
                check(&parts(method, target), true).is_err() && check(&parts(method, target), false).is_ok()
            );
        }
        assert!(check(&parts("GET", "/"), true).is_ok());
        assert!(verdict(Version::HTTP_10, "GET", "/", &[]).is_err());
    }

    #[test]
    fn a_plain_path_is_its_own_usual_spelling() {
        for path in ["/", "/a", "/a/b.c", "/a/b-c/d_e~f", "*"] {
            assert!(matches!(usual_path(path), Cow::Borrowed(same) if same == path), "{path}");
        }
        for (path, usual) in [
            ("/a/", "/a"),
            ("//", "/"),
            ("/a/..", "/"),
            ("/a%2Fb", "/a/b"),
            ("/%zz/%4", "/%zz/%4"),
            ("/a/./b/.c", "/a/b/.c"),
            ("/A;x=1/B", "/a/b"),
            ("/%c3%28", "/\u{fffd}("),
        ] {
            assert_eq!(usual_path(path), usual, "{path}");
        }
    }
}
