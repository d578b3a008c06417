//! Keeps web pages from using this node's identity. Pure.
//!
//! A browser on this host can reach loopback, and any page in it can make it send requests there. Browsers mark such
//! requests (Fetch standard, `Origin` and `Sec-Fetch-Site`), programs have no reason to.
//!
//! They mark them less where the sidecar is the browser's proxy. `Sec-Fetch-Site` is for https and loopback only, so
//! an image, a script, a form or a link to `http://ct111.mesh` arrives like an address that a person typed, without
//! any mark except the browser's name. Such a request is always refused.

use http::HeaderMap;
use http::header::{HeaderName, ORIGIN, USER_AGENT};
use mesh_shared::config::Origin;

use crate::error::ProxyError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Every browser's `User-Agent` begins like this, and no page can change it without a preflight.
const BROWSER: &[u8] = b"Mozilla/";

/// Lets pass what no web page can have sent, or only one of an origin that is `allowed`. `Sec-Fetch-Site: none` is a
/// person who typed the address.
///
/// # Errors
/// A request that a page made, or may have made. Fails closed: an unknown value of `Sec-Fetch-Site` is refused.
pub fn check(headers: &HeaderMap, allowed: &[Origin]) -> Result<(), ProxyError> {
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let is = |allowed: &Origin| origin.as_bytes().eq_ignore_ascii_case(allowed.as_str().as_bytes());
        return match origins.next() {
            None if allowed.iter().any(is) => Ok(()),
            _ => Err(ProxyError::BrowserRequest(format!(
                "Origin: {}",
                String::from_utf8_lossy(origin.as_bytes())
            ))),
        };
    }
    let mut typed = false;
    for site in headers.get_all(SEC_FETCH_SITE) {
        if site != "none" {
            let site = String::from_utf8_lossy(site.as_bytes()).into_owned();
            return Err(ProxyError::BrowserRequest(format!("Sec-Fetch-Site: {site}")));
        }
        typed = true;
    }
    let browser = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(BROWSER));
    if browser && !typed {
        return Err(ProxyError::BrowserRequest(
            "its User-Agent is a browser's, and nothing says that a person typed the address; browsers say that only \
             for addresses such as http://127.0.0.1:3001/nodes/<node>/"
                .into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(headers: &[(&'static str, &'static str)]) -> bool {
        let pairs =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        check(&HeaderMap::from_iter(pairs), &["http://ct111.mesh".parse().unwrap()]).is_ok()
    }

    #[test]
    fn pages_are_refused_programs_and_typed_addresses_are_not() {
        const CHROMIUM: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36");
        for headers in [
            vec![],
            vec![("user-agent", "curl/8.0")],
            // Node.js says this of itself.
            vec![("user-agent", "node"), ("sec-fetch-mode", "cors")],
            vec![("sec-fetch-site", "none")],
            vec![CHROMIUM, ("sec-fetch-site", "none")],
            vec![("origin", "http://ct111.mesh")],
            vec![("origin", "HTTP://CT111.mesh")],
        ] {
            assert!(verdict(&headers), "{headers:?}");
        }
        for headers in [
            vec![("origin", "null")],
            vec![("origin", "http://ct111.mesh:80")],
            vec![("origin", "http://ct111.mesh"), ("origin", "http://ct111.mesh")],
            vec![("origin", "")],
            vec![("sec-fetch-site", "cross-site")],
            vec![("sec-fetch-site", "same-site")],
            vec![("sec-fetch-site", "same-origin")],
            vec![("sec-fetch-site", "whatever")],
            vec![("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
            vec![("sec-fetch-site", "none, cross-site")],
            vec![CHROMIUM],
            vec![CHROMIUM, ("upgrade-insecure-requests", "1")],
        ] {
            assert!(!verdict(&headers), "{headers:?}");
        }
    }
}
