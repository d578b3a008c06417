//! Interim answers on HTTP/1.1, which hyper's server cannot write: written below it, where it has nothing to write itself,
//! before the answer that it waits for.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::interim::{Interim, relayed, write_http1};
use crate::io::readable::Readable;

/// What is to be written between hyper's answers.
#[derive(Clone, Default)]
pub struct Aside(Arc<Mutex<BytesMut>>);

impl Aside {
    /// Gives `answer`, and writes what there is of `interim` before it. Not `100 Continue`, which hyper writes when the body
    /// is asked for.
    pub fn relay<F: Future>(
        &self,
        interim: Arc<Interim>,
        answer: F,
    ) -> impl Future<Output = Result<F::Output, Infallible>> + use<F> {
        let bytes = self.0.clone();
        async move {
            let take = |early: Response<()>| {
                if early.status() != StatusCode::CONTINUE {
                    write_http1(&early, &mut bytes.lock());
                }
            };
            Ok(relayed(&interim, answer, take, || bytes.lock().is_empty()).await)
        }
    }
}

/// A connection on which something is written aside of what hyper writes.
pub struct WithAside<S> {
    inner: S,
    aside: Aside,
    /// Some of it is out, so that the rest has to follow.
    begun: bool,
}

impl<S: AsyncWrite + Unpin> WithAside<S> {
    /// Writes `aside` where hyper has nothing to write.
    pub fn new(inner: S, aside: Aside) -> Self {
        Self { inner, aside, begun: false }
    }

    fn poll_aside(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let bytes = &mut *self.aside.0.lock();
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !bytes.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bytes.advance(written);
            self.begun = true;
        }
        *bytes = BytesMut::new();
        self.begun = false;
        // The answer waits for this.
        context.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.begun { self.poll_aside(context) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: Readable> Readable for WithAside<S> {
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithAside<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithAside<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_begun(context))?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_begun(context))?;
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper flushes when it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_aside(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
