//! The connections to one node: h2 ones, each shared by many requests, or pooled http/1.1 ones with a node that speaks
//! no h2. Requests that wait for the same h2 connection share the one that is being made.

use std::error::Error;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_shared::NodeName;
use mesh_shared::config::{Limits, Timeouts};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::connect::{PeerStream, dial};
use super::io::gathering::Gathering;
use super::peers::Refusals;
use crate::error::{ProxyError, Sent};
use crate::http::body::RequestBody;
use crate::http::h2;
use crate::metrics::{Direction, HandshakeFailure, METRICS};
use crate::roster::table::{CONNECTIONS_PER_NODE, RosterStore, STREAMS_PER_CONNECTION, StreamPlace};
use crate::tls::credentials::Credentials;
use crate::upstream::io::early_answer::EarlyAnswer;

/// For so long, a connection on which the node chose http/1.1 waits for the request that it was made for.
const WAITS: Duration = Duration::from_secs(1);

type PeerIo = TokioIo<EarlyAnswer<PeerStream>>;

/// One worker's connections to one node, made with one set of credentials.
pub struct NodeConnections {
    dialler: Arc<Dialler>,
    shared: [Arc<SharedConnection>; CONNECTIONS_PER_NODE],
    http1: Client<Http1Connector, RequestBody>,
}

/// What a request goes out on.
#[derive(Clone)]
enum Negotiated {
    Http2(http2::SendRequest<RequestBody>),
    /// Whatever connection the pool has.
    Http1,
}

type Attempt = Shared<BoxFuture<'static, Result<Negotiated, ProxyError>>>;

/// A place for one connection that many requests share.
struct SharedConnection(Mutex<Place>);

struct Place {
    /// None yet, one being made, one in use, or what became of it.
    attempt: Option<Attempt>,
    last_wanted: Instant,
}

impl NodeConnections {
    /// Connections to `node`; made when they are needed.
    pub fn new(
        node: NodeName,
        credentials: &Credentials,
        roster: Arc<RosterStore>,
        timeouts: &Timeouts,
        limits: &Limits,
        refusals: Arc<Refusals>,
    ) -> Self {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(h2::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(STREAMS_PER_CONNECTION as u32))
            .max_frame_size(h2::FRAME_BYTES)
            .max_header_list_size(limits.max_header_bytes)
            .keep_alive_while_idle(true)
            .keep_alive_interval(h2::PING_INTERVAL)
            .keep_alive_timeout(h2::PING_TIMEOUT);
        let dialler = Arc::new(Dialler {
            node,
            any: credentials.client.clone(),
            http1_only: credentials.client_http1.clone(),
            http2,
            roster,
            refusals,
            limit: timeouts.handshake,
            idle: timeouts.pool_idle,
            negotiated: Mutex::default(),
        });
        let http1 = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(timeouts.pool_idle)
            .build(Http1Connector(dialler.clone()));
        let none = |_| Place { attempt: None, last_wanted: Instant::now() };
        let shared = std::array::from_fn(none).map(|place| Arc::new(SharedConnection(Mutex::new(place))));
        Self { dialler, shared, http1 }
    }

    /// Sends a request on the connection that its place is on. One that was in use before may have ended meanwhile
    /// without taking the request; then another is made.
    ///
    /// # Errors
    /// Of the dialling, or of HTTP.
    pub async fn send(
        &self,
        place: &StreamPlace,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Box<dyn Error + Send + Sync>> {
        let shared = &self.shared[place.connection()];
        loop {
            let (negotiated, reused) = shared.get(&self.dialler).await?;
            let Negotiated::Http2(mut sender) = negotiated else {
                let answer = self.send_http1(request).await;
                if answer.is_err() {
                    // The next one asks again what the node speaks.
                    shared.0.lock().attempt = None;
                }
                return answer;
            };
            let mut error = match sender.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            request = match error.take_message() {
                Some(request) if reused => request,
                _ => return Err(error.into_error().into()),
            };
        }
    }

    /// Sends a request as http/1.1 whatever else the node speaks, as protocol upgrades need it.
    ///
    /// # Errors
    /// Of the dialling, or of HTTP.
    pub async fn send_http1(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Box<dyn Error + Send + Sync>> {
        Ok(self.http1.request(request).await?)
    }
}

impl SharedConnection {
    /// The connection, and whether it was there before.
    async fn get(self: &Arc<Self>, dialler: &Arc<Dialler>) -> Result<(Negotiated, bool), ProxyError> {
        let (attempt, begun_before) = self.attempt(dialler);
        if let Some(Ok(negotiated)) = attempt.peek() {
            return Ok((negotiated.clone(), true));
        }
        match attempt.await {
            // Begun while the node was away, perhaps; one of now may succeed.
            Err(ProxyError::PeerTimeout { .. } | ProxyError::PeerUnreachable { .. }) if begun_before => {
                Ok((self.attempt(dialler).0.await?, false))
            }
            outcome => Ok((outcome?, false)),
        }
    }

    /// The attempt that made the connection in use, or that is making one, and whether it was begun before. It goes on
    /// when the request that wanted it ends.
    fn attempt(self: &Arc<Self>, dialler: &Arc<Dialler>) -> (Attempt, bool) {
        let place = &mut *self.0.lock();
        let unwanted = std::mem::replace(&mut place.last_wanted, Instant::now()).elapsed();
        if let Some(attempt) = &place.attempt {
            let usable = match attempt.peek() {
                None => true,
                Some(Ok(Negotiated::Http2(sender))) => !sender.is_closed(),
                Some(Ok(Negotiated::Http1)) => unwanted < dialler.idle,
                Some(Err(_)) => false,
            };
            if usable {
                return (attempt.clone(), true);
            }
        }
        let attempt = dialler.clone().negotiate(Arc::downgrade(self)).boxed().shared();
        tokio::spawn(attempt.clone());
        (place.attempt.insert(attempt).clone(), false)
    }

    /// Gives the connection up if no request wanted it for `idle`, else says when that may be.
    fn give_up(&self, idle: Duration) -> Option<Instant> {
        let place = &mut *self.0.lock();
        let end = place.last_wanted + idle;
        if end > Instant::now() {
            return Some(end);
        }
        place.attempt = None;
        None
    }
}

/// All that dialling one node needs.
struct Dialler {
    node: NodeName,
    any: Arc<ClientConfig>,
    http1_only: Arc<ClientConfig>,
    http2: http2::Builder<TokioExecutor>,
    roster: Arc<RosterStore>,
    refusals: Arc<Refusals>,
    limit: Duration,
    idle: Duration,
    /// Those on which the node just chose http/1.1, for the pool.
    negotiated: Mutex<Vec<(Instant, PeerIo)>>,
}

impl Dialler {
    async fn dial(&self, tls: &Arc<ClientConfig>) -> Result<PeerStream, ProxyError> {
        let route =
            self.roster.route(&self.node).ok_or_else(|| ProxyError::UnknownNode(self.node.clone()))?;
        let dialled = dial(&route, tls.clone(), self.limit, self.refusals.clone()).await;
        match &dialled {
            Ok(stream) => METRICS.handshake_done(Direction::Outbound, stream.resumption()),
            Err(error) => METRICS.handshake_failed(Direction::Outbound, handshake_failure(error)),
        }
        dialled
    }

    /// Connects, and lets the node choose the protocol.
    async fn negotiate(self: Arc<Self>, place: Weak<SharedConnection>) -> Result<Negotiated, ProxyError> {
        let started = Instant::now();
        let stream = self.dial(&self.any).await?;
        let speaks_h2 = stream.speaks_h2();
        let stream = EarlyAnswer::new(stream);
        if !speaks_h2 {
            self.negotiated.lock().push((Instant::now(), TokioIo::new(stream)));
            tokio::spawn(async move {
                tokio::time::sleep(WAITS).await;
                self.negotiated.lock().retain(|(made, _)| made.elapsed() < WAITS);
            });
            return Ok(Negotiated::Http1);
        }
        let handshake = self.http2.handshake(TokioIo::new(Gathering::new(stream)));
        // Only sends, but a peer need not take it.
        let outcome = timeout(self.limit, handshake).await.map_err(|_| ProxyError::PeerFailed {
            node: self.node.clone(),
            reason: "it takes no data".into(),
            sent: Sent::Nothing,
        })?;
        let (sender, connection) =
            outcome.map_err(|error| self.refusals.or_failed(&self.node, started, &error))?;
        tokio::spawn(keep(connection, place, self.idle));
        Ok(Negotiated::Http2(sender))
    }
}

/// What a failed dial counts as.
fn handshake_failure(error: &ProxyError) -> HandshakeFailure {
    match error {
        ProxyError::PeerIdentityMismatch { .. } => HandshakeFailure::WrongName,
        ProxyError::PeerUntrusted { .. } => HandshakeFailure::BadCertificate,
        ProxyError::PeerRefusedUs { .. } => HandshakeFailure::RefusedByPeer,
        ProxyError::PeerTimeout { .. } => HandshakeFailure::Timeout,
        ProxyError::PeerUnreachable { .. } => HandshakeFailure::Unreachable,
        _ => HandshakeFailure::Other,
    }
}

/// Drives an h2 connection to its end. Once no request wants it any more, it ends with the last one that it carries.
async fn keep(
    connection: impl Future<Output = hyper::Result<()>>,
    place: Weak<SharedConnection>,
    idle: Duration,
) {
    let mut connection = pin!(connection);
    // Its requests learn themselves of an error.
    while let Some(end) = place.upgrade().and_then(|place| place.give_up(idle)) {
        tokio::select! {
            _ = &mut connection => return,
            () = tokio::time::sleep_until(end.into()) => {}
        }
    }
    let _ = connection.await;
}

/// Makes the pool's connections.
#[derive(Clone)]
struct Http1Connector(Arc<Dialler>);

impl tower_service::Service<Uri> for Http1Connector {
    type Response = PeerIo;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<PeerIo, ProxyError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialler = self.0.clone();
        Box::pin(async move {
            let negotiated = dialler.negotiated.lock().pop();
            match negotiated {
                Some((_, io)) => Ok(io),
                None => Ok(TokioIo::new(EarlyAnswer::new(dialler.dial(&dialler.http1_only).await?))),
            }
        })
    }
}
