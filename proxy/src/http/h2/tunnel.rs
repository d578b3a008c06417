//! A stream of HTTP/2 that carries bytes both ways after a CONNECT (RFC 9113, section 8.5).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::http::incoming::{self, Incoming};

/// The most that is written at once.
const PIECE_BYTES: usize = 16 * 1024;

/// A stream that will be a tunnel where the answer to its CONNECT is a success.
#[derive(Clone)]
struct Offer(Arc<Mutex<Option<Ways>>>);

/// What comes, and the way back once it has been granted.
type Ways = (RecvStream, oneshot::Receiver<SendStream<Bytes>>);

/// A tunnel.
pub struct Tunnel {
    receive: RecvStream,
    send: SendStream<Bytes>,
    /// What came and was not read yet.
    came: Bytes,
}

/// Takes the stream off a CONNECT, for [`wanted`] to find; whoever answers it gives the way back.
pub fn offered(request: Request<RecvStream>) -> (Request<Incoming>, oneshot::Sender<SendStream<Bytes>>) {
    let (head, stream) = request.into_parts();
    let (sender, receiver) = oneshot::channel();
    let mut request = Request::from_parts(head, incoming::nothing());
    request.extensions_mut().insert(Offer(Arc::new(Mutex::new(Some((stream, receiver))))));
    (request, sender)
}

/// The tunnel that a CONNECT offers, once it has been granted; `None`: it did not come by HTTP/2. The inner one: it was not
/// granted after all.
pub fn wanted<B>(request: &mut Request<B>) -> Option<impl Future<Output = Option<Tunnel>> + Send + use<B>> {
    let (receive, granted) = request.extensions_mut().remove::<Offer>()?.0.lock().take()?;
    Some(async move {
        let send = granted.await.ok()?;
        Some(Tunnel { receive, send, came: Bytes::new() })
    })
}

fn failed(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL) => io::ErrorKind::BrokenPipe.into(),
        _ => io::Error::other(error),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.came.is_empty() {
            match ready!(this.receive.poll_data(context)) {
                Some(Ok(data)) => this.came = data,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.came.len().min(buffer.remaining());
        buffer.put_slice(&this.came[..taken]);
        this.came.advance(taken);
        // Fails only for more than has come.
        let _ = this.receive.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(PIECE_BYTES));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let taken = self.send.capacity().min(bytes.len()).min(PIECE_BYTES);
        let sent = self.send.send_data(Bytes::copy_from_slice(&bytes[..taken]), false);
        Poll::Ready(sent.map(|()| taken).map_err(failed))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It may have ended before.
        let _ = self.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}
