//! A peer's connection above TLS: what it sends has to become requests in time.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::caller::Connection;
use crate::http::h2::Frames;
use crate::io::readable::Readable;
use crate::rate::Rate;

/// So many cancelled requests and other frames without content a peer may send in a second on one connection, for as
/// long as it likes; twice as many at once.
const CONTROL_FRAMES_PER_SECOND: u32 = 1_000;

/// Why this sidecar ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// No first request came.
    NoRequest,
    /// A block of headers came too slowly.
    SlowHeaders,
    /// Cancels, pings and settings without end.
    Control,
    /// It does not read.
    Unread,
}

impl Cut {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoRequest => "no request came in time (proxy.timeouts.first_request_ms)",
            Self::SlowHeaders => "the headers of a request came too slowly (proxy.timeouts.header_ms)",
            Self::Control => "it cancels requests, or sends other frames without content, too often",
            Self::Unread => "it did not read what waits for it (proxy.timeouts.unread_ms)",
        }
    }

    /// The reason in an I/O error that this sidecar made.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl Error for Cut {}

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        Self::new(io::ErrorKind::TimedOut, cut)
    }
}

/// A connection that ends with a [`Cut`] when its peer keeps it waiting.
pub struct Watched<S> {
    inner: S,
    /// Of HTTP/2; the parser of HTTP/1.1 looks after its headers itself.
    frames: Option<Http2>,
    first_request: (Instant, Duration),
    /// Knows whether there was one, and is told why the connection ends.
    connection: Arc<Connection>,
    timer: Option<Pin<Box<Sleep>>>,
}

struct Http2 {
    frames: Frames,
    header: Duration,
    reads: Arc<AtomicU64>,
    /// Since when a block of headers is incomplete.
    incomplete: Option<Instant>,
    opened: Instant,
    /// When the control frames so far are due at the highest rate, in nanoseconds since it was opened.
    due: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Allows `first_request` for the first request of `connection`.
    pub fn new(inner: S, connection: Arc<Connection>, first_request: Duration) -> Self {
        Self { inner, frames: None, first_request: (Instant::now(), first_request), connection, timer: None }
    }

    /// Allows `header` for each block of headers of an HTTP/2 connection. Also gives what counts how often something is
    /// read of it.
    pub fn http2(mut self, header: Duration) -> (Self, Arc<AtomicU64>) {
        let (frames, reads) = (Frames::default(), Arc::<AtomicU64>::default());
        self.frames = Some(Http2 {
            frames,
            header,
            reads: reads.clone(),
            incomplete: None,
            opened: self.first_request.0,
            due: 0,
        });
        (self, reads)
    }

    /// When the connection is to be ended, unless something comes before.
    fn due(&self) -> Option<(Instant, Cut)> {
        if !self.connection.has_begun() {
            let (opened, limit) = self.first_request;
            return Some((opened + limit, Cut::NoRequest));
        }
        let http2 = self.frames.as_ref()?;
        Some((http2.incomplete? + http2.header, Cut::SlowHeaders))
    }

    /// Tells the connection where this sidecar ends it.
    fn noted<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome
            && let Some(cut) = Cut::of(error)
        {
            self.connection.cut(cut.reason());
        }
        outcome
    }

    fn poll(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(context, buffer) {
            read?;
            if let Some(http2) = &mut self.frames {
                http2.came(&buffer.filled()[before..])?;
            }
            return Poll::Ready(Ok(()));
        }
        let Some((due, cut)) = self.due() else {
            self.timer = None;
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(cut.into()))
    }
}

impl Http2 {
    fn came(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let came = self.frames.feed(bytes);
        if came.control > 0 {
            let now = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
            for _ in 0..came.control {
                let rate = Rate::new(CONTROL_FRAMES_PER_SECOND);
                self.due = rate.take(self.due, now).ok_or(Cut::Control)?;
            }
        }
        self.incomplete = match (self.frames.is_incomplete(), self.incomplete) {
            (false, _) => None,
            (true, Some(since)) if came.blocks == 0 => Some(since),
            (true, _) => Some(Instant::now()),
        };
        Ok(())
    }
}

impl<S: Readable> Readable for Watched<S> {
    /// Only for a connection on which a request has come: the first one is not waited for here.
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.poll(context, buffer);
        self.noted(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.noted(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.noted(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(context);
        self.noted(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(context);
        self.noted(outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::caller::Caller;
    use crate::drain::Drain;

    const LIMIT: Duration = Duration::from_millis(300);

    /// What becomes of a connection on which these bytes come one by one, and then nothing until it is closed.
    async fn outcome(begun: bool, http2: bool, dribble: &'static [u8]) -> Option<Cut> {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let connection =
            Arc::new(Connection::new(Caller::Program(Default::default()), Drain::new(Duration::ZERO)));
        if begun {
            connection.begins();
        }
        let mut watched = Watched::new(far, connection.clone(), LIMIT);
        if http2 {
            watched = watched.http2(LIMIT).0;
            near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        }
        tokio::spawn(async move {
            for byte in dribble {
                let _ = near.write_u8(*byte).await;
                tokio::time::sleep(LIMIT / 10).await;
            }
            tokio::time::sleep(3 * LIMIT).await;
        });
        let cut = watched.read_to_end(&mut Vec::new()).await.err().and_then(|error| Cut::of(&error));
        assert_eq!(connection.why_cut(), cut.map(Cut::reason));
        cut
    }

    #[tokio::test]
    async fn who_sends_no_request_is_cut() {
        for (http2, dribble) in [(false, &b""[..]), (true, b""), (true, &[0; 20]), (false, &[b'x'; 20])] {
            let cut = outcome(false, http2, dribble).await;
            assert_eq!(cut, Some(Cut::NoRequest));
        }
    }

    #[tokio::test]
    async fn slow_headers_are_cut_and_an_idle_connection_is_not() {
        // A HEADERS frame of 100 bytes.
        let cut = outcome(true, true, &[0, 0, 100, 1, 4, 0, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]).await;
        assert_eq!(cut, Some(Cut::SlowHeaders));
        // A DATA frame is for whoever reads the body.
        for dribble in [&[][..], &[0, 0, 100, 0, 0, 0, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]] {
            let cut = outcome(true, true, dribble).await;
            assert_eq!(cut, None);
        }
    }

    #[test]
    fn cancels_without_end_are_cut_and_a_burst_is_not() {
        let reset = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
        let connection =
            Arc::new(Connection::new(Caller::Program(Default::default()), Drain::new(Duration::ZERO)));
        let watched = Watched::new(tokio::io::empty(), connection, LIMIT);
        let mut http2 = watched.http2(LIMIT).0.frames.unwrap();
        http2.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        for _ in 0..1_900 {
            http2.came(&reset).unwrap();
        }
        for _ in 0..5_000 {
            http2.opened -= Duration::from_millis(2);
            http2.came(&reset).unwrap();
        }
        let cut = (0..4_000).find_map(|_| http2.came(&reset).err());
        assert_eq!(cut, Some(Cut::Control));
    }
}
