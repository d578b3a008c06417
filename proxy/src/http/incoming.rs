//! A body that comes in, by either version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::error::BoxError;

/// A body that comes in.
pub enum Incoming {
    /// Read by hyper.
    Parsed(hyper::body::Incoming),
    /// A stream of HTTP/2.
    Stream(Received),
}

/// What a stream of HTTP/2 brings.
pub struct Received {
    stream: RecvStream,
    data_ended: bool,
    /// What is still to come, if that was announced.
    left_bytes: Option<u64>,
}

impl Incoming {
    /// The answer that came on a stream.
    pub fn answer(response: Response<RecvStream>) -> Response<Self> {
        let announced = response.headers().get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|stream| {
            let left_bytes = announced.or_else(|| stream.is_end_stream().then_some(0));
            Self::Stream(Received { stream, data_ended: false, left_bytes })
        })
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Parsed(body)
    }
}

impl Received {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Fails only for more than has come.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.left_bytes {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(failed(error)),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(context)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(failed(error)),
        }
    }
}

/// A stream that is reset with NO_ERROR just ends (RFC 9113, section 8.1).
fn failed(error: h2::Error) -> Option<Result<Frame<Bytes>, BoxError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then(|| Err(error.into()))
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Parsed(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Stream(body) => body.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Parsed(body) => body.is_end_stream(),
            Self::Stream(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Parsed(body) => body.size_hint(),
            Self::Stream(body) => body.left_bytes.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
