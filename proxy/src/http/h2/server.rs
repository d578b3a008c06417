//! Connections of HTTP/2 clients, both peers and programs of this host: each request becomes a task, and its answer is sent
//! on its stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use ::h2::server::{Connection as Http2, Handshake, SendResponse};
use ::h2::{Reason, RecvStream, SendStream};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use mesh_shared::config::Limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep_until};

use crate::error::BoxError;
use crate::http::h2::outgoing::Outgoing;
use crate::http::h2::pings::Pings;
use crate::http::h2::{self, tunnel};
use crate::http::headers::Writer;
use crate::http::incoming::{self, Incoming};
use crate::http::interim::Interim;

/// Settings for all connections of one side.
#[derive(Clone)]
pub struct Server {
    http2: ::h2::server::Builder,
    /// How long an answer may wait to be taken.
    unread: Option<Duration>,
    /// Who writes the answers that interim ones come before.
    writer: Writer,
}

/// A connection that is to be driven to its end; `answer` gives the answer to each request.
pub struct Connection<S, A> {
    stage: Stage<S>,
    answer: A,
    unread: Option<Duration>,
    writer: Writer,
    /// How often something was read, where clients are asked for signs of life.
    reads: Option<Arc<AtomicU64>>,
    is_ending: bool,
}

enum Stage<S> {
    Begins(Handshake<S, Bytes>),
    Serves(Http2<S, Bytes>, Option<Pings>),
}

impl Server {
    /// What clients may do; the answers are `writer`'s. Of an answer, no more is waited for than `unread` until the next piece is taken.
    pub fn new(limits: &Limits, unread: Option<Duration>, writer: Writer) -> Self {
        let mut http2 = ::h2::server::Builder::new();
        http2
            .max_header_list_size(limits.max_header_bytes)
            .max_concurrent_streams(limits.max_streams)
            .initial_window_size(h2::REQUEST_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(
                h2::REQUEST_WINDOW_BYTES,
                limits.max_streams,
            ))
            .max_frame_size(h2::FRAME_BYTES)
            .max_send_buffer_size(h2::SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(h2::MAX_PENDING_RESET_STREAMS)
            .max_concurrent_reset_streams(h2::REMEMBERED_RESETS)
            .max_local_error_reset_streams(Some(h2::MAX_LOCAL_ERRORS));
        Self { http2, unread, writer }
    }

    /// Serves a connection. Where `reads` counts what is read of it, a client that is silent is asked for signs of life, and
    /// the connection ends with an error where none comes.
    pub fn serve<S, A>(&self, stream: S, answer: A, reads: Option<Arc<AtomicU64>>) -> Connection<S, A>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        Connection {
            stage: Stage::Begins(self.http2.handshake(stream)),
            answer,
            unread: self.unread,
            writer: self.writer,
            reads,
            is_ending: false,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, A> Connection<S, A> {
    /// Takes no more requests, and tells the client so; those that it sent meanwhile are served.
    pub fn graceful_shutdown(mut self: Pin<&mut Self>)
    where
        A: Unpin,
    {
        self.is_ending = true;
        if let Stage::Serves(http2, _) = &mut self.stage {
            http2.graceful_shutdown();
        }
    }
}

impl<S, A, F, B> Future for Connection<S, A>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>, Arc<Interim>) -> F + Unpin,
    F: Future<Output = Response<B>> + Unpin + Send + 'static,
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (http2, pings) = loop {
            match &mut this.stage {
                Stage::Serves(http2, pings) => break (http2, pings),
                Stage::Begins(handshake) => {
                    let mut http2 = ready!(Pin::new(handshake).poll(context))?;
                    let pings = this.reads.as_ref().and_then(|_| http2.ping_pong());
                    let pings = pings.map(|pings| Pings::new(pings, h2::PING_INTERVAL, h2::PING_TIMEOUT));
                    if this.is_ending {
                        http2.graceful_shutdown();
                    }
                    this.stage = Stage::Serves(http2, pings);
                }
            }
        };
        if let (Some(pings), Some(reads)) = (pings, &this.reads)
            && pings.poll_lost(context, reads.load(Ordering::Relaxed), || true).is_ready()
        {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        }
        while let Some(accepted) = ready!(http2.poll_accept(context)) {
            let (request, reply) = accepted?;
            tokio::spawn(Stream::new(request, reply, &this.answer, this.writer, this.unread));
        }
        Poll::Ready(Ok(()))
    }
}

/// A request, and then its answer.
struct Stream<F, B> {
    step: Step<F, B>,
    reply: SendResponse<Bytes>,
    interim: Arc<Interim>,
    /// Of a HEAD only the answer's head is sent.
    head_only: bool,
    /// Who waits for the stream to become a tunnel.
    tunnel: Option<oneshot::Sender<SendStream<Bytes>>>,
    unread: Option<Duration>,
    /// Set once the answer waits to be taken. Its window is closed and its connection is well, so it shows only here.
    stalled: Option<Pin<Box<Sleep>>>,
}

enum Step<F, B> {
    Asked(F),
    Answers(Outgoing<B>),
}

impl<F, B> Stream<F, B> {
    fn new(
        request: Request<RecvStream>,
        reply: SendResponse<Bytes>,
        answer: &impl Fn(Request<Incoming>, Arc<Interim>) -> F,
        writer: Writer,
        unread: Option<Duration>,
    ) -> Self {
        let head_only = request.method() == Method::HEAD;
        let (request, tunnel) = match *request.method() {
            Method::CONNECT => {
                let (request, tunnel) = tunnel::offered(request);
                (request, Some(tunnel))
            }
            _ => (incoming::streamed_request(request), None),
        };
        let interim = Interim::new(&request, writer);
        let step = Step::Asked(answer(request, interim.clone()));
        Self { step, reply, interim, head_only, tunnel, unread, stalled: None }
    }
}

impl<F, B: Body<Data = Bytes, Error = BoxError> + Unpin> Stream<F, B> {
    /// Sends the head of the answer, and gives the body if there is one.
    fn begin(&mut self, response: Response<B>) -> Option<Outgoing<B>> {
        let (mut head, body) = response.into_parts();
        // As HTTP/1.1 answers have it (RFC 9110, section 6.6.1).
        head.headers.entry(DATE).or_insert_with(date);
        let tunnel = self.tunnel.take().filter(|_| head.status.is_success());
        let bodiless =
            self.head_only || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if !body.is_end_stream()
            && !bodiless
            && let Some(length) = body.size_hint().exact()
        {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let ends = tunnel.is_none() && (bodiless || body.is_end_stream());
        let stream = match self.reply.send_response(Response::from_parts(head, ()), ends) {
            Ok(stream) => stream,
            // The stream is over, or the head cannot be said in HTTP/2.
            Err(_) => {
                self.reply.send_reset(Reason::INTERNAL_ERROR);
                return None;
            }
        };
        if let Some(tunnel) = tunnel {
            // Fails where nobody wants it any more, which resets it.
            let _ = tunnel.send(stream);
            return None;
        }
        (!ends).then(|| Outgoing::new(stream, None, body))
    }
}

impl<F, B> Future for Stream<F, B>
where
    F: Future<Output = Response<B>> + Unpin,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Step::Asked(asked) = &mut this.step {
            let polled = Pin::new(asked).poll(context);
            while let Poll::Ready(early) = this.interim.poll_next(context) {
                // Fails where the stream is over, which the next step finds.
                let _ = this.reply.send_informational(early);
            }
            let Poll::Ready(response) = polled else {
                // Nobody waits for the answer any more.
                return this.reply.poll_reset(context).map(|_| ());
            };
            match this.begin(response) {
                Some(outgoing) => this.step = Step::Answers(outgoing),
                None => return Poll::Ready(()),
            }
        }
        let Step::Answers(outgoing) = &mut this.step else { return Poll::Pending };
        if outgoing.poll(context).is_ready() {
            return Poll::Ready(());
        }
        let (Some(unread), Some(since)) = (this.unread, outgoing.waits_since()) else { return Poll::Pending };
        let end = since + unread;
        let stalled = this.stalled.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if stalled.deadline() != end {
            stalled.as_mut().reset(end);
        }
        stalled.as_mut().poll(context)
    }
}

/// The time now, for `Date`.
fn date() -> HeaderValue {
    // Made of valid characters.
    HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()))
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}
