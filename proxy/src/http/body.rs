//! The bodies that pass through: streamed frame by frame, never collected.
//!
//! Both bodies of an exchange note in its [`Traffic`] how much passed and how it ended; the guard that an answer
//! carries is dropped once that is known. Neither knows whom it is for.

use std::any::Any;
use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use mesh_shared::root_cause;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep, sleep, timeout, timeout_at};

use crate::error::BoxError;
use crate::http::headers;
use crate::http::incoming::{self, Incoming};
use crate::http::interim::{Gate, Interim, UNASKED};
use crate::http::pace::{Allowance, Pace};

/// How long to continue reading a request that nobody wants any more, in all and between two pieces.
const DRAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// How much of it is read: so many times what a request may have, and at least as many bytes.
const DRAIN_BYTES: (u64, u64) = (4, 64 << 20);
/// How long an error waits for the rest of a request that comes over HTTP/2, in all and between two pieces.
const UPLOAD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));
/// How many requests on one HTTP/2 connection are read to their end at once.
const DRAINS_OF_CONNECTION: usize = 16;
/// The same on all connections of one side. What each takes is some kilobytes, since nothing that comes is kept.
const DRAINS_OF_SIDE: usize = 256;

/// What passed of an exchange's two bodies.
#[derive(Default)]
pub struct Traffic {
    /// The request.
    pub request: Passage,
    /// The answer.
    pub answer: Passage,
    /// Whether the answer's head is there.
    pub answered: AtomicBool,
    /// Whether the request was given to a connection, so that whoever is behind it may have begun to work on it.
    pub sent: AtomicBool,
    /// What becomes of the rest of the request once nobody wants it.
    pub rest: Remainder,
    /// The interim answers.
    pub interim: Arc<Interim>,
}

impl Traffic {
    /// Nothing passed yet.
    pub fn new(interim: Arc<Interim>) -> Self {
        Self { interim, ..Self::default() }
    }
}

/// How much of one body passed, and how it ended.
#[derive(Default)]
pub struct Passage {
    bytes: AtomicU64,
    /// An [`Ending`], or 0 while it continues.
    ending: AtomicU8,
    /// What its source, or whoever cut it, said.
    reason: OnceLock<String>,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// All of it passed.
    Complete = 1,
    /// Whoever sends it broke off, or sent what is not HTTP.
    SourceFailed = 2,
    /// It was larger than allowed.
    TooLarge = 3,
    /// It came more slowly than allowed.
    TooSlow = 4,
    /// Nothing came for longer than allowed.
    Idle = 5,
    /// The time of the exchange was over.
    Deadline = 6,
    /// Whoever was to get it went away.
    Dropped = 7,
}

impl Passage {
    /// Bytes that passed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How it ended; `None` while it continues.
    pub fn ending(&self) -> Option<Ending> {
        Some(match self.ending.load(Ordering::Acquire) {
            1 => Ending::Complete,
            2 => Ending::SourceFailed,
            3 => Ending::TooLarge,
            4 => Ending::TooSlow,
            5 => Ending::Idle,
            6 => Ending::Deadline,
            7 => Ending::Dropped,
            _ => return None,
        })
    }

    /// The reason for an ending that is not complete, where one is known.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Counts what passed.
    pub fn passed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes how it ended. The first ending stays.
    pub fn end(&self, ending: Ending) {
        let _ = self.ending.compare_exchange(0, ending as u8, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn end_because(&self, ending: Ending, error: &(dyn Error + 'static)) {
        let _ = self.reason.set(root_cause(error).to_string());
        self.end(ending);
    }
}

/// A look at each piece of a body that passes.
pub type Tap = Box<dyn FnMut(&Bytes) + Send>;

/// A request on its way to the backend or a peer.
///
/// When it is given up, its client may still be sending. HTTP/1.1 would have to close on it, which resets the connection,
/// and the answer that says why could be lost (RFC 9112, section 9.6). HTTP/2 can reset the one stream, but many clients
/// then lose the answer as well (curl, httpx) or never end the request (Node.js). So the rest is read and dropped for a
/// while, within bounds of time and bytes, and on HTTP/2 as long as not too many do so at once.
pub struct RequestBody {
    inner: Option<Incoming>,
    /// Where places for reading the rest come from; `None` where there is one request to a connection.
    drains: Option<Drains>,
    /// How much of the rest is read.
    drain_bytes: u64,
    /// Bytes still allowed until the answer begins, for bodies that did not announce their length.
    left_bytes: Option<u64>,
    /// Set while it is not to be read.
    gate: Option<Gate>,
    pace: Option<Pace>,
    tap: Option<Tap>,
    traffic: Arc<Traffic>,
}

/// A body was given up.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("the request body is too large")]
    TooLarge,
    #[error("nobody asked for the request body")]
    Unasked,
    #[error("the request body comes too slowly")]
    TooSlow,
    #[error("nothing came for too long")]
    Idle,
    #[error("the time that the request allows is over")]
    Deadline,
}

impl RequestBody {
    /// The body of a request that came in by `version`. If it announced no length, it is cut off with an error when it
    /// passes `max_bytes` before its answer has begun: one that is answered while it comes is a conversation, which may
    /// continue for ever, and of which no more is kept than windows allow. The HTTP parser holds others to what they
    /// announced ([`RequestBody::announced`]).
    pub fn new(
        inner: Incoming,
        version: Version,
        traffic: Arc<Traffic>,
        max_bytes: u64,
        drains: &Drains,
    ) -> Self {
        let left_bytes = inner.size_hint().exact().is_none().then_some(max_bytes);
        let drains = (version == Version::HTTP_2).then(|| drains.clone());
        let drain_bytes = max_bytes.saturating_mul(DRAIN_BYTES.0).max(DRAIN_BYTES.1);
        // On HTTP/2, only what the caller sends comes. On HTTP/1.1, hyper tells it to continue when the body is asked for.
        let gate = (version < Version::HTTP_2 && traffic.interim.expects())
            .then(|| Gate::new(traffic.interim.clone()));
        Self { inner: Some(inner), drains, drain_bytes, left_bytes, gate, pace: None, tap: None, traffic }
    }

    /// The body of a request that this sidecar itself makes.
    pub fn own(bytes: Bytes) -> Self {
        Self::bare(Some(incoming::given(bytes)), Arc::default())
    }

    /// One that nothing else depends on.
    fn bare(inner: Option<incoming::Incoming>, traffic: Arc<Traffic>) -> Self {
        Self {
            inner,
            drains: None,
            drain_bytes: 0,
            left_bytes: None,
            gate: None,
            pace: None,
            tap: None,
            traffic,
        }
    }

    /// Gives up where it keeps its reader waiting for longer than `allowance`, as long as the answer has not begun.
    pub fn paced(mut self, allowance: Allowance) -> Self {
        self.pace = Some(Pace::new(allowance));
        self
    }

    /// Notes that the request is given to a connection, or came back from it untouched.
    pub fn sent(&self, sent: bool) {
        self.traffic.sent.store(sent, Ordering::Relaxed);
    }

    /// The interim answers to the request.
    pub fn interim(&self) -> Arc<Interim> {
        self.traffic.interim.clone()
    }

    /// The bytes that it will have at least.
    pub fn announced(&self) -> u64 {
        self.size_hint().lower()
    }

    /// The body of the same request once more, where it has none.
    pub fn none_again(&self) -> Self {
        Self::bare(None, self.traffic.clone())
    }

    /// Shows what passes to `tap`.
    pub fn tapped(mut self, tap: Option<Tap>) -> Self {
        self.tap = tap;
        self
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Some(gate) = &mut this.gate {
            if !ready!(gate.poll_open(context)) {
                return Poll::Ready(Some(Err(GivenUp::Unasked.into())));
            }
            this.gate = None;
        }
        let passage = &this.traffic.request;
        let polled = Pin::new(&mut *inner).poll_frame(context);
        if polled.is_pending()
            && !this.traffic.answered.load(Ordering::Relaxed)
            && let Some(pace) = &mut this.pace
        {
            ready!(pace.waits(context));
            passage.end(Ending::TooSlow);
            return Poll::Ready(Some(Err(GivenUp::TooSlow.into())));
        }
        let mut frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                passage.end_because(Ending::SourceFailed, &*error);
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                passage.end(Ending::Complete);
                this.inner = None;
                return Poll::Ready(None);
            }
        };
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
            // Nothing comes after them, and who reads them need not ask.
            passage.end(Ending::Complete);
        }
        if let Some(data) = frame.data_ref() {
            if let Some(left) = &mut this.left_bytes
                && !this.traffic.answered.load(Ordering::Relaxed)
            {
                match left.checked_sub(data.len() as u64) {
                    Some(rest) => *left = rest,
                    None => {
                        passage.end(Ending::TooLarge);
                        return Poll::Ready(Some(Err(GivenUp::TooLarge.into())));
                    }
                }
            }
            passage.passed(data.len() as u64);
            if let Some(pace) = &mut this.pace {
                pace.came(data.len());
            }
            if let Some(tap) = &mut this.tap {
                tap(data);
            }
        }
        if inner.is_end_stream() {
            passage.end(Ending::Complete);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.traffic.request.end(Ending::Dropped);
        let rest = Rest(self.traffic.clone());
        let Some(mut inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) else { return };
        let place = match &self.drains {
            Some(drains) => match drains.enter() {
                Some(place) => Some(place),
                // Its stream is reset.
                None => return,
            },
            None => None,
        };
        let Ok(runtime) = Handle::try_current() else { return };
        let (mut left, shut) = (self.drain_bytes, self.gate.is_some());
        runtime.spawn(timeout(DRAIN.0, async move {
            let _place = place;
            if shut {
                sleep(UNASKED).await;
            }
            while let Ok(Some(Ok(frame))) = timeout(DRAIN.1, inner.frame()).await {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match left.checked_sub(bytes) {
                    Some(fewer) => left = fewer,
                    None => return,
                }
                rest.0.rest.came.notify_waiters();
            }
        }));
    }
}

/// The reading of what is left of a request that nobody wants any more.
struct Rest(Arc<Traffic>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.rest.ended.store(true, Ordering::Release);
        self.0.rest.came.notify_waiters();
    }
}

/// What is told of that reading.
#[derive(Default)]
pub struct Remainder {
    came: Notify,
    ended: AtomicBool,
}

impl Remainder {
    /// Waits while what is left of the request keeps coming, for a while, and not past `end`.
    pub async fn read(&self, end: Option<Instant>) {
        let latest = Instant::now() + UPLOAD.0;
        let _ = timeout_at(end.map_or(latest, |end| end.min(latest)), async {
            loop {
                let mut came = pin!(self.came.notified());
                // From here on, nothing is missed.
                came.as_mut().enable();
                if self.ended.load(Ordering::Acquire) || timeout(UPLOAD.1, came).await.is_err() {
                    return;
                }
            }
        })
        .await;
    }
}

/// Places for requests that are read to their end although nobody wants them. Where none is free, a request's stream is
/// reset instead. So whoever uploads much that is refused gets no more work out of this sidecar than the places are.
#[derive(Clone)]
pub struct Drains {
    of_connection: Arc<Semaphore>,
    of_side: &'static Semaphore,
}

impl Drains {
    /// The places of one connection, and those that all connections of its side share.
    pub fn new(of_side: &'static Semaphore) -> Self {
        Self { of_connection: Arc::new(Semaphore::new(DRAINS_OF_CONNECTION)), of_side }
    }

    /// The places of a side.
    pub const fn of_side() -> Semaphore {
        Semaphore::const_new(DRAINS_OF_SIDE)
    }

    /// A place, kept until it is dropped; `None` where all are taken.
    fn enter(&self) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'static>)> {
        Some((self.of_connection.clone().try_acquire_owned().ok()?, self.of_side.try_acquire().ok()?))
    }
}

/// An answer on its way back.
pub struct ResponseBody {
    source: Source,
    watched: Option<Watched>,
}

enum Source {
    Own(Option<Bytes>),
    Passing(Incoming),
    /// Made here while it is read.
    Fed {
        pieces: mpsc::Receiver<Bytes>,
        /// Dropped with it.
        _guard: Box<dyn Any + Send>,
    },
}

/// What goes with an answer that belongs to an exchange.
struct Watched {
    traffic: Arc<Traffic>,
    limits: Option<Box<Limits>>,
    /// Dropped once it is known how the answer ended.
    _guard: Box<dyn Any + Send>,
}

/// When an answer that still flows is given up.
struct Limits {
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl ResponseBody {
    /// An answer made here.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { source: Source::Own(Some(bytes.into()).filter(|bytes| !bytes.is_empty())), watched: None }
    }

    /// An answer that comes from elsewhere.
    pub fn passing(inner: Incoming) -> Self {
        Self { source: Source::Passing(inner), watched: None }
    }

    /// An answer made here piece by piece, which ends with whoever sends them. `guard` is dropped with it.
    pub fn fed(pieces: mpsc::Receiver<Bytes>, guard: impl Any + Send) -> Self {
        Self { source: Source::Fed { pieces, _guard: Box::new(guard) }, watched: None }
    }

    /// Notes in `traffic` what passes, and drops `guard` when the answer has passed or was given up. It is given up at
    /// `deadline`, and after silence for `idle`.
    pub fn watched(
        mut self,
        traffic: Arc<Traffic>,
        guard: Box<dyn Any + Send>,
        deadline: Option<Instant>,
        idle: Option<Duration>,
    ) -> Self {
        if self.is_end_stream() {
            traffic.answer.end(Ending::Complete);
        }
        let limits = (deadline.is_some() || idle.is_some()).then(|| {
            Box::new(Limits {
                deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
                idle: idle.map(|limit| (limit, Box::pin(tokio::time::sleep(limit)))),
            })
        });
        self.watched = Some(Watched { traffic, limits, _guard: guard });
        self
    }
}

impl Limits {
    fn progressed(&mut self) {
        if let Some((limit, sleep)) = &mut self.idle {
            sleep.as_mut().reset(Instant::now() + *limit);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(Watched { traffic, limits: Some(limits), .. }) = &mut this.watched
            && limits.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
        {
            traffic.answer.end(Ending::Deadline);
            return Poll::Ready(Some(Err(GivenUp::Deadline.into())));
        }
        let polled = match &mut this.source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Passing(inner) => Pin::new(inner).poll_frame(context),
            Source::Fed { pieces, .. } => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
            }
        };
        let mut frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(Watched { traffic, limits: Some(limits), .. }) = &mut this.watched else {
                    return Poll::Pending;
                };
                let Some((_, silence)) = &mut limits.idle else { return Poll::Pending };
                ready!(silence.as_mut().poll(context));
                traffic.answer.end(Ending::Idle);
                return Poll::Ready(Some(Err(GivenUp::Idle.into())));
            }
        };
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::clean_trailers(trailers);
        }
        if let Some(watched) = &mut this.watched {
            let passage = &watched.traffic.answer;
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        passage.passed(data.len() as u64);
                    }
                    let ended = match &this.source {
                        Source::Own(bytes) => bytes.is_none(),
                        Source::Passing(inner) => inner.is_end_stream(),
                        Source::Fed { .. } => false,
                    };
                    if ended {
                        passage.end(Ending::Complete);
                    }
                    if let Some(limits) = &mut watched.limits {
                        limits.progressed();
                    }
                }
                Some(Err(error)) => passage.end_because(Ending::SourceFailed, &**error),
                None => passage.end(Ending::Complete),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Passing(inner) => inner.is_end_stream(),
            Source::Fed { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Passing(inner) => inner.size_hint(),
            Source::Fed { .. } => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.traffic.answer.end(Ending::Dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_request_is_waited_for_while_it_comes_and_while_there_is_time() {
        let traffic = Arc::new(Traffic::default());
        let took = async |end: Option<Duration>| {
            let begun = Instant::now();
            traffic.rest.read(end.map(|end| begun + end)).await;
            begun.elapsed()
        };
        assert_eq!(took(None).await, UPLOAD.1, "nothing comes");
        let rest = Rest(traffic.clone());
        let coming = tokio::spawn(async move {
            loop {
                rest.0.rest.came.notify_waiters();
                tokio::time::sleep(UPLOAD.1 / 2).await;
            }
        });
        assert_eq!(took(None).await, UPLOAD.0);
        assert_eq!(took(Some(Duration::from_secs(1))).await, Duration::from_secs(1));
        assert_eq!(took(Some(2 * UPLOAD.0)).await, UPLOAD.0);
        coming.abort();
        let _ = coming.await;
        assert_eq!(took(None).await, Duration::ZERO, "it has ended");
    }
}
