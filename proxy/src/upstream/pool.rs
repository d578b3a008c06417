//! The connections of one thread to one node: h2 ones, each shared by as many requests as the peer allows, or http/1.1
//! ones with a node that speaks no h2. They are made when requests need them, and belong to no request.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::NodeName;
use mesh_shared::config::{Limits, Timeouts};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep_until, timeout};

use crate::error::{ProxyError, Sent};
use crate::http::body::root_cause;
use crate::http::h2::client::{Spawner, settle};
use crate::http::idle::Idle;
use crate::http::{h1, h2};
use crate::io::early_answer::EarlyAnswer;
use crate::io::gathering::Gathering;
use crate::io::link::Link;
use crate::metrics::{Direction, HandshakeFailure, Held, Limit, METRICS, Side};
use crate::roster::store::RosterStore;
use crate::tls::credentials::CredentialStore;
use crate::upstream::connect::{PeerStream, Protocols, dial, resumption, speaks_h2};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::replay::Replay;

/// Most h2 connections to a node; the mesh's own requests may open one more.
const CONNECTIONS: usize = 16;
/// Requests that an h2 connection carries, if the peer allows as many, before another one is opened.
const STREAMS: usize = 100;
/// Dials under way at once, of either kind: peers refuse handshakes beyond a number of their own.
const DIALS: usize = 16;
/// http/1.1 connections to a node that wait for their next request.
const MAX_UNUSED: usize = 64;
/// A connection on which so many streams were reset gets no new requests: servers count resets over a connection's life.
const RESETS: u32 = 500;
/// After a connection beyond the first could not be made, so long no other is tried.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

type Http2Connection = http2::Connection<TokioIo<Box<Gathering<EarlyAnswer<PeerStream>>>>, Replay, Spawner>;
/// How a request is sent on an h2 connection.
pub type Http2Sender = http2::SendRequest<Replay>;
/// How a request is sent on an http/1.1 connection.
pub type Http1Sender = http1::SendRequest<Replay>;

/// One thread's connections to one node.
pub struct Pool {
    endpoint: Arc<Endpoint>,
    roster: Arc<RosterStore>,
    credentials: Arc<CredentialStore>,
    http2: http2::Builder<Spawner>,
    http1: http1::Builder,
    dial_limit: Duration,
    idle: Duration,
    /// Requests that an h2 connection carries once no more may be opened.
    most_streams: usize,
    state: Mutex<State>,
    /// A connection came, went, or has room again.
    changed: Notify,
    upgrade_dials: Semaphore,
}

struct State {
    shared: Vec<Shared>,
    /// http/1.1 connections that wait for a request.
    unused: Idle<(Http1Sender, Arc<Link>)>,
    /// Requests that wait for a connection.
    waiting: usize,
    dialling: usize,
    dials_begun: u64,
    /// The last dial that failed, by its number.
    failed: Option<(u64, Instant, ProxyError)>,
    /// How many requests a new connection is expected to carry: what the last one did.
    expected: usize,
    next_id: u64,
}

/// An h2 connection.
struct Shared {
    id: u64,
    sender: Http2Sender,
    link: Arc<Link>,
    streams: usize,
    /// What the peer allows.
    allowed: usize,
    last_used: Instant,
}

/// What a request goes out on.
pub enum Connection {
    /// A stream of a shared connection.
    Http2(Http2Sender, Arc<Link>, StreamSlot),
    /// A connection of its own.
    Http1(Http1Sender, Arc<Link>),
}

/// A request's place on an h2 connection, given back on drop.
pub struct StreamSlot {
    pool: Arc<Pool>,
    id: u64,
    _counted: Held,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.pool.leave(self.id);
    }
}

impl Pool {
    /// Connections to the node of `endpoint`; none are made yet. `most_requests` is how many requests there may be to a
    /// node.
    pub fn new(
        endpoint: Arc<Endpoint>,
        roster: Arc<RosterStore>,
        credentials: Arc<CredentialStore>,
        timeouts: &Timeouts,
        limits: &Limits,
        most_requests: usize,
    ) -> Self {
        let most_streams = most_requests.div_ceil(CONNECTIONS).max(STREAMS);
        let mut http2 = http2::Builder::new(Spawner);
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(h2::ANSWER_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(
                h2::ANSWER_WINDOW_BYTES,
                u32::try_from(most_streams).unwrap_or(u32::MAX),
            ))
            .max_frame_size(h2::FRAME_BYTES)
            .max_header_list_size(limits.max_header_bytes)
            .max_send_buf_size(h2::SEND_BUFFER_BYTES)
            // Until the peer has said how many, one is safe (RFC 9113, section 6.5.2).
            .initial_max_send_streams(1)
            .keep_alive_interval(h2::CALLER_PING_INTERVAL)
            .keep_alive_timeout(h2::CALLER_PING_TIMEOUT)
            // What is still under way for streams that were reset is expected for a while, and never counted against
            // the connection.
            .max_concurrent_reset_streams(RESETS as usize * 2)
            .reset_stream_duration(Duration::from_secs(30))
            .max_local_error_reset_streams(None);
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(limits.max_header_bytes as usize).max_headers(h1::MAX_HEADERS);
        Self {
            endpoint,
            roster,
            credentials,
            http2,
            http1,
            dial_limit: timeouts.handshake,
            idle: timeouts.pool_idle,
            most_streams,
            state: Mutex::new(State {
                shared: Vec::new(),
                unused: Idle::new(MAX_UNUSED),
                waiting: 0,
                dialling: 0,
                dials_begun: 0,
                failed: None,
                expected: STREAMS,
                next_id: 0,
            }),
            changed: Notify::new(),
            upgrade_dials: Semaphore::new(DIALS),
        }
    }

    /// How many requests the connections carry that there are; `None` where none has been made.
    pub fn busy(&self) -> Option<usize> {
        let state = self.state.lock();
        (!state.shared.is_empty()).then(|| state.shared.iter().map(|each| each.streams).sum())
    }

    /// A connection that has room for one more request now.
    pub fn try_connection(self: &Arc<Self>, own: bool) -> Option<Connection> {
        self.take(&mut self.state.lock(), own)
    }

    /// A connection with room for one more request; waits until there is one. The mesh's `own` requests find room
    /// where others do not.
    ///
    /// # Errors
    /// None can be made. Nothing was sent.
    pub async fn connection(self: &Arc<Self>, own: bool) -> Result<Connection, ProxyError> {
        // A dial has its own limit; this one is for a peer that allows fewer requests than there are.
        let limit = self.dial_limit * 2;
        timeout(limit, self.wait_for_connection(own)).await.unwrap_or_else(|_| {
            Err(ProxyError::PeerBusy { node: self.node().clone(), most: self.busy().unwrap_or_default() })
        })
    }

    async fn wait_for_connection(self: &Arc<Self>, own: bool) -> Result<Connection, ProxyError> {
        /// Counts a request that waits.
        struct Waiting<'p>(&'p Pool);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.state.lock().waiting -= 1;
            }
        }
        let begun_before = {
            let state = &mut *self.state.lock();
            state.waiting += 1;
            state.dials_begun
        };
        let _waiting = Waiting(self);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on, no change is missed.
            changed.as_mut().enable();
            {
                let state = &mut *self.state.lock();
                if let Some(connection) = self.take(state, own) {
                    return Ok(connection);
                }
                // An older dial, perhaps begun while the node was away, says nothing about now.
                if let Some((number, _, error)) = &state.failed
                    && *number > begun_before
                    && state.shared.is_empty()
                {
                    return Err(error.clone());
                }
                if state.needs_dial(own) {
                    self.begin_dial(state);
                }
            }
            changed.await;
        }
    }

    /// An http/1.1 connection for one request that asks for another protocol, made within `limit` once it is this
    /// request's turn.
    ///
    /// # Errors
    /// None can be made. Nothing was sent.
    pub async fn connection_for_upgrade(self: &Arc<Self>, limit: Duration) -> Result<Connection, ProxyError> {
        if let Some(unused) = self.state.lock().take_unused() {
            return Ok(unused);
        }
        let busy = || ProxyError::PeerBusy { node: self.node().clone(), most: DIALS };
        let turn = timeout(self.dial_limit, self.upgrade_dials.acquire()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let made = async { self.handshake_http1(self.dial(Protocols::Http1, limit).await?).await };
        match made.await {
            Ok((sender, link)) => {
                self.endpoint.reached();
                Ok(Connection::Http1(sender, link))
            }
            Err(error) => {
                self.endpoint.unreachable(&error.to_string());
                Err(error)
            }
        }
    }

    /// Finds out, in the background, whether the node can be reached. The connection serves later requests.
    pub fn probe(self: &Arc<Self>) {
        let state = &mut *self.state.lock();
        if state.dialling == 0 {
            self.begin_dial(state);
        }
    }

    /// Takes back an http/1.1 connection once its answer has passed. `keep_alive` is for how long the peer said that
    /// it keeps it.
    pub fn give_back(
        self: &Arc<Self>,
        mut sender: Http1Sender,
        link: Arc<Link>,
        keep_alive: Option<Duration>,
    ) {
        // A second less than the peer, which may close it just when a request is sent.
        let peer = keep_alive.map(|keeps| keeps.saturating_sub(Duration::from_secs(1)));
        let idle = peer.unwrap_or(self.idle).min(self.idle);
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let Some(pool) = pool.upgrade().filter(|_| !idle.is_zero()) else { return };
            pool.put(sender, link, Instant::now() + idle);
        });
    }

    fn node(&self) -> &NodeName {
        self.endpoint.node()
    }

    /// The first connection that has room.
    fn take(self: &Arc<Self>, state: &mut State, own: bool) -> Option<Connection> {
        state.shared.retain(|each| !each.sender.is_closed());
        let most = match own {
            true => usize::MAX,
            // More than usual only where no further connection may be opened.
            false if state.shared.len() >= CONNECTIONS => self.most_streams,
            false => STREAMS,
        };
        let free =
            state.shared.iter_mut().find(|each| each.streams < each.allowed.min(most) && !each.is_worn());
        if let Some(each) = free {
            each.streams += 1;
            let counted = METRICS.stream(Direction::Outbound, Side::Upstream);
            let slot = StreamSlot { pool: self.clone(), id: each.id, _counted: counted };
            return Some(Connection::Http2(each.sender.clone(), each.link.clone(), slot));
        }
        // Those of upgrades that came to nothing serve no others where the node speaks h2.
        if state.shared.is_empty() { state.take_unused() } else { None }
    }

    fn leave(&self, id: u64) {
        let state = &mut *self.state.lock();
        if let Some(at) = state.shared.iter().position(|each| each.id == id) {
            let each = &mut state.shared[at];
            each.streams -= 1;
            each.last_used = Instant::now();
            if each.streams == 0 && each.is_worn() {
                state.shared.swap_remove(at);
            }
        }
        if state.waiting > 0 {
            self.changed.notify_one();
        }
    }

    fn begin_dial(self: &Arc<Self>, state: &mut State) {
        state.dialling += 1;
        state.dials_begun += 1;
        let (pool, number) = (self.clone(), state.dials_begun);
        tokio::spawn(async move {
            let outcome = pool.negotiate().await;
            let state = &mut *pool.state.lock();
            state.dialling -= 1;
            if let Err(error) = outcome {
                pool.endpoint.unreachable(&error.to_string());
                state.failed = Some((number, Instant::now(), error));
            }
            pool.changed.notify_waiters();
        });
    }

    async fn dial(&self, protocols: Protocols, limit: Duration) -> Result<PeerStream, ProxyError> {
        let _dialling = METRICS.slot(Limit::Dials);
        let route = self.roster.node(self.node())?;
        let dialled = dial(&route, &self.credentials, protocols, limit).await;
        match &dialled {
            Ok(stream) => METRICS.handshake_done(Direction::Outbound, resumption(stream)),
            Err(error) => METRICS.handshake_failed(Direction::Outbound, handshake_failure(error)),
        }
        dialled
    }

    /// Connects, and lets the node choose the protocol.
    async fn negotiate(self: &Arc<Self>) -> Result<(), ProxyError> {
        let stream = self.dial(Protocols::Any, self.dial_limit).await?;
        if !speaks_h2(&stream) {
            let (sender, link) = self.handshake_http1(stream).await?;
            self.state.lock().expected = 1;
            self.endpoint.reached();
            self.put(sender, link, Instant::now() + self.idle);
            return Ok(());
        }
        let link = stream.link().clone();
        // Boxed: hyper makes each request's task as large as its connection's.
        let io = TokioIo::new(Box::new(Gathering::new(EarlyAnswer::new(stream))));
        let made = async {
            let (sender, mut connection) = self.http2.handshake(io).await?;
            settle(&mut connection, &link).await?;
            Ok::<_, hyper::Error>((sender, connection))
        };
        let made = timeout(self.dial_limit, made).await;
        let made =
            made.map_err(|_| self.failed("it completes the handshake and says nothing".into(), &link))?;
        let (sender, connection) =
            made.map_err(|error| self.failed(root_cause(&error).to_string(), &link))?;
        if sender.is_closed() {
            return Err(self.failed("it closes each connection at once".into(), &link));
        }
        self.endpoint.reached();
        let allowed = connection.current_max_send_streams();
        let id = {
            let state = &mut *self.state.lock();
            state.next_id += 1;
            state.expected = allowed.clamp(1, STREAMS);
            let (id, link, last_used) = (state.next_id, link.clone(), Instant::now());
            state.shared.push(Shared { id, sender, link, streams: 0, allowed, last_used });
            id
        };
        tokio::spawn(keep(Arc::downgrade(self), id, link, connection));
        Ok(())
    }

    async fn handshake_http1(&self, stream: PeerStream) -> Result<(Http1Sender, Arc<Link>), ProxyError> {
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

    /// Nothing was sent on a connection that failed at its start.
    fn failed(&self, reason: String, link: &Link) -> ProxyError {
        let node = self.node().clone();
        match link.refusal() {
            Some(reason) => ProxyError::PeerRefusedUs { node, reason: reason.into() },
            None => ProxyError::PeerFailed { node, reason, sent: Sent::Nothing },
        }
    }

    fn put(self: &Arc<Self>, sender: Http1Sender, link: Arc<Link>, until: Instant) {
        let state = &mut *self.state.lock();
        if state.unused.put((sender, link), until) {
            tokio::spawn(reap(Arc::downgrade(self)));
        }
        if state.waiting > 0 {
            self.changed.notify_one();
        }
    }

    /// What the peer allows on a connection.
    fn allow(&self, id: u64, allowed: usize) {
        let state = &mut *self.state.lock();
        if let Some(each) = state.shared.iter_mut().find(|each| each.id == id) {
            each.allowed = allowed;
            state.expected = allowed.clamp(1, STREAMS);
        }
        self.changed.notify_waiters();
    }

    /// Gives a connection up that no request used for as long as it is kept, or says when that may be.
    fn give_up(&self, id: u64) -> Option<Instant> {
        let state = &mut *self.state.lock();
        let at = state.shared.iter().position(|each| each.id == id)?;
        let (each, now) = (&state.shared[at], Instant::now());
        match (each.streams, each.last_used + self.idle) {
            (0, end) if end <= now => {
                state.shared.swap_remove(at);
                None
            }
            (0, end) => Some(end),
            _ => Some(now + self.idle),
        }
    }

    fn remove(&self, id: u64) {
        self.state.lock().shared.retain(|each| each.id != id);
        // Those who waited for room on it need another one.
        self.changed.notify_waiters();
    }
}

impl State {
    /// Whether those who wait need more connections than are there or on their way.
    fn needs_dial(&self, own: bool) -> bool {
        let most = if own { CONNECTIONS + 1 } else { CONNECTIONS };
        if self.shared.len() + self.dialling >= most || self.dialling >= DIALS {
            return false;
        }
        let pausing = |(_, at, _): &(u64, Instant, ProxyError)| at.elapsed() < DIAL_PAUSE;
        if !self.shared.is_empty() && self.failed.as_ref().is_some_and(pausing) {
            return false;
        }
        self.waiting > self.dialling * self.expected
    }

    fn take_unused(&mut self) -> Option<Connection> {
        let unused = self.unused.take(Instant::now(), is_usable);
        unused.map(|(sender, link)| Connection::Http1(sender, link))
    }
}

impl Shared {
    /// Whether so many of its streams were reset that it gets no more.
    fn is_worn(&self) -> bool {
        self.link.resets() >= RESETS
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

/// Drives a connection to its end, and notes what the peer allows. Once no request wants it any more, it ends.
async fn keep(pool: Weak<Pool>, id: u64, link: Arc<Link>, mut connection: Http2Connection) {
    let _open = METRICS.connection(Direction::Outbound, Side::Upstream);
    let mut allowed = connection.current_max_send_streams();
    let mut drive = std::future::poll_fn(|context| {
        let polled = Pin::new(&mut connection).poll(context);
        link.wake_on_first_reads(context);
        let now_allowed = connection.current_max_send_streams();
        if std::mem::replace(&mut allowed, now_allowed) != now_allowed
            && let Some(pool) = pool.upgrade()
        {
            pool.allow(id, now_allowed);
        }
        polled
    });
    while let Some(end) = pool.upgrade().and_then(|pool| pool.give_up(id)) {
        tokio::select! {
            // Its requests learn themselves of an error.
            _ = &mut drive => break,
            () = sleep_until(end.into()) => {}
        }
    }
    if let Some(pool) = pool.upgrade() {
        pool.remove(id);
    }
}

/// Closes http/1.1 connections that nobody used in time; ends when there are none.
async fn reap(pool: Weak<Pool>) {
    let next = || pool.upgrade()?.state.lock().unused.reap(Instant::now(), is_usable);
    while let Some(next) = next() {
        sleep_until(next.into()).await;
    }
}

fn is_usable((sender, _): &(Http1Sender, Arc<Link>)) -> bool {
    !sender.is_closed()
}
