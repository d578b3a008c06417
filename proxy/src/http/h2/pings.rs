//! Pinging a peer that is silent (RFC 9113, section 6.7).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

/// The pings of one connection.
pub struct Pings {
    pings: PingPong,
    interval: Duration,
    patience: Duration,
    /// When to look again; while an answer is expected, when it is too late.
    timer: Pin<Box<Sleep>>,
    expected: bool,
    reads: u64,
    last_read: Instant,
}

impl Pings {
    /// A ping after silence for `interval`, whose answer may take `patience`.
    pub fn new(pings: PingPong, interval: Duration, patience: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + interval));
        Self { pings, interval, patience, timer, expected: false, reads: 0, last_read: now }
    }

    /// Ready once there was no answer in time. `reads` is how often something was read of the connection; while it is not
    /// busy, nothing is asked.
    pub fn poll_lost(
        &mut self,
        context: &mut Context<'_>,
        reads: u64,
        is_busy: impl FnOnce() -> bool,
    ) -> Poll<()> {
        if std::mem::replace(&mut self.reads, reads) != reads {
            self.last_read = Instant::now();
        }
        if self.expected && self.pings.poll_pong(context).is_ready() {
            self.expected = false;
            self.timer.as_mut().reset(self.last_read + self.interval);
        }
        if self.timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        if self.expected {
            return Poll::Ready(());
        }
        let now = Instant::now();
        let mut next = self.last_read + self.interval;
        if next <= now {
            next = now + self.interval;
            if is_busy() && self.pings.send_ping(Ping::opaque()).is_ok() {
                self.expected = true;
                next = now + self.patience;
                // To be woken by the answer.
                let _ = self.pings.poll_pong(context);
            }
        }
        self.timer.as_mut().reset(next);
        // To be woken by the timer.
        let _ = self.timer.as_mut().poll(context);
        // The ping goes out with the next turn of the connection.
        if self.expected {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
