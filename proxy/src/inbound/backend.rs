//! The local agent's server: plain HTTP/1.1 on loopback, over connections that are used again, and no more requests at
//! once than it is to get.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_shared::config::{self, Limits};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, root_cause};
use crate::http::headers::absolute;
use crate::inbound::admission::Peer;
use crate::inbound::slots::{Entered, Slots};
use crate::metrics::{Held, Limit, METRICS};
use crate::tcp;
use crate::upstream::io::early_answer::EarlyAnswer;

/// Shorter than the keep-alive times of common agent servers (uvicorn and Node.js close after 5 s,
/// gunicorn after 2), so that no request is sent on a connection that the server is closing. A new
/// connection on loopback costs next to nothing.
const IDLE: Duration = Duration::from_millis(1500);
const CONNECT: Duration = Duration::from_secs(5);
/// How large the buffer of a connection may become while an answer streams: a read of the system brings as much at a time.
const READ_BUFFER_BYTES: usize = 128 * 1024;
/// Connections that wait for the next request.
pub const MAX_IDLE_CONNECTIONS: usize = 64;

/// What the agent is given at once, by all workers together.
pub struct AgentSlots {
    requests: Mutex<Slots<oneshot::Sender<()>>>,
    /// Event streams and upgraded connections, of which nobody waits for one.
    streams: Mutex<Slots<()>>,
    limits: config::Backend,
}

impl AgentSlots {
    /// As many as configured.
    pub fn new(limits: &config::Backend) -> Self {
        Self {
            requests: Mutex::new(Slots::new(limits.max_requests, limits.max_queue)),
            streams: Mutex::new(Slots::new(limits.max_event_streams, 0)),
            limits: limits.clone(),
        }
    }

    /// A slot for a request of `peer`, as soon as there is one for it.
    async fn enter(self: &Arc<Self>, peer: &Peer) -> Result<Slot, ProxyError> {
        let mut slot = Slot { slots: self.clone(), caller: peer.id(), kind: Kind::None, counted: None };
        let mut granted = None;
        let entered = self.requests.lock().enter(slot.caller, || {
            let (grant, receiver) = oneshot::channel();
            granted = Some(receiver);
            grant
        });
        match entered {
            Entered::Taken => slot.becomes(Kind::Request),
            Entered::Waits(ticket) => slot.becomes(Kind::Waiting(ticket)),
            Entered::Refused => METRICS.refused(Limit::BackendQueue),
        }
        let waited = match (slot.kind, granted) {
            (Kind::Request, _) => return Ok(slot),
            (Kind::Waiting(_), Some(granted)) => {
                if let Ok(Ok(())) = timeout(self.limits.queue, granted).await {
                    slot.becomes(Kind::Request);
                    return Ok(slot);
                }
                METRICS.refused(Limit::BackendRequests);
                self.limits.queue
            }
            _ => Duration::ZERO,
        };
        Err(ProxyError::AgentBusy {
            most: self.limits.max_requests,
            waited_ms: waited.as_millis(),
            key: "proxy.backend.max_requests",
        })
    }

    fn leave(&self, caller: u64) {
        let mut requests = self.requests.lock();
        requests.leave(caller);
        while let Some(grant) = requests.grant() {
            // Whoever gave up meanwhile gives it back itself.
            let _ = grant.send(());
        }
    }
}

/// A slot at the agent, or the place of a request that waits for one, until it is dropped.
pub struct Slot {
    slots: Arc<AgentSlots>,
    caller: u64,
    kind: Kind,
    counted: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Stream,
    Waiting(u64),
    None,
}

impl Slot {
    fn becomes(&mut self, kind: Kind) {
        let limit = match kind {
            Kind::Request => Some(Limit::BackendRequests),
            Kind::Stream => Some(Limit::BackendEventStreams),
            Kind::Waiting(_) => Some(Limit::BackendQueue),
            Kind::None => None,
        };
        (self.kind, self.counted) = (kind, limit.map(|limit| METRICS.slot(limit)));
    }

    /// Moves to the streams, which take no slots of requests.
    fn becomes_stream(&mut self) -> Result<(), ProxyError> {
        if !self.slots.streams.lock().enter_now(self.caller) {
            METRICS.refused(Limit::BackendEventStreams);
            return Err(ProxyError::AgentBusy {
                most: self.slots.limits.max_event_streams,
                waited_ms: 0,
                key: "proxy.backend.max_event_streams",
            });
        }
        self.becomes(Kind::Stream);
        self.slots.leave(self.caller);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.kind {
            Kind::Request => self.slots.leave(self.caller),
            Kind::Stream => self.slots.streams.lock().leave(self.caller),
            Kind::Waiting(ticket) => {
                let waited = self.slots.requests.lock().give_up(self.caller, ticket);
                if !waited {
                    self.slots.leave(self.caller);
                }
            }
            Kind::None => {}
        }
    }
}

/// A client for the one backend.
pub struct Backend {
    client: Client<Connector, RequestBody>,
    address: String,
    authority: Authority,
    slots: Arc<AgentSlots>,
}

impl Backend {
    /// A client for the server that is configured, which gets no more at once than `slots` allow. Nothing is connected
    /// yet.
    pub fn new(backend: &config::Backend, limits: &Limits, slots: Arc<AgentSlots>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            // Both of the head of an answer, and of what waits for an agent that does not read or a peer that does not.
            .http1_max_buf_size(READ_BUFFER_BYTES.max(limits.max_header_bytes as usize))
            .build(Connector(backend.address.socket_addr()));
        // Only names the pool; the connector knows where to.
        let authority = Authority::from_static("backend");
        Self { client, address: backend.address.to_string(), authority, slots }
    }

    /// Sends a request of `peer` whose `Host` and headers are as the backend should see them, once there is a slot for
    /// it. The slot is to be kept until the answer has passed.
    ///
    /// # Errors
    /// The backend has enough to do, does not listen, or ended the connection before it answered.
    pub async fn send(
        &self,
        peer: &Peer,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Slot), ProxyError> {
        let mut slot = self.slots.enter(peer).await?;
        request.body().sent(true);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(Scheme::HTTP, self.authority.clone(), path);
        *request.version_mut() = Version::HTTP_11;
        let only_reads = request.method() == Method::GET && request.body().is_end_stream();
        let response = self.client.request(request).await.map_err(|error| {
            let reason = root_cause(&error).to_string();
            match error.is_connect() {
                true => ProxyError::BackendUnreachable { address: self.address.clone(), reason },
                false => self.failed(reason),
            }
        })?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched || (only_reads && is_event_stream(&response)) {
            slot.becomes_stream()?;
        }
        Ok((response, slot))
    }

    /// The error for a backend that took the request and did not answer as it should.
    pub fn failed(&self, reason: impl Into<String>) -> ProxyError {
        ProxyError::BackendFailed { address: self.address.clone(), reason: reason.into() }
    }
}

fn is_event_stream<B>(response: &Response<B>) -> bool {
    let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.and_then(|value| value.split(';').next());
    media.is_some_and(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Connects to the one address, whatever a URI says.
#[derive(Clone)]
struct Connector(SocketAddr);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<EarlyAnswer<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move {
            let stream = timeout(CONNECT, TcpStream::connect(address)).await??;
            tcp::prepare(&stream)?;
            Ok(TokioIo::new(EarlyAnswer::new(stream)))
        })
    }
}
