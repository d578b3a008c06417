//! The link to registryd on its unix socket: the roster comes in, the sidecar's own state goes out, and
//! questions about the registry pass through. Requests between agents never wait for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::config::Config;
use mesh_shared::local_api::{JOIN, ROSTER_WATCH, Roster, SIDECAR, SidecarReport};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::error::ProxyError;
use crate::http::body::{RequestBody, root_cause};
use crate::roster::table::RosterStore;
use crate::upstream::io::early_answer::EarlyAnswer;

/// registryd sends at least an empty line this often; silence for longer means it hangs.
const SILENCE: Duration = Duration::from_secs(15);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// How often registryd hears from the sidecar.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// registryd itself ends a join that arrives too slowly, after 30 s, and says so.
const JOIN_ANSWER: Duration = Duration::from_secs(40);
/// A roster of 10,000 nodes is far smaller.
const MAX_LINE_BYTES: usize = 64 << 20;

/// The way to registryd.
pub struct RegistryLink {
    socket: PathBuf,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl RegistryLink {
    /// The way to the configured socket. Nothing is connected yet.
    pub fn new(config: &Config) -> Self {
        Self { socket: config.registryd.socket.clone() }
    }

    /// Asks registryd what a peer or the local agent asked, on the same path.
    ///
    /// # Errors
    /// registryd is not there.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(HOST, HeaderValue::from_static("registryd"));
        parts.version = Version::HTTP_11;
        let limit = if parts.uri.path() == JOIN { JOIN_ANSWER } else { ANSWER };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse().unwrap_or_default();
        timeout(limit, self.exchange(Request::from_parts(parts, body)))
            .await
            .map_err(|_| self.unavailable(&format!("no answer within {} s", limit.as_secs())))?
            .map_err(|error| self.unavailable(&root_cause(&*error).to_string()))
    }

    fn unavailable(&self, reason: &str) -> ProxyError {
        ProxyError::RegistryUnavailable { socket: self.socket.display().to_string(), reason: reason.into() }
    }

    /// One request on a connection of its own; they are rare, and the socket is local.
    async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Incoming>, BoxError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(EarlyAnswer::new(stream))).await?;
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }

    /// Keeps `roster` at registryd's view for ever; each change arrives as soon as registryd knows it.
    pub async fn follow(self: Arc<Self>, roster: Arc<RosterStore>) {
        let mut away = false;
        let mut retry = FIRST_RETRY;
        let unsaved = Arc::new(Notify::new());
        tokio::spawn(keep_saved(roster.clone(), unsaved.clone()));
        loop {
            let mut received = false;
            let ended = self.follow_once(&roster, &unsaved, &mut received, &mut away).await;
            let reason = ended
                .err()
                .map_or_else(|| "it ended the connection".into(), |error| root_cause(&*error).to_string());
            if !away {
                let view =
                    if roster.is_known() { "going on with the last known roster" } else { "no roster yet" };
                tracing::warn!(target: "Mesh", "registryd is away ({}: {reason}); {view}", self.socket.display());
            }
            roster.unavailable(format!("{}: {reason}", self.socket.display()));
            away = true;
            retry = if received { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
            sleep(retry).await;
        }
    }

    async fn follow_once(
        &self,
        roster: &RosterStore,
        unsaved: &Notify,
        received: &mut bool,
        away: &mut bool,
    ) -> Result<(), BoxError> {
        let request = request(Method::GET, ROSTER_WATCH, Bytes::new())?;
        let response = timeout(ANSWER, self.exchange(request)).await??;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()).into());
        }
        let mut body = response.into_body();
        let mut pending = BytesMut::new();
        while let Some(frame) =
            timeout(SILENCE, body.frame()).await.map_err(|_| "it sends nothing any more")?
        {
            let Ok(data) = frame?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line = pending.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let view: Roster = serde_json::from_slice(&line)?;
                if std::mem::take(away) {
                    tracing::info!(target: "Mesh", "registryd is back");
                }
                *received = true;
                if roster.publish(view) {
                    unsaved.notify_one();
                }
            }
            if pending.len() > MAX_LINE_BYTES {
                return Err("its roster is larger than any mesh".into());
            }
        }
        Ok(())
    }

    /// Tells registryd about this sidecar, for ever. `look` finds out what to say.
    pub async fn report(self: Arc<Self>, look: impl AsyncFn() -> SidecarReport) {
        let mut last = None;
        loop {
            let report = look().await;
            let told = self.report_once(&report).await;
            if let Err(error) = &told {
                // That registryd is away is logged where the roster is followed.
                tracing::debug!(target: "Mesh", "cannot report to registryd: {error}");
            }
            let changed = last.as_ref() != Some(&report);
            last = told.is_ok().then_some(report);
            sleep(if changed || last.is_none() { REPORT_INTERVAL / 5 } else { REPORT_INTERVAL }).await;
        }
    }

    /// Tells registryd once, if it is there.
    pub async fn tell(&self, report: &SidecarReport) {
        // That registryd is away is logged where the roster is followed.
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

fn request(method: Method, path: &'static str, body: Bytes) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::builder()
        .method(method)
        .uri(Uri::from_static(path))
        .header(HOST, "registryd")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
}

/// Saves what is `unsaved`, for ever. A view that cannot be saved is used all the same, and no view waits for the
/// one before to be saved.
async fn keep_saved(roster: Arc<RosterStore>, unsaved: Arc<Notify>) {
    loop {
        unsaved.notified().await;
        let store = roster.clone();
        let saved = tokio::task::spawn_blocking(move || store.save()).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(
                target: "Mesh",
                "cannot save the roster to {}: {error}; it would be missing after a restart without registryd (proxy.state_dir)",
                roster.path().display()
            );
        }
    }
}
