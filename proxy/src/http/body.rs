//! The bodies that pass through: streamed frame by frame, never collected.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::access_log::AccessRecord;
use crate::error::ProxyError;
use crate::http::headers;
use crate::inbound::delegation::DelegationScanner;

/// How long to go on reading a request whose answer is there already, in all and between two pieces.
const DRAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));

/// A request on its way to the backend or a peer.
///
/// When it is given up, an HTTP/1.1 client is still sending. Closing on it would reset the connection, and the
/// answer that says why could be lost (RFC 9112, section 9.6); so the rest is read and dropped for a while.
pub struct RequestBody {
    inner: Option<Incoming>,
    /// HTTP/2 can end one request and leave the connection alone.
    drains: bool,
    /// Bytes still allowed, for bodies that did not announce their length.
    limit: Option<Limit>,
    scanner: Option<SharedScanner>,
}

/// What a passing body is searched for, shared with its log line.
pub type SharedScanner = Arc<Mutex<DelegationScanner>>;

struct Limit {
    left_bytes: u64,
    exceeded: Arc<AtomicBool>,
}

/// The body grew beyond what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("the request body is too large")]
struct BodyTooLarge;

/// Tells whether a body that was sent on grew beyond its limit.
pub struct Overrun {
    max_bytes: u64,
    exceeded: Option<Arc<AtomicBool>>,
}

impl Overrun {
    /// The error to report: the client's fault if its body was too large, else `error`.
    pub fn or(&self, error: ProxyError) -> ProxyError {
        match &self.exceeded {
            Some(exceeded) if exceeded.load(Ordering::Acquire) => {
                ProxyError::BodyTooLarge { limit_bytes: self.max_bytes }
            }
            _ => error,
        }
    }
}

impl RequestBody {
    /// The body of a request that came in by `version`.
    pub fn new(inner: Incoming, version: Version) -> Self {
        Self { inner: Some(inner), drains: version != Version::HTTP_2, limit: None, scanner: None }
    }

    /// Allows at most `max_bytes`.
    ///
    /// # Errors
    /// A body that announces more. One that announces nothing is cut off with an error when it passes the limit.
    pub fn limited(mut self, max_bytes: u64) -> Result<(Self, Overrun), ProxyError> {
        let size = self.size_hint();
        if size.lower() > max_bytes {
            return Err(ProxyError::BodyTooLarge { limit_bytes: max_bytes });
        }
        // The HTTP parser holds a body to the length that it announced.
        let exceeded = size.exact().is_none().then(Arc::<AtomicBool>::default);
        self.limit = exceeded.clone().map(|exceeded| Limit { left_bytes: max_bytes, exceeded });
        Ok((self, Overrun { max_bytes, exceeded }))
    }

    /// Shows what passes to `scanner`.
    pub fn scanned(mut self, scanner: Option<SharedScanner>) -> Self {
        self.scanner = scanner;
        self
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let Some(mut frame) = ready!(Pin::new(inner).poll_frame(context)?) else {
            this.inner = None;
            return Poll::Ready(None);
        };
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        if let Some(data) = frame.data_ref() {
            if let Some(limit) = &mut this.limit {
                match limit.left_bytes.checked_sub(data.len() as u64) {
                    Some(left) => limit.left_bytes = left,
                    None => {
                        limit.exceeded.store(true, Ordering::Release);
                        return Poll::Ready(Some(Err(BodyTooLarge.into())));
                    }
                }
            }
            if let Some(scanner) = &this.scanner {
                scanner.lock().unwrap_or_else(PoisonError::into_inner).feed(data);
            }
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
        let rest = self.inner.take().filter(|rest| self.drains && !rest.is_end_stream());
        if let (Some(mut rest), Ok(runtime)) = (rest, Handle::try_current()) {
            runtime.spawn(timeout(DRAIN.0, async move {
                while let Ok(Some(Ok(_))) = timeout(DRAIN.1, rest.frame()).await {}
            }));
        }
    }
}

/// An answer on its way back, with the log line that is written when it has passed.
pub struct ResponseBody {
    kind: Kind,
    record: Option<AccessRecord>,
    /// Held until the answer has passed.
    place: Option<Box<dyn Any + Send>>,
}

enum Kind {
    Own(Option<Bytes>),
    Passing(Incoming),
}

impl ResponseBody {
    /// An answer made here.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Own(Some(bytes.into()).filter(|bytes| !bytes.is_empty())),
            record: None,
            place: None,
        }
    }

    /// An answer that comes from elsewhere.
    pub fn passing(inner: Incoming) -> Self {
        Self { kind: Kind::Passing(inner), record: None, place: None }
    }

    /// Keeps its place on the connection to a peer until the body has passed or was given up.
    pub fn on(mut self, place: impl Any + Send) -> Self {
        self.place = Some(Box::new(place));
        self
    }

    /// Keeps `record` until the body has passed or was given up.
    pub fn recorded(mut self, record: Option<AccessRecord>) -> Self {
        self.record = record;
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = match &mut self.kind {
            Kind::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Kind::Passing(inner) => ready!(Pin::new(inner).poll_frame(context)),
        };
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            headers::clean_trailers(trailers);
        }
        if let (Some(Err(error)), Some(record)) = (&frame, &mut self.record) {
            record.broke_off(error);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(bytes) => bytes.is_none(),
            Kind::Passing(inner) => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Passing(inner) => inner.size_hint(),
        }
    }
}
