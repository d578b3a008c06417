//! Chance, so that many nodes do not act in the same millisecond.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A number from 0 up to 1.
pub fn unit() -> f64 {
    // Each RandomState has keys of its own, from the operating system's randomness.
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

/// `period`, up to a tenth shorter: never later than promised.
pub fn heartbeat(period: Duration) -> Duration {
    period.mul_f64(1.0 - unit() / 10.0)
}

/// The wait after `failures` failures in a row: doubling from `first` up to `longest`, up to a third shorter.
pub fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(1.0 - unit() / 3.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_in_their_range_and_differ() {
        let second = Duration::from_secs(1);
        let waits: Vec<_> = (0..50).map(|_| heartbeat(second)).collect();
        assert!(waits.iter().all(|wait| (second.mul_f64(0.9)..=second).contains(wait)));
        assert!(waits.windows(2).any(|pair| pair[0] != pair[1]));
        assert!(backoff(1, second, 30 * second) <= second);
        assert!(backoff(40, second, 30 * second) >= 20 * second);
    }
}
