//! Groups of lines that say the same: the first ones are written, the rest are counted.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a group lasts.
const WINDOW: Duration = Duration::from_secs(10);
/// How many lines of a group are written at once and in full.
const FIRST: u32 = 8;
/// How many reasons are distinguished at a time; further ones share a group.
const MAX_REASONS: usize = 32;
/// How many addresses of a group are distinguished.
const MAX_ADDRESSES: usize = 256;

/// Lines that strangers can cause as often as they like, such as those of failed handshakes, grouped by reason: the
/// first eight of a reason in ten seconds are written, the others become one line that sums them up.
///
/// ```
/// # use mesh_shared::logging::Repeats;
/// # use std::net::IpAddr;
/// static FAILURES: Repeats = Repeats::new(|more| tracing::warn!(target: "AgentChannel", "TLS handshake failed: {more}"));
///
/// fn failed(address: IpAddr, reason: &str) {
///     if FAILURES.admits(reason, Some(address)) {
///         tracing::warn!(target: "AgentChannel", "TLS handshake failed from {address}: {reason}");
///     }
/// }
/// ```
pub struct Repeats {
    sum_up: fn(&Summary),
    groups: Mutex<Vec<Group>>,
}

struct Group {
    reason: Box<str>,
    began: Instant,
    written: u32,
    more: u64,
    addresses: HashSet<IpAddr>,
}

/// The lines of a group that were not written; displays as `<reason> … and 812 more like it in the last 10 s, from 3
/// addresses`.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// What they have in common.
    pub reason: Box<str>,
    /// How many they are.
    pub more: u64,
    /// In which time.
    pub within: Duration,
    /// From how many addresses.
    pub addresses: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, more, within, addresses } = self;
        write!(f, "{reason} … and {more} more like it in the last {} s", within.as_secs().max(1))?;
        match *addresses {
            0 => Ok(()),
            1 => write!(f, ", from 1 address"),
            MAX_ADDRESSES.. => write!(f, ", from {MAX_ADDRESSES} or more addresses"),
            addresses => write!(f, ", from {addresses} addresses"),
        }
    }
}

/// What lines beyond [`MAX_REASONS`] have in common.
const OTHER: &str = "other reasons";

impl Repeats {
    /// No groups yet; `sum_up` writes the line for those that are not written one by one.
    pub const fn new(sum_up: fn(&Summary)) -> Self {
        Self { sum_up, groups: Mutex::new(Vec::new()) }
    }

    /// Whether a line for this reason is to be written now. If not, it is counted, and summed up when its group ends.
    pub fn admits(&'static self, reason: &str, from: Option<IpAddr>) -> bool {
        let (admitted, begins, ended) = self.admits_at(reason, from, Instant::now());
        ended.iter().for_each(self.sum_up);
        if begins {
            let mut open = open();
            if !open.iter().any(|each| std::ptr::eq(*each, self)) {
                open.push(self);
            }
            drop(open);
            if let Some(on_begin) = ON_BEGIN.get() {
                on_begin();
            }
        }
        admitted
    }

    /// Whether the line is to be written, whether it is the first of its group that is not, and what has ended.
    fn admits_at(&self, reason: &str, from: Option<IpAddr>, now: Instant) -> (bool, bool, Vec<Summary>) {
        let mut groups = self.groups();
        let mut ended = Vec::new();
        let place = |groups: &[Group], reason: &str| groups.iter().position(|group| *group.reason == *reason);
        let mut index = place(&groups, reason);
        if index.is_none_or(|index| groups[index].is_over(now)) {
            ended = take_ended(&mut groups, now);
            let reason = if groups.len() < MAX_REASONS { reason } else { OTHER };
            index = place(&groups, reason);
            if index.is_none() {
                groups.push(Group::new(reason, now));
            }
        }
        let index = index.unwrap_or(groups.len() - 1);
        let group = &mut groups[index];
        if group.written < FIRST {
            group.written += 1;
            return (true, false, ended);
        }
        group.more += 1;
        if group.addresses.len() < MAX_ADDRESSES {
            group.addresses.extend(from);
        }
        (false, group.more == 1, ended)
    }

    /// Ends what is over, and says when the next group with something to sum up ends.
    fn end(&self, now: Instant) -> (Vec<Summary>, Option<Instant>) {
        let mut groups = self.groups();
        let ended = take_ended(&mut groups, now);
        let next = groups.iter().filter(|group| group.more > 0).map(Group::end).min();
        (ended, next)
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn new(reason: &str, began: Instant) -> Self {
        Self { reason: reason.into(), began, written: 0, more: 0, addresses: HashSet::new() }
    }

    fn end(&self) -> Instant {
        self.began + WINDOW
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.end()
    }
}

fn take_ended(groups: &mut Vec<Group>, now: Instant) -> Vec<Summary> {
    let ended = groups.extract_if(.., |group| group.is_over(now));
    let summed_up = ended.filter(|group| group.more > 0).map(|group| Summary {
        reason: group.reason,
        more: group.more,
        within: now.saturating_duration_since(group.began),
        addresses: group.addresses.len(),
    });
    summed_up.collect()
}

/// Those with something to sum up.
static OPEN: Mutex<Vec<&'static Repeats>> = Mutex::new(Vec::new());
/// Told when there is one more of them.
static ON_BEGIN: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

fn open() -> MutexGuard<'static, Vec<&'static Repeats>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `act` when there is something that [`sum_up`] will have to sum up.
pub fn on_begin(act: impl Fn() + Send + Sync + 'static) {
    // Only tests in one process start several logs.
    let _ = ON_BEGIN.set(Box::new(act));
}

/// Sums up the groups that are over; returns when to be called again, if there are others.
pub fn sum_up(now: Instant) -> Option<Instant> {
    let all: Vec<_> = std::mem::take(&mut *open());
    let mut first = None;
    for repeats in all {
        let (ended, next) = repeats.end(now);
        ended.iter().for_each(repeats.sum_up);
        if let Some(next) = next {
            first = Some(first.map_or(next, |first: Instant| first.min(next)));
            let mut open = open();
            if !open.iter().any(|each| std::ptr::eq(*each, repeats)) {
                open.push(repeats);
            }
        }
    }
    first
}

/// Sums up all groups, over or not: the process ends.
pub fn sum_up_all() {
    let _ = sum_up(Instant::now() + WINDOW);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Option<IpAddr> {
        Some(IpAddr::from(number.to_be_bytes()))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn single_lines_are_written_and_a_flood_is_summed_up() {
        let (repeats, start) = (Repeats::new(|_| {}), Instant::now());
        let mut written = 0;
        for number in 0..820 {
            let now = start + Duration::from_millis(number.into());
            let (admitted, begins, ended) = repeats.admits_at("not TLS", address(number % 3), now);
            assert_eq!(begins, number == FIRST, "{number}");
            assert!(ended.is_empty());
            written += u32::from(admitted);
        }
        assert_eq!(written, FIRST);
        // Others are not held up by it.
        assert!(repeats.admits_at("timed out", address(9), start).0);
        assert_eq!(repeats.end(start + seconds(9)), (vec![], Some(start + WINDOW)));
        let (ended, next) = repeats.end(start + seconds(10));
        assert_eq!(next, None);
        let [ended] = &*ended else { panic!("{ended:?}") };
        assert_eq!(ended.to_string(), "not TLS … and 812 more like it in the last 10 s, from 3 addresses");
        assert!(repeats.groups().is_empty());
    }

    #[test]
    fn the_next_line_after_a_window_ends_it() {
        let (repeats, start) = (Repeats::new(|_| {}), Instant::now());
        for _ in 0..=FIRST {
            repeats.admits_at("not TLS", None, start);
        }
        let (admitted, _, ended) = repeats.admits_at("not TLS", None, start + seconds(12));
        assert!(admitted);
        assert_eq!(ended[0].to_string(), "not TLS … and 1 more like it in the last 12 s");
        // Lines that were all written need no summary.
        assert!(repeats.admits_at("not TLS", None, start + seconds(30)).2.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (repeats, start) = (Repeats::new(|_| {}), Instant::now());
        let written =
            (0..100_000).filter(|n| repeats.admits_at(&format!("reason {n}"), address(*n), start).0).count();
        assert_eq!(written, MAX_REASONS + FIRST as usize);
        assert_eq!(repeats.groups().len(), MAX_REASONS + 1);
        let ended = repeats.end(start + WINDOW).0;
        assert_eq!(
            ended[0].to_string(),
            format!(
                "other reasons … and {} more like it in the last 10 s, from 256 or more addresses",
                100_000 - written
            )
        );
    }
}
