//! Connections to HTTP/2 servers, both peers and agents.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::h2::client::SendRequest;
use bytes::Bytes;
use mesh_shared::config::Limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::error::BoxError;
use crate::http::h2::{self, pings::Pings};
use crate::io::early_answer::EarlyAnswer;
use crate::io::gathering::Gathering;
use crate::io::link::Link;

/// A connection on which so many streams were reset gets no new requests: servers count resets over a connection's life.
pub const RESETS: u32 = 500;

/// How a request is sent.
pub type Sender = SendRequest<Bytes>;

/// What a server's connection is read from and written to.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for S {}

/// A connection that is to be driven.
pub struct Connection<S: Transport> {
    http2: ::h2::client::Connection<Gathering<EarlyAnswer<S>>, Bytes>,
    link: Arc<Link>,
    pings: Option<Pings>,
}

/// Why a connection is of no use.
pub enum Unsettled {
    /// It ended, or what came is not HTTP/2.
    Failed(::h2::Error),
    /// The server closed it at once.
    Closed,
    /// Nothing came in time.
    Silent,
}

/// Settings for connections that carry at most so many requests each.
pub fn builder(most_streams: usize, limits: &Limits) -> ::h2::client::Builder {
    let mut http2 = ::h2::client::Builder::new();
    http2
        .enable_push(false)
        .initial_window_size(h2::ANSWER_WINDOW_BYTES)
        .initial_connection_window_size(h2::connection_window_bytes(
            h2::ANSWER_WINDOW_BYTES,
            u32::try_from(most_streams).unwrap_or(u32::MAX),
        ))
        .max_frame_size(h2::FRAME_BYTES)
        .max_header_list_size(limits.max_header_bytes)
        .max_send_buffer_size(h2::SEND_BUFFER_BYTES)
        // Until the server has said how many, one is safe (RFC 9113, section 6.5.2).
        .initial_max_send_streams(1)
        .max_concurrent_reset_streams(h2::REMEMBERED_RESETS)
        .reset_stream_duration(Duration::from_secs(30))
        .max_local_error_reset_streams(Some(h2::MAX_LOCAL_ERRORS));
    http2
}

/// Begins HTTP/2 on a stream, observed from outside by `link`, and waits for the server's SETTINGS, but not for longer than
/// `limit`.
///
/// # Errors
/// The connection is of no use. Nothing was sent.
pub async fn begin<S: Transport>(
    builder: &::h2::client::Builder,
    stream: S,
    link: &Arc<Link>,
    limit: Duration,
) -> Result<(Sender, Connection<S>), Unsettled> {
    let made = async {
        let (sender, http2) = builder.handshake(Gathering::new(EarlyAnswer::new(stream))).await?;
        let mut connection = Connection { http2, link: link.clone(), pings: None };
        connection.settle().await?;
        Ok((sender, connection))
    };
    match timeout(limit, made).await {
        Ok(Ok((mut sender, connection))) => match has_ended(&mut sender) {
            true => Err(Unsettled::Closed),
            false => Ok((sender, connection)),
        },
        Ok(Err(error)) => Err(Unsettled::Failed(error)),
        Err(_) => Err(Unsettled::Silent),
    }
}

/// Whether no request can be sent any more.
pub fn has_ended(sender: &mut Sender) -> bool {
    matches!(sender.poll_ready(&mut Context::from_waker(std::task::Waker::noop())), Poll::Ready(Err(_)))
}

impl<S: Transport> Connection<S> {
    /// Asks for a sign of life after silence for `interval` while requests are under way, and ends the connection where
    /// none comes within `patience`.
    pub fn with_pings(mut self, interval: Duration, patience: Duration) -> Self {
        self.pings = self.http2.ping_pong().map(|pings| Pings::new(pings, interval, patience));
        self
    }

    /// How many requests the server allows at once.
    pub fn allowed_streams(&self) -> usize {
        self.http2.max_concurrent_send_streams()
    }

    /// Drives the connection. `is_busy`: whether requests are under way.
    ///
    /// # Errors
    /// It ended as it should not; its requests learn that by themselves.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        is_busy: impl FnOnce() -> bool,
    ) -> Poll<Result<(), BoxError>> {
        let driven = Pin::new(&mut self.http2).poll(context);
        self.link.wake_on_first_reads(context);
        if driven.is_ready() {
            return driven.map_err(Into::into);
        }
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        ready!(pings.poll_lost(context, self.link.reads(), is_busy));
        self.link.answers_no_ping();
        Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Drives the connection until the server's SETTINGS have come: a peer that refuses this node's certificate says so in
    /// their place, one that is held up says nothing, and how many requests there may be is known before the first one.
    async fn settle(&mut self) -> Result<(), ::h2::Error> {
        std::future::poll_fn(|context| {
            let ended = Pin::new(&mut self.http2).poll(context);
            self.link.wake_on_first_reads(context);
            match (self.link.has_received(), ended) {
                (true, _) => Poll::Ready(Ok(())),
                (false, Poll::Ready(ended)) => Poll::Ready(ended),
                (false, Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }
}
