//! `/healthz`, `/readyz` and `/metrics` for supervisors on this host.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;

use crate::http::body::ResponseBody;
use crate::listener::run_to_end;
use crate::metrics::METRICS;
use crate::roster::store::RosterStore;

/// The admin side of the sidecar.
pub struct Admin {
    /// Without a roster the sidecar is alive but not ready.
    pub roster: Arc<RosterStore>,
}

impl Admin {
    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/healthz" => (StatusCode::OK, "ok\n".into()),
            "/readyz" if self.roster.is_known() => (StatusCode::OK, "ready\n".into()),
            "/readyz" => {
                (StatusCode::SERVICE_UNAVAILABLE, "no roster yet: registryd was not reached\n".into())
            }
            "/metrics" => (StatusCode::OK, METRICS.render()),
            _ => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".into()),
        }
    }
}

#[async_trait]
impl ServerApp for Admin {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let service = service_fn(|request: Request<Incoming>| {
            let (status, text) = self.answer(request.uri().path());
            let mut response = Response::new(ResponseBody::full(text));
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut http1 = http1::Builder::new();
        let connection = http1.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        // A scraper that hangs up is nothing to report.
        let _ = run_to_end(connection, http1::Connection::graceful_shutdown, shutdown.clone()).await;
        None
    }
}
