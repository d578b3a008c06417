//! The connections of one thread to one node: h2 ones, each shared by as many requests as the peer allows, or http/1.1
//! ones with a node that speaks no h2. They are made when requests need them, and belong to no request.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::config::{Limits, Timeouts};
use mesh_shared::{AgentName, NodeName, root_cause};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{sleep_until, timeout};

use crate::error::{ProxyError, Sent};
use crate::http::h2::client::{self, Unsettled};
use crate::http::h2::shared::{CONNECTIONS, DIALS, Dial, Dialled, STREAMS, Shared, StreamSlot, Taken};
use crate::http::idle::Idle;
use crate::http::replay::Replay;
use crate::http::{h1, h2};
use crate::io::early_answer::EarlyAnswer;
use crate::io::link::Link;
use crate::metrics::{Direction, HandshakeFailure, Limit, METRICS, Side};
use crate::roster::store::RosterStore;
use crate::tls::credentials::CredentialStore;
use crate::upstream::connect::{PeerStream, Protocols, dial, resumption, speaks_h2};
use crate::upstream::endpoint::Endpoint;

/// http/1.1 connections to a node that wait for their next request.
const MAX_UNUSED: usize = 64;

/// How long an http/1.1 connection is kept whose peer does not say for how long it keeps it: Node.js closes after 5 s.
const HTTP1_IDLE: Duration = Duration::from_secs(4);

/// So much sooner than the peer a connection is given up, which the peer may close just when a request is sent.
const HTTP1_MARGIN: Duration = Duration::from_secs(1);

/// How a request is sent on an http/1.1 connection.
pub type Http1Sender = http1::SendRequest<Replay>;

/// What a request goes out on: a stream of a shared connection, or a connection of its own.
pub type Connection = Taken<Peer>;

/// A request's place on an h2 connection, given back on drop.
pub type PeerStreamSlot = StreamSlot<Peer>;

/// One thread's connections to one node.
pub struct Pool {
    peer: Arc<Peer>,
    shared: Arc<Shared<Peer>>,
    upgrade_dials: Semaphore,
}

/// How connections to the node are made, and those of http/1.1 that wait for a request.
pub struct Peer {
    endpoint: Arc<Endpoint>,
    roster: Arc<RosterStore>,
    credentials: Arc<CredentialStore>,
    presents: Option<AgentName>,
    http2: ::h2::client::Builder,
    http1: http1::Builder,
    dial_limit: Duration,
    idle: Duration,
    unused: Mutex<Idle<(Http1Sender, Arc<Link>)>>,
}

impl Pool {
    /// Connections to the node of `endpoint`, made as `presents` or else as this node; none are made yet. `most_requests` is how many requests there may be to a
    /// node.
    pub fn new(
        endpoint: Arc<Endpoint>,
        roster: Arc<RosterStore>,
        credentials: Arc<CredentialStore>,
        presents: Option<AgentName>,
        timeouts: &Timeouts,
        limits: &Limits,
        most_requests: usize,
    ) -> Self {
        let most_streams = most_requests.div_ceil(CONNECTIONS).max(STREAMS);
        let http2 = client::builder(most_streams, limits);
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(limits.max_header_bytes as usize).max_headers(h1::MAX_HEADERS);
        let peer = Arc::new(Peer {
            endpoint,
            roster,
            credentials,
            presents,
            http2,
            http1,
            dial_limit: timeouts.handshake,
            idle: timeouts.pool_idle,
            unused: Mutex::new(Idle::new(MAX_UNUSED)),
        });
        let shared = Arc::new(Shared::new(peer.clone(), most_streams, timeouts.pool_idle));
        Self { peer, shared, upgrade_dials: Semaphore::new(DIALS) }
    }

    /// How many requests the h2 connections carry that there are; `None` where none has been made.
    pub fn busy(&self) -> Option<usize> {
        self.shared.busy()
    }

    /// A connection that has room for one more request now.
    pub fn try_connection(&self, own: bool) -> Option<Connection> {
        self.shared.try_take(own)
    }

    /// A connection with room for one more request; waits until there is one. The mesh's `own` requests find room
    /// where others do not.
    ///
    /// # Errors
    /// None can be made. Nothing was sent.
    pub async fn connection(&self, own: bool) -> Result<Connection, ProxyError> {
        // A dial has its own limit; this one is for a peer that allows fewer requests than there are.
        let limit = self.peer.dial_limit * 2;
        timeout(limit, self.shared.wait(own)).await.unwrap_or_else(|_| {
            let (node, most) = (self.peer.node().clone(), self.busy().unwrap_or_default());
            Err(ProxyError::PeerBusy { node, most })
        })
    }

    /// An http/1.1 connection for one request that asks for another protocol, made within `limit` once it is this
    /// request's turn.
    ///
    /// # Errors
    /// None can be made. Nothing was sent.
    pub async fn connection_for_upgrade(&self, limit: Duration) -> Result<Connection, ProxyError> {
        let peer = &self.peer;
        if let Some(unused) = peer.other() {
            return Ok(Taken::Other(unused));
        }
        let busy = || ProxyError::PeerBusy { node: peer.node().clone(), most: DIALS };
        let turn = timeout(peer.dial_limit, self.upgrade_dials.acquire()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let made = async { peer.begin_http1(peer.connect(Protocols::Http1, limit).await?).await };
        Ok(Taken::Other(peer.told(made.await)?))
    }

    /// Finds out, in the background, whether the node can be reached. The connection serves later requests.
    pub fn probe(&self) {
        self.shared.probe();
    }

    /// Takes back an http/1.1 connection once its answer has passed. `keep_alive` is for how long the peer said that
    /// it keeps it.
    pub fn give_back(&self, mut sender: Http1Sender, link: Arc<Link>, keep_alive: Option<Duration>) {
        let idle = keep_alive.map_or(HTTP1_IDLE, |keeps| keeps.saturating_sub(HTTP1_MARGIN));
        let idle = idle.min(self.peer.idle);
        if idle.is_zero() {
            return;
        }
        let (peer, shared) = (Arc::downgrade(&self.peer), Arc::downgrade(&self.shared));
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            if let (Some(peer), Some(shared)) = (peer.upgrade(), shared.upgrade()) {
                peer.keep(sender, link, idle);
                shared.wake();
            }
        });
    }
}

impl Dial for Peer {
    type Stream = PeerStream;
    type Other = (Http1Sender, Arc<Link>);
    type Error = ProxyError;

    const DIRECTION: Direction = Direction::Outbound;

    /// Connects, and lets the node choose the protocol.
    async fn dial(self: &Arc<Self>) -> Result<Option<Dialled<PeerStream>>, ProxyError> {
        let made = self.negotiate().await;
        self.told(made)
    }

    fn other(&self) -> Option<Self::Other> {
        self.unused.lock().take(Instant::now(), is_usable)
    }
}

impl Peer {
    fn node(&self) -> &NodeName {
        self.endpoint.node()
    }

    async fn negotiate(self: &Arc<Self>) -> Result<Option<Dialled<PeerStream>>, ProxyError> {
        let stream = self.connect(Protocols::Any, self.dial_limit).await?;
        if !speaks_h2(&stream) {
            let (sender, link) = self.begin_http1(stream).await?;
            self.keep(sender, link, HTTP1_IDLE.min(self.idle));
            return Ok(None);
        }
        let link = stream.link().clone();
        match client::begin(&self.http2, stream, &link, self.dial_limit).await {
            Ok((sender, connection)) => {
                let connection = connection.with_pings(h2::CALLER_PING_INTERVAL, h2::CALLER_PING_TIMEOUT);
                Ok(Some(Dialled { sender, connection, link }))
            }
            Err(unsettled) => {
                let reason = match unsettled {
                    Unsettled::Failed(error) => root_cause(&error).to_string(),
                    Unsettled::Closed => "it closes each connection at once".into(),
                    Unsettled::Silent => "it completes the handshake and says nothing".into(),
                };
                Err(self.failed(reason, &link))
            }
        }
    }

    async fn connect(&self, protocols: Protocols, limit: Duration) -> Result<PeerStream, ProxyError> {
        let _dialling = METRICS.slot(Limit::Dials);
        let route = self.roster.node(self.node())?;
        let dialled = dial(&route, &self.credentials, self.presents.as_ref(), protocols, limit).await;
        match dialled {
            Ok((stream, leaf)) => {
                METRICS.handshake_done(Direction::Outbound, resumption(&stream));
                self.endpoint.showed(leaf);
                Ok(stream)
            }
            Err(error) => {
                METRICS.handshake_failed(Direction::Outbound, handshake_failure(&error));
                Err(error)
            }
        }
    }

    async fn begin_http1(&self, stream: PeerStream) -> Result<(Http1Sender, Arc<Link>), ProxyError> {
        let link = stream.link().clone();
        let handshake = self.http1.handshake(TokioIo::new(EarlyAnswer::new(stream))).await;
        let (sender, connection) =
            handshake.map_err(|error| self.failed(root_cause(&error).to_string(), &link))?;
        let open = METRICS.connection(Direction::Outbound, Side::Upstream);
        tokio::spawn(async move {
            let _open = open;
            // Its request learns itself of an error.
            let _ = connection.with_upgrades().await;
        });
        Ok((sender, link))
    }

    /// Tells the endpoint whether the node was reached.
    fn told<T>(&self, made: Result<T, ProxyError>) -> Result<T, ProxyError> {
        match &made {
            Ok(_) => self.endpoint.reached(),
            // It is the agent that cannot call. Others can.
            Err(ProxyError::IdentityUnusable(_)) => {}
            Err(ProxyError::PeerRefusedUs { .. }) if self.presents.is_some() => {}
            Err(error) => self.endpoint.unreachable(&error.to_string()),
        }
        made
    }

    /// Nothing was sent on a connection that failed at its start.
    fn failed(&self, reason: String, link: &Link) -> ProxyError {
        let node = self.node().clone();
        match link.refusal() {
            Some(reason) => ProxyError::PeerRefusedUs { node, reason: reason.into() },
            None => ProxyError::PeerFailed { node, reason, sent: Sent::Nothing },
        }
    }

    /// Keeps an http/1.1 connection for the next request.
    fn keep(self: &Arc<Self>, sender: Http1Sender, link: Arc<Link>, idle: Duration) {
        if self.unused.lock().put((sender, link), Instant::now() + idle) {
            tokio::spawn(reap(Arc::downgrade(self)));
        }
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

/// Closes http/1.1 connections that nobody used in time; ends when there are none.
async fn reap(peer: Weak<Peer>) {
    let next = || peer.upgrade()?.unused.lock().reap(Instant::now(), is_usable);
    while let Some(next) = next() {
        sleep_until(next.into()).await;
    }
}

fn is_usable((sender, link): &(Http1Sender, Arc<Link>)) -> bool {
    !sender.is_closed() && !link.is_retired()
}
