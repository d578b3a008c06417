//! HTTP to the collector: one connection at a time, and the same request again until it was answered.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mesh_shared::certificate::{MaterialError, provider, read_certificates};
use mesh_shared::config::{Collector, Otlp};
use mesh_shared::root_cause;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::recorder::dropped;

/// The first and the longest pause before a request is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a collector cannot be spoken to at all.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub(crate) enum ClientError {
    #[error("telemetry.otlp.headers_file: cannot read {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("telemetry.otlp.headers_file: line {line} of {} is not a header such as \"Authorization: Bearer …\"", path.display())]
    Header { path: PathBuf, line: usize },
    #[error("telemetry.otlp.ca_path: {0}")]
    Ca(#[from] MaterialError),
    #[error("telemetry.otlp.ca_path: {} holds no certificate that can be used", .0.display())]
    NoCertificate(PathBuf),
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("telemetry.otlp: its files could not be read")]
    Unread,
}

/// Sends requests to one collector. A request that the collector did not answer, or cannot take now, is sent again; what
/// is lost meanwhile is what does not fit into the queue of spans.
pub(crate) struct Client {
    collector: Collector,
    host: HeaderValue,
    /// Not shown to anybody.
    headers: HeaderMap,
    tls: Option<TlsConnector>,
    timeout: Duration,
    /// One that can be used again.
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
    /// Whether it was said that the collector does not answer.
    away: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.collector.traces_url())
    }
}

impl Client {
    /// Reads the files that it needs; blocks.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(crate) fn new(otlp: &Otlp) -> Result<Self, ClientError> {
        let url = otlp.endpoint.traces_url().parse::<Uri>().unwrap_or_default();
        let host = url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let ca_path = otlp.ca_path.as_deref().filter(|_| otlp.endpoint.has_tls());
        Ok(Self {
            collector: otlp.endpoint.clone(),
            host: host.unwrap_or_else(|| HeaderValue::from_static("collector")),
            headers: otlp.headers_file.as_deref().map(read_headers).transpose()?.unwrap_or_default(),
            tls: ca_path.map(connector).transpose()?,
            timeout: otlp.timeout,
            connection: Mutex::default(),
            away: AtomicBool::new(false),
        })
    }

    /// Sends a request once.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, HttpError> {
        let mut connection = self.connection.lock().await;
        let mut sender = match connection.take() {
            Some(sender) if sender.is_ready() => sender,
            _ => self.connect().await?,
        };
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        *connection = Some(sender);
        Ok(Response::from_parts(head, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        let stream = TcpStream::connect((self.collector.host(), self.collector.port())).await?;
        match &self.tls {
            None => handshake(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(self.collector.host().to_owned())?;
                handshake(tls.connect(name, stream).await.map_err(with_remedy)?).await
            }
        }
    }

    /// Says once that the collector does not take spans, and why.
    fn is_away(&self, why: &str) {
        if !self.away.swap(true, Ordering::Relaxed) {
            let url = self.collector.traces_url();
            tracing::warn!(
                target: "Telemetry",
                "{url} takes no traces: {why}; they wait, and those for which there is no room are dropped"
            );
        }
    }

    fn is_back(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            let url = self.collector.traces_url();
            tracing::info!(
                target: "Telemetry",
                "{url} takes traces again; {} spans were dropped since the start",
                dropped()
            );
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    /// Returns once the collector took the request, or refused it for good.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
        parts.headers.insert(HOST, self.host.clone());
        parts.headers.insert(USER_AGENT, HeaderValue::from_static("mesh"));
        for (name, value) in &self.headers {
            parts.headers.insert(name.clone(), value.clone());
        }
        let mut pause = PAUSE.0;
        loop {
            let request = Request::from_parts(parts.clone(), Full::new(body.clone()));
            let asked_for = match timeout(self.timeout, self.send(request)).await {
                Ok(Ok(answer)) if is_for_later(answer.status()) => {
                    self.is_away(answer.status().as_str());
                    retry_after(answer.headers())
                }
                Ok(Ok(answer)) => {
                    match answer.status().is_success() {
                        true => self.is_back(),
                        false => self.is_away(&format!(
                            "it answered {}; what it refuses is dropped",
                            answer.status().as_str()
                        )),
                    }
                    return Ok(answer);
                }
                Ok(Err(error)) => {
                    self.is_away(&root_cause(&*error).to_string());
                    None
                }
                Err(_) => {
                    self.is_away(&format!("it does not answer within {} ms", self.timeout.as_millis()));
                    None
                }
            };
            sleep(asked_for.unwrap_or(pause).min(PAUSE.1)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, HttpError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong with it shows at the request.
    tokio::spawn(connection);
    Ok(sender)
}

/// A certificate that is not trusted, with the key that says which one is.
fn with_remedy(error: io::Error) -> HttpError {
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            format!("{error}; telemetry.otlp.ca_path has to hold the CA of its certificate, which has to be for the host in telemetry.otlp.endpoint").into()
        }
        _ => error.into(),
    }
}

/// What the collector can take later (OTLP/HTTP, "Retryable Response Codes").
fn is_for_later(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// `Name: value`, one a line; empty lines and those that begin with `#` say nothing.
fn read_headers(path: &Path) -> Result<HeaderMap, ClientError> {
    let unreadable =
        |error: io::Error| ClientError::Unreadable { path: path.into(), reason: error.to_string() };
    let mut headers = HeaderMap::new();
    for (index, line) in fs::read(path).map_err(unreadable)?.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let header = line.iter().position(|byte| *byte == b':').and_then(|at| {
            let name = HeaderName::from_bytes(line[..at].trim_ascii()).ok()?;
            let mut value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let (name, value) =
            header.ok_or_else(|| ClientError::Header { path: path.into(), line: index + 1 })?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn connector(ca_path: &Path) -> Result<TlsConnector, ClientError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read_certificates("CA of the collector", ca_path)?);
    if roots.is_empty() {
        return Err(ClientError::NoCertificate(ca_path.into()));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
