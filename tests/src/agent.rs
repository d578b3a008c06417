//! The server behind a node: an agent as tests need it, whose streams a test holds in its hands.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_shared::local_api::CRL;
use mesh_shared::message::{MessageRequest, MessageResponse};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinHandle;

use crate::web::{self, Body, BodySender, BoxError};
use crate::{loopback, within};

/// The head of a request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
}

impl Recorded {
    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    }
}

/// What an example agent answers:
/// - `POST /api/message`: a `MessageResponse` that repeats the message
/// - `/echo`: the body, streamed, with trailers
/// - `/headers`: the request's headers as JSON
/// - `/status/<code>`: that status without a body, with an `x-mesh-error` that only sidecars may send
/// - `/wide`: an answer with 40,000 bytes of headers
/// - `/many/<count>`: an answer with so many headers
/// - `/stream`: a body that the test sends ([`Example::stream`])
/// - `/upload`: takes a body whose pieces the test sees ([`Example::upload`]), answers at its end
/// - `/hang`: nothing, until the client goes ([`Example::gone`])
/// - `/break`: half an answer
/// - `/moved?<place>`: 307 with that place as `Location` and `Content-Location`
/// - `/close`: 200, and the end of an HTTP/1.1 connection
/// - `/keep-alive/<seconds>`: 200 with a `Keep-Alive` of that time
/// - `/deaf`: nothing, and the request's body is not read
/// - `/large`: 4 MiB
/// - `/trailers`: the body back, with `grpc-status: 0` and `x-mesh-error: forged` behind it
/// - `/session/<id>`: 200 with that `mcp-session-id`
/// - an `Upgrade` request elsewhere: 101, then every byte in upper case
/// - `/api/mesh/crl`: 404, as nodes without a sidecar do; these requests of sidecars themselves are counted by themselves
/// - anything else: 200 with `method target`
pub struct Example {
    name: String,
    requests: Mutex<Vec<Recorded>>,
    trailers: Mutex<Vec<HeaderMap>>,
    connections: AtomicUsize,
    asked_for_lists: AtomicUsize,
    streams: Handed<BodySender>,
    uploads: Handed<Option<Bytes>>,
    gone: Handed<()>,
}

struct Handed<T> {
    give: mpsc::UnboundedSender<T>,
    take: AsyncMutex<mpsc::UnboundedReceiver<T>>,
}

impl<T> Handed<T> {
    fn new() -> Self {
        let (give, take) = mpsc::unbounded_channel();
        Self { give, take: AsyncMutex::new(take) }
    }

    fn give(&self, value: T) {
        // The receiver lives as long as the sender.
        let _ = self.give.send(value);
    }

    async fn take(&self, what: &str) -> T {
        within(what, async { self.take.lock().await.recv().await.unwrap() }).await
    }
}

impl Example {
    /// An agent of this name.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            requests: Mutex::default(),
            trailers: Mutex::default(),
            connections: AtomicUsize::new(0),
            asked_for_lists: AtomicUsize::new(0),
            streams: Handed::new(),
            uploads: Handed::new(),
            gone: Handed::new(),
        })
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.requests.lock().unwrap().clone()
    }

    /// What came behind the bodies of requests for `/trailers`.
    pub fn trailers(&self) -> Vec<HeaderMap> {
        self.trailers.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Recorded {
        self.requests().pop().expect("no request came")
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How often a sidecar asked for revocation lists, or sent some.
    pub fn asked_for_lists(&self) -> usize {
        self.asked_for_lists.load(Ordering::SeqCst)
    }

    /// The body of the next answer to `/stream`.
    pub async fn stream(&self) -> BodySender {
        self.streams.take("a request for /stream").await
    }

    /// The next piece of a body sent to `/upload`; `None` at its end.
    pub async fn upload(&self) -> Option<Bytes> {
        self.uploads.take("a piece of an upload").await
    }

    /// Waits until the client of a `/hang` went away.
    pub async fn gone(&self) {
        self.gone.take("the client of /hang to go away").await;
    }

    /// Counts a connection.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    /// Answers a request.
    pub async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let target = request.uri().path_and_query().map_or("/".into(), ToString::to_string);
        if target == CRL {
            self.asked_for_lists.fetch_add(1, Ordering::SeqCst);
            return Ok(Response::builder().status(404).body(web::empty())?);
        }
        self.requests.lock().unwrap().push(Recorded {
            method: request.method().clone(),
            target: target.clone(),
            headers: request.headers().clone(),
        });
        let path = request.uri().path().to_owned();
        if request.headers().contains_key("upgrade") && !path.starts_with("/status/") {
            return Ok(upgrade(&mut request));
        }
        match path.as_str() {
            "/api/message" => self.message(request).await,
            "/echo" => {
                let kind = request.headers().get("content-type").cloned();
                let mut response = Response::new(request.into_body().map_err(Into::into).boxed());
                kind.map(|kind| response.headers_mut().insert("content-type", kind));
                Ok(response)
            }
            "/headers" => {
                let text = |value: &HeaderValue| Value::from(String::from_utf8_lossy(value.as_bytes()));
                let headers: Map<String, Value> =
                    request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                Ok(Response::new(web::full(Value::from(headers).to_string())))
            }
            "/stream" => {
                let (sender, body) = web::channel();
                self.streams.give(sender);
                Ok(Response::builder().header("content-type", "text/event-stream").body(body)?)
            }
            "/upload" => {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    if let Ok(data) = frame?.into_data() {
                        self.uploads.give(Some(data));
                    }
                }
                self.uploads.give(None);
                Ok(Response::new(web::full("uploaded")))
            }
            "/hang" => {
                struct TellOnDrop(Arc<Example>);
                impl Drop for TellOnDrop {
                    fn drop(&mut self) {
                        self.0.gone.give(());
                    }
                }
                let _tell = TellOnDrop(self);
                std::future::pending().await
            }
            "/deaf" => {
                // Its body is neither read nor given up.
                let _request = request;
                std::future::pending().await
            }
            "/large" => Ok(Response::new(web::full(vec![b'x'; 4 << 20]))),
            "/wide" => {
                let mut response = Response::builder();
                for i in 0..40 {
                    response = response.header(format!("x-wide-{i}"), "w".repeat(1000));
                }
                Ok(response.body(web::full("wide"))?)
            }
            "/moved" => {
                let place = request.uri().query().unwrap_or_default();
                let response = Response::builder().status(307).header("location", place);
                Ok(response.header("content-location", place).body(web::empty())?)
            }
            "/close" => Ok(Response::builder().header("connection", "close").body(web::full("closed"))?),
            "/trailers" => {
                let content = request.headers().get("content-type").cloned();
                let received = request.into_body().collect().await?;
                self.trailers.lock().unwrap().extend(received.trailers().cloned());
                let (sender, body) = web::channel();
                let _ = sender.send(web::piece(received.to_bytes()));
                let trailers = HeaderMap::from_iter([
                    (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0")),
                    (HeaderName::from_static("x-mesh-error"), HeaderValue::from_static("forged")),
                ]);
                let _ = sender.send(Ok(Frame::trailers(trailers)));
                // HTTP/1.1 writes only the trailers that it announced.
                let response = Response::builder().header("trailer", "grpc-status, x-mesh-error");
                Ok(response
                    .header("content-type", content.unwrap_or(HeaderValue::from_static("text/plain")))
                    .body(body)?)
            }
            "/break" => {
                let (sender, body) = web::channel();
                let _ = sender.send(web::piece("half"));
                let _ = sender.send(Err("broken on purpose".into()));
                Ok(Response::builder().header("content-length", "1000").body(body)?)
            }
            _ if path.starts_with("/keep-alive/") => Ok(Response::builder()
                .header("keep-alive", format!("timeout={}, max=100", path.trim_start_matches("/keep-alive/")))
                .body(web::empty())?),
            _ if path.starts_with("/many/") => {
                let mut response = Response::builder();
                for i in 0..path.trim_start_matches("/many/").parse()? {
                    response = response.header(format!("x-many-{i}"), "m");
                }
                Ok(response.body(web::full("many"))?)
            }
            _ if path.starts_with("/session/") => Ok(Response::builder()
                .header("mcp-session-id", path.trim_start_matches("/session/"))
                .body(web::empty())?),
            _ => match path.strip_prefix("/status/") {
                Some(code) => {
                    let response = Response::builder().status(code).header("x-agent", &self.name);
                    Ok(response.header("x-mesh-error", "forged").body(web::empty())?)
                }
                None => Ok(Response::builder()
                    .header("x-agent", &self.name)
                    .body(web::full(format!("{} {target}", request.method())))?),
            },
        }
    }

    async fn message(&self, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let body = request.into_body().collect().await?.to_bytes();
        let task: MessageRequest = serde_json::from_slice(&body)?;
        let answer = MessageResponse {
            response: format!("{} heard: {}", self.name, task.message),
            agent: self.name.clone(),
            duration_ms: 1,
        };
        let json = serde_json::to_vec(&answer)?;
        Ok(Response::builder().header("content-type", "application/json").body(web::full(json))?)
    }
}

/// Answers 101 and sends every byte back in upper case.
fn upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut *request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            let answer = buffer[..length].to_ascii_uppercase();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(web::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in ["upgrade", "sec-websocket-protocol"] {
        if let Some(value) = request.headers().get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert("sec-websocket-accept", HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    response
}

/// An [`Example`] that listens with plain HTTP/1.1. It closes all connections when it goes.
pub struct Agent {
    /// What it answers and saw.
    pub example: Arc<Example>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Listens on `addr`.
    pub async fn start(addr: SocketAddr, name: &str) -> Self {
        let example = Example::new(name);
        let listener = loopback::listen(addr).await;
        let task = tokio::spawn(accept(listener, example.clone()));
        Self { example, task }
    }

    /// Ends it: afterwards its address is free and its connections are closed.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

async fn accept(listener: TcpListener, example: Arc<Example>) {
    // Aborts its tasks when it is dropped.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        example.connected();
        let example = example.clone();
        connections.spawn(async move {
            let service = service_fn(|request| example.clone().answer(request));
            let connection =
                http1::Builder::new().max_headers(1_000).serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
