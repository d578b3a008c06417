//! A body on its way out on a stream: of a request to a server, or of an answer to a client.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};
use tokio::time::Instant;

use crate::error::BoxError;

/// A body that is being sent.
pub struct Outgoing<B> {
    stream: SendStream<Bytes>,
    /// What was read of the body already.
    first: Option<Result<Frame<Bytes>, BoxError>>,
    body: B,
    waits_since: Option<Instant>,
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Outgoing<B> {
    /// Sends `first`, which was read of the body already, and the rest of it.
    pub fn new(stream: SendStream<Bytes>, first: Option<Result<Frame<Bytes>, BoxError>>, body: B) -> Self {
        Self { stream, first, body, waits_since: None }
    }

    /// Sends what can be sent. Ready once the body has ended, or nobody wants it any more.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            // A piece is taken from the source only where some of it can go out.
            let is_more = self.first.is_some() || !self.body.is_end_stream();
            if is_more && self.stream.capacity() == 0 {
                self.stream.reserve_capacity(1);
                while self.stream.capacity() == 0 {
                    self.waits_since.get_or_insert_with(Instant::now);
                    match ready!(self.stream.poll_capacity(context)) {
                        Some(Ok(_)) => {}
                        // The stream was reset.
                        Some(Err(_)) | None => return Poll::Ready(()),
                    }
                }
            }
            self.waits_since = None;
            if self.stream.poll_reset(context).is_ready() {
                return Poll::Ready(());
            }
            let frame = match self.first.take() {
                Some(first) => Some(first),
                None => ready!(Pin::new(&mut self.body).poll_frame(context)),
            };
            let sent = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let ends = self.body.is_end_stream();
                        let sent = self.stream.send_data(data, ends);
                        if !ends && sent.is_ok() {
                            continue;
                        }
                        sent
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => self.stream.send_trailers(trailers),
                        Err(_) => continue,
                    },
                },
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&error));
                    Ok(())
                }
                None => self.stream.send_data(Bytes::new(), true),
            };
            // It fails where the stream is over.
            let _ = sent;
            return Poll::Ready(());
        }
    }

    /// Since when nothing more can be sent, because the other side has not taken what it was sent.
    pub fn waits_since(&self) -> Option<Instant> {
        self.waits_since
    }

    /// The stream, on which no more of the body is sent.
    pub fn into_stream(self) -> SendStream<Bytes> {
        self.stream
    }
}

/// What the other side is told of a body that broke off.
fn reason(error: &BoxError) -> Reason {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(each) = cause {
        if let Some(reason) = each.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        cause = each.source();
    }
    Reason::INTERNAL_ERROR
}
