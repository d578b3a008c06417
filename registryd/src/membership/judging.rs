//! Who counts as alive, and what of it is news.

use std::net::IpAddr;
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::event::Kind;
use mesh_shared::registry::Status;

use super::deadlines::Deadline;
use super::leased::Liveness;
use super::{Membership, Now};

/// Departed nodes remembered, so that old copies of their entries do not bring them back.
const MAX_DEPARTED: usize = 10_000;
/// For how long, at most, this reader has to have watched a node before it is forgotten for its long silence.
const LONG_WATCH: Duration = Duration::from_secs(600);

/// A change that others want to know of.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// To whom.
    pub name: NodeName,
    /// The state now.
    pub status: Status,
}

/// The outcome of [`Membership::judge`].
#[derive(Debug, Default)]
pub struct Judgement {
    /// Those of whom anything but a mere `lastSeen` changed, in the order of their names.
    pub changed: Vec<NodeName>,
    /// The changes worth an event.
    pub changes: Vec<Change>,
}

impl Membership {
    /// Judges those to whom something happened and those whose silence has become too long. Returns what changed since
    /// the last time; nothing for the first reading.
    pub fn judge(&mut self) -> Judgement {
        let mut judgement = Judgement::default();
        self.judge_status();
        // What the first reading shows is not news, but whom it drops is.
        let announcing = std::mem::replace(&mut self.announcing, self.loaded);
        for name in std::mem::take(&mut self.touched) {
            let Some(member) = self.members.get_mut(&name) else { continue };
            let mut change =
                |kind, status| judgement.changes.push(Change { kind, name: name.clone(), status });
            let (news, status) = (member.news(announcing), member.status);
            let told = news.flatten();
            if let Some(kind) = told {
                change(kind, status);
            }
            let stays = member.listed || name == self.local || status != Status::Offline || !self.loaded;
            if !stays && member.announced.is_some() && self.announcing && (told.is_none() || member.forgotten)
            {
                change(Kind::Removed, status);
            }
            if !stays {
                self.drop_member(&name);
            }
            if !stays || news.is_some() {
                judgement.changed.push(name);
            }
        }
        judgement
    }

    fn drop_member(&mut self, name: &NodeName) {
        let Some(mut member) = self.members.remove(name) else { return };
        self.counts[member.status as usize] -= 1;
        self.deadlines.set(name, &mut member.deadline, None);
        self.dials(name, member.at, None);
        self.departed.insert(name.clone(), member.node.last_seen);
        if self.departed.len() > MAX_DEPARTED {
            self.departed.clear();
        }
    }

    pub(super) fn judge_status(&mut self) {
        let (looked_to, heard_to) = match &self.liveness {
            Liveness::SeenToMove => (self.watch.watched_to(false), self.watch.watched_to(true)),
            Liveness::Leased(leases) => {
                let watched_to = leases.watched_to(self.watch.heard_at);
                (watched_to, watched_to)
            }
        };
        while let Some(name) = self.deadlines.pop(looked_to, heard_to) {
            if let Some(member) = self.touch(&name) {
                member.deadline = None;
            }
        }
        let touched = std::mem::take(&mut self.touched);
        for name in &touched {
            let Some(member) = self.members.get_mut(name) else { continue };
            let ttl = member.node.ttl().unwrap_or(self.threshold);
            let can_fall_silent = *name != self.local && member.node.heartbeats();
            let (silent, deadline) = match &self.liveness {
                Liveness::SeenToMove => {
                    let silent = member.silence(self.watch) > ttl;
                    let deadline = Deadline { heard: member.heard, at: member.moved_at + ttl };
                    (silent || member.is_unreachable(ttl), (!silent).then_some(deadline))
                }
                Liveness::Leased(leases) => {
                    (!leases.shows(name, member, ttl, self.watch.heard_at), leases.due(name, member, ttl))
                }
            };
            let status = if can_fall_silent && silent { Status::Offline } else { member.node.status };
            self.counts[member.status as usize] -= 1;
            self.counts[status as usize] += 1;
            member.status = status;
            let deadline = deadline.filter(|_| can_fall_silent);
            self.deadlines.set(name, &mut member.deadline, deadline);
            if member.flips.is_back() {
                self.flipping.insert(name.clone());
            }
            let at =
                member.node.host.parse().ok().map(|host: IpAddr| (host.to_canonical(), member.node.port));
            let before = std::mem::replace(&mut member.at, at);
            self.dials(name, before, at);
        }
        self.touched = touched;
    }

    /// Keeps account of who registered which address.
    fn dials(&mut self, name: &NodeName, before: Option<(IpAddr, u16)>, now: Option<(IpAddr, u16)>) {
        if before == now {
            return;
        }
        if let Some(before) = before
            && let Some(there) = self.at.get_mut(&before)
        {
            there.remove(name);
            if there.is_empty() {
                self.at.remove(&before);
            }
        }
        if let Some(now) = now {
            self.at.entry(now).or_default().insert(name.clone());
        }
    }

    /// Nodes that have been offline for longer than `after`, by their stamps and as far as this reader watched.
    pub fn long_offline(&self, after: Duration, now: Now) -> Vec<NodeName> {
        let watched = after.min(LONG_WATCH);
        let others = self.members.iter().filter(|(name, _)| **name != self.local);
        others
            .filter(|(_, member)| {
                // Where nobody moves the stamp, it tells only when a goodbye was said.
                let untold = self.is_leased() && member.node.status != Status::Offline;
                let watched = if untold { after } else { watched };
                member.status == Status::Offline
                    && u128::from(now.epoch_ms.saturating_sub(member.node.last_seen)) > after.as_millis()
                    && now.instant.saturating_duration_since(member.signed_at) > watched
            })
            .map(|(name, _)| name.clone())
            .collect()
    }
}
