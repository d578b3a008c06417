//! Writing a moment later, so that what belongs together goes out together.
//!
//! The h2 crate takes the body of a request only once its head has gone to the connection, and flushes each: two TLS
//! records, two system calls, and the peer is woken twice and passes them on in two pieces. Here the first write
//! after a flush lets everything else that is ready run before it; by then the body is there too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From this size on, a write is worth making alone.
const LARGE_BYTES: usize = 4096;

/// A connection on which small writes meet.
pub struct Gathering<S> {
    inner: S,
    has_waited: bool,
}

impl<S> Gathering<S> {
    /// Wraps a connection.
    pub fn new(inner: S) -> Self {
        Self { inner, has_waited: false }
    }

    /// Pending once for each flush that begins with a small write, behind all tasks that are ready now.
    fn wait(&mut self, bytes: usize, context: &Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.has_waited, true) || bytes >= LARGE_BYTES {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.wait(data.len(), context));
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.wait(data.iter().map(|part| part.len()).sum(), context));
        Pin::new(&mut self.inner).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.has_waited = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::DuplexStream;

    use super::*;

    /// Counts the writes that reach it.
    struct Counting(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(context, data)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write_vectored(context, data)
        }

        fn is_write_vectored(&self) -> bool {
            self.0.is_write_vectored()
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn a_request_is_one_write() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let echo = service_fn(async |request: Request<hyper::body::Incoming>| {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(theirs), echo),
        );
        let writes = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Gathering::new(Counting(ours, writes.clone())));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        for size in [0, 44, 200, 9000] {
            let body = Bytes::from(vec![b'x'; size]);
            let request =
                || Request::post("https://ct111.mesh/api/message").body(Full::new(body.clone())).unwrap();
            // The first of a size also gives back window that the answer before took.
            for round in 0..3 {
                let before = writes.load(Ordering::Relaxed);
                let answer = sender.send_request(request()).await.unwrap();
                let made = writes.load(Ordering::Relaxed) - before;
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
                assert!(made == 1 || round == 0, "{made} writes for a body of {size} bytes");
            }
        }
    }
}
