//! What passes on one connection to a peer, observed from outside: whether anything came, how the peer refused this node, and
//! a way to close it while requests are in flight.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use mesh_shared::AgentName;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// How many streams may be reset, before their answers began, since something was last received. Servers end the
/// whole connection, and with it the streams of bystanders, when more than some 20 streams are reset that they have not
/// accepted yet: those of a peer that was held up. What comes from it says that it reads again.
const RESETS: u32 = 8;
/// After so many, the peer is asked for a sign of life, so that the others need not wait for what it sends by itself.
const RESETS_BEFORE_PING: u32 = RESETS / 2;
/// A PING frame (RFC 9113, section 6.7), which the peer must answer.
const PING: &[u8; 17] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00upstream";
/// As many reads may bring the peer's first SETTINGS.
const FIRST_READS: u64 = 4;

/// The agents that the certificate on a connection says the peer may host.
#[derive(Debug)]
pub struct Hosted {
    agents: Box<[AgentName]>,
    since: Instant,
}

impl Hosted {
    /// As the handshake showed just now.
    pub fn new(agents: impl IntoIterator<Item = AgentName>) -> Self {
        Self { agents: agents.into_iter().collect(), since: Instant::now() }
    }
}

impl Default for Hosted {
    fn default() -> Self {
        Self::new([])
    }
}

/// One connection, observed from outside.
#[derive(Debug, Default)]
pub struct Link {
    hosted: Hosted,
    reads: AtomicU64,
    resets: AtomicU32,
    all_resets: AtomicU32,
    wants_ping: AtomicBool,
    reset_waits: AtomicBool,
    waiting_to_reset: Mutex<Vec<Waker>>,
    first_reads: AtomicWaker,
    is_cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    refusal: OnceLock<String>,
    is_lost: AtomicBool,
    is_retired: AtomicBool,
}

impl Link {
    /// Whether the peer's certificate on this connection says that it may host `agent`.
    pub fn certifies(&self, agent: &AgentName) -> bool {
        self.hosted.agents.contains(agent)
    }

    /// How long ago the peer showed that certificate.
    pub fn age(&self) -> Duration {
        self.hosted.since.elapsed()
    }

    /// No new requests are to go out on the connection.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether new requests are to go out on another one.
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Whether the peer has sent anything.
    pub fn has_received(&self) -> bool {
        self.reads() > 0
    }

    /// How often something was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Notes that the peer gave no sign of life when it was asked for one.
    pub fn answers_no_ping(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Whether the connection was given up because the peer gave no sign of life.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Wakes the task of `context` when the peer's first bytes arrive.
    pub fn wake_on_first_reads(&self, context: &Context<'_>) {
        if self.reads.load(Ordering::Relaxed) < FIRST_READS {
            self.first_reads.register(context.waker());
        }
    }

    /// Counts a stream that is to be reset before its answer has begun; false: not now, or a peer that is held up
    /// would end the connection.
    pub fn try_reset(&self) -> bool {
        let before = self.resets.fetch_add(1, Ordering::Relaxed);
        let granted = before < RESETS;
        if granted {
            self.all_resets.fetch_add(1, Ordering::Relaxed);
            if before + 1 == RESETS_BEFORE_PING {
                self.wants_ping.store(true, Ordering::Relaxed);
            }
        } else {
            self.resets.fetch_sub(1, Ordering::Relaxed);
        }
        granted
    }

    /// Waits until a stream may be reset, and counts it.
    pub fn poll_reset(&self, context: &Context<'_>) -> Poll<()> {
        if self.try_reset() {
            return Poll::Ready(());
        }
        self.waiting_to_reset.lock().push(context.waker().clone());
        self.reset_waits.store(true, Ordering::Release);
        Poll::Pending
    }

    /// How many streams were reset in all.
    pub fn resets(&self) -> u32 {
        self.all_resets.load(Ordering::Relaxed)
    }

    /// Ends the connection: whoever reads or writes gets an error.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// How the peer refused this node's certificate on this connection, if it did.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    fn received(&self) {
        let before = self.reads.fetch_add(1, Ordering::Relaxed);
        self.resets.store(0, Ordering::Relaxed);
        if before < FIRST_READS {
            self.first_reads.wake();
        }
        if self.reset_waits.swap(false, Ordering::Acquire) {
            for waiting in std::mem::take(&mut *self.waiting_to_reset.lock()) {
                waiting.wake();
            }
        }
    }

    /// In TLS 1.3 a server refuses a client's certificate only after the client has finished; the alert then arrives in
    /// place of the first answer. HTTP reports no more than a lost connection. An alert behind an answer is about
    /// something else.
    fn failed(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = cause
            && !self.has_received()
        {
            // The first counts.
            let _ = self.refusal.set(format!("alert {alert:?}"));
        }
    }
}

/// A connection with its [`Link`].
pub struct Linked<S> {
    inner: S,
    link: Arc<Link>,
    /// What is still to be written of a ping.
    ping: &'static [u8],
    /// Tells on drop that the connection is gone.
    _gone: oneshot::Sender<()>,
}

impl<S> Linked<S> {
    /// Wraps a connection. The receiver ends when it is gone.
    pub fn new(inner: S) -> (Self, oneshot::Receiver<()>) {
        Self::to(inner, Hosted::default())
    }

    /// Wraps a connection to a peer that may host these agents.
    pub fn to(inner: S, hosted: Hosted) -> (Self, oneshot::Receiver<()>) {
        let (gone, is_gone) = oneshot::channel();
        let link = Link { hosted, ..Link::default() };
        (Self { inner, link: link.into(), ping: &[], _gone: gone }, is_gone)
    }

    /// Its link.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What it wraps.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Replaces what a cut connection would do.
    fn judge<T>(
        &self,
        polled: Poll<io::Result<T>>,
        waker: &AtomicWaker,
        context: &Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            waker.register(context.waker());
        }
        match self.link.is_cut.load(Ordering::Acquire) {
            true => Poll::Ready(Err(cut())),
            false => polled,
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the peer is no longer trusted")
}

impl<S: AsyncRead + Unpin> AsyncRead for Linked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        match &polled {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.link.received(),
            Poll::Ready(Err(error)) => self.link.failed(error),
            _ => {}
        }
        self.judge(polled, &self.link.reader, context)
    }
}

impl<S: AsyncWrite + Unpin> Linked<S> {
    /// Writes what is left of a ping.
    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ping.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, self.ping))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.ping = self.ping.get(written..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes; then everything that was written is whole frames, and a ping can follow.
    fn poll_flush_and_ping(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ping(context))?;
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        if !self.link.wants_ping.swap(false, Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.ping = PING;
        ready!(self.poll_ping(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Linked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match self.poll_ping(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_write(context, data),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.judge(polled, &self.link.writer, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match self.poll_ping(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_write_vectored(context, data),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.judge(polled, &self.link.writer, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_flush_and_ping(context);
        self.judge(polled, &self.link.writer, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.judge(polled, &self.link.writer, context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn resets_are_few_until_something_is_received() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut ours, _is_gone) = Linked::new(ours);
        let link = ours.link().clone();
        assert_eq!((0..100).filter(|_| link.try_reset()).count(), RESETS as usize);
        let waiting = tokio::spawn({
            let link = link.clone();
            async move { poll_fn(|context| link.poll_reset(context)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !link.has_received());
        theirs.write_all(b"x").await.unwrap();
        ours.read_u8().await.unwrap();
        waiting.await.unwrap();
        assert_eq!((0..100).filter(|_| link.try_reset()).count(), RESETS as usize - 1);
        assert_eq!(link.resets(), 2 * RESETS);
    }

    #[tokio::test]
    async fn a_peer_whose_streams_are_reset_is_asked_for_a_sign_of_life() {
        // Narrower than a ping, which then takes several writes.
        let (ours, mut theirs) = tokio::io::duplex(5);
        let (mut ours, _is_gone) = Linked::new(ours);
        let link = ours.link().clone();
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).await.unwrap();
            read
        });
        ours.write_all(b"one").await.unwrap();
        ours.flush().await.unwrap();
        while link.try_reset() {}
        ours.write_all(b"two").await.unwrap();
        ours.flush().await.unwrap();
        ours.write_all(b"three").await.unwrap();
        ours.flush().await.unwrap();
        drop(ours);
        assert_eq!(reading.await.unwrap(), [b"onetwo", &PING[..], b"three"].concat());
    }

    #[tokio::test]
    async fn a_cut_connection_ends_for_reader_and_writer() {
        let (ours, _theirs) = tokio::io::duplex(1);
        let (ours, is_gone) = Linked::new(ours);
        let link = ours.link().clone();
        let (mut reader, mut writer) = tokio::io::split(ours);
        let reading = tokio::spawn(async move { reader.read_u8().await.unwrap_err().kind() });
        let writing = tokio::spawn(async move { writer.write_all(b"too long").await.unwrap_err().kind() });
        tokio::task::yield_now().await;
        link.cut();
        assert_eq!(reading.await.unwrap(), io::ErrorKind::ConnectionAborted);
        assert_eq!(writing.await.unwrap(), io::ErrorKind::ConnectionAborted);
        assert!(is_gone.await.is_err(), "both halves are gone");
    }
}
