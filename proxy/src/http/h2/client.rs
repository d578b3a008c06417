//! What connections to HTTP/2 servers have in common, whoever they lead to.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use mesh_shared::config::Limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::http::h2;
use crate::http::replay::Replay;
use crate::io::early_answer::EarlyAnswer;
use crate::io::gathering::Gathering;
use crate::io::link::Link;

/// A connection on which so many streams were reset gets no new requests: servers count resets over a connection's life.
pub const RESETS: u32 = 500;

/// How a request is sent.
pub type Sender = http2::SendRequest<Replay>;
/// A server's stream as hyper reads and writes it. Boxed: hyper makes each request's task as large as its connection's.
pub type Io<S> = TokioIo<Box<Gathering<EarlyAnswer<S>>>>;
/// What hyper reads and writes.
pub trait Transport: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static {}

impl<I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static> Transport for I {}

/// A connection that is to be driven.
pub type Connection<I> = http2::Connection<I, Replay, Spawner>;

/// Runs what hyper has to do for each request. Its futures are as large as a connection; in a box, they are moved less.
#[derive(Clone, Copy)]
pub struct Spawner;

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        tokio::spawn(Box::pin(future));
    }
}

/// Why a connection is of no use.
pub enum Unsettled {
    /// It ended, or what came is not HTTP/2.
    Failed(hyper::Error),
    /// The server closed it at once.
    Closed,
    /// Nothing came in time.
    Silent,
}

/// Settings for connections that carry at most so many requests each.
pub fn builder(most_streams: usize, limits: &Limits) -> http2::Builder<Spawner> {
    let mut http2 = http2::Builder::new(Spawner);
    http2
        .initial_stream_window_size(h2::ANSWER_WINDOW_BYTES)
        .initial_connection_window_size(h2::connection_window_bytes(
            h2::ANSWER_WINDOW_BYTES,
            u32::try_from(most_streams).unwrap_or(u32::MAX),
        ))
        .max_frame_size(h2::FRAME_BYTES)
        .max_header_list_size(limits.max_header_bytes)
        .max_send_buf_size(h2::SEND_BUFFER_BYTES)
        // Until the server has said how many, one is safe (RFC 9113, section 6.5.2).
        .initial_max_send_streams(1)
        // What is still under way for streams that were reset is expected for a while, and never counted against
        // the connection.
        .max_concurrent_reset_streams(RESETS as usize * 2)
        .reset_stream_duration(Duration::from_secs(30))
        .max_local_error_reset_streams(None);
    http2
}

/// Begins HTTP/2 on a stream, seen from beside by `link`, and waits for the server's SETTINGS, but not for longer than
/// `limit`.
///
/// # Errors
/// The connection is of no use. Nothing was sent.
pub async fn begin<S>(
    builder: &http2::Builder<Spawner>,
    stream: S,
    link: &Link,
    limit: Duration,
) -> Result<(Sender, Connection<Io<S>>), Unsettled>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Box::new(Gathering::new(EarlyAnswer::new(stream))));
    let made = async {
        let (sender, mut connection) = builder.handshake(io).await?;
        settle(&mut connection, link).await?;
        Ok((sender, connection))
    };
    match timeout(limit, made).await {
        Ok(Ok((sender, _))) if sender.is_closed() => Err(Unsettled::Closed),
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => Err(Unsettled::Failed(error)),
        Err(_) => Err(Unsettled::Silent),
    }
}

/// Drives a connection until the server's SETTINGS have come: a peer that refuses this node's certificate says so in their
/// place, one that is held up says nothing, and how many requests there may be is known before the first one.
async fn settle(
    connection: &mut (impl Future<Output = Result<(), hyper::Error>> + Unpin),
    link: &Link,
) -> Result<(), hyper::Error> {
    std::future::poll_fn(|context| {
        let ended = Pin::new(&mut *connection).poll(context);
        link.wake_on_first_reads(context);
        match (link.has_received(), ended) {
            (true, _) => Poll::Ready(Ok(())),
            (false, Poll::Ready(ended)) => Poll::Ready(ended),
            (false, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}
