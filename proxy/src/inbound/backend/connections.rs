//! One worker's connections to the agent: HTTP/1.1, used again once an answer has passed.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use mesh_shared::config::Limits;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{sleep_until, timeout};

use crate::http::body::{BoxError, RequestBody};
use crate::http::h1;
use crate::http::idle::Idle;
use crate::io::early_answer::EarlyAnswer;
use crate::metrics::{Direction, METRICS, Side};
use crate::tcp;

/// Shorter than the keep-alive times of common agent servers (uvicorn and Node.js close after 5 s,
/// gunicorn after 2), so that no request is sent on a connection that the server is closing. A new
/// connection on loopback costs next to nothing.
const IDLE: Duration = Duration::from_millis(1500);
const CONNECT: Duration = Duration::from_secs(5);
/// How large the buffer of a connection may become while an answer streams: a read of the system brings as much at a time.
const READ_BUFFER_BYTES: usize = 128 * 1024;
/// Connections that wait for the next request.
pub const MAX_IDLE_CONNECTIONS: usize = 64;

type Sender = http1::SendRequest<RequestBody>;

/// The connections to one address.
pub struct Connections {
    address: SocketAddr,
    http1: http1::Builder,
    idle: Mutex<Idle<Sender>>,
}

/// A connection for one request, of use to others again after its drop, once the answer has passed.
pub struct Lent {
    sender: Option<Sender>,
    from: Arc<Connections>,
    /// Whether it has carried a request before, so that the agent may be closing it.
    pub is_used: bool,
}

impl Connections {
    /// None yet.
    pub fn new(address: SocketAddr, limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        // Both of the head of an answer, and of what waits for an agent that does not read or a peer that does not.
        http1
            .max_buf_size(READ_BUFFER_BYTES.max(limits.max_header_bytes as usize))
            .max_headers(h1::MAX_HEADERS);
        Self { address, http1, idle: Mutex::new(Idle::new(MAX_IDLE_CONNECTIONS)) }
    }

    /// One that waits, or a new one.
    ///
    /// # Errors
    /// The agent does not listen.
    pub async fn lend(self: &Arc<Self>) -> Result<Lent, BoxError> {
        let waiting = self.idle.lock().take(Instant::now(), |sender| !sender.is_closed());
        let is_used = waiting.is_some();
        let sender = match waiting {
            Some(sender) => sender,
            // Rarely needed: boxed, so that each request's future is small.
            None => Box::pin(self.connect()).await?,
        };
        Ok(Lent { sender: Some(sender), from: self.clone(), is_used })
    }

    async fn connect(&self) -> Result<Sender, BoxError> {
        let stream = timeout(CONNECT, TcpStream::connect(self.address)).await??;
        tcp::prepare(&stream)?;
        let (sender, connection) = self.http1.handshake(TokioIo::new(EarlyAnswer::new(stream))).await?;
        let open = METRICS.connection(Direction::Inbound, Side::Upstream);
        tokio::spawn(async move {
            let _open = open;
            // Its request learns itself of an error.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
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
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Result<Request<RequestBody>, BoxError>> {
        let Some(sender) = &mut self.sender else { return Err(Ok(request)) };
        let sent = sender.try_send_request(request).await;
        sent.map_err(|mut error: TrySendError<_>| match error.take_message() {
            Some(request) if self.is_used => Ok(request),
            _ => Err(error.into_error().into()),
        })
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
