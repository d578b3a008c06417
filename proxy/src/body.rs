//! The bodies that pass through: streamed frame by frame, never collected.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::access_log::AccessRecord;
use crate::delegation::DelegationScanner;
use crate::error::ProxyError;

/// A request on its way to the backend or a peer.
pub struct RequestBody {
    inner: Option<Incoming>,
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
    /// A body of at most `max_bytes`.
    ///
    /// # Errors
    /// One that announces more. One that announces nothing is cut off with an error when it passes the limit.
    pub fn admit(inner: Incoming, max_bytes: u64) -> Result<(Self, Overrun), ProxyError> {
        let size = inner.size_hint();
        if size.lower() > max_bytes {
            return Err(ProxyError::BodyTooLarge { limit_bytes: max_bytes });
        }
        // The HTTP parser holds a body to the length that it announced.
        let exceeded = size.exact().is_none().then(Arc::<AtomicBool>::default);
        let limit = exceeded.clone().map(|exceeded| Limit { left_bytes: max_bytes, exceeded });
        Ok((Self { inner: Some(inner), limit, scanner: None }, Overrun { max_bytes, exceeded }))
    }

    /// No body.
    pub fn empty() -> Self {
        Self { inner: None, limit: None, scanner: None }
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
        let Some(frame) = ready!(Pin::new(inner).poll_frame(context)?) else {
            return Poll::Ready(None);
        };
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

/// An answer on its way back, with the log line that is written when it has passed.
pub struct ResponseBody {
    kind: Kind,
    record: Option<AccessRecord>,
}

enum Kind {
    Own(Option<Bytes>),
    Passing(Incoming),
}

impl ResponseBody {
    /// An answer made here.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Own(Some(bytes.into()).filter(|bytes| !bytes.is_empty())), record: None }
    }

    /// An answer that comes from elsewhere.
    pub fn passing(inner: Incoming) -> Self {
        Self { kind: Kind::Passing(inner), record: None }
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
        let frame = match &mut self.kind {
            Kind::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Kind::Passing(inner) => ready!(Pin::new(inner).poll_frame(context)),
        };
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
