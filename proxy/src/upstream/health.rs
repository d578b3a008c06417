//! Which nodes are not used because they could not be reached. Pure: takes what happened and the time, and returns a verdict.
//!
//! A node whose connection cannot be made is *ejected* for a while, longer each time. When that is over, a probe in the
//! background decides; until it has succeeded, requests still avoid the node, so that none is lost to the test.

use std::time::{Duration, Instant};

/// How long the first ejection lasts.
const FIRST: Duration = Duration::from_secs(1);
/// How long any ejection lasts at most, before jitter.
const LONGEST: Duration = Duration::from_secs(60);
/// An ejection is this much shorter or longer at random, so that not all hosts probe a node that is coming up together.
const JITTER: f64 = 0.25;

/// What connections to one node came to.
#[derive(Debug, Default)]
pub struct Health {
    /// Ejections since the last success.
    ejections: u32,
    until: Option<Instant>,
    probing: bool,
}

/// Whether a node gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Well,
    /// It is not used until then.
    Ejected(Instant),
    /// Its time is over and a probe is to decide, or has begun to.
    Due(Instant),
}

impl Health {
    /// A connection failed or took too long. Returns how long the node is ejected from now on; `None` if it was already:
    /// those who tried at the same time say nothing new.
    pub fn failed(&mut self, now: Instant, random: u64) -> Option<Duration> {
        if matches!(self.standing(now), Standing::Ejected(_)) {
            return None;
        }
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.ejections).unwrap_or(u32::MAX));
        let share = random as f64 / u64::MAX as f64;
        let lasting = doubled.min(LONGEST).mul_f64(1.0 - JITTER + 2.0 * JITTER * share);
        self.ejections = self.ejections.saturating_add(1);
        self.until = Some(now + lasting);
        self.probing = false;
        Some(lasting)
    }

    /// A connection was made. True if that ends an ejection.
    pub fn succeeded(&mut self) -> bool {
        std::mem::take(self).is_ejected()
    }

    /// Whether it failed since it last succeeded.
    pub fn is_ejected(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the node gets requests.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.until {
            None => Standing::Well,
            Some(until) if until > now => Standing::Ejected(until),
            Some(until) => Standing::Due(until),
        }
    }

    /// True once for each ejection that is over: whoever asked is to probe.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        matches!(self.standing(now), Standing::Due(_)) && !std::mem::replace(&mut self.probing, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u64 = u64::MAX / 2;

    #[test]
    fn ejections_double_up_to_a_minute_and_end_with_a_success() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut lasting = Vec::new();
        for _ in 0..40 {
            lasting.push(health.failed(now, MIDDLE).unwrap().as_secs_f64().round() as u64);
            now += Duration::from_secs(61);
        }
        assert_eq!(lasting[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert!(lasting[7..].iter().all(|seconds| *seconds == 60));
        assert!(health.succeeded());
        assert_eq!(health.standing(now), Standing::Well);
        assert!(!health.succeeded());
        assert_eq!(health.failed(now, MIDDLE).unwrap().as_secs_f64().round() as u64, 1);
    }

    #[test]
    fn jitter_is_a_quarter_each_way() {
        let now = Instant::now();
        let first = |random| Health::default().failed(now, random).unwrap().as_millis();
        assert_eq!((first(0), first(u64::MAX)), (750, 1250));
    }

    #[test]
    fn many_failures_at_once_are_one_ejection() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!(health.failed(now, MIDDLE).is_some());
        assert!(health.failed(now, MIDDLE).is_none());
        assert!(matches!(health.standing(now), Standing::Ejected(_)));
    }

    #[test]
    fn one_probe_decides_when_the_time_is_over() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!(!health.begin_probe(now));
        health.failed(now, MIDDLE);
        assert!(!health.begin_probe(now));
        let later = now + Duration::from_secs(2);
        assert!(health.begin_probe(later));
        assert!(!health.begin_probe(later), "one at a time");
        assert!(matches!(health.standing(later), Standing::Due(_)), "not used until it has succeeded");
        assert!(health.failed(later, MIDDLE).is_some());
        assert!(health.begin_probe(later + Duration::from_secs(3)));
    }
}
