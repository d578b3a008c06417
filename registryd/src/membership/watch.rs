//! Until when this reader could see who is alive: the time in which it was blind is held against nobody.

use std::time::{Duration, Instant};

use super::{Membership, Now};

/// Longest time by which a look may be late and this reader still counts as having watched all along.
const BLIND_AFTER: Duration = Duration::from_secs(2);

/// Until when this reader could see whether `lastSeen` moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    /// In the file.
    pub(super) looked_at: Instant,
    /// When it means to look at the file again.
    pub(super) next_look: Instant,
    /// By network: when one moved.
    pub(super) heard_at: Instant,
}

impl Watch {
    /// Until when it was seen whether a member moves.
    pub(super) fn watched_to(&self, heard: bool) -> Instant {
        if heard { self.looked_at.max(self.heard_at) } else { self.looked_at }
    }

    /// For how long nobody could see whether a member moves.
    pub(super) fn blind(&self, heard: bool, now: Now) -> Duration {
        let until = if heard { self.next_look.max(self.heard_at) } else { self.next_look };
        now.instant.saturating_duration_since(until)
    }
}

impl Membership {
    /// Notes that the registry could be read (and, as far as is known, written) just now, and that it is to be read
    /// again after `pause`.
    ///
    /// Time in which this reader was blind is not held against anybody: as long as it cannot see whether
    /// `lastSeen` moves, or nobody can move it because the storage takes no writes, nobody goes stale. Except who is
    /// heard by network, as long as others are.
    pub fn looked(&mut self, now: Now, pause: Duration) {
        self.watched_until(now, now.instant + pause, BLIND_AFTER);
    }

    /// Notes that the registry shows the beat of another node, so that others can write it, if not this node.
    pub fn others_write(&mut self, now: Now) {
        self.watched_until(now, now.instant, self.threshold / 2);
    }

    fn watched_until(&mut self, now: Now, next_look: Instant, longest_gap: Duration) {
        self.skip_blind(now, longest_gap, true);
        self.watch.looked_at = now.instant;
        self.watch.next_look = self.watch.next_look.max(next_look);
    }

    /// Notes that the network brought the beat of a node.
    pub(super) fn heard(&mut self, now: Now) {
        self.skip_blind(now, self.threshold / 2, false);
        self.watch.heard_at = now.instant;
    }

    /// Takes the time in which nobody could see members move off their silence, if it is longer than `longest_gap`.
    /// That is rare, so it may look at everybody.
    fn skip_blind(&mut self, now: Now, longest_gap: Duration, of_all: bool) {
        let blind = |heard| Some(self.watch.blind(heard, now)).filter(|blind| *blind > longest_gap);
        let (unheard, heard) = (blind(false).filter(|_| of_all), blind(true));
        if unheard.or(heard).is_none() {
            return;
        }
        for member in self.members.values_mut() {
            if let Some(blind) = if member.heard { heard } else { unheard } {
                member.moved_at = (member.moved_at + blind).min(now.instant);
            }
        }
    }
}
