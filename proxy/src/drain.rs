//! One side of the sidecar on its way from open to closed: who is told to take nothing new, and what is still
//! under way.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pingora_core::server::ShutdownWatch;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

/// Whether one side (inbound, outbound or admin) still takes new work, and how much it carries.
#[derive(Clone)]
pub struct Drain {
    begun: Arc<watch::Sender<bool>>,
    /// The same for the path of requests, where the lock of a watch would be one too many.
    closing: Arc<AtomicBool>,
    connections: Arc<Count>,
    requests: Arc<Count>,
    linger: Duration,
}

impl Drain {
    /// A side that is open. Once it drains, a connection that carries nothing is kept for `linger`: a request may
    /// be on its way on it, or about to be.
    pub fn new(linger: Duration) -> Self {
        Self {
            begun: Arc::new(watch::channel(false).0),
            closing: Arc::default(),
            connections: Arc::default(),
            requests: Arc::default(),
            linger,
        }
    }

    /// From now on listeners accept nothing, and connections end as soon as they carry nothing.
    pub fn begin(&self) {
        self.closing.store(true, Ordering::Release);
        self.begun.send_replace(true);
    }

    /// Whether it takes nothing new any more.
    pub fn has_begun(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Tells when it begins.
    pub fn watch(&self) -> ShutdownWatch {
        self.begun.subscribe()
    }

    /// Counts a connection, or a listener that can still accept one, until the value is dropped.
    pub fn connection(&self) -> Held {
        Held::one_more(&self.connections)
    }

    /// Counts a request until the value is dropped.
    pub fn request(&self) -> Held {
        Held::one_more(&self.requests)
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.requests.number.load(Ordering::Acquire)
    }

    /// Returns once there is neither a listener nor a connection, which is some time after it began.
    pub async fn closed(&self) {
        loop {
            let none_left = self.connections.none_left.notified();
            tokio::pin!(none_left);
            none_left.as_mut().enable();
            if self.connections.number.load(Ordering::Acquire) == 0 {
                return;
            }
            none_left.await;
        }
    }

    /// Returns when connections that carry nothing are no longer kept.
    pub async fn lingered(&self) {
        // Fails only when the sender, which is here, is gone.
        let _ = self.watch().wait_for(|begun| *begun).await;
        sleep(self.linger).await;
    }

    /// Counts a request from now until its answer has passed. While the side drains, an HTTP/1.1 client learns from
    /// the answer that the connection ends with it.
    pub async fn carry<B>(
        &self,
        version: Version,
        answer: impl Future<Output = Response<B>>,
    ) -> Response<Carried<B>> {
        let held = self.request();
        let mut response = answer.await;
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.has_begun() && version <= Version::HTTP_11 && !switches {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Carried { body, _held: held })
    }
}

/// The body of an answer whose request counts until it has passed or was given up.
pub struct Carried<B> {
    body: B,
    _held: Held,
}

impl<B: Body + Unpin> Body for Carried<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Default)]
struct Count {
    number: AtomicUsize,
    none_left: Notify,
}

/// Counts as one while it lives.
pub struct Held(Arc<Count>);

impl Held {
    fn one_more(count: &Arc<Count>) -> Self {
        count.number.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.number.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use http_body_util::Empty;

    use super::*;

    fn answer(status: StatusCode) -> Response<Empty<&'static [u8]>> {
        Response::builder().status(status).body(Empty::new()).unwrap()
    }

    #[tokio::test]
    async fn only_http_1_clients_of_a_side_that_drains_are_told_to_close() {
        let drain = Drain::new(Duration::ZERO);
        let closes = async |version, status| {
            let response = drain.carry(version, ready(answer(status))).await;
            response.headers().get(CONNECTION).is_some_and(|value| value == "close")
        };
        assert!(!closes(Version::HTTP_11, StatusCode::OK).await);
        drain.begin();
        assert!(closes(Version::HTTP_11, StatusCode::OK).await);
        assert!(closes(Version::HTTP_10, StatusCode::OK).await);
        assert!(!closes(Version::HTTP_2, StatusCode::OK).await);
        assert!(!closes(Version::HTTP_11, StatusCode::SWITCHING_PROTOCOLS).await);
    }

    #[tokio::test]
    async fn a_request_counts_until_its_body_is_gone_and_a_side_until_its_last_connection() {
        let drain = Drain::new(Duration::ZERO);
        let response = drain.carry(Version::HTTP_2, ready(answer(StatusCode::OK))).await;
        assert_eq!(drain.requests(), 1);
        drop(response);
        assert_eq!(drain.requests(), 0);
        let (first, second) = (drain.connection(), drain.connection());
        let closed = drain.closed();
        tokio::pin!(closed);
        drop(first);
        assert!(futures_util::poll!(closed.as_mut()).is_pending());
        drop(second);
        closed.await;
    }
}
