//! One worker's HTTP/1.1 connections to a server, used again once an answer has passed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::config::Limits;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::sleep_until;

use crate::error::BoxError;
use crate::http::body::RequestBody;
use crate::http::h1;
use crate::http::headers::announce_body;
use crate::http::idle::Idle;
use crate::http::interim;
use crate::http::replay::Replay;
use crate::inbound::backend::dial::Dialer;
use crate::io::early_answer::EarlyAnswer;
use crate::io::first_bytes::FirstBytes;
use crate::metrics::{Direction, METRICS, Side};

/// Shorter than the keep-alive times of common agent servers (uvicorn and Node.js close after 5 s,
/// gunicorn after 2), so that no request is sent on a connection that the server is closing. A new
/// connection on loopback costs next to nothing.
const IDLE: Duration = Duration::from_millis(1500);
/// How large the buffer of a connection may become while an answer streams: a read of the system brings as much at a time.
const READ_BUFFER_BYTES: usize = 128 * 1024;
/// Connections that wait for the next request.
pub const MAX_IDLE_CONNECTIONS: usize = 64;

/// The body of a request on an HTTP/1.1 connection to an agent: sent once, and gone then; or kept, where it may turn out
/// that the server speaks another protocol.
pub type AgentBody = Either<RequestBody, Replay>;

type Sender = http1::SendRequest<AgentBody>;

/// The connections to one address.
pub struct Connections {
    dialer: Arc<Dialer>,
    http1: http1::Builder,
    idle: Mutex<Idle<Sender>>,
}

/// A connection for one request, of use to others again after its drop, once the answer has passed.
pub struct Lent {
    sender: Option<Sender>,
    from: Arc<Connections>,
    /// Set when the server turns out to speak HTTP/2, on a new connection where that is looked for.
    speaks_http2: Option<Arc<AtomicBool>>,
}

/// A request that got no answer.
pub struct Unanswered {
    /// Why.
    pub error: BoxError,
    /// The request, if none of it was sent.
    pub untouched: Option<Request<AgentBody>>,
}

impl Connections {
    /// None yet.
    pub fn new(dialer: Arc<Dialer>, limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        // Both of the head of an answer, and of what waits for an agent that does not read or a peer that does not.
        http1
            .max_buf_size(READ_BUFFER_BYTES.max(limits.max_header_bytes as usize))
            .max_headers(h1::MAX_HEADERS);
        Self { dialer, http1, idle: Mutex::new(Idle::new(MAX_IDLE_CONNECTIONS)) }
    }

    /// One that has carried a request before, so that the agent may be closing it.
    pub fn waiting(self: &Arc<Self>) -> Option<Lent> {
        let sender = self.idle.lock().take(Instant::now(), |sender| !sender.is_closed())?;
        Some(Lent { sender: Some(sender), from: self.clone(), speaks_http2: None })
    }

    /// A new one. With `looks`, it is noticed where the server speaks HTTP/2 instead.
    ///
    /// # Errors
    /// The agent does not listen.
    pub async fn connect(self: &Arc<Self>, looks: bool) -> Result<Lent, BoxError> {
        let stream = self.dialer.dial().await?;
        let (stream, speaks_http2) = match looks {
            true => {
                let (stream, speaks_http2) = FirstBytes::expect(stream, false);
                (stream, Some(speaks_http2))
            }
            false => (FirstBytes::any(stream), None),
        };
        let (sender, connection) = self.http1.handshake(TokioIo::new(EarlyAnswer::new(stream))).await?;
        let open = METRICS.connection(Direction::Inbound, Side::Upstream);
        tokio::spawn(async move {
            let _open = open;
            // Its request learns itself of an error.
            let _ = connection.with_upgrades().await;
        });
        Ok(Lent { sender: Some(sender), from: self.clone(), speaks_http2 })
    }

    fn put(self: &Arc<Self>, sender: Sender) {
        if self.idle.lock().put(sender, Instant::now() + IDLE) {
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }
}

/// Closes what nobody used in time; ends when there is nothing left.
async fn reap(connections: Weak<Connections>) {
    let next = || connections.upgrade()?.idle.lock().reap(Instant::now(), |sender| !sender.is_closed());
    while let Some(next) = next() {
        sleep_until(next.into()).await;
    }
}

impl Lent {
    /// Sends a request in origin form.
    ///
    /// # Errors
    /// The connection failed; the request comes back if it had not begun.
    pub async fn send(&mut self, mut request: Request<AgentBody>) -> Result<Response<Incoming>, Unanswered> {
        let Some(sender) = &mut self.sender else {
            return Err(Unanswered { error: "the connection is gone".into(), untouched: Some(request) });
        };
        announce_body(&mut request);
        let interim = match request.body() {
            Either::Left(body) => body.interim(),
            Either::Right(body) => body.interim(),
        };
        interim::hear(&mut request, interim);
        sender.try_send_request(request).await.map_err(|mut error| {
            let untouched = error.take_message();
            Unanswered { error: error.into_error().into(), untouched }
        })
    }

    /// Whether the server turned out to speak HTTP/2, so that it took nothing of what it was sent.
    pub fn speaks_http2(&self) -> bool {
        self.speaks_http2.as_ref().is_some_and(|speaks| speaks.load(Ordering::Relaxed))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut sender) = self.sender.take().filter(|sender| !sender.is_closed()) else { return };
        if sender.is_ready() {
            return self.from.put(sender);
        }
        // The agent may still be reading what it has answered already.
        if let Ok(runtime) = Handle::try_current() {
            let from = self.from.clone();
            runtime.spawn(async move {
                if sender.ready().await.is_ok() {
                    from.put(sender);
                }
            });
        }
    }
}
