//! A collector that takes OTLP over HTTP, so that a test sees which spans were sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_shared::certificate::provider;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use prost::Message;
use rustls::ServerConfig;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::ca::Issued;
use crate::web::{self, Body, BoxError};
use crate::{eventually, loopback};

/// A span as it was received.
#[derive(Debug, Clone)]
pub struct Span {
    /// What sent it.
    pub resource: BTreeMap<String, String>,
    /// Its trace, in hexadecimal digits.
    pub trace_id: String,
    /// Its own id, in hexadecimal digits.
    pub id: String,
    /// The id of its parent; empty where it is the first of the trace.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// 1: internal, 2: server, 3: client.
    pub kind: i32,
    /// What it says.
    pub attributes: BTreeMap<String, String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// A running collector.
pub struct Collector {
    address: SocketAddr,
    tls: bool,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    spans: Mutex<Vec<Span>>,
    headers: Mutex<HeaderMap>,
    /// The bodies as they came.
    bytes: Mutex<Vec<u8>>,
    /// What it answers; 0: 200.
    status: Mutex<u16>,
    /// Handshakes that failed.
    failed: AtomicUsize,
}

impl Collector {
    /// Listens on `address`.
    pub async fn start(address: SocketAddr) -> Self {
        Self::serve(address, None).await
    }

    /// Listens on `address` with TLS, and presents this certificate.
    pub async fn with_tls(address: SocketAddr, identity: &Issued) -> Self {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain(), identity.key())
            .unwrap();
        Self::serve(address, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(address: SocketAddr, acceptor: Option<TlsAcceptor>) -> Self {
        let tls = acceptor.is_some();
        let seen: Arc<Seen> = Arc::default();
        let listener = loopback::listen(address).await;
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            // Aborts its tasks when it is dropped.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (seen, acceptor) = (shared.clone(), acceptor.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| take(request, seen.clone()));
                    let http1 = http1::Builder::new();
                    let Some(acceptor) = acceptor else {
                        let _ = http1.serve_connection(TokioIo::new(stream), service).await;
                        return;
                    };
                    match acceptor.accept(stream).await {
                        Ok(stream) => drop(http1.serve_connection(TokioIo::new(stream), service).await),
                        Err(_) => drop(seen.failed.fetch_add(1, Ordering::Relaxed)),
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, tls, seen, task }
    }

    /// Where it listens, as a configuration names it.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// How many have refused its certificate.
    pub fn refused(&self) -> usize {
        self.seen.failed.load(Ordering::Relaxed)
    }

    /// What it answers from now on.
    pub fn answers(&self, status: u16) {
        *self.seen.status.lock().unwrap() = status;
    }

    /// What it has taken so far.
    pub fn spans(&self) -> Vec<Span> {
        self.seen.spans.lock().unwrap().clone()
    }

    /// The headers of the last request.
    pub fn headers(&self) -> HeaderMap {
        self.seen.headers.lock().unwrap().clone()
    }

    /// Whether this text was in anything that came.
    pub fn saw(&self, text: &str) -> bool {
        self.seen.bytes.lock().unwrap().windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// Waits for a span that is as `wanted`.
    pub async fn span(&self, what: &str, wanted: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.spans().into_iter().find(&wanted)).await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Body>, BoxError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let status = *seen.status.lock().unwrap();
    *seen.headers.lock().unwrap() = head.headers;
    if status != 0 {
        return Ok(Response::builder().status(status).body(web::empty())?);
    }
    assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
    let export = ExportTraceServiceRequest::decode(&body[..])?;
    seen.bytes.lock().unwrap().extend_from_slice(&body);
    let mut spans = seen.spans.lock().unwrap();
    for of_resource in export.resource_spans {
        let resource = texts(&of_resource.resource.unwrap_or_default().attributes);
        for of_scope in of_resource.scope_spans {
            spans.extend(of_scope.spans.into_iter().map(|sent| received(sent, resource.clone())));
        }
    }
    Ok(Response::new(web::empty()))
}

fn received(sent: Sent, resource: BTreeMap<String, String>) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let status = sent.status.unwrap_or_default();
    Span {
        resource,
        trace_id: hex(&sent.trace_id),
        id: hex(&sent.span_id),
        parent: hex(&sent.parent_span_id),
        name: sent.name,
        kind: sent.kind,
        attributes: texts(&sent.attributes),
        // STATUS_CODE_ERROR
        error: (status.code == 2).then_some(status.message),
        took_ns: sent.end_time_unix_nano.saturating_sub(sent.start_time_unix_nano),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|each| (each.key.clone(), text(&each.value))).collect()
}
