//! How often each address may try. Pure: the clock is passed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use mesh_shared::identity::Identity;

/// Refused attempts of an address at once, and how long until it has one more.
const FAILURES: Rate = Rate { burst: 10, each: Duration::from_secs(6) };
/// Renewals of an identity at once, and how long until it has one more.
const RENEWALS: Rate = Rate { burst: 6, each: Duration::from_secs(60) };
/// Most addresses or identities that are remembered.
const MOST_KEYS: usize = 4096;

struct Rate {
    burst: u32,
    each: Duration,
}

/// Spent attempts of those who spent any. Whoever has all of them back is forgotten.
#[derive(Debug)]
struct Spent<K> {
    /// When all attempts of a key are back.
    whole: HashMap<K, Instant>,
}

impl<K> Default for Spent<K> {
    fn default() -> Self {
        Self { whole: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone> Spent<K> {
    /// How long the key has to wait for its next attempt; zero where it has one.
    fn wait(&self, key: &K, rate: &Rate, now: Instant) -> Duration {
        let full = rate.each * (rate.burst - 1);
        self.whole
            .get(key)
            .map_or(Duration::ZERO, |whole| whole.saturating_duration_since(now).saturating_sub(full))
    }

    fn spend(&mut self, key: K, rate: &Rate, now: Instant) {
        if self.whole.len() >= MOST_KEYS && !self.whole.contains_key(&key) {
            self.whole.retain(|_, whole| *whole > now);
            // All are in use: the one that is whole soonest has the least to lose.
            if self.whole.len() >= MOST_KEYS
                && let Some(first) =
                    self.whole.iter().min_by_key(|(_, whole)| **whole).map(|(key, _)| key.clone())
            {
                self.whole.remove(&first);
            }
        }
        let whole = self.whole.entry(key).or_insert(now);
        *whole = (*whole).max(now) + rate.each;
    }
}

/// Where somebody comes from: an address, or an IPv6 /64, since a host has all of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// Refused attempts to enrol.
#[derive(Debug, Default)]
pub(super) struct Failures(Spent<Origin>);

impl Failures {
    /// Whether those from there may try.
    pub(super) fn allow(&self, origin: Origin, now: Instant) -> bool {
        self.0.wait(&origin, &FAILURES, now).is_zero()
    }

    /// One of them was refused.
    pub(super) fn failed(&mut self, origin: Origin, now: Instant) {
        self.0.spend(origin, &FAILURES, now);
    }
}

/// Renewals that were granted.
#[derive(Debug, Default)]
pub(super) struct Renewals(Spent<Identity>);

impl Renewals {
    /// How long this identity has to wait; zero where it may renew now.
    pub(super) fn wait(&self, identity: &Identity, now: Instant) -> Duration {
        self.0.wait(identity, &RENEWALS, now)
    }

    /// It has renewed.
    pub(super) fn granted(&mut self, identity: Identity, now: Instant) {
        self.0.spend(identity, &RENEWALS, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_has_to_wait_and_others_do_not() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let one: Origin = "10.0.0.1".parse::<IpAddr>().unwrap().into();
        let mapped: Origin = "::ffff:10.0.0.1".parse::<IpAddr>().unwrap().into();
        assert_eq!(one, mapped);
        for _ in 0..FAILURES.burst {
            assert!(failures.allow(one, now));
            failures.failed(one, now);
        }
        assert!(!failures.allow(one, now));
        assert!(failures.allow("10.0.0.2".parse::<IpAddr>().unwrap().into(), now));
        assert!(failures.allow(one, now + FAILURES.each));
    }

    #[test]
    fn a_host_has_all_of_an_ipv6_64() {
        let origin = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(origin("fd00::1"), origin("fd00::ffff:2"));
        assert_ne!(origin("fd00::1"), origin("fd00:0:0:1::1"));
    }

    #[test]
    fn no_more_keys_are_kept_than_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for number in 0..(MOST_KEYS as u32 + 100) {
            failures.failed(IpAddr::V4(number.into()).into(), now);
        }
        assert_eq!(failures.0.whole.len(), MOST_KEYS);
    }
}
