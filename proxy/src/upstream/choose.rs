//! Which node gets a request. Pure: takes what is known of the candidates, and returns one of them.

use std::time::{Duration, Instant};

/// What is known of a node that could take the request.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Whether it is this host.
    pub own: bool,
    /// Whether it says that it is not well itself.
    pub degraded: bool,
    /// Whether it can take a request now.
    pub readiness: Readiness,
    /// Requests from here under way to it.
    pub in_flight: usize,
    /// How long its answers took lately.
    pub latency: Duration,
    /// Its place among the nodes for the request's session: the highest comes first. `None` without a session.
    pub rank: Option<u64>,
}

/// Whether a node can take a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing speaks against it.
    Ready,
    /// It could not be reached recently, and is not used until then.
    Ejected(Instant),
    /// As many requests are under way to it as there may be.
    Full,
}

/// Latencies are distinguished only beyond this; less is noise.
const LATENCY_NOISE: Duration = Duration::from_millis(20);

/// The position of the candidate to send to; `None` if all are full.
///
/// A node that is ready comes before all others; among those one that is not degraded; among those this host, then by
/// session, then the less loaded of two taken at random. Where none is ready, the one whose ejection ends first is tried
/// all the same.
pub fn choose(candidates: &[Candidate], random: u64) -> Option<usize> {
    for degraded in [false, true] {
        let ready = || {
            let tier = candidates.iter().enumerate();
            tier.filter(move |(_, each)| each.degraded == degraded && each.readiness == Readiness::Ready)
        };
        let count = ready().count();
        if count == 0 {
            continue;
        }
        if let Some((own, _)) = ready().find(|(_, each)| each.own) {
            return Some(own);
        }
        if let Some((ranked, _)) =
            ready().filter(|(_, each)| each.rank.is_some()).max_by_key(|(_, each)| each.rank)
        {
            return Some(ranked);
        }
        let count = count as u64;
        let first = random % count;
        // One of the others, each as likely.
        let second = (first + 1 + (random / count) % (count - 1).max(1)) % count;
        let (one, other) = (ready().nth(first as usize)?, ready().nth(second as usize)?);
        return Some(if is_less_loaded(other.1, one.1) { other.0 } else { one.0 });
    }
    let ejected = candidates.iter().enumerate().filter_map(|(i, each)| match each.readiness {
        Readiness::Ejected(until) => Some((each.degraded, until, i)),
        _ => None,
    });
    ejected.min().map(|(_, _, i)| i)
}

fn is_less_loaded(one: &Candidate, other: &Candidate) -> bool {
    match one.in_flight.cmp(&other.in_flight) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Equal => one.latency * 2 + LATENCY_NOISE < other.latency,
    }
}

/// How long a node's answers take, as a moving average of the recent ones that is forgotten while there are none.
#[derive(Debug, Default, Clone, Copy)]
pub struct Latency {
    average: Duration,
    at: Option<Instant>,
}

/// The weight of a new answer.
const WEIGHT: f64 = 0.25;
/// An average that nothing confirms is worth half as much after this: a node that was slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(10);

impl Latency {
    /// Takes in an answer that took `took`.
    pub fn observe(&mut self, took: Duration, now: Instant) {
        let average = self.at(now);
        self.average = average.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT);
        self.at = Some(now);
    }

    /// The average as of now.
    pub fn at(&self, now: Instant) -> Duration {
        let Some(at) = self.at else { return Duration::ZERO };
        let age = now.saturating_duration_since(at);
        // Under load, nothing worth the exponent has passed.
        if age < HALF_LIFE / 1000 {
            return self.average;
        }
        self.average.mul_f64(0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate() -> Candidate {
        Candidate {
            own: false,
            degraded: false,
            readiness: Readiness::Ready,
            in_flight: 0,
            latency: Duration::ZERO,
            rank: None,
        }
    }

    /// How often each is chosen, over many random numbers.
    fn spread(candidates: &[Candidate]) -> Vec<usize> {
        let mut chosen = vec![0; candidates.len()];
        for seed in 0..1000_u64 {
            let random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            chosen[choose(candidates, random ^ (random >> 29)).unwrap()] += 1;
        }
        chosen
    }

    #[test]
    fn equals_share_the_work_and_the_less_loaded_get_more_of_it() {
        for count in [1, 2, 3, 7] {
            let chosen = spread(&vec![candidate(); count]);
            assert!(chosen.iter().all(|&times| times * count > 700), "{chosen:?}");
        }
        let busy = Candidate { in_flight: 3, ..candidate() };
        assert_eq!(spread(&[busy, candidate()]), [0, 1000]);
        let slow = Candidate { latency: Duration::from_millis(200), ..candidate() };
        let quick = Candidate { latency: Duration::from_millis(10), ..candidate() };
        assert_eq!(spread(&[slow, quick]), [0, 1000]);
        let bit_slower = Candidate { latency: Duration::from_millis(15), ..candidate() };
        assert!(spread(&[bit_slower, quick])[0] > 300);
        let chosen = spread(&[busy, candidate(), candidate()]);
        assert!(chosen[0] == 0 && chosen[1] > 300 && chosen[2] > 300, "{chosen:?}");
    }

    #[test]
    fn this_host_first_but_not_when_it_cannot() {
        let own = Candidate { own: true, in_flight: 9, ..candidate() };
        assert_eq!(choose(&[candidate(), own], 5), Some(1));
        let later = Instant::now() + Duration::from_secs(1);
        for readiness in [Readiness::Full, Readiness::Ejected(later)] {
            assert_eq!(choose(&[candidate(), Candidate { readiness, ..own }], 5), Some(0));
        }
        assert_eq!(choose(&[candidate(), Candidate { degraded: true, ..own }], 5), Some(0));
    }

    #[test]
    fn degraded_ones_only_where_nothing_better_is_ready() {
        let degraded = Candidate { degraded: true, ..candidate() };
        assert_eq!(spread(&[degraded, candidate()]), [0, 1000]);
        let full = Candidate { readiness: Readiness::Full, ..candidate() };
        assert_eq!(spread(&[degraded, full]), [1000, 0]);
    }

    #[test]
    fn when_none_is_ready_the_one_that_returns_first_is_tried_and_none_when_all_are_full() {
        let now = Instant::now();
        let ejected = |seconds| Candidate {
            readiness: Readiness::Ejected(now + Duration::from_secs(seconds)),
            ..candidate()
        };
        let full = Candidate { readiness: Readiness::Full, ..candidate() };
        assert_eq!(choose(&[full, ejected(9), ejected(2)], 0), Some(2));
        assert_eq!(choose(&[full, full], 0), None);
        assert_eq!(choose(&[], 0), None);
    }

    #[test]
    fn a_session_goes_to_its_highest_rank_that_is_ready() {
        let ranked = |rank| Candidate { rank: Some(rank), ..candidate() };
        assert_eq!(choose(&[ranked(5), ranked(9), ranked(7)], 1), Some(1));
        let full = Candidate { readiness: Readiness::Full, ..ranked(9) };
        assert_eq!(choose(&[ranked(5), full, ranked(7)], 1), Some(2));
    }

    #[test]
    fn latency_follows_and_is_forgotten() {
        let (mut latency, start) = (Latency::default(), Instant::now());
        assert_eq!(latency.at(start), Duration::ZERO);
        for _ in 0..20 {
            latency.observe(Duration::from_millis(100), start);
        }
        assert!(latency.at(start) > Duration::from_millis(95));
        let later = latency.at(start + Duration::from_secs(100));
        assert!(later < Duration::from_millis(1), "{later:?}");
    }
}
