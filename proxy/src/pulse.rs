//! Whether the workers are running: each leaves a mark once a second, which another thread checks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// How often a worker leaves its mark; also the most that an idle one is woken for it.
const INTERVAL: Duration = Duration::from_secs(1);
/// A worker that is this late is stuck. A busy machine may delay one by much less.
const STUCK: Duration = Duration::from_secs(5);

/// When each worker left its last mark.
pub struct Pulse {
    start: Instant,
    /// In ms since the start.
    marks: Vec<AtomicU64>,
}

/// A worker that does not turn.
#[derive(Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Which one.
    pub worker: usize,
    /// How late its mark is.
    pub lag: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker-{} has done nothing for {} s", self.worker, self.lag.as_secs())
    }
}

impl Pulse {
    /// For so many workers, which count as turning now.
    pub fn new(workers: usize) -> Self {
        Self { start: Instant::now(), marks: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Leaves the marks of a worker for as long as it turns. To be run by the worker itself.
    pub async fn beat(&self, worker: usize) {
        let Some(mark) = self.marks.get(worker) else { return };
        loop {
            mark.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
            sleep(INTERVAL).await;
        }
    }

    /// How late the mark of each worker is, by the workers' numbers; zero where one turns.
    pub fn lags(&self) -> impl Iterator<Item = Duration> {
        self.lags_at(self.start.elapsed())
    }

    /// The worker that does not turn, if there is one.
    pub fn stuck(&self) -> Option<Stuck> {
        self.latest(self.start.elapsed()).filter(|stuck| stuck.lag >= STUCK)
    }

    fn latest(&self, now: Duration) -> Option<Stuck> {
        let lags = self.lags_at(now).enumerate().map(|(worker, lag)| Stuck { worker, lag });
        lags.max_by_key(|stuck| stuck.lag)
    }

    fn lags_at(&self, now: Duration) -> impl Iterator<Item = Duration> {
        self.marks.iter().map(move |mark| {
            let mark = Duration::from_millis(mark.load(Ordering::Relaxed));
            now.saturating_sub(mark).saturating_sub(INTERVAL)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_worker_is_named() {
        let pulse = Pulse::new(3);
        for (mark, at) in pulse.marks.iter().zip([9_500, 2_000, 9_000]) {
            mark.store(at, Ordering::Relaxed);
        }
        let latest = pulse.latest(Duration::from_secs(10)).unwrap();
        assert_eq!(latest, Stuck { worker: 1, lag: Duration::from_secs(7) });
        assert_eq!(latest.to_string(), "worker-1 has done nothing for 7 s");
        assert_eq!(pulse.latest(Duration::from_millis(2_500)).unwrap().lag, Duration::ZERO);
    }
}
