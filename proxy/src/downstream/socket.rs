//! The socket below TLS: large reads without a buffer for each connection, and an end to those who do not read.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::watch::Cut;

/// As much as a system call brings at once. TLS reads less at a time than a record.
const READ_BYTES: usize = 64 * 1024;
/// Whoever reads this much at a time has a buffer of its own.
const LARGE_BYTES: usize = 8 * 1024;

thread_local! {
    /// The buffer that a read of this thread goes to. A connection keeps it only as long as some of it is unread, so
    /// that idle connections have none.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A connection of which what waits to be taken is given up after a while.
pub struct Socket<S> {
    inner: S,
    /// What was read and not taken yet.
    ahead: Option<Ahead>,
    unread: Option<Duration>,
    /// Set while the other side takes nothing of what is to be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

struct Ahead {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Gives up with [`Cut::Unread`] when nothing can be written for `unread`.
    pub fn new(inner: S, unread: Option<Duration>) -> Self {
        Self { inner, ahead: None, unread, stalled: None }
    }

    /// Returns when there is something to read, or the end.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn readable(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_ahead(context)).await
    }

    /// Reads where nothing is left of the last read.
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_some() {
            return Poll::Ready(Ok(()));
        }
        let mut buffer = SPARE.take().unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice());
        let mut read = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut self.inner).poll_read(context, &mut read);
        let end = read.filled().len();
        if end > 0 {
            self.ahead = Some(Ahead { buffer, start: 0, end });
        } else {
            SPARE.set(Some(buffer));
        }
        polled
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_none() && buffer.remaining() >= LARGE_BYTES {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        ready!(this.poll_ahead(context))?;
        if let Some(ahead) = &mut this.ahead {
            let taken = buffer.remaining().min(ahead.end - ahead.start);
            buffer.put_slice(&ahead.buffer[ahead.start..][..taken]);
            ahead.start += taken;
            if ahead.start == ahead.end {
                SPARE.set(this.ahead.take().map(|ahead| ahead.buffer));
            }
        }
        Poll::Ready(Ok(()))
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
    async fn what_was_read_ahead_is_taken_piece_by_piece() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut socket = Socket::new(far, None);
        let sent: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        near.write_all(&sent).await.unwrap();
        drop(near);
        socket.readable().await.unwrap();
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        while let taken @ 1.. = socket.read(&mut piece).await.unwrap() {
            received.extend_from_slice(&piece[..taken]);
        }
        assert!(received == sent);
        assert!(socket.ahead.is_none() && SPARE.take().is_some(), "it keeps no buffer");
    }

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
