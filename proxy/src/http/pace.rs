//! How slowly a request's body may arrive. Only the time counts for which its reader has to wait for it, not the time in which
//! nobody reads it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// For how long a body may keep its reader waiting, in all: for `waiting`, and longer by what it takes to send what has
/// come at `bytes_per_second`.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Whatever came.
    pub waiting: Duration,
    /// 0: any body that has begun may take for ever.
    pub bytes_per_second: u32,
}

impl Allowance {
    fn after(&self, bytes: u64) -> Duration {
        let ms = match (bytes, self.bytes_per_second) {
            (0, _) => 0,
            (_, 0) => return Duration::MAX,
            (bytes, rate) => bytes.saturating_mul(1000) / u64::from(rate),
        };
        self.waiting.saturating_add(Duration::from_millis(ms))
    }
}

/// The pace of one body.
pub struct Pace {
    allowance: Allowance,
    bytes: u64,
    waited: Duration,
    waits_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// A body of which nothing has come yet.
    pub fn new(allowance: Allowance) -> Self {
        Self { allowance, bytes: 0, waited: Duration::ZERO, waits_since: None, timer: None }
    }

    /// Notes that so many bytes have come.
    pub fn came(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(since) = self.waits_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Notes that the reader waits, and wakes its task when that takes too long. Ready: it does.
    pub fn waits(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let left = self.allowance.after(self.bytes).saturating_sub(self.waited);
        let Some(due) = since.checked_add(left) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn what_has_come_buys_time() {
        let allowance = Allowance { waiting: Duration::from_secs(60), bytes_per_second: 100 };
        assert_eq!(allowance.after(0), Duration::from_secs(60));
        assert_eq!(allowance.after(50), Duration::from_millis(60_500));
        assert_eq!(allowance.after(u64::MAX), allowance.after(u64::MAX - 1));
        let patient = Allowance { bytes_per_second: 0, ..allowance };
        assert_eq!((patient.after(0), patient.after(1)), (Duration::from_secs(60), Duration::MAX));
    }

    #[tokio::test]
    async fn a_body_that_keeps_its_reader_waiting_is_too_slow_whatever_comes_in_between() {
        let limit = Duration::from_millis(200);
        let mut pace = Pace::new(Allowance { waiting: limit, bytes_per_second: 1_000_000 });
        let started = Instant::now();
        loop {
            let byte = tokio::time::sleep(limit / 20);
            tokio::select! {
                () = poll_fn(|context| pace.waits(context)) => break,
                () = byte => pace.came(1),
            }
        }
        assert!(started.elapsed() >= limit);
        // A reader that does not read waits for nothing.
        let mut pace = Pace::new(Allowance { waiting: limit, bytes_per_second: 100 });
        pace.came(1);
        tokio::time::sleep(2 * limit).await;
        assert!(poll_fn(|context| Poll::Ready(pace.waits(context))).await.is_pending());
    }
}
