//! Who may look: only those who know the token. Other users of this host can reach the port, and so can the web pages that are
//! open in a browser here.

use std::net::SocketAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{COOKIE, HOST};
use http::{HeaderMap, Method};
use mesh_shared::certificate;

const TOKEN_BYTES: usize = 32;
const FOLDER_BYTES: usize = 16;

/// The secrets of one run, and the rules for requests.
#[derive(Debug)]
pub struct Guard {
    address: SocketAddr,
    token: String,
    /// Where the page lies. Cookies do not tell ports apart: a browser sends that of 127.0.0.1 to every program that
    /// listens there, but only for the paths that the cookie is for, so these are not guessable either.
    folder: String,
}

/// What a request may have.
#[derive(Debug, PartialEq, Eq)]
pub enum Access<'a> {
    /// It brings the token in its URL: the browser is to keep it as a cookie and to go to the page.
    Enter,
    /// It has shown the token and asks for this, below the folder.
    Granted(&'a str),
    /// It does not get anything, and is told why.
    Refused(&'static str),
    /// It wants to change something.
    NotReading,
}

const NO_TOKEN: &str = "This is the dashboard of a mesh, for the user who started it.\n\
Open the URL that `meshctl dashboard` has printed; it ends with ?token= and a long word. If the dashboard was started \
again since, it has a new URL, and the old one is no longer valid.\n";
const WRONG_HOST: &str = "The dashboard answers as 127.0.0.1, [::1] or localhost with its port only, so that no web page \
can reach it by a name of its own.\n\
Open the URL that `meshctl dashboard` has printed. Through an SSH tunnel, use the same port at both ends.\n";
const OTHER_PAGE: &str = "Another web page asked for this, which the dashboard does not allow.\n";

impl Guard {
    /// With new secrets, for a server that listens on `address`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(address: SocketAddr) -> Result<Self, rustls::crypto::GetRandomFailed> {
        Ok(Self { address, token: random::<TOKEN_BYTES>()?, folder: random::<FOLDER_BYTES>()? })
    }

    /// What its user opens. Secret.
    pub fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    /// Where the page is.
    pub fn page(&self) -> String {
        format!("/{}/", self.folder)
    }

    /// The cookie that stands for the token from now on.
    pub fn cookie(&self) -> String {
        format!("{}={}; Path={}; HttpOnly; SameSite=Strict", self.cookie_name(), self.token, self.page())
    }

    fn cookie_name(&self) -> String {
        format!("mesh-dashboard-{}", self.address.port())
    }

    /// Decides about a request.
    pub fn judge<'a>(
        &self,
        method: &Method,
        path: &'a str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Access<'a> {
        if !self.is_ours(headers) {
            return Access::Refused(WRONG_HOST);
        }
        if method != Method::GET && method != Method::HEAD {
            return Access::NotReading;
        }
        let below = path.strip_prefix('/').and_then(|rest| rest.split_once('/'));
        let Some((_, below)) = below.filter(|(folder, _)| equal(folder, &self.folder)) else {
            let token = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("token=")));
            return match token {
                Some(token) if path == "/" && equal(token, &self.token) => Access::Enter,
                _ => Access::Refused(NO_TOKEN),
            };
        };
        if !self.has_cookie(headers) {
            return Access::Refused(NO_TOKEN);
        }
        // Only newer browsers say this; the cookie stays away from other sites in the others as well.
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        match site {
            None | Some(b"same-origin" | b"none") => Access::Granted(below),
            Some(_) => Access::Refused(OTHER_PAGE),
        }
    }

    fn is_ours(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Some((name, port)) = host.to_str().ok().and_then(|host| host.rsplit_once(':')) else {
            return false;
        };
        let named = ["127.0.0.1", "[::1]", "localhost"].iter().any(|own| name.eq_ignore_ascii_case(own));
        (named || name == self.address.ip().to_string()) && port == self.address.port().to_string()
    }

    fn has_cookie(&self, headers: &HeaderMap) -> bool {
        let name = self.cookie_name();
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|all| all.split(';'))
            .any(|cookie| {
                cookie
                    .trim()
                    .split_once('=')
                    .is_some_and(|(key, value)| key == name && equal(value, &self.token))
            })
    }
}

/// Compares in a time that does not depend on where they differ.
fn equal(given: &str, secret: &str) -> bool {
    verify_slices_are_equal(given.as_bytes(), secret.as_bytes()).is_ok()
}

fn random<const N: usize>() -> Result<String, rustls::crypto::GetRandomFailed> {
    let mut bytes = [0; N];
    certificate::provider().secure_random.fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_the_token_opens_and_the_cookie_stands_for_it() {
        let guard = Guard::new("127.0.0.1:4000".parse().unwrap()).unwrap();
        let host = headers(&[("host", "127.0.0.1:4000")]);
        let judge = |path: &'static str, query: Option<&str>| guard.judge(&Method::GET, path, query, &host);
        assert_eq!(judge("/", None), Access::Refused(NO_TOKEN));
        assert_eq!(judge("/", Some("token=")), Access::Refused(NO_TOKEN));
        let token = format!("token={}", guard.token);
        assert_eq!(judge("/", Some(&token)), Access::Enter);
        assert_eq!(judge("/", Some(&format!("x=1&{token}"))), Access::Enter);
        assert_eq!(judge("/", Some(&format!("{token}0"))), Access::Refused(NO_TOKEN));
        assert_eq!(judge("/events", Some(&token)), Access::Refused(NO_TOKEN));

        let page = guard.page();
        let events = format!("{page}events");
        let with = |more: &[(&'static str, &str)]| headers(&[&[("host", "localhost:4000")], more].concat());
        let cookie = format!("a=b; mesh-dashboard-4000={}", guard.token);
        let get = |path, headers: &HeaderMap| format!("{:?}", guard.judge(&Method::GET, path, None, headers));
        assert_eq!(get(&page, &with(&[])), format!("{:?}", Access::Refused(NO_TOKEN)));
        assert_eq!(get(&page, &with(&[("cookie", &cookie)])), "Granted(\"\")");
        assert_eq!(
            get(&events, &with(&[("cookie", &cookie), ("sec-fetch-site", "same-origin")])),
            "Granted(\"events\")"
        );
        let other_page = with(&[("cookie", &cookie), ("sec-fetch-site", "same-site")]);
        assert_eq!(get(&events, &other_page), format!("{:?}", Access::Refused(OTHER_PAGE)));
        assert_eq!(get("/events", &with(&[("cookie", &cookie)])), format!("{:?}", Access::Refused(NO_TOKEN)));
        let post = guard.judge(&Method::POST, &events, None, &with(&[("cookie", &cookie)]));
        assert_eq!(post, Access::NotReading);
    }

    #[test]
    fn other_names_for_this_host_are_refused() {
        let guard = Guard::new("[::1]:4000".parse().unwrap()).unwrap();
        let token = format!("token={}", guard.token);
        for (host, ours) in [
            ("[::1]:4000", true),
            ("localhost:4000", true),
            ("LocalHost:4000", true),
            ("localhost:4001", false),
            ("localhost", false),
            ("attacker.example:4000", false),
            ("localhost.attacker.example:4000", false),
            ("", false),
        ] {
            let access = guard.judge(&Method::GET, "/", Some(&token), &headers(&[("host", host)]));
            assert_eq!(access == Access::Enter, ours, "{host}");
        }
        let twice = headers(&[("host", "localhost:4000"), ("host", "attacker.example:4000")]);
        assert_eq!(guard.judge(&Method::GET, "/", Some(&token), &twice), Access::Refused(WRONG_HOST));
        assert_eq!(guard.judge(&Method::GET, "/", Some(&token), &headers(&[])), Access::Refused(WRONG_HOST));
    }
}
