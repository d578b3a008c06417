//! A request on an h2 connection whose answer has not begun, and what becomes of it when nobody waits for it any more.
//!
//! Giving it up resets its stream. A peer that was held up finds the resets of all streams that it has not accepted at
//! once and ends the connection, and with it the streams of others. So only a few are reset before the peer is heard of
//! again; the others stay in the background until then, with the places that they take.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use h2::client::ResponseFuture;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Handle;

use crate::http::h2::client::Sender;
use crate::http::h2::outgoing::Outgoing;
use crate::http::incoming::{self, Incoming};
use crate::http::interim::Interim;
use crate::http::replay::Replay;
use crate::io::link::Link;

/// A request on its way; gives the answer's head, or how it failed, and the places that it takes.
pub struct InFlight<S: Send + 'static> {
    stage: Stage,
    link: Arc<Link>,
    interim: Arc<Interim>,
    /// The places that it takes.
    slot: Option<S>,
}

enum Stage {
    /// Nothing was sent yet.
    New(Sender, Request<Replay>, bool),
    /// The connection took it.
    Sent(ResponseFuture, Option<Outgoing<Replay>>),
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
        let interim = request.body().interim();
        Self { stage: Stage::New(sender, request, false), link, interim, slot: Some(slot) }
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
        *self = Self::Sent(answer, (!ends).then_some(Outgoing::new(stream, first, body)));
        Poll::Ready(Ok(()))
    }
}

impl<S: Send + 'static + Unpin> Future for InFlight<S> {
    type Output = (Result<Response<Incoming>, SendError>, S);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let begun = ready!(this.stage.poll_begin(context));
        let answered = match &mut this.stage {
            Stage::Sent(answer, upload) => {
                if upload.as_mut().is_some_and(|upload| upload.poll(context).is_ready()) {
                    *upload = None;
                }
                while let Poll::Ready(Some(Ok(early))) = answer.poll_informational(context) {
                    let (head, ()) = early.into_parts();
                    this.interim.push(head.status, head.headers);
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
        this.stage = Stage::Done;
        match this.slot.take() {
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
        let stream = upload.map(Outgoing::into_stream);
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
