//! How often something may happen. Pure.

/// So many seconds' worth may come at once.
const BURST_SECONDS: u64 = 2;

/// So many of something in a second, as a token bucket: its level is told by the time at which it will be full (the generic
/// cell rate algorithm). Pure: times are nanoseconds on any one clock.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    per_second: u32,
    /// Between two of them.
    interval: u64,
    burst: u64,
}

impl Rate {
    /// At most `per_second` of something, twice as many at once.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second,
            interval: 1_000_000_000 / u64::from(per_second.max(1)),
            burst: BURST_SECONDS * 1_000_000_000,
        }
    }

    /// So many.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes one more at the time `now`: when it is `due` the next time, or `None` if it is one too many.
    pub fn take(&self, due: u64, now: u64) -> Option<u64> {
        let due = due.max(now) + self.interval;
        (due - now <= self.burst).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_a_burst_of_twice_and_then_one_by_one() {
        const SECOND: u64 = 1_000_000_000;
        let rate = Rate::new(10);
        let (mut due, mut taken) = (0, 0);
        while let Some(next) = rate.take(due, 5 * SECOND) {
            (due, taken) = (next, taken + 1);
        }
        assert_eq!(taken, 20);
        assert!(rate.take(due, 5 * SECOND + SECOND / 20).is_none());
        let mut now = 5 * SECOND;
        for _ in 0..30 {
            now += SECOND / 10;
            due = rate.take(due, now).expect("ten a second");
            assert!(rate.take(due, now).is_none(), "and no more");
        }
    }
}
