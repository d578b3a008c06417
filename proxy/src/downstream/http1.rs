//! A connection of HTTP/1.1 on which requests come: hyper serves it while they do. While it waits for the next one, hyper's
//! buffers and state are given back, and only the connection itself is kept.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::interim::WithAside;
use super::refusal::Refusing;
use crate::caller::Connection;
use crate::http::body::ResponseBody;
use crate::io::readable::Readable;
use crate::io::rewound::Rewound;

/// Where requests follow each other sooner than this, hyper's buffers are kept between them. Not for so long that hyper would
/// take the pause for a head that is slow to come.
const QUIET: Duration = Duration::from_secs(1);

/// What hyper reads and writes. Boxed, because it comes and goes between hyper and here.
type Layers<S> = Box<Rewound<WithAside<Refusing<S>>>>;
type Served<S, V> = UpgradeableConnection<TokioIo<Layers<S>>, V>;

/// One connection.
pub struct Http1<S, V>
where
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    builder: Arc<Builder>,
    connection: Arc<Connection>,
    quiet_for: Duration,
    state: State<S, V>,
    /// Its last request came soon after the one before.
    is_busy: bool,
    /// Runs while it is busy and no request is under way.
    quiet: Option<Quiet>,
    /// After so many requests, a part of the next one had been read already.
    read_on: u64,
    finishes: bool,
}

enum State<S, V>
where
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    Served(Box<Served<S, V>>),
    Waits(Waiting<S, V>),
    Closes(Layers<S>),
    Ended,
}

struct Waiting<S, V> {
    io: Layers<S>,
    service: V,
    since: Instant,
}

struct Quiet {
    /// After how many requests it began.
    after: u64,
    over: Pin<Box<Sleep>>,
}

impl<S, V> Http1<S, V>
where
    S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Unpin,
{
    /// Gives the requests on `stream` to `service`, as `builder` says, which allows `header` for the head of each.
    pub fn new(
        builder: Arc<Builder>,
        stream: WithAside<Refusing<S>>,
        connection: Arc<Connection>,
        header: Option<Duration>,
        service: V,
    ) -> Self {
        let layers = Box::new(Rewound::new(stream, Bytes::new()));
        let state = State::Served(served(&builder, layers, service));
        Self {
            builder,
            connection,
            quiet_for: header.map_or(QUIET, |header| QUIET.min(header / 2)),
            state,
            is_busy: false,
            quiet: None,
            read_on: 0,
            finishes: false,
        }
    }

    /// Takes no new request; one that is under way finishes.
    pub fn graceful_shutdown(mut self: Pin<&mut Self>) {
        self.finishes = true;
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Served(mut served) => match self.connection.progress.idle_after() {
                // Made anew after a pause, hyper's connection would wait for the head of which it has read a part.
                Some(_) => {
                    served.into_parts().map_or(State::Ended, |parts| State::Closes(parts.io.into_inner()))
                }
                None => {
                    Pin::new(&mut *served).graceful_shutdown();
                    State::Served(served)
                }
            },
            State::Waits(waiting) => State::Closes(waiting.io),
            state => state,
        };
    }

    /// Ready when no request is under way, nor expected soon.
    fn poll_unused(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let requests = self.connection.progress.idle_after();
        let Some(requests) = requests.filter(|requests| *requests > self.read_on && !self.finishes) else {
            return Poll::Pending;
        };
        if self.is_busy {
            let quiet = self
                .quiet
                .get_or_insert_with(|| Quiet { after: requests, over: Box::pin(sleep(self.quiet_for)) });
            loop {
                ready!(quiet.over.as_mut().poll(context));
                if quiet.after == requests {
                    break;
                }
                quiet.after = requests;
                quiet.over.as_mut().reset(Instant::now() + self.quiet_for);
            }
        }
        self.quiet = None;
        Poll::Ready(())
    }

    /// Takes the connection back from hyper, unless hyper has read some of the next request.
    fn take_back(&mut self, served: Served<S, V>) -> State<S, V> {
        // Only none where the connection has left HTTP, and then it was ready.
        let Some(parts) = served.into_parts() else { return State::Ended };
        let (mut io, service) = (parts.io.into_inner(), parts.service);
        if !parts.read_buf.is_empty() {
            self.read_on = self.connection.progress.idle_after().unwrap_or_default();
            io.rewind(parts.read_buf);
            return State::Served(self::served(&self.builder, io, service));
        }
        State::Waits(Waiting { io, service, since: Instant::now() })
    }
}

fn served<S, V>(builder: &Builder, io: Layers<S>, service: V) -> Box<Served<S, V>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    Box::new(builder.serve_connection(TokioIo::new(io), service).with_upgrades())
}

impl<S, V> Future for Http1<S, V>
where
    S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let this = &mut *self;
        loop {
            let next = match std::mem::replace(&mut this.state, State::Ended) {
                State::Served(mut served) => {
                    if let Poll::Ready(ended) = Pin::new(&mut *served).poll(context) {
                        return Poll::Ready(ended);
                    }
                    if this.poll_unused(context).is_pending() {
                        this.state = State::Served(served);
                        return Poll::Pending;
                    }
                    this.take_back(*served)
                }
                State::Waits(mut waiting) => {
                    if waiting.io.poll_readable(context).is_pending() {
                        this.state = State::Waits(waiting);
                        return Poll::Pending;
                    }
                    // What failed fails again.
                    this.is_busy = waiting.since.elapsed() < this.quiet_for;
                    State::Served(served(&this.builder, waiting.io, waiting.service))
                }
                State::Closes(mut io) => {
                    // Whoever waits on the other side finds the end either way.
                    if Pin::new(&mut *io).poll_shutdown(context).is_pending() {
                        this.state = State::Closes(io);
                        return Poll::Pending;
                    }
                    State::Ended
                }
                State::Ended => return Poll::Ready(Ok(())),
            };
            this.state = next;
        }
    }
}
