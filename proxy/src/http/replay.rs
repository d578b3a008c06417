//! A request body that can be sent again: what has gone out is kept until the answer begins, up to a bound.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

use crate::error::BoxError;
use crate::http::body::RequestBody;
use crate::http::interim::Interim;
use crate::io::link::Link;

/// A request of which more than this has gone out is not sent again.
const KEPT_BYTES: usize = 64 << 10;

/// The body of a request whose answer has not begun. On drop, nothing is kept any more.
pub struct Source<B = RequestBody>(Arc<Mutex<Shared<B>>>);

struct Shared<B> {
    body: B,
    kept: VecDeque<Piece>,
    kept_bytes: usize,
    keeping: bool,
    /// The attempt that may read.
    attempt: u32,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B: Body<Data = Bytes>> Source<B> {
    /// Nothing has gone out yet.
    pub fn new(body: B) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            body,
            kept: VecDeque::new(),
            kept_bytes: 0,
            keeping: true,
            attempt: 0,
        })))
    }

    /// Whether all that has gone out is still there.
    pub fn can_repeat(&self) -> bool {
        self.0.lock().keeping
    }

    /// Takes the body back from the attempt that reads it, if all that has gone out is still there. That attempt gets no more
    /// of it, so that all of it is there for the next one, however long that takes to begin.
    pub fn take_back(&self) -> bool {
        let shared = &mut *self.0.lock();
        if shared.keeping {
            shared.attempt += 1;
        }
        shared.keeping
    }

    /// The whole body for another attempt, on the connection of `link`. The attempt before gets no more of it. Where its
    /// beginning is gone, the attempt fails: what is left is never sent as if it were all.
    pub fn attempt(&self, link: &Arc<Link>) -> Replay<B> {
        let shared = &mut *self.0.lock();
        let is_whole = shared.keeping || shared.attempt == 0;
        shared.attempt += 1;
        Replay {
            shared: self.0.clone(),
            attempt: shared.attempt,
            next: 0,
            link: link.clone(),
            failed: (!is_whole).then(|| GivenUp.into()),
            patience: None,
            waits: None,
        }
    }
}

impl Source {
    /// Notes that the request is given to a connection, or came back from it untouched.
    pub fn sent(&self, sent: bool) {
        self.0.lock().body.sent(sent);
    }

    /// The interim answers to the request.
    pub fn interim(&self) -> Arc<Interim> {
        self.0.lock().body.interim()
    }
}

impl Replay {
    /// The interim answers to the request.
    pub fn interim(&self) -> Arc<Interim> {
        self.shared.lock().body.interim()
    }
}

impl<B> Drop for Source<B> {
    fn drop(&mut self) {
        let shared = &mut *self.0.lock();
        shared.keeping = false;
    }
}

/// The body of one attempt.
pub struct Replay<B = RequestBody> {
    shared: Arc<Mutex<Shared<B>>>,
    attempt: u32,
    /// The next of the pieces that are kept.
    next: usize,
    link: Arc<Link>,
    /// An error that waits for the stream to be reset.
    failed: Option<BoxError>,
    /// How long it waits before it sends what can no longer be kept.
    patience: Option<Duration>,
    /// Set while it does.
    waits: Option<Pin<Box<Sleep>>>,
}

/// The attempt was given up for another one.
#[derive(Debug, thiserror::Error)]
#[error("the request is being sent another time")]
struct GivenUp;

impl<B> Replay<B> {
    /// Waits for so long before more goes out than can be sent again, for whoever may soon learn that it has to be.
    pub fn patient(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Body for Replay<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.failed.is_none() {
            let shared = &mut *this.shared.lock();
            if shared.attempt != this.attempt {
                return Poll::Ready(Some(Err(GivenUp.into())));
            }
            if let Some(patience) = this.patience
                && shared.is_full(this.next)
            {
                let waits = this.waits.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(waits.as_mut().poll(context));
                this.patience = None;
            }
            match ready!(shared.poll_piece(&mut this.next, this.patience.is_some(), context)) {
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    shared.keeping = false;
                    this.failed = Some(error);
                }
            }
        }
        // The error resets the stream.
        ready!(this.link.poll_reset(context));
        Poll::Ready(this.failed.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        self.failed.is_none() && shared.kept.len() <= self.next && shared.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.lock();
        let kept: u64 = shared.kept.iter().skip(self.next).map(Piece::size).sum();
        let rest = shared.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Shared<B> {
    /// Whether all that can be kept has gone out, and more is to come.
    fn is_full(&self, next: usize) -> bool {
        self.keeping && self.kept_bytes > KEPT_BYTES && self.kept.len() <= next && !self.body.is_end_stream()
    }

    /// The next piece. With `fills`, the one that passes the bound is kept as well.
    fn poll_piece(
        &mut self,
        next: &mut usize,
        fills: bool,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(piece) = self.kept.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(piece.clone().into())));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)?) else {
            return Poll::Ready(None);
        };
        if self.keeping {
            let piece = Piece::of(&frame);
            self.kept_bytes = self.kept_bytes.saturating_add(piece.size() as usize);
            self.keeping = fills || self.kept_bytes <= KEPT_BYTES;
            self.kept.push_back(piece);
            *next += 1;
        }
        if !self.keeping && !self.kept.is_empty() {
            // Whoever reads has had all of them.
            self.kept = VecDeque::new();
            *next = 0;
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Self {
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Self::Data(data.clone()),
            (None, trailers) => Self::Trailers(trailers.cloned().unwrap_or_default()),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// A request with the method and the headers of `parts`; where it goes, its sender says.
pub fn once_more<B>(parts: &Parts, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = parts.headers.clone();
    request
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    type Sent = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

    fn body(pieces: &[&'static [u8]]) -> Sent {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
        Box::pin(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn next(replay: &mut Replay<Sent>) -> Option<Bytes> {
        Some(replay.frame().await?.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn another_attempt_begins_anew_and_the_one_before_gets_no_more() {
        let source = Source::new(body(&[b"one", b"two", b"three"]));
        let link = Arc::default();
        let mut first = source.attempt(&link);
        assert_eq!(next(&mut first).await.unwrap(), "one");
        assert_eq!(next(&mut first).await.unwrap(), "two");
        let second = source.attempt(&link);
        assert!(first.frame().await.unwrap().is_err());
        assert_eq!(second.collect().await.unwrap().to_bytes(), "onetwothree");
        assert!(source.can_repeat());
        assert_eq!(source.attempt(&link).collect().await.unwrap().to_bytes(), "onetwothree");
    }

    #[tokio::test]
    async fn what_is_left_of_a_body_is_never_sent_as_if_it_were_all() {
        static LARGE: [u8; KEPT_BYTES] = [b'x'; KEPT_BYTES];
        // Taken back, it stays whole while the next attempt waits for its connection.
        let source = Source::new(body(&[b"one", &LARGE, b"two"]));
        let mut first = source.attempt(&Arc::default());
        assert_eq!(next(&mut first).await.unwrap(), "one");
        assert!(source.take_back());
        assert!(first.frame().await.unwrap().is_err());
        assert_eq!(source.attempt(&Arc::default()).collect().await.unwrap().to_bytes().len(), KEPT_BYTES + 6);

        // Not taken back, it continues to the first one only.
        let source = Source::new(body(&[b"one", &LARGE, b"two", b"end"]));
        let mut first = source.attempt(&Arc::default());
        while next(&mut first).await.unwrap() != "two" {}
        assert!(!source.take_back());
        assert_eq!(next(&mut first).await.unwrap(), "end");
        assert!(source.attempt(&Arc::default()).frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_is_large_is_sent_once() {
        static LARGE: [u8; KEPT_BYTES] = [b'x'; KEPT_BYTES];
        let source = Source::new(body(&[&LARGE, b"y", b"z"]));
        let mut only = source.attempt(&Arc::default());
        assert_eq!(next(&mut only).await.unwrap().len(), KEPT_BYTES);
        assert!(source.can_repeat());
        assert_eq!(next(&mut only).await.unwrap(), "y");
        assert!(!source.can_repeat());
        assert_eq!(next(&mut only).await.unwrap(), "z");
        assert_eq!(next(&mut only).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_patient_attempt_sends_no_more_than_can_be_sent_again_for_a_while() {
        static LARGE: [u8; KEPT_BYTES] = [b'x'; KEPT_BYTES];
        let patience = Duration::from_secs(1);
        let source = Source::new(body(&[&LARGE, b"y", b"z", b"end"]));
        let mut first = source.attempt(&Arc::default()).patient(Some(patience));
        assert_eq!(next(&mut first).await.unwrap().len(), KEPT_BYTES);
        assert_eq!(next(&mut first).await.unwrap(), "y");
        assert!(tokio::time::timeout(patience / 2, next(&mut first)).await.is_err());
        assert!(source.can_repeat());
        let mut second = source.attempt(&Arc::default());
        assert_eq!(next(&mut second).await.unwrap().len(), KEPT_BYTES);
        assert_eq!(next(&mut second).await.unwrap(), "y");
        assert_eq!(next(&mut second).await.unwrap(), "z");
        assert!(!source.can_repeat());
        assert_eq!(next(&mut second).await.unwrap(), "end");
        assert_eq!(next(&mut second).await, None);

        // It continues in the end, and does not wait where nothing more is to come.
        let source = Source::new(body(&[&LARGE, b"y", b"z"]));
        let all = source.attempt(&Arc::default()).patient(Some(patience)).collect().await.unwrap();
        assert_eq!(all.to_bytes().len(), KEPT_BYTES + 2);
        let whole: Sent = Box::pin(
            http_body_util::Full::new(Bytes::from(vec![b'x'; 2 * KEPT_BYTES]))
                .map_err(|never| match never {}),
        );
        let source = Source::new(whole);
        let mut only = source.attempt(&Arc::default()).patient(Some(patience));
        let at_once = tokio::time::timeout(patience / 2, async {
            assert_eq!(next(&mut only).await.unwrap().len(), 2 * KEPT_BYTES);
            assert_eq!(next(&mut only).await, None);
        });
        at_once.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_kept_once_the_answer_has_begun() {
        let source = Source::new(body(&[b"one", b"two", b"three"]));
        let mut only = source.attempt(&Arc::default());
        assert_eq!(next(&mut only).await.unwrap(), "one");
        drop(source);
        assert_eq!(next(&mut only).await.unwrap(), "two");
        assert!(only.shared.lock().kept.is_empty());
        assert_eq!(next(&mut only).await.unwrap(), "three");
        assert_eq!(next(&mut only).await, None);
        assert!(only.is_end_stream() || only.frame().await.is_none());
    }

    #[tokio::test]
    async fn the_length_is_the_same_each_time() {
        let whole = http_body_util::Full::new(Bytes::from_static(b"abc")).map_err(|never| match never {});
        let source: Source<Sent> = Source::new(Box::pin(whole));
        let link = Arc::default();
        let first = source.attempt(&link);
        assert_eq!(first.size_hint().exact(), Some(3));
        assert_eq!(first.collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(source.attempt(&link).size_hint().exact(), Some(3));
    }
}
