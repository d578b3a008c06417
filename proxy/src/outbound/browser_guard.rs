//! Keeps web pages from using this node's identity. Pure.
//!
//! A browser on this host can reach loopback, and any page in it can make it send requests there. Browsers
//! mark such requests (Fetch standard, `Origin` and `Sec-Fetch-Site`), programs have no reason to.

use http::HeaderMap;
use http::header::{HeaderName, ORIGIN};

use crate::error::ProxyError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets pass what no web page can have sent. `Sec-Fetch-Site: none` is a person who typed the address.
///
/// # Errors
/// A request that a page made. Fails closed: an unknown value of `Sec-Fetch-Site` is refused.
pub fn check(headers: &HeaderMap) -> Result<(), ProxyError> {
    if headers.contains_key(ORIGIN) {
        return Err(ProxyError::BrowserRequest("it has an Origin header".into()));
    }
    match headers.get(SEC_FETCH_SITE) {
        None => Ok(()),
        Some(site) if site == "none" => Ok(()),
        Some(site) => Err(ProxyError::BrowserRequest(format!(
            "Sec-Fetch-Site: {}",
            String::from_utf8_lossy(site.as_bytes())
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_refused_programs_and_typed_addresses_are_not() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        assert!(check(&HeaderMap::new()).is_ok());
        assert!(check(&with("sec-fetch-site", "none")).is_ok());
        assert!(check(&with("origin", "null")).is_err());
        for site in ["cross-site", "same-site", "same-origin", "whatever"] {
            assert!(check(&with("sec-fetch-site", site)).is_err(), "{site}");
        }
    }
}
