//! What passed in the last ten minutes, in steps of ten seconds: how many requests, how many failed, how long they took.

use std::collections::VecDeque;

use serde::Serialize;

/// Length of a step, in ms.
pub const STEP_MS: u64 = 10_000;
/// Steps that are kept.
pub const STEPS: u64 = 60;
/// Where one class of latencies ends and the next begins, in ms.
const BOUNDS_MS: [u32; 25] = [
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000,
    10_000, 30_000, 120_000,
];

/// Ten minutes of requests. Its size depends on the steps with traffic, and is at most 7 KB.
#[derive(Debug, Default)]
pub struct History {
    steps: VecDeque<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    /// Its number, counted from a moment that its owner chose.
    number: u64,
    requests: u32,
    failures: u32,
    latencies: [u32; BOUNDS_MS.len() + 1],
}

/// A step, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// Its number.
    pub step: u64,
    /// Requests that ended in it.
    pub requests: u32,
    /// Those of them that failed.
    pub failures: u32,
    /// Within which time half of them were answered, in ms; `None`: there were none.
    pub p50: Option<f64>,
    /// Within which time 95 % were, in ms.
    pub p95: Option<f64>,
}

impl History {
    /// Counts a request that ended in the step `number`. Steps come in order.
    pub fn record(&mut self, number: u64, latency_ms: u64, failed: bool) {
        let class = BOUNDS_MS.partition_point(|bound| u64::from(*bound) <= latency_ms);
        let step = self.at(number);
        step.requests = step.requests.saturating_add(1);
        step.failures = step.failures.saturating_add(u32::from(failed));
        step.latencies[class] = step.latencies[class].saturating_add(1);
    }

    fn at(&mut self, number: u64) -> &mut Step {
        if self.steps.back().is_none_or(|last| last.number < number) {
            let latencies = [0; BOUNDS_MS.len() + 1];
            self.steps.push_back(Step { number, requests: 0, failures: 0, latencies });
            while self.steps.front().is_some_and(|first| first.number + STEPS <= number) {
                self.steps.pop_front();
            }
        }
        // Not empty since the lines above.
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    /// Adds what `other` has counted, whose steps have the same numbers.
    pub fn add(&mut self, other: &Self) {
        let mut merged: VecDeque<Step> = VecDeque::new();
        let mut all: Vec<&Step> = self.steps.iter().chain(&other.steps).collect();
        all.sort_by_key(|step| step.number);
        for step in all {
            match merged.back_mut().filter(|last| last.number == step.number) {
                Some(last) => {
                    last.requests = last.requests.saturating_add(step.requests);
                    last.failures = last.failures.saturating_add(step.failures);
                    for (sum, more) in last.latencies.iter_mut().zip(step.latencies) {
                        *sum = sum.saturating_add(more);
                    }
                }
                None => merged.push_back(step.clone()),
            }
        }
        self.steps = merged;
    }

    /// The steps with traffic that are not too old at the step `now`, the oldest first.
    pub fn points(&self, now: u64) -> Vec<Point> {
        self.steps.iter().filter(|step| step.number + STEPS > now).map(Step::point).collect()
    }
}

impl Step {
    fn point(&self) -> Point {
        let of = |share| (self.requests > 0).then(|| self.quantile(share));
        let Self { number, requests, failures, .. } = *self;
        Point { step: number, requests, failures, p50: of(0.5), p95: of(0.95) }
    }

    /// The latency that this share of the requests did not exceed; within a class, they count as evenly spread.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = f64::from(self.requests) * share;
        let mut before = 0.0;
        for (class, count) in self.latencies.iter().enumerate() {
            let count = f64::from(*count);
            if count > 0.0 && before + count >= wanted {
                let from = if class == 0 { 0.0 } else { f64::from(BOUNDS_MS[class - 1]) };
                let to = BOUNDS_MS.get(class).map_or(from, |bound| f64::from(*bound));
                let exact = from + (to - from) * (wanted - before) / count;
                return (exact * 10.0).round() / 10.0;
            }
            before += count;
        }
        f64::from(BOUNDS_MS[BOUNDS_MS.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_in_their_step_and_forgotten_after_ten_minutes() {
        let mut history = History::default();
        for latency in [4, 4, 4, 4_000] {
            history.record(7, latency, latency > 1_000);
        }
        let points = history.points(7);
        assert_eq!((points.len(), points[0].requests, points[0].failures), (1, 4, 1));
        let (p50, p95) = (points[0].p50.unwrap(), points[0].p95.unwrap());
        assert!((3.0..=5.0).contains(&p50) && (3_000.0..=5_000.0).contains(&p95), "{points:?}");
        history.record(8, 1, false);
        assert_eq!(history.points(7 + STEPS).len(), 1);
        assert_eq!(history.points(8 + STEPS), []);
        for number in 9..500 {
            history.record(number, 1, false);
        }
        assert_eq!(history.steps.len() as u64, STEPS);
    }

    #[test]
    fn histories_add_up_step_by_step() {
        let (mut one, mut other) = (History::default(), History::default());
        one.record(1, 10, false);
        one.record(3, 10, true);
        other.record(2, 10, false);
        other.record(3, 200_000, true);
        one.add(&other);
        let points = one.points(3);
        let counts: Vec<_> =
            points.iter().map(|point| (point.step, point.requests, point.failures)).collect();
        assert_eq!(counts, [(1, 1, 0), (2, 1, 0), (3, 2, 2)]);
        assert_eq!(points[2].p95, Some(120_000.0));
    }
}
