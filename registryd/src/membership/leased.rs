//! Membership in a store that keeps each entry by itself and says of each node whether a lease is held for it.
//!
//! There, who is alive is not for this reader to count: a node lives as long as somebody renews its lease, and while the
//! store is away nobody's lease ends. Only an answer over mutual TLS says more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Status};

use super::deadlines::Deadline;
use super::{Endpoint, Member, Membership, Now, amend, same_claims};

/// How it shows that nodes live.
#[derive(Debug)]
pub(super) enum Liveness {
    /// Their stamps are seen to move; silence is counted on this reader's clock.
    SeenToMove,
    /// Leases are held for them.
    Leased(Leases),
}

/// Who renews a node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The node itself.
    Itself,
    /// A node that it joined through.
    Other,
}

/// The leases that are held.
#[derive(Debug)]
pub(super) struct Leases {
    held: HashMap<NodeName, Holder>,
    /// When the store answered last.
    answered_at: Instant,
    away: bool,
}

impl Leases {
    /// Whether a node lives.
    pub(super) fn shows(&self, name: &NodeName, member: &Member, ttl: Duration, heard_at: Instant) -> bool {
        if self.held.contains_key(name) {
            return !(self.away && member.is_unreachable(ttl));
        }
        member.spoke_at.is_some_and(|at| self.watched_to(heard_at).saturating_duration_since(at) <= ttl)
    }

    /// When a node for which no lease is held counts as silent, unless something happens before.
    pub(super) fn due(&self, name: &NodeName, member: &Member, ttl: Duration) -> Option<Deadline> {
        let spoke_at = member.spoke_at.filter(|_| !self.held.contains_key(name))?;
        Some(Deadline { heard: false, at: spoke_at + ttl })
    }

    /// When the store, or the network, showed last who is alive.
    pub(super) fn watched_to(&self, heard_at: Instant) -> Instant {
        self.answered_at.max(heard_at)
    }

    /// Whether the store says that a node lives, so that nobody has to ask.
    pub(super) fn tells(&self, name: &NodeName) -> bool {
        !self.away && self.held.contains_key(name)
    }
}

impl Membership {
    /// From now on leases tell who is alive.
    pub fn go_by_leases(&mut self, now: Now) {
        let leases = Leases { held: HashMap::new(), answered_at: now.instant, away: false };
        self.liveness = Liveness::Leased(leases);
    }

    /// Notes that the store answered just now, or that it does not.
    pub fn store_answers(&mut self, answers: bool, now: Now) {
        if let Liveness::Leased(leases) = &mut self.liveness {
            if std::mem::replace(&mut leases.away, !answers) == answers {
                // Who cannot be reached counts only now, or no longer.
                self.touched.extend(self.members.keys().cloned());
            }
            if answers {
                leases.answered_at = now.instant;
            }
        }
    }

    /// Notes who renews a node's lease, if somebody does.
    pub fn leased(&mut self, name: &NodeName, holder: Option<Holder>, now: Now) {
        let Liveness::Leased(leases) = &mut self.liveness else { return };
        let before = match holder {
            Some(holder) => leases.held.insert(name.clone(), holder),
            None => leases.held.remove(name),
        };
        if before.is_some() != holder.is_some()
            && let Some(member) = self.touch(name)
        {
            (member.moved_at, member.moved) = (now.instant, true);
            member.lives(now);
            // Its last word was before its lease ended.
            member.spoke_at = member.spoke_at.filter(|_| holder.is_some());
        }
    }

    /// Takes in the entry that the store holds of a node. What is there counts, whatever its stamp.
    pub fn entered(&mut self, name: &NodeName, node: Arc<Node>, now: Now) {
        self.loaded = true;
        if *name == self.local {
            let own = self.own().last_seen;
            self.rival.seen(&node, own, self.threshold, now);
            if self.updating.is_none() {
                self.updating = Some(amend::says_updating(&node));
            }
            return;
        }
        self.departed.remove(name);
        let Some(member) = self.touch(name) else {
            let mut member = Member::new(name, node, now);
            member.listed = true;
            self.enter(name, member);
            return;
        };
        member.listed = true;
        if member.by_network && member.node.last_seen > node.last_seen {
            // What the node said here since then is still to be written.
            return;
        }
        member.by_network = false;
        member.accept(name, node, now);
    }

    /// Notes that the store holds no entry of a node any more.
    pub fn taken_out(&mut self, name: &NodeName) {
        let lives = self.members.get(name).is_some_and(|member| member.status != Status::Offline);
        match self.touch(name) {
            Some(member) if lives => (member.listed, member.forgotten) = (false, true),
            Some(_) => self.forget(name),
            None => {}
        }
    }

    /// Takes in everything that the store holds.
    pub fn entered_all(
        &mut self,
        entries: Vec<(NodeName, Arc<Node>)>,
        holders: &HashMap<NodeName, Holder>,
        now: Now,
    ) {
        self.loaded = true;
        self.updating.get_or_insert(false);
        let Liveness::Leased(leases) = &self.liveness else { return };
        let ended: Vec<NodeName> =
            leases.held.keys().filter(|name| !holders.contains_key(*name)).cloned().collect();
        ended.iter().for_each(|name| self.leased(name, None, now));
        let listed = self.members.iter().filter(|(_, member)| member.listed).map(|(name, _)| name.clone());
        let mut gone: std::collections::HashSet<NodeName> = listed.collect();
        for (name, holder) in holders {
            self.leased(name, Some(*holder), now);
        }
        for (name, node) in entries {
            gone.remove(&name);
            self.entered(&name, node, now);
        }
        self.judge_status();
        gone.iter().for_each(|name| self.taken_out(name));
    }

    /// Whether an entry of this node is as it should be, apart from its stamp.
    pub fn is_own(&self, node: &Node) -> bool {
        self.local().is_some_and(|own| {
            same_claims(own, node) && own.status == node.status && Endpoint::of(own) == Endpoint::of(node)
        })
    }

    /// Nodes that speak to this one over the network and that nobody else speaks for, with when they did last.
    pub fn spoken_for(&self, now: Now) -> Vec<(NodeName, Duration, Instant)> {
        let Liveness::Leased(leases) = &self.liveness else { return Vec::new() };
        let others = self.members.iter().filter(|(name, _)| **name != self.local);
        let spoken = others.filter_map(|(name, member)| {
            let (at, ttl) = (member.spoke_at?, self.ttl(&member.node));
            let lives = member.node.heartbeats()
                && member.node.status != Status::Offline
                && now.instant.saturating_duration_since(at) <= ttl
                && leases.held.get(name) != Some(&Holder::Itself);
            lives.then(|| (name.clone(), ttl, at))
        });
        spoken.collect()
    }

    /// Nodes of which this one has newer word than the store.
    pub fn unwritten(&self) -> Vec<NodeName> {
        let Liveness::Leased(leases) = &self.liveness else { return Vec::new() };
        let unwritten = self.members.iter().filter(|(name, member)| {
            member.by_network && **name != self.local && leases.held.get(*name) != Some(&Holder::Itself)
        });
        unwritten.map(|(name, _)| name.clone()).collect()
    }

    /// The node as others should see it: where a lease is held, its stamp is when the store said so last.
    pub fn shown(&self, name: &NodeName, member: &Member, now: Now) -> Node {
        let mut node = Node { status: member.status, ..Node::clone(&member.node) };
        if let Some(age) = self.lease_age(name, now) {
            node.last_seen = node.last_seen.max(now.epoch_ms.saturating_sub(age.as_millis() as u64));
        }
        node
    }

    /// How long ago the store said that a lease is held for a node.
    pub fn lease_age(&self, name: &NodeName, now: Now) -> Option<Duration> {
        let Liveness::Leased(leases) = &self.liveness else { return None };
        leases.held.contains_key(name).then(|| now.instant.saturating_duration_since(leases.answered_at))
    }

    pub(super) fn is_leased(&self) -> bool {
        matches!(self.liveness, Liveness::Leased(_))
    }

    /// A node's own word over the network, at the moment that it was given.
    pub(super) fn spoke(&mut self, name: &NodeName, now: Now) {
        if let Some(member) = self.members.get_mut(name) {
            member.spoke_at = Some(now.instant);
        }
    }
}
