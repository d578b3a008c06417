//! A request on an h2 connection whose answer has not begun, and what becomes of it when nobody waits for it any more.
//!
//! Giving it up resets its stream. A peer that was held up finds the resets of all streams that it has not accepted at
//! once and ends the connection, and with it the streams of others. So only a few are reset before the peer is heard of
//! again; the others stay in the background until then, with the places that they take.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::runtime::Handle;

use crate::error::BoxError;
use crate::http::h2::client::Sender;
use crate::http::incoming::{self, Incoming};
use crate::http::replay::Replay;
use crate::io::link::Link;

/// A request on its way; gives the answer's head, or how it failed, and the places that it takes.
pub struct InFlight<S: Send + 'static> {
    stage: Stage,
    link: Arc<Link>,
    /// The places that it takes.
    slot: Option<S>,
}

enum Stage {
    /// Nothing was sent yet.
    New(Sender, Request<Replay>, bool),
    /// The connection took it.
    Sent(ResponseFuture, Option<Upload>),
    /// Over.
    Done,
}

/// Why there is no answer.
pub struct SendError {
    /// What went wrong.
    pub error: h2::Error,
    /// Whether the connection had ended before it took anything of the request.
    pub untouched: bool,
}

impl<S: Send + 'static> InFlight<S> {
    /// Sends `request` on a connection that has room for it.
    pub fn send(sender: Sender, link: Arc<Link>, request: Request<Replay>, slot: S) -> Self {
        Self { stage: Stage::New(sender, request, false), link, slot: Some(slot) }
    }
}

impl Stage {
    /// Gives the request to the connection, with the beginning of its body if that is there: what belongs together goes
    /// out together, and the peer is woken once. hyper reads a body only after it was asked for, so one that is not there
    /// yet gets another turn.
    fn poll_begin(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let Self::New(_, request, waited) = self else { return Poll::Ready(Ok(())) };
        let mut first = None;
        if !request.body().is_end_stream() {
            match Pin::new(request.body_mut()).poll_frame(context) {
                Poll::Ready(frame) => first = frame,
                Poll::Pending if !std::mem::replace(waited, true) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
        let Self::New(mut sender, request, _) = std::mem::replace(self, Self::Done) else {
            return Poll::Ready(Ok(()));
        };
        let (head, body) = request.into_parts();
        let ends = first.is_none() && body.is_end_stream();
        let (answer, stream) = sender.send_request(Request::from_parts(head, ()), ends)?;
        *self = Self::Sent(answer, (!ends).then_some(Upload { stream, first, body }));
        Poll::Ready(Ok(()))
    }
}

impl<S: Send + 'static + Unpin> Future for InFlight<S> {
    type Output = (Result<Response<Incoming>, SendError>, S);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begun = ready!(self.stage.poll_begin(context));
        let answered = match &mut self.stage {
            Stage::Sent(answer, upload) => {
                if upload.as_mut().is_some_and(|upload| upload.poll(context).is_ready()) {
                    *upload = None;
                }
                let answer = ready!(Pin::new(answer).poll(context));
                // The rest of the request may still be wanted.
                if let Some(mut upload) = upload.take().filter(|_| answer.is_ok()) {
                    tokio::spawn(Box::pin(poll_fn(move |context| upload.poll(context))));
                }
                answer.map_err(|error| SendError { error, untouched: false })
            }
            _ => match begun {
                Err(error) => Err(SendError { error, untouched: true }),
                // Polled after its end.
                Ok(()) => return Poll::Pending,
            },
        };
        self.stage = Stage::Done;
        match self.slot.take() {
            Some(slot) => Poll::Ready((answered.map(incoming::streamed), slot)),
            None => Poll::Pending,
        }
    }
}

impl<S: Send + 'static> Drop for InFlight<S> {
    fn drop(&mut self) {
        let Stage::Sent(mut answer, upload) = std::mem::replace(&mut self.stage, Stage::Done) else { return };
        if self.link.try_reset() {
            return;
        }
        // What is left of the body is not sent any more.
        let stream = upload.map(|upload| upload.stream);
        let (link, slot) = (self.link.clone(), self.slot.take());
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::select! {
                // An answer shows that the peer has accepted the stream.
                _ = &mut answer => {}
                () = poll_fn(|context| link.poll_reset(context)) => {}
            }
            // Resets the stream before its place is given to another request.
            drop((answer, stream));
            drop(slot);
        });
    }
}

/// A body on its way out.
struct Upload {
    stream: SendStream<Bytes>,
    /// What was read of the body already.
    first: Option<Result<Frame<Bytes>, BoxError>>,
    body: Replay,
}

impl Upload {
    /// Sends what can be sent. Ready once the body has ended, or nobody wants it any more.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            // A piece is taken from the source only where some of it can go out.
            let is_more = self.first.is_some() || !self.body.is_end_stream();
            if is_more && self.stream.capacity() == 0 {
                self.stream.reserve_capacity(1);
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(context)) {
                        Some(Ok(_)) => {}
                        // The stream was reset.
                        Some(Err(_)) | None => return Poll::Ready(()),
                    }
                }
            }
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
}

/// What a server is told of a body that broke off.
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
