//! One worker's HTTP/2 connections to one server, each shared by as many requests as the server allows. They are made
//! when requests need them, and belong to no request. How one is made, their owner knows ([`Dial`]).

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::http::h2::client::{Connection, RESETS, Sender, Transport, has_ended};
use crate::io::link::Link;
use crate::metrics::{Direction, Held, METRICS, Side};

/// Most connections to a server; the mesh's own requests may open one more.
pub const CONNECTIONS: usize = 16;
/// Requests that a connection carries, if the server allows as many, before another one is opened.
pub const STREAMS: usize = 100;
/// Dials under way at once: peers refuse handshakes beyond a number of their own.
pub const DIALS: usize = 16;
/// After a connection beyond the first could not be made, so long no other is tried.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

/// How connections are made.
pub trait Dial: Send + Sync + 'static {
    /// What is read from and written to.
    type Stream: Transport;
    /// What serves a request where the server speaks no HTTP/2.
    type Other: Send;
    /// Why there is no connection.
    type Error: Clone + Send + 'static;

    /// Which way the requests go that are counted here.
    const DIRECTION: Direction;

    /// Makes a connection. `None`: the server speaks no HTTP/2, and [`other`](Self::other) has what was made.
    ///
    /// # Errors
    /// None can be made. Nothing was sent.
    fn dial(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<Option<Dialled<Self::Stream>>, Self::Error>> + Send;

    /// What serves a request as long as no connection is open.
    fn other(&self) -> Option<Self::Other>;
}

/// A connection that was made.
pub struct Dialled<S: Transport> {
    /// How requests are sent on it.
    pub sender: Sender,
    /// It is to be driven.
    pub connection: Connection<S>,
    /// The connection, observed from outside.
    pub link: Arc<Link>,
}

/// The connections.
pub struct Shared<D: Dial> {
    dialler: Arc<D>,
    /// Requests that a connection carries once no more may be opened.
    most_streams: usize,
    /// How long a connection is kept that no request uses.
    idle: Duration,
    state: Mutex<State<D::Error>>,
    /// A connection came, went, or has room again.
    changed: Notify,
}

struct State<E> {
    open: Vec<Open>,
    /// Requests that wait for room.
    waiting: usize,
    dialling: usize,
    dials_begun: u64,
    /// The last dial that failed, by its number.
    failed: Option<(u64, Instant, E)>,
    /// How many requests a new connection is expected to carry: what the last one did.
    expected: usize,
    next_id: u64,
}

struct Open {
    id: u64,
    sender: Sender,
    link: Arc<Link>,
    streams: usize,
    /// What the server allows.
    allowed: usize,
    last_used: Instant,
}

/// What a request goes out on.
pub enum Taken<D: Dial> {
    /// A stream of a shared connection.
    Stream(Sender, Arc<Link>, StreamSlot<D>),
    /// What its owner has instead.
    Other(D::Other),
}

/// A request's place on a connection, given back on drop.
pub struct StreamSlot<D: Dial> {
    shared: Arc<Shared<D>>,
    id: u64,
    _counted: Held,
}

impl<D: Dial> Drop for StreamSlot<D> {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

impl<D: Dial> Shared<D> {
    /// None yet. Those that `dialler` makes carry `most_streams` once no more may be opened, and are kept for `idle`.
    pub fn new(dialler: Arc<D>, most_streams: usize, idle: Duration) -> Self {
        Self {
            dialler,
            most_streams,
            idle,
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

    /// How many requests the connections carry that there are; `None` where there are none.
    pub fn busy(&self) -> Option<usize> {
        let state = self.state.lock();
        (!state.open.is_empty()).then(|| state.open.iter().map(|each| each.streams).sum())
    }

    /// What has room for one more request now.
    pub fn try_take(self: &Arc<Self>, own: bool) -> Option<Taken<D>> {
        self.take(&mut self.state.lock(), own)
    }

    /// What has room for one more request; waits until there is something. The mesh's `own` requests find room where
    /// others do not.
    ///
    /// # Errors
    /// No connection can be made. Nothing was sent.
    pub async fn wait(self: &Arc<Self>, own: bool) -> Result<Taken<D>, D::Error> {
        /// Counts a request that waits.
        struct Waiting<'s, D: Dial>(&'s Shared<D>);
        impl<D: Dial> Drop for Waiting<'_, D> {
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
                if let Some(taken) = self.take(state, own) {
                    return Ok(taken);
                }
                // An older dial, perhaps begun while the server was away, says nothing about now.
                if let Some((number, _, error)) = &state.failed
                    && *number > begun_before
                    && state.open.is_empty()
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

    /// Finds out, in the background, whether the server can be reached. The connection serves later requests.
    pub fn probe(self: &Arc<Self>) {
        let state = &mut *self.state.lock();
        if state.dialling == 0 {
            self.begin_dial(state);
        }
    }

    /// The owner has something for a request that waits.
    pub fn wake(&self) {
        if self.state.lock().waiting > 0 {
            self.changed.notify_one();
        }
    }

    /// The first connection that has room.
    fn take(self: &Arc<Self>, state: &mut State<D::Error>, own: bool) -> Option<Taken<D>> {
        state.open.retain_mut(|each| !has_ended(&mut each.sender) && (each.streams > 0 || !each.is_worn()));
        let most = match own {
            true => usize::MAX,
            // More than usual only where no further connection may be opened.
            false if state.open.len() >= CONNECTIONS => self.most_streams,
            false => STREAMS,
        };
        let mut open = state.open.iter_mut();
        if let Some(each) = open.find(|each| each.streams < each.allowed.min(most) && !each.is_worn()) {
            each.streams += 1;
            let counted = METRICS.stream(D::DIRECTION, Side::Upstream);
            let slot = StreamSlot { shared: self.clone(), id: each.id, _counted: counted };
            return Some(Taken::Stream(each.sender.clone(), each.link.clone(), slot));
        }
        if state.open.is_empty() { self.dialler.other().map(Taken::Other) } else { None }
    }

    fn leave(&self, id: u64) {
        let state = &mut *self.state.lock();
        if let Some(at) = state.open.iter().position(|each| each.id == id) {
            let each = &mut state.open[at];
            each.streams -= 1;
            each.last_used = Instant::now();
            if each.streams == 0 && each.is_worn() {
                state.open.swap_remove(at);
            }
        }
        if state.waiting > 0 {
            self.changed.notify_one();
        }
    }

    fn begin_dial(self: &Arc<Self>, state: &mut State<D::Error>) {
        state.dialling += 1;
        state.dials_begun += 1;
        let (shared, number) = (self.clone(), state.dials_begun);
        tokio::spawn(async move {
            let outcome = shared.dialler.dial().await;
            let state = &mut *shared.state.lock();
            state.dialling -= 1;
            match outcome {
                Ok(Some(dialled)) => shared.open(state, dialled),
                Ok(None) => state.expected = 1,
                Err(error) => state.failed = Some((number, Instant::now(), error)),
            }
            shared.changed.notify_waiters();
        });
    }

    fn open(self: &Arc<Self>, state: &mut State<D::Error>, dialled: Dialled<D::Stream>) {
        let Dialled { sender, connection, link } = dialled;
        let allowed = connection.allowed_streams();
        state.next_id += 1;
        state.expected = allowed.clamp(1, STREAMS);
        let (id, last_used) = (state.next_id, Instant::now());
        state.open.push(Open { id, sender, link, streams: 0, allowed, last_used });
        tokio::spawn(keep(Arc::downgrade(self), id, connection));
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

    /// Whether a connection carries requests.
    fn is_busy(&self, id: u64) -> bool {
        self.state.lock().open.iter().any(|each| each.id == id && each.streams > 0)
    }

    /// Gives a connection up that no request used for as long as it is kept, or says when that may be.
    fn give_up(&self, id: u64) -> Option<Instant> {
        let state = &mut *self.state.lock();
        let at = state.open.iter().position(|each| each.id == id)?;
        let (each, now) = (&state.open[at], Instant::now());
        match (each.streams, each.last_used + self.idle) {
            (0, end) if end <= now => {
                state.open.swap_remove(at);
                None
            }
            (0, end) => Some(end),
            _ => Some(now + self.idle),
        }
    }

    fn remove(&self, id: u64) {
        self.state.lock().open.retain(|each| each.id != id);
        // Those who waited for room on it need another one.
        self.changed.notify_waiters();
    }
}

impl<E> State<E> {
    /// Whether those who wait need more connections than are there or on their way.
    fn needs_dial(&self, own: bool) -> bool {
        let most = if own { CONNECTIONS + 1 } else { CONNECTIONS };
        if self.open.len() + self.dialling >= most || self.dialling >= DIALS {
            return false;
        }
        let pausing = |(_, at, _): &(u64, Instant, E)| at.elapsed() < DIAL_PAUSE;
        if !self.open.is_empty() && self.failed.as_ref().is_some_and(pausing) {
            return false;
        }
        self.waiting > self.dialling * self.expected
    }
}

impl Open {
    /// Whether it gets no more requests: so many of its streams were reset, or it is retired.
    fn is_worn(&self) -> bool {
        self.link.resets() >= RESETS || self.link.is_retired()
    }
}

/// Drives a connection to its end, and notes what the server allows. Once no request wants it any more, it ends.
async fn keep<D: Dial>(shared: Weak<Shared<D>>, id: u64, mut connection: Connection<D::Stream>) {
    let _open = METRICS.connection(D::DIRECTION, Side::Upstream);
    let mut allowed = connection.allowed_streams();
    let mut drive = std::future::poll_fn(|context| {
        let polled = connection.poll(context, || shared.upgrade().is_some_and(|shared| shared.is_busy(id)));
        let now_allowed = connection.allowed_streams();
        if std::mem::replace(&mut allowed, now_allowed) != now_allowed
            && let Some(shared) = shared.upgrade()
        {
            shared.allow(id, now_allowed);
        }
        polled
    });
    while let Some(end) = shared.upgrade().and_then(|shared| shared.give_up(id)) {
        tokio::select! {
            // Its requests learn themselves of an error.
            _ = &mut drive => break,
            () = sleep_until(end.into()) => {}
        }
    }
    if let Some(shared) = shared.upgrade() {
        shared.remove(id);
    }
}
