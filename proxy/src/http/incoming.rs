//! A body that comes in, by either version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;

use crate::error::BoxError;

/// A body that comes in: read by hyper, or a stream of HTTP/2.
pub type Incoming = Either<hyper::body::Incoming, Received>;

/// What a stream of HTTP/2 brings.
pub struct Received {
    /// `None`: nothing comes.
    stream: Option<RecvStream>,
    /// Comes first.
    given: Option<Bytes>,
    data_ended: bool,
    /// What is still to come, if that was announced.
    left_bytes: Option<u64>,
}

/// An answer that hyper reads.
pub fn parsed(response: Response<hyper::body::Incoming>) -> Response<Incoming> {
    response.map(Either::Left)
}

/// An answer that came on a stream of HTTP/2.
pub fn streamed(response: Response<RecvStream>) -> Response<Incoming> {
    let announced = announced(response.headers());
    response.map(|stream| Either::Right(Received::new(stream, announced)))
}

/// A request that came on a stream of HTTP/2.
pub fn streamed_request(request: Request<RecvStream>) -> Request<Incoming> {
    let announced = announced(request.headers());
    request.map(|stream| Either::Right(Received::new(stream, announced)))
}

/// No body.
pub fn nothing() -> Incoming {
    given(Bytes::new())
}

/// A body that is here already.
pub fn given(bytes: Bytes) -> Incoming {
    let left_bytes = Some(bytes.len() as u64);
    let given = Some(bytes).filter(|bytes| !bytes.is_empty());
    Either::Right(Received { stream: None, given, data_ended: true, left_bytes })
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Received {
    fn new(stream: RecvStream, announced: Option<u64>) -> Self {
        let left_bytes = announced.or_else(|| stream.is_end_stream().then_some(0));
        Self { stream: Some(stream), given: None, data_ended: false, left_bytes }
    }
}

/// A stream that is reset with NO_ERROR just ends, once all has come (RFC 9113, section 8.1). Where no length was
/// announced, h2 does not tell.
fn failed(error: h2::Error, left_bytes: Option<u64>) -> Option<Result<Frame<Bytes>, BoxError>> {
    let complete = error.reason() == Some(Reason::NO_ERROR) && left_bytes.is_none_or(|left| left == 0);
    (!complete).then(|| Err(error.into()))
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(given) = this.given.take() {
            this.left_bytes = Some(0);
            return Poll::Ready(Some(Ok(Frame::data(given))));
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if !this.data_ended {
            match ready!(stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Fails only for more than has come.
                    let _ = stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut this.left_bytes {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(failed(error, this.left_bytes)),
                None => this.data_ended = true,
            }
        }
        match ready!(stream.poll_trailers(context)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(failed(error, this.left_bytes)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.given.is_none() && self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left_bytes.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
