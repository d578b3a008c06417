//! Plain HTTP requests, each on a connection of its own unless a test keeps one.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::within;

/// Why a body or exchange broke.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub type Body = BoxBody<Bytes, BoxError>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body of known length.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed()
}

/// The sending end of a [`channel`] body. Dropped, it ends the body.
pub type BodySender = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// A body of unknown length that a test sends piece by piece.
pub fn channel() -> (BodySender, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, ChannelBody(receiver).boxed())
}

/// One piece for a [`channel`] body.
pub fn piece(content: impl Into<Bytes>) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(content.into()))
}

struct ChannelBody(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>);

impl hyper::body::Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(context)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        Ok(Self { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        crate::process::text(&self.body)
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Checks that a sidecar or registryd made this error: status, `x-mesh-error`, problem document, a
    /// sentence. Returns the sentence.
    pub fn problem(&self, status: u16, code: &str) -> String {
        let shown =
            || format!("expected {status} {code}, got {} {:?} {}", self.status, self.headers, self.text());
        assert_eq!(self.status.as_u16(), status, "{}", shown());
        assert_eq!(self.header("x-mesh-error"), Some(code), "{}", shown());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", shown());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{}", shown());
        assert_eq!(problem["status"], status, "{}", shown());
        assert!(problem["title"].as_str().is_some_and(|title| title.len() > 5), "{}", shown());
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.len() > 15, "no helpful sentence: {}", shown());
        // Clients of model providers read nothing but this.
        assert_eq!(problem["error"]["message"], detail, "{}", shown());
        assert_eq!(problem["error"]["code"], code, "{}", shown());
        let kind = match status {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "mesh_error",
        };
        assert_eq!(problem["error"]["type"], kind, "{}", shown());
        detail.into()
    }
}

/// A GET request with these headers.
pub fn get_with(target: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = request(Method::GET, target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(empty()).unwrap()
}

/// A request to complete with a body.
pub fn request(method: Method, target: &str) -> request::Builder {
    Request::builder().method(method).uri(target)
}

/// A connection on which HTTP/1.1 requests are sent one after the other.
pub struct Connection(http1::SendRequest<Body>);

impl Connection {
    /// Speaks HTTP/1.1 on a stream.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let handshake = http1::Builder::new().max_headers(1_000).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(sender)
    }

    /// Sends a request; the answer's body is still to be read.
    pub async fn open(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        self.0.ready().await?;
        if !request.headers().contains_key("host") {
            let host = request.uri().authority().map_or("localhost", |authority| authority.as_str());
            let host = host.parse().unwrap();
            request.headers_mut().insert("host", host);
        }
        self.0.send_request(request).await
    }

    /// Sends a request and reads the answer.
    pub async fn send(&mut self, request: Request<Body>) -> Answer {
        let what = format!("answer to {} {}", request.method(), request.uri());
        within(&what, async {
            let response = self.open(request).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            Answer::read(response).await.unwrap_or_else(|error| panic!("body of {what}: {error:?}"))
        })
        .await
    }
}

/// Connects and sends a request; the answer's body is still to be read.
pub async fn open(addr: SocketAddr, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
    let stream = within("connect", TcpStream::connect(addr)).await.unwrap_or_else(|e| panic!("{addr}: {e}"));
    within("head of the answer", async { Connection::over(stream).await.open(request).await }).await
}

/// Connects, sends a request and reads the answer.
pub async fn send(addr: SocketAddr, request: Request<Body>) -> Answer {
    let stream = within("connect", TcpStream::connect(addr)).await.unwrap_or_else(|e| panic!("{addr}: {e}"));
    Connection::over(stream).await.send(request).await
}

/// GET with `Host: localhost`.
pub async fn get(addr: SocketAddr, target: &str) -> Answer {
    send(addr, request(Method::GET, target).body(empty()).unwrap()).await
}

/// POST of a JSON document.
pub async fn post(addr: SocketAddr, target: &str, json: &Value) -> Answer {
    let request = request(Method::POST, target).header("content-type", "application/json");
    send(addr, request.body(full(json.to_string())).unwrap()).await
}

/// A request on a unix socket.
pub async fn on_socket(socket: &Path, request: Request<Body>) -> Option<Answer> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let response = Connection::over(stream).await.open(request).await.ok()?;
    Answer::read(response).await.ok()
}

/// HTTP/2 on a stream (with prior knowledge on plain ones).
pub async fn h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> http2::SendRequest<Body> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The head of a message, and nothing of what is behind it; `None` where the connection ends first.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin + ?Sized)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(crate::process::text(&head))
}

/// Writes bytes as they are and reads until the server closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    raw_on(TcpStream::connect(addr).await.unwrap(), bytes).await
}

/// As [`raw`], on a connection that is made already.
pub async fn raw_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = within("end of the raw answer", stream.read_to_end(&mut answer)).await;
    crate::process::text(&answer)
}

/// The next data of a body, not empty; `None` at its end.
pub async fn next_data(body: &mut Incoming) -> Option<Bytes> {
    loop {
        let frame = within("next piece of a body", body.frame()).await?;
        let frame = frame.unwrap_or_else(|error| panic!("body broke: {error:?}"));
        // HTTP/2 may end a body with an empty piece.
        if let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) {
            return Some(data);
        }
    }
}

/// Reads until `expected` came in as many pieces as it may have.
pub async fn expect_data(body: &mut Incoming, expected: &str) {
    let mut got = Vec::new();
    while got.len() < expected.len() {
        assert!(!body.is_end_stream(), "ended after {:?}", crate::process::text(&got));
        match next_data(body).await {
            Some(data) => got.extend_from_slice(&data),
            None => break,
        }
    }
    assert_eq!(crate::process::text(&got), expected);
}
