//! `/healthz`, `/readyz` and `/metrics` for supervisors on this host.
//!
//! They need no credentials, so a browser on this host must not be led here: neither by a page that asks for this
//! address nor by a name of its own that resolves to it (DNS rebinding).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::uri::Authority;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::error::ProxyError;
use crate::http::body::ResponseBody;
use crate::listener::run_to_end;
use crate::metrics::{CONTENT_TYPE as OPENMETRICS, METRICS};
use crate::outbound::browser_guard;
use crate::pulse::Pulse;
use crate::roster::store::RosterStore;

/// Until a request's header block is complete, counted from the request before: scrapers come every minute or so.
const HEADER_LIMIT: Duration = Duration::from_secs(90);
/// Far more than the supervisors and scrapers of one host need.
const MAX_CONNECTIONS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The admin side of the sidecar.
pub struct Admin {
    /// Without a roster the sidecar is alive but not ready.
    roster: Arc<RosterStore>,
    pulse: Arc<Pulse>,
    inbound: Drain,
    places: Semaphore,
}

impl Admin {
    /// What answers for workers with this pulse and for an inbound side that may drain.
    pub fn new(roster: Arc<RosterStore>, pulse: Arc<Pulse>, inbound: Drain) -> Self {
        Self { roster, pulse, inbound, places: Semaphore::new(MAX_CONNECTIONS) }
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<ResponseBody> {
        let (status, text) = match asked_by_a_program_of_this_host(request) {
            Ok(()) => self.answer(request.uri().path()),
            Err(error) => (StatusCode::FORBIDDEN, format!("{error}\n")),
        };
        let mut response = Response::new(ResponseBody::full(text));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static(match request.uri().path() {
            "/metrics" => OPENMETRICS,
            _ => "text/plain; charset=utf-8",
        });
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        let unwell = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text);
        match path {
            "/healthz" => match self.pulse.stuck() {
                Some(stuck) => unwell(format!("{stuck}\n")),
                None => (StatusCode::OK, "ok\n".into()),
            },
            "/readyz" if self.inbound.has_begun() => unwell("draining\n".into()),
            "/readyz" if self.roster.is_known() => (StatusCode::OK, "ready\n".into()),
            "/readyz" => unwell("no roster yet: registryd was not reached\n".into()),
            "/metrics" => {
                METRICS.set_worker_lag(self.pulse.lags().max().unwrap_or_default());
                (StatusCode::OK, METRICS.render())
            }
            _ => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".into()),
        }
    }
}

#[async_trait]
impl ServerApp for Admin {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        // One too many is closed without a word.
        let _place = self.places.try_acquire().ok()?;
        let service = service_fn(|request| {
            let response = self.respond(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(MAX_HEADER_BYTES);
        let connection = http1.serve_connection(TokioIo::new(stream), service);
        // A scraper that hangs up is nothing to report.
        let _ = run_to_end(connection, http1::Connection::graceful_shutdown, shutdown.clone()).await;
        None
    }
}

/// Lets pass what no web page can have sent: it names this host as itself, and no page asked for it. A program
/// that names no host at all is none either.
fn asked_by_a_program_of_this_host<B>(request: &Request<B>) -> Result<(), ProxyError> {
    browser_guard::check(request.headers(), &[])?;
    let target = request.uri().authority().cloned();
    let lines = request.headers().get_all(HOST).iter();
    let named = lines.map(|line| line.to_str().ok().and_then(|line| line.parse::<Authority>().ok()));
    match named.chain(target.map(Some)).all(|host| host.is_some_and(|host| is_this_host(&host))) {
        true => Ok(()),
        false => Err(ProxyError::BrowserRequest("its Host is not this host's loopback address".into())),
    }
}

fn is_this_host(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_by_a_name_of_its_own_is_answered() {
        let asks = |target: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().uri(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            asked_by_a_program_of_this_host(&request.body(()).unwrap()).is_ok()
        };
        for host in ["localhost:3002", "127.0.0.1:3002", "127.8.0.1", "[::1]:3002", "LocalHost"] {
            assert!(asks("/metrics", &[("host", host)]), "{host}");
        }
        assert!(asks("/metrics", &[]) && asks("http://127.0.0.1:3002/metrics", &[("host", "localhost")]));
        for host in ["evil.example:3002", "192.168.1.1", "localhost.evil.example", "a b", ""] {
            assert!(!asks("/metrics", &[("host", host)]), "{host}");
        }
        assert!(!asks("/metrics", &[("host", "localhost"), ("host", "evil.example")]));
        assert!(!asks("http://evil.example/metrics", &[("host", "localhost")]));
        assert!(!asks("/metrics", &[("host", "localhost"), ("origin", "http://localhost")]));
        assert!(!asks("/metrics", &[("host", "localhost"), ("sec-fetch-site", "cross-site")]));
    }
}
