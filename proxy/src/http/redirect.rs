//! Where an answer sends its reader (`Location`, `Content-Location`): to a place that the caller can reach, in the way in
//! which it reached this one. Pure.
//!
//! An agent knows itself by its own address, or by what it was called; its callers know it as something else. So what
//! leads to the agent itself becomes a path (RFC 9110, section 10.2.2), which the caller's own sidecar puts behind the
//! beginning by which the caller named the agent.

use std::borrow::Cow;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue};

const PLACES: [HeaderName; 2] = [LOCATION, CONTENT_LOCATION];

/// Makes paths of places that are the agent's own; `is_own` knows its authorities, of which it may have several. Then puts
/// `prefix`, if there is one, before those that do not begin with it already: some agents know of it.
pub fn lead_back(headers: &mut HeaderMap, is_own: impl Fn(&str) -> bool, prefix: Option<&HeaderValue>) {
    let prefix = prefix.and_then(|prefix| prefix.to_str().ok()).unwrap_or_default();
    for name in PLACES {
        let Some(place) = headers.get(&name).and_then(|place| place.to_str().ok()) else { continue };
        let path = match split_origin(place) {
            Some((authority, _)) if !is_own(authority) => continue,
            Some((_, rest)) if rest.starts_with('/') => Cow::Borrowed(rest),
            Some((_, rest)) => Cow::Owned(format!("/{rest}")),
            None => Cow::Borrowed(place),
        };
        let knows = path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        let prefix = if path.starts_with('/') && !knows { prefix } else { "" };
        if prefix.is_empty() && path == place {
            continue;
        }
        // Made of valid values.
        if let Ok(place) = HeaderValue::try_from(format!("{prefix}{path}")) {
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
            let strip = |headers: &mut HeaderMap| lead_back(headers, |own| own == "127.0.0.1:8080", None);
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
            ("http://ct111.mesh/a", "/agents/grok/a"),
            ("http://ct111.mesh", "/agents/grok/"),
            ("http://ct111.mesh/agents/grok/a", "/agents/grok/a"),
        ] {
            let prefix = HeaderValue::from_static("/agents/grok");
            let add = |headers: &mut HeaderMap| lead_back(headers, |own| own == "ct111.mesh", Some(&prefix));
            assert_eq!(places(location, add), expected);
        }
    }
}
