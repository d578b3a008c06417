//! What hyper refuses by itself on HTTP/1.1: heads that it cannot read, or that are too large. It answers them without a
//! body, a code or a line in the log, and with no way to change that. Here, below hyper, its answer is replaced.
//!
//! An answer of the agent may look the same, so its position decides: hyper writes an answer of its own only where
//! every request that it gave to the sidecar has been answered, and every byte of those answers has been written. Where
//! that is not certain, what is written passes as it is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderName, HeaderValue, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::access_log;
use crate::caller::Connection;
use crate::error::ProxyError;
use crate::http::h1::MAX_HEADERS;
use crate::http::problem::{self, Form};
use crate::io::readable::Readable;
use crate::metrics::METRICS;

/// hyper's own answers are shorter.
const MAX_OWN_BYTES: usize = 256;
/// How long what a client still sends is read after it was refused. Closing on it could cost it the answer
/// (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// A connection on which hyper's own refusals say what is wrong.
pub struct Refusing<S> {
    inner: S,
    connection: Arc<Connection>,
    /// HTTP/2 begins otherwise, and everything on it passes.
    protocol: Option<Protocol>,
    refusal: Option<Refusal>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Other,
}

/// An answer in place of hyper's. The connection ends with it.
struct Refusal {
    /// What of it is still to be written.
    rest: Bytes,
    /// Set once all is written.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Refusing<S> {
    /// Watches what hyper writes to `connection`.
    pub fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, connection, protocol: None, refusal: None }
    }

    /// Whether the pieces that hyper is about to write are a refusal of its own. If so, another one is made of it.
    fn refuses<'b>(&mut self, mut pieces: impl Iterator<Item = &'b [u8]>) -> bool {
        let Some(bytes) = pieces.next() else { return false };
        let protocol = *self.protocol.get_or_insert(match bytes.starts_with(b"HTTP/1.") {
            true => Protocol::Http1,
            false => Protocol::Other,
        });
        if protocol == Protocol::Other
            || self.connection.progress.all_written().is_none()
            || pieces.next().is_some()
        {
            return false;
        }
        let Some(error) = own_refusal(bytes) else { return false };
        METRICS.error(error.kind().code);
        access_log::write_refusal(&self.connection.caller, &error);
        self.refusal = Some(Refusal { rest: head_and_body(&error), linger: None });
        true
    }

    /// Writes what is left of the answer in place of hyper's.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(Ok(())) };
        while !refusal.rest.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &refusal.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            refusal.rest.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what still comes, until the client closes or has had time to read the answer.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(()) };
        let linger = refusal.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut dropped = [0; 4096];
        while linger.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut dropped);
            match ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

/// What hyper refuses with these bytes; `None` where they are not one of its refusals, whole and alone.
fn own_refusal(bytes: &[u8]) -> Option<ProxyError> {
    if bytes.len() > MAX_OWN_BYTES || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let status = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    match status {
        b"400" => Some(ProxyError::BadRequest(
            "its head is not valid HTTP; TLS to the sidecar, a space in the target, or an invalid header are usual causes"
                .into(),
        )),
        b"414" => Some(ProxyError::UriTooLong),
        b"431" => Some(ProxyError::HeadersTooLarge { most: MAX_HEADERS }),
        _ => None,
    }
}

/// The whole answer, after which the connection ends.
fn head_and_body(error: &ProxyError) -> Bytes {
    let (mut head, body) = problem::answer(error, Form::Problem).into_parts();
    let length = HeaderValue::from(body.len());
    let close = HeaderValue::from_static("close");
    head.headers.insert(header::CONTENT_LENGTH, length);
    head.headers.insert(header::CONNECTION, close);
    let reason = head.status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).into_bytes();
    for (name, value) in &head.headers {
        put(&mut bytes, name, value);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes.into()
}

fn put(bytes: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
        bytes.extend_from_slice(part);
    }
}

impl<S: Readable> Readable for Refusing<S> {
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.connection.progress.reads(read.is_pending());
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Refusing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.connection.progress.writes();
        ready!(this.poll_rest(context))?;
        if this.refuses(std::iter::once(bytes)) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.connection.progress.writes();
        ready!(this.poll_rest(context))?;
        let filled = slices.iter().filter(|slice| !slice.is_empty());
        if this.refuses(filled.map(|slice| &**slice)) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut this.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_rest(context))?;
        // hyper flushes when it has nothing left to write. So what it was given before this is out, once this is done.
        let given = this.connection.progress.all_answered();
        ready!(Pin::new(&mut this.inner).poll_flush(context))?;
        this.connection.progress.has_written(given);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.connection.progress.writes();
        ready!(this.poll_rest(context))?;
        if this.refusal.as_ref().is_none_or(|refusal| refusal.linger.is_none()) {
            ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
        }
        ready!(this.poll_linger(context));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::caller::Caller;
    use crate::drain::Drain;

    const OWN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    fn refusing() -> (DuplexStream, Refusing<DuplexStream>, Arc<Connection>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let connection =
            Arc::new(Connection::new(Caller::Program(Default::default()), Drain::new(Duration::ZERO)));
        let refusing = Refusing::new(far, connection.clone());
        (near, refusing, connection)
    }

    async fn read(mut near: DuplexStream, refusing: Refusing<DuplexStream>) -> String {
        drop(refusing);
        let mut read = String::new();
        near.read_to_string(&mut read).await.unwrap();
        read
    }

    #[tokio::test]
    async fn what_hyper_refuses_says_why() {
        let (near, mut refusing, connection) = refusing();
        refusing.flush().await.unwrap();
        // After an answer that is out.
        connection.progress.asks();
        refusing.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        connection.progress.answers();
        refusing.flush().await.unwrap();
        refusing.write_all(OWN).await.unwrap();
        refusing.flush().await.unwrap();
        let read = read(near, refusing).await;
        assert!(read.contains("\r\n\r\nokHTTP/1.1 400 Bad Request\r\n"), "{read}");
        assert!(
            read.contains("x-mesh-error: bad_request\r\n") && read.contains("\"code\":\"bad_request\""),
            "{read}"
        );
    }

    #[tokio::test]
    async fn what_the_agent_answers_is_never_touched_however_it_looks() {
        // The answer is under way; it was given to hyper and is not out yet; it leaves HTTP; it is HTTP/2.
        for case in ["under way", "not out", "tunnel", "http2"] {
            let (near, mut refusing, connection) = refusing();
            match case {
                "under way" => connection.progress.asks(),
                "not out" => {
                    connection.progress.asks();
                    refusing.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    refusing.flush().await.unwrap();
                    connection.progress.answers();
                }
                "tunnel" => {
                    connection.progress.asks();
                    refusing.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
                    refusing.flush().await.unwrap();
                }
                _ => refusing.write_all(b"\0\0\0").await.unwrap(),
            }
            refusing.write_all(OWN).await.unwrap();
            let read = read(near, refusing).await;
            assert!(read.as_bytes().ends_with(OWN), "{case}: {read:?}");
        }
    }
}
