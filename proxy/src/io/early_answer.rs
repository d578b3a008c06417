//! Connections to servers that answer before they have read the whole request, as one does that refuses it.
//!
//! Such a server closes while the request is still being sent. The sending then fails, and an HTTP client
//! would give up there, with the answer (or TLS's alert that tells why) waiting to be read. On these
//! connections a failed write only pauses the sending: the reading side finds the answer, or the end. Where nobody has
//! begun to read, there is none, and the write fails.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose reading side outlives its writing side.
pub struct EarlyAnswer<S> {
    inner: S,
    reading: bool,
    read_ended: bool,
    /// Who wanted to write, once a write has failed.
    held: Option<Waker>,
}

impl<S> EarlyAnswer<S> {
    /// Wraps a connection.
    pub fn new(inner: S) -> Self {
        Self { inner, reading: false, read_ended: false, held: None }
    }
}

impl<S: AsyncRead + Unpin> EarlyAnswer<S> {
    /// Makes a failed write wait for the reading side, once.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(_)) if !self.reading => {
                // TLS takes in an alert only when it is read.
                let _ = Pin::new(&mut self.inner).poll_read(context, &mut ReadBuf::new(&mut [0]));
                written
            }
            Poll::Ready(Err(_)) if !self.read_ended => {
                self.held = Some(context.waker().clone());
                context.waker().wake_by_ref();
                Poll::Pending
            }
            written => written,
        }
    }

    /// What a write gets once one has failed and waits; `None` while none does.
    fn refusal<T>(&mut self, context: &Context<'_>) -> Option<Poll<io::Result<T>>> {
        let held = self.held.as_mut()?;
        if self.read_ended {
            return Some(Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())));
        }
        held.clone_from(context.waker());
        Some(Poll::Pending)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EarlyAnswer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reading = true;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.read_ended |= match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.capacity() > before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if self.read_ended
            && let Some(held) = &self.held
        {
            held.wake_by_ref();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for EarlyAnswer<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(refusal) = self.refusal(context) {
            return refusal;
        }
        let written = Pin::new(&mut self.inner).poll_write(context, data);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(refusal) = self.refusal(context) {
            return refusal;
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, data);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = self.refusal(context) {
            return refusal;
        }
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn the_answer_is_read_although_the_request_cannot_be_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(EarlyAnswer::new(client));
        let mut answer = Vec::new();
        // Ends with the connection, whether that is its end or a reset.
        let reading = async { drop(reader.read_to_end(&mut answer).await) };
        let sending = async {
            writer.write_all(b"the beginning").await.unwrap();
            server.readable().await.unwrap();
            server.write_all(b"no").await.unwrap();
            // Closing with something unread resets the connection.
            drop(server);
            while writer.write_all(&[0; 65_536]).await.is_ok() {}
        };
        tokio::join!(reading, sending);
        assert_eq!(answer, b"no");
    }

    #[tokio::test]
    async fn where_nobody_reads_a_failed_write_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut client = EarlyAnswer::new(client);
        client.write_all(b"the beginning").await.unwrap();
        server.readable().await.unwrap();
        drop(server);
        while client.write_all(&[0; 65_536]).await.is_ok() {}
    }
}
