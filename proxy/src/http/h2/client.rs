//! What connections to HTTP/2 servers have in common, whoever they lead to.

use std::pin::Pin;
use std::task::Poll;

use crate::io::link::Link;

/// Runs what hyper has to do for each request. Its futures are as large as a connection; in a box, they are moved less.
#[derive(Clone, Copy)]
pub struct Spawner;

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        tokio::spawn(Box::pin(future));
    }
}

/// Drives a connection until the server's SETTINGS have come: a peer that refuses this node's certificate says so in their
/// place, one that is held up says nothing, and how many requests there may be is known before the first one.
///
/// # Errors
/// The connection ended.
pub async fn settle(
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
