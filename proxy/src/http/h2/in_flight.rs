//! A request on an h2 connection whose answer has not begun, and what becomes of it when nobody waits for it any more.
//!
//! Giving it up resets its stream. A peer that was held up finds the resets of all streams that it has not accepted at
//! once and ends the connection, and with it the streams of others. So only a few are reset before the peer is heard of
//! again; the others stay in the background until then, with the places that they take.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::runtime::Handle;

use crate::http::h2::client::Sender;
use crate::http::replay::Replay;
use crate::io::link::Link;

type Answer = Result<Response<Incoming>, TrySendError<Request<Replay>>>;

/// A request on its way; gives the answer's head, or how it failed, and the places that it takes.
pub struct InFlight<S: Send + 'static> {
    answer: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    link: Arc<Link>,
    /// The places that it takes.
    slot: Option<S>,
}

impl<S: Send + 'static> InFlight<S> {
    /// Sends `request`.
    pub fn send(sender: &mut Sender, link: Arc<Link>, request: Request<Replay>, slot: S) -> Self {
        Self { answer: Some(Box::pin(sender.try_send_request(request))), link, slot: Some(slot) }
    }
}

impl<S: Send + 'static + Unpin> Future for InFlight<S> {
    type Output = (Answer, S);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        let answer = std::task::ready!(answer.as_mut().poll(context));
        self.answer = None;
        match self.slot.take() {
            Some(slot) => Poll::Ready((answer, slot)),
            // Polled after its end.
            None => Poll::Pending,
        }
    }
}

impl<S: Send + 'static> Drop for InFlight<S> {
    fn drop(&mut self) {
        let Some(mut answer) = self.answer.take() else { return };
        if self.link.try_reset() {
            return;
        }
        let (link, slot) = (self.link.clone(), self.slot.take());
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::select! {
                // An answer shows that the peer has accepted the stream.
                _ = &mut answer => {}
                () = poll_fn(|context| link.poll_reset(context)) => {}
            }
            // Resets the stream before its place is given to another request.
            drop(answer);
            drop(slot);
        });
    }
}
