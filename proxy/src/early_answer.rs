//! Connections to servers that answer before they have read the whole request, as one does that refuses it.
//!
//! Such a server closes while the request is still being sent. The sending then fails, and an HTTP client
//! would give up there, with the answer (or TLS's alert that tells why) waiting to be read. On these
//! connections a failed write only pauses the sending: the reading side finds the answer, or the end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose reading side outlives its writing side.
pub struct EarlyAnswer<S> {
    inner: S,
    write_failed: bool,
    read_ended: bool,
}

impl<S> EarlyAnswer<S> {
    /// Wraps a connection.
    pub fn new(inner: S) -> Self {
        Self { inner, write_failed: false, read_ended: false }
    }

    /// Makes a failed write wait for the reading side, once.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &Context<'_>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(_)) if !self.read_ended => {
                self.write_failed = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            written => written,
        }
    }

    /// What a write gets once one has failed; `None` while none has.
    fn refusal<T>(&self) -> Option<Poll<io::Result<T>>> {
        match (self.write_failed, self.read_ended) {
            (false, _) => None,
            (true, false) => Some(Poll::Pending),
            (true, true) => Some(Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EarlyAnswer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.read_ended |= match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.capacity() > before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EarlyAnswer<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(refusal) = self.refusal() {
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
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, data);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<S: Connection> Connection for EarlyAnswer<S> {
    fn connected(&self) -> Connected {
        self.inner.connected()
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
        let mut client = EarlyAnswer::new(client);
        client.write_all(b"the beginning").await.unwrap();
        server.readable().await.unwrap();
        server.write_all(b"no").await.unwrap();
        // Closing with something unread resets the connection.
        drop(server);
        let (mut reader, mut writer) = tokio::io::split(client);
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = writer.write_all(&[0; 65_536]).await {
                    return error;
                }
            }
        });
        let mut answer = [0; 2];
        reader.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"no");
        assert!(reader.read(&mut answer).await.map_or(true, |read| read == 0));
        drop(reader);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(100), writing).await;
    }
}
