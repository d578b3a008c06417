//! Connections that wait for their next request, and for how long each is kept. Data only.

use std::collections::VecDeque;
use std::time::Instant;

/// Connections that wait.
#[derive(Debug)]
pub struct Idle<C> {
    waiting: VecDeque<(Instant, C)>,
    most: usize,
    reaping: bool,
}

impl<C> Idle<C> {
    /// Keeps at most so many.
    pub fn new(most: usize) -> Self {
        Self { waiting: VecDeque::new(), most, reaping: false }
    }

    /// Keeps a connection until then; the one that waited longest makes room. True: somebody is to [`reap`](Self::reap)
    /// from now on.
    pub fn put(&mut self, connection: C, until: Instant) -> bool {
        if self.waiting.len() >= self.most {
            self.waiting.pop_front();
        }
        self.waiting.push_back((until, connection));
        !std::mem::replace(&mut self.reaping, true)
    }

    /// The one used last, which is the least likely to be closed by now.
    pub fn take(&mut self, now: Instant, is_usable: impl Fn(&C) -> bool) -> Option<C> {
        while let Some((until, connection)) = self.waiting.pop_back() {
            if until > now && is_usable(&connection) {
                return Some(connection);
            }
        }
        None
    }

    /// Drops those that are no longer to be kept. Returns when to come again; `None`: when there is one again.
    pub fn reap(&mut self, now: Instant, is_usable: impl Fn(&C) -> bool) -> Option<Instant> {
        self.waiting.retain(|(until, connection)| *until > now && is_usable(connection));
        let next = self.waiting.iter().map(|(until, _)| *until).min();
        if next.is_none() {
            self.reaping = false;
            self.waiting.shrink_to_fit();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_comes_first_and_none_is_kept_too_long() {
        let (mut idle, now) = (Idle::new(3), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(idle.put('a', after(9)));
        for (connection, seconds) in [('b', 1), ('c', 5), ('d', 7)] {
            assert!(!idle.put(connection, after(seconds)));
        }
        assert_eq!(idle.take(now, |_| true), Some('d'));
        assert_eq!(idle.reap(after(2), |_| true), Some(after(5)));
        assert_eq!(idle.take(after(2), |connection| *connection != 'c'), None);
        assert_eq!(idle.reap(after(2), |_| true), None);
        assert!(idle.put('e', after(9)), "who reaped has gone");
    }
}
