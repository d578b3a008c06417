//! One worker's HTTP/2 connections to a server, with prior knowledge; each is shared by as many requests as the server
//! allows. They are made when requests need them, and belong to no request.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use mesh_shared::config::{self, Limits};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use crate::error::ProxyError;
use crate::http::body::root_cause;
use crate::http::h2;
use crate::http::h2::client::{Spawner, settle};
use crate::inbound::backend::dial::{CONNECT, Dialer, LocalStream};
use crate::io::early_answer::EarlyAnswer;
use crate::io::first_bytes::FirstBytes;
use crate::io::gathering::Gathering;
use crate::io::link::{Link, Linked};
use crate::metrics::{Direction, Held, METRICS, Side};
use crate::upstream::pool::Http2Sender;
use crate::upstream::replay::Replay;

/// Most connections to a server.
pub const MAX_CONNECTIONS: usize = 16;
/// Requests that a connection carries, if the server allows as many, before another one is opened.
const STREAMS: usize = 100;
/// How long a connection is kept that no request uses.
const IDLE: Duration = Duration::from_secs(5);
/// A connection on which so many streams were reset gets no new requests: servers count resets over a connection's life.
const RESETS: u32 = 500;
/// After a connection beyond the first could not be made, so long no other is tried.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

type Io = TokioIo<Box<Gathering<EarlyAnswer<Linked<FirstBytes<LocalStream>>>>>>;
type Connection = http2::Connection<Io, Replay, Spawner>;

/// The connections to one address.
pub struct SharedConnections {
    dialer: Arc<Dialer>,
    http2: http2::Builder<Spawner>,
    /// How long a request waits for room.
    patience: Duration,
    state: Mutex<State>,
    /// A connection came, went, or has room again.
    changed: Notify,
}

struct State {
    open: Vec<Open>,
    /// Requests that wait for room.
    waiting: usize,
    dialling: usize,
    dials_begun: u64,
    /// The last dial that failed, by its number.
    failed: Option<(u64, Instant, DialError)>,
    /// How many requests a new connection is expected to carry: what the last one did.
    expected: usize,
    next_id: u64,
}

struct Open {
    id: u64,
    sender: Http2Sender,
    link: Arc<Link>,
    streams: usize,
    /// What the server allows.
    allowed: usize,
    last_used: Instant,
}

/// Why there is no connection to send a request on. Nothing was sent.
#[derive(Debug, Clone)]
pub enum DialError {
    /// Nobody listens.
    Unreachable(String),
    /// Somebody does, and does not speak HTTP/2, or not in time.
    Unsettled(String),
    /// All connections carry as much as the server allows, this much in all.
    Busy(usize),
}

/// A request's place on a connection, given back on drop.
pub struct StreamSlot {
    connections: Arc<SharedConnections>,
    id: u64,
    _counted: Held,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.connections.leave(self.id);
    }
}

impl SharedConnections {
    /// None yet.
    pub fn new(dialer: Arc<Dialer>, backend: &config::Backend, limits: &Limits) -> Self {
        let most = backend.max_requests + backend.max_event_streams;
        let most_streams = most.div_ceil(MAX_CONNECTIONS).max(STREAMS);
        let mut http2 = http2::Builder::new(Spawner);
        // No pings: they would end the requests of an agent that thinks for minutes and answers nothing meanwhile.
        http2
            .initial_stream_window_size(h2::ANSWER_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(
                h2::ANSWER_WINDOW_BYTES,
                u32::try_from(most_streams).unwrap_or(u32::MAX),
            ))
            .max_frame_size(h2::FRAME_BYTES)
            .max_header_list_size(limits.max_header_bytes)
            .max_send_buf_size(h2::SEND_BUFFER_BYTES)
            // Until the server has said how many, one is safe (RFC 9113, section 6.5.2).
            .initial_max_send_streams(1)
            // What is still under way for streams that were reset is expected for a while, and never counted against
            // the connection.
            .max_concurrent_reset_streams(RESETS as usize * 2)
            .reset_stream_duration(Duration::from_secs(30))
            .max_local_error_reset_streams(None);
        Self {
            dialer,
            http2,
            patience: CONNECT * 2 + backend.queue,
            state: Mutex::new(State {
                open: Vec::new(),
                waiting: 0,
                dialling: 0,
                dials_begun: 0,
                failed: None,
                expected: STREAMS,
                next_id: 0,
            }),
            changed: Notify::new(),
        }
    }

    /// How long a request waits for room.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A connection with room for one more request; waits until there is one.
    ///
    /// # Errors
    /// None can be made, or none has room in time. Nothing was sent.
    pub async fn stream(self: &Arc<Self>) -> Result<(Http2Sender, Arc<Link>, StreamSlot), DialError> {
        if let Some(taken) = self.take(&mut self.state.lock()) {
            return Ok(taken);
        }
        timeout(self.patience, self.wait()).await.unwrap_or_else(|_| {
            let state = self.state.lock();
            Err(DialError::Busy(state.open.iter().map(|each| each.streams).sum()))
        })
    }

    async fn wait(self: &Arc<Self>) -> Result<(Http2Sender, Arc<Link>, StreamSlot), DialError> {
        /// Counts a request that waits.
        struct Waiting<'c>(&'c SharedConnections);
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
                if let Some(taken) = self.take(state) {
                    return Ok(taken);
                }
                // An older dial says nothing about now.
                if let Some((number, _, error)) = &state.failed
                    && *number > begun_before
                    && state.open.is_empty()
                {
                    return Err(error.clone());
                }
                if state.needs_dial() {
                    self.begin_dial(state);
                }
            }
            changed.await;
        }
    }

    /// The first connection that has room.
    fn take(self: &Arc<Self>, state: &mut State) -> Option<(Http2Sender, Arc<Link>, StreamSlot)> {
        state.open.retain(|each| !each.sender.is_closed());
        // More than usual only where no further connection may be opened.
        let most = if state.open.len() >= MAX_CONNECTIONS { usize::MAX } else { STREAMS };
        let mut open = state.open.iter_mut();
        let free = open.find(|each| each.streams < each.allowed.min(most) && each.link.resets() < RESETS)?;
        free.streams += 1;
        let counted = METRICS.stream(Direction::Inbound, Side::Upstream);
        let slot = StreamSlot { connections: self.clone(), id: free.id, _counted: counted };
        Some((free.sender.clone(), free.link.clone(), slot))
    }

    fn leave(&self, id: u64) {
        let state = &mut *self.state.lock();
        if let Some(at) = state.open.iter().position(|each| each.id == id) {
            let each = &mut state.open[at];
            each.streams -= 1;
            each.last_used = Instant::now();
            if each.streams == 0 && each.link.resets() >= RESETS {
                state.open.swap_remove(at);
            }
        }
        if state.waiting > 0 {
            self.changed.notify_one();
        }
    }

    fn begin_dial(self: &Arc<Self>, state: &mut State) {
        state.dialling += 1;
        state.dials_begun += 1;
        let (connections, number) = (self.clone(), state.dials_begun);
        tokio::spawn(async move {
            let outcome = connections.dial().await;
            let state = &mut *connections.state.lock();
            state.dialling -= 1;
            if let Err(error) = outcome {
                state.failed = Some((number, Instant::now(), error));
            }
            connections.changed.notify_waiters();
        });
    }

    async fn dial(self: &Arc<Self>) -> Result<(), DialError> {
        let stream = self.dialer.dial().await.map_err(|error| DialError::Unreachable(error.to_string()))?;
        let (stream, is_other) = FirstBytes::expect(stream, true);
        let (stream, _is_gone) = Linked::new(stream);
        let link = stream.link().clone();
        // Boxed: hyper makes each request's task as large as its connection's.
        let io = TokioIo::new(Box::new(Gathering::new(EarlyAnswer::new(stream))));
        let made = async {
            let (sender, mut connection) = self.http2.handshake(io).await?;
            settle(&mut connection, &link).await?;
            Ok::<_, hyper::Error>((sender, connection))
        };
        let unsettled = |reason: &str| Err(DialError::Unsettled(reason.into()));
        let (sender, connection) = match timeout(CONNECT, made).await {
            Ok(Ok((sender, _))) if sender.is_closed() => {
                return unsettled("it closes each connection at once");
            }
            Ok(Ok(made)) => made,
            _ if is_other.load(Ordering::Relaxed) => {
                return unsettled("it does not speak HTTP/2");
            }
            Ok(Err(error)) => return unsettled(&root_cause(&error).to_string()),
            Err(_) => return unsettled("it accepts connections and says nothing in HTTP/2"),
        };
        let allowed = connection.current_max_send_streams();
        let id = {
            let state = &mut *self.state.lock();
            state.next_id += 1;
            state.expected = allowed.clamp(1, STREAMS);
            let (id, link, last_used) = (state.next_id, link.clone(), Instant::now());
            state.open.push(Open { id, sender, link, streams: 0, allowed, last_used });
            id
        };
        tokio::spawn(keep(Arc::downgrade(self), id, link, connection));
        Ok(())
    }

    /// What the server allows on a connection.
    fn allow(&self, id: u64, allowed: usize) {
        let state = &mut *self.state.lock();
        if let Some(each) = state.open.iter_mut().find(|each| each.id == id) {
            each.allowed = allowed;
            state.expected = allowed.clamp(1, STREAMS);
        }
        self.changed.notify_waiters();
    }

    /// Gives a connection up that no request used for as long as it is kept, or says when that may be.
    fn give_up(&self, id: u64) -> Option<Instant> {
        let state = &mut *self.state.lock();
        let at = state.open.iter().position(|each| each.id == id)?;
        let (each, now) = (&state.open[at], Instant::now());
        match (each.streams, each.last_used + IDLE) {
            (0, end) if end <= now => {
                state.open.swap_remove(at);
                None
            }
            (0, end) => Some(end),
            _ => Some(now + IDLE),
        }
    }

    fn remove(&self, id: u64) {
        self.state.lock().open.retain(|each| each.id != id);
        // Those who waited for room on it need another one.
        self.changed.notify_waiters();
    }
}

impl State {
    /// Whether those who wait need more connections than are there or on their way.
    fn needs_dial(&self) -> bool {
        if self.open.len() + self.dialling >= MAX_CONNECTIONS {
            return false;
        }
        let pausing = |(_, at, _): &(u64, Instant, DialError)| at.elapsed() < DIAL_PAUSE;
        if !self.open.is_empty() && self.failed.as_ref().is_some_and(pausing) {
            return false;
        }
        self.waiting > self.dialling * self.expected
    }
}

impl DialError {
    /// What whoever sent the request is told. `address` is where the server should listen.
    pub fn told(self, address: &str, patience: Duration) -> ProxyError {
        let address = address.to_owned();
        match self {
            Self::Unreachable(reason) => ProxyError::BackendUnreachable { address, reason },
            Self::Unsettled(reason) => ProxyError::BackendFailed { address, reason },
            Self::Busy(most) => ProxyError::AgentBusy {
                most,
                waited_ms: patience.as_millis(),
                key: "its own SETTINGS_MAX_CONCURRENT_STREAMS",
            },
        }
    }
}

/// Drives a connection to its end, and notes what the server allows. Once no request wants it any more, it ends.
async fn keep(connections: Weak<SharedConnections>, id: u64, link: Arc<Link>, mut connection: Connection) {
    let _open = METRICS.connection(Direction::Inbound, Side::Upstream);
    let mut allowed = connection.current_max_send_streams();
    let mut drive = std::future::poll_fn(|context| {
        let polled = Pin::new(&mut connection).poll(context);
        link.wake_on_first_reads(context);
        let now_allowed = connection.current_max_send_streams();
        if std::mem::replace(&mut allowed, now_allowed) != now_allowed
            && let Some(connections) = connections.upgrade()
        {
            connections.allow(id, now_allowed);
        }
        polled
    });
    while let Some(end) = connections.upgrade().and_then(|connections| connections.give_up(id)) {
        tokio::select! {
            // Its requests learn themselves of an error.
            _ = &mut drive => break,
            () = sleep_until(end.into()) => {}
        }
    }
    if let Some(connections) = connections.upgrade() {
        connections.remove(id);
    }
}
