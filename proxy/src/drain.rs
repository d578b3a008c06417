//! Closing one side of the sidecar: who is told to take nothing new, and what is still in progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pingora_core::server::ShutdownWatch;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

/// Whether one side (inbound, outbound or admin) still takes new work, and how much it carries.
#[derive(Clone)]
pub struct Drain {
    begun: Arc<watch::Sender<bool>>,
    /// The same for the path of requests, where the lock of a watch would be one too many.
    closing: Arc<AtomicBool>,
    connections: Arc<Count>,
    requests: Arc<Count>,
    linger: Duration,
}

impl Drain {
    /// A side that is open. Once it drains, a connection that carries nothing is kept for `linger`: a request may
    /// be on its way on it, or about to be.
    pub fn new(linger: Duration) -> Self {
        Self {
            begun: Arc::new(watch::channel(false).0),
            closing: Arc::default(),
            connections: Arc::default(),
            requests: Arc::default(),
            linger,
        }
    }

    /// From now on listeners accept nothing, and connections end as soon as they carry nothing.
    pub fn begin(&self) {
        self.closing.store(true, Ordering::Release);
        self.begun.send_replace(true);
    }

    /// Whether it takes nothing new any more.
    pub fn has_begun(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Tells when it begins.
    pub fn watch(&self) -> ShutdownWatch {
        self.begun.subscribe()
    }

    /// Counts a connection, or a listener that can still accept one, until the value is dropped.
    pub fn connection(&self) -> Held {
        Held::one_more(&self.connections)
    }

    /// Counts a request until the value is dropped.
    pub fn request(&self) -> Held {
        Held::one_more(&self.requests)
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.requests.number.load(Ordering::Acquire)
    }

    /// Returns once there is neither a listener nor a connection, which is some time after it began.
    pub async fn closed(&self) {
        loop {
            let none_left = self.connections.none_left.notified();
            tokio::pin!(none_left);
            none_left.as_mut().enable();
            if self.connections.number.load(Ordering::Acquire) == 0 {
                return;
            }
            none_left.await;
        }
    }

    /// Returns when connections that carry nothing are no longer kept.
    pub async fn lingered(&self) {
        // Fails only when the sender, which is here, is gone.
        let _ = self.watch().wait_for(|begun| *begun).await;
        sleep(self.linger).await;
    }
}

#[derive(Default)]
struct Count {
    number: AtomicUsize,
    none_left: Notify,
}

/// Counts as one while it lives.
pub struct Held(Arc<Count>);

impl Held {
    fn one_more(count: &Arc<Count>) -> Self {
        count.number.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.number.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_side_is_closed_with_its_last_connection() {
        let drain = Drain::new(Duration::ZERO);
        let (first, second) = (drain.connection(), drain.connection());
        let closed = drain.closed();
        tokio::pin!(closed);
        drop(first);
        assert!(futures_util::poll!(closed.as_mut()).is_pending());
        drop(second);
        closed.await;
    }
}
