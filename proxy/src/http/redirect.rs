//! Where an answer sends its reader (`Location`, `Content-Location`): to a place that the caller can reach, in the way in
//! which it reached this one. Pure.
//!
//! An agent knows itself by its own address, or by what it was called; its callers know it as something else. So what
//! leads to the agent itself becomes a path (RFC 9110, section 10.2.2), which the caller's own sidecar puts behind the
//! beginning by which the caller named the agent.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue};

const PLACES: [HeaderName; 2] = [LOCATION, CONTENT_LOCATION];

/// Takes the origin off places that are the agent's own; `is_own` knows its authorities, of which it may have several.
pub fn strip_origin(headers: &mut HeaderMap, is_own: impl Fn(&str) -> bool) {
    for name in PLACES {
        let Some(place) = headers.get(&name).and_then(|place| place.to_str().ok()) else { continue };
        let Some((authority, rest)) = split_origin(place) else { continue };
        if !is_own(authority) {
            continue;
        }
        let path = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        // A part of a valid value.
        if let Ok(path) = HeaderValue::try_from(path) {
            headers.insert(name, path);
        }
    }
}

/// Puts `prefix` before places that are paths and do not begin with it already: some agents know of it.
pub fn add_prefix(headers: &mut HeaderMap, prefix: &HeaderValue) {
    let Ok(prefix) = prefix.to_str() else { return };
    for name in PLACES {
        let Some(place) = headers.get(&name).and_then(|place| place.to_str().ok()) else { continue };
        let is_path = place.starts_with('/') && !place.starts_with("//");
        let known = place
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        if !is_path || known {
            continue;
        }
        // Made of valid values.
        if let Ok(place) = HeaderValue::try_from(format!("{prefix}{place}")) {
            headers.insert(name, place);
        }
    }
}

/// The authority of an absolute `http:` or `https:` URL, or of one without a scheme, and what follows it.
fn split_origin(place: &str) -> Option<(&str, &str)> {
    let rest = match place.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            rest
        }
        Some(_) => return None,
        None => place.strip_prefix("//")?,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(location: &str, change: impl Fn(&mut HeaderMap)) -> String {
        let mut headers = HeaderMap::new();
        for name in PLACES {
            headers.insert(name, location.parse().unwrap());
        }
        change(&mut headers);
        assert_eq!(headers[LOCATION], headers[CONTENT_LOCATION]);
        headers[LOCATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_agents_own_origin_is_taken_off() {
        for (location, expected) in [
            ("http://127.0.0.1:8080/a?b#c", "/a?b#c"),
            ("https://127.0.0.1:8080", "/"),
            ("HTTP://127.0.0.1:8080?a", "/?a"),
            ("//127.0.0.1:8080/a", "/a"),
            ("/a?next=http://127.0.0.1:8080/", "/a?next=http://127.0.0.1:8080/"),
            ("http://example.org/a", "http://example.org/a"),
            ("http://127.0.0.1:8080.example.org/", "http://127.0.0.1:8080.example.org/"),
            ("http://x@127.0.0.1:8080/", "http://x@127.0.0.1:8080/"),
            ("ftp://127.0.0.1:8080/", "ftp://127.0.0.1:8080/"),
            ("a/b", "a/b"),
        ] {
            let strip = |headers: &mut HeaderMap| strip_origin(headers, |own| own == "127.0.0.1:8080");
            assert_eq!(places(location, strip), expected);
        }
    }

    #[test]
    fn paths_lead_through_the_beginning_that_the_caller_used() {
        for (location, expected) in [
            ("/a?b", "/agents/grok/a?b"),
            ("/", "/agents/grok/"),
            ("/agents/grok/a", "/agents/grok/a"),
            ("/agents/grok", "/agents/grok"),
            ("/agents/grokker", "/agents/grok/agents/grokker"),
            ("a/b", "a/b"),
            ("?a", "?a"),
            ("//example.org/", "//example.org/"),
            ("http://example.org/", "http://example.org/"),
        ] {
            let prefix = HeaderValue::from_static("/agents/grok");
            assert_eq!(places(location, |headers| add_prefix(headers, &prefix)), expected);
        }
    }
}
