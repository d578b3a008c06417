//! Large reads without a buffer for each connection: TLS reads less at a time than a record.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::readable::Readable;

/// As much as a system call brings at once.
const READ_BYTES: usize = 64 * 1024;
/// Whoever reads this much at a time has a buffer of its own.
const LARGE_BYTES: usize = 32 * 1024;

thread_local! {
    /// The buffer that a read of this thread goes to. A connection keeps it only as long as some of it is unread, so
    /// that idle connections have none.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A connection that is read in large pieces and taken in smaller ones.
pub struct ReadAhead<S> {
    inner: S,
    /// What was read and not taken yet.
    ahead: Option<Ahead>,
}

struct Ahead {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Wraps a connection.
    pub fn new(inner: S) -> Self {
        Self { inner, ahead: None }
    }

    /// What it wraps.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns when there is something to read, or the end.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn readable(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_readable(context)).await
    }
}

impl<S: AsyncRead + Unpin> Readable for ReadAhead<S> {
    /// Reads where nothing is left of the last read.
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_none() && buffer.remaining() >= LARGE_BYTES {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        ready!(this.poll_readable(context))?;
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

write_to_inner!(ReadAhead<S>, S);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_read_ahead_is_taken_piece_by_piece() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut stream = ReadAhead::new(far);
        let sent: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        near.write_all(&sent).await.unwrap();
        drop(near);
        stream.readable().await.unwrap();
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        while let taken @ 1.. = stream.read(&mut piece).await.unwrap() {
            received.extend_from_slice(&piece[..taken]);
        }
        assert!(received == sent);
        assert!(stream.ahead.is_none() && SPARE.take().is_some(), "it keeps no buffer");
    }
}
