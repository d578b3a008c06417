//! The way to registryd on its unix socket: questions about the registry pass through, and the sidecar tells it about
//! itself. Requests between agents never wait for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use mesh_shared::config::Config;
use mesh_shared::local_api::{JOIN, SIDECAR, SidecarReport};
use mesh_shared::root_cause;
use tokio::time::{sleep, timeout};

use crate::error::{BoxError, ProxyError};
use crate::http::body::RequestBody;
use crate::http::incoming;
use crate::local_socket;

/// How often registryd hears from the sidecar.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long registryd may take to answer.
pub const ANSWER: Duration = Duration::from_secs(10);
/// registryd itself ends a join that arrives too slowly, after 30 s, and says so.
const JOIN_ANSWER: Duration = Duration::from_secs(40);

/// The way to registryd.
pub struct RegistryLink {
    socket: PathBuf,
}

impl RegistryLink {
    /// The way to the configured socket. Nothing is connected yet.
    pub fn new(config: &Config) -> Self {
        Self { socket: config.registryd.socket.clone() }
    }

    /// Asks registryd what a peer or the local agent asked, on the same path.
    ///
    /// # Errors
    /// registryd is not there.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<incoming::Incoming>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        body.sent(true);
        body.interim().go_on();
        let limit = if parts.uri.path() == JOIN { JOIN_ANSWER } else { ANSWER };
        local_socket::redirect(&mut parts, "registryd");
        timeout(limit, self.exchange(Request::from_parts(parts, body)))
            .await
            .map_err(|_| self.unavailable(&format!("no answer within {} s", limit.as_secs())))?
            .map_err(|error| self.unavailable(&root_cause(&*error).to_string()))
            .map(incoming::parsed)
    }

    fn unavailable(&self, reason: &str) -> ProxyError {
        ProxyError::RegistryUnavailable { socket: self.socket.display().to_string(), reason: reason.into() }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// One request.
    ///
    /// # Errors
    /// registryd is not there, or breaks off.
    pub async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Incoming>, BoxError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        local_socket::exchange(&self.socket, request).await
    }

    /// Tells registryd about this sidecar, for ever. `look` finds out what to say.
    pub async fn report(self: Arc<Self>, look: impl AsyncFn() -> SidecarReport) {
        let mut last = None;
        loop {
            let report = look().await;
            let told = self.report_once(&report).await;
            if let Err(error) = &told {
                // That registryd cannot be reached is logged where the roster is followed.
                tracing::debug!(target: "Mesh", "cannot report to registryd: {error}");
            }
            let changed = last.as_ref() != Some(&report);
            last = told.is_ok().then_some(report);
            sleep(if changed || last.is_none() { REPORT_INTERVAL / 5 } else { REPORT_INTERVAL }).await;
        }
    }

    /// Tells registryd once, if it is there.
    pub async fn tell(&self, report: &SidecarReport) {
        // That registryd cannot be reached is logged where the roster is followed.
        let _ = self.report_once(report).await;
    }

    async fn report_once(&self, report: &SidecarReport) -> Result<(), BoxError> {
        let request = request(Method::PUT, SIDECAR, serde_json::to_vec(report)?.into())?;
        let response = timeout(ANSWER, self.exchange(request)).await??;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(format!("it answered {}", response.status()).into()),
        }
    }
}

/// A request of this sidecar.
///
/// # Errors
/// None with a valid path.
pub fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "registryd")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
}
