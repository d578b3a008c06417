//! The socket below TLS or HTTP, with an end to those who do not read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::watch::Cut;
use crate::io::read_ahead::ReadAhead;
use crate::io::readable::Readable;

/// A connection of which what waits to be taken is given up after a while.
pub struct Socket<S> {
    inner: ReadAhead<S>,
    unread: Option<Duration>,
    /// Set while the other side takes nothing of what is to be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Gives up with [`Cut::Unread`] when nothing can be written for `unread`.
    pub fn new(inner: S, unread: Option<Duration>) -> Self {
        Self { inner: ReadAhead::new(inner), unread, stalled: None }
    }

    /// Returns when there is something to read, or the end.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn readable(&mut self) -> io::Result<()> {
        self.inner.readable().await
    }

    /// Passes on what a write came to, unless the other side has taken nothing for too long.
    fn taken<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let Some(limit) = self.unread else { return written };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(Cut::Unread.into()))
    }
}

impl<S: AsyncRead + Unpin> Readable for Socket<S> {
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.taken(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.taken(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.taken(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.inner).poll_shutdown(context);
        self.taken(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_given_up_and_who_takes_a_little_is_not() {
        let limit = Duration::from_millis(300);
        let (mut near, far) = tokio::io::duplex(10);
        let mut socket = Socket::new(far, Some(limit));
        let reads = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(limit / 4).await;
                near.read_u8().await.unwrap();
            }
            near
        });
        let error = socket.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(Cut::of(&error), Some(Cut::Unread), "{error}");
        assert!(reads.is_finished(), "given up only when it stopped");
    }
}
