//! What nodes say over the network, of themselves and of others, and which are silent.

use std::sync::Arc;

use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Status};

use super::admission::{self, Refusal};
use super::leased::Liveness;
use super::member::{after, same_claims, successor};
use super::{Member, Membership, Now};

/// What a third node's word about a node leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearsay {
    /// Nothing new, or only that the node lives.
    Settled,
    /// New claims: the node itself has to be asked.
    Ask,
}

impl Membership {
    /// Takes in what a node says of itself over verified mutual TLS. `true` if it is new or said something new
    /// beyond being alive.
    ///
    /// # Errors
    /// With the fields that other programs or earlier words of the node added, its entry would be too large.
    pub fn hear_itself(&mut self, name: &NodeName, mut node: Node, now: Now) -> Result<bool, Refusal> {
        if *name == self.local {
            let own = self.local().map_or(0, |own| own.last_seen);
            self.rival.seen(&node, own, self.threshold, now);
            return Ok(false);
        }
        if !node.heartbeats() {
            // Who joins can fall silent, whatever its role.
            node.set_ttl(self.threshold);
        }
        if node.last_seen == 0 {
            // It gives no stamp, so the one of its word counts.
            node.last_seen = now.epoch_ms;
        }
        if node.registered_at == 0 {
            node.registered_at = node.last_seen;
        }
        let Some(held) = self.members.get(name).map(|member| &member.node) else {
            // An id that is, or reads as, another's would keep that one from entering the file under it.
            let reads_as_other = node.id.parse::<NodeName>().is_ok_and(|id| id != *name);
            if reads_as_other || self.members.values().any(|member| member.node.id == node.id) {
                node.id = name.to_string();
            }
            let mut member = Member::new(name, node.into(), now);
            (member.by_network, member.heard, member.moved) = (true, true, true);
            self.departed.remove(name);
            self.enter(name, member);
            self.heard(now);
            self.spoke(name, now);
            return Ok(true);
        };
        let news = !same_claims(held, &node) || held.status != node.status;
        // A program other than the node's registryd, which only wants to know the mesh: it has the node's certificate, and
        // nothing to say of the node.
        let beside = !node.id.is_empty() && node.id != held.id && node.agents.is_empty();
        let beside = beside && !held.agents.is_empty() && !node.is_of_registryd();
        let runs = self.members.get(name).is_some_and(|member| member.status != Status::Offline);
        if (!news && held.last_seen == node.last_seen) || (beside && runs) {
            self.answered(name, now);
            return Ok(false);
        }
        node = successor(node, held);
        admission::check_successor(&node, held)?;
        if node.last_seen <= held.last_seen {
            // Its clock was set back, or somebody else's word was ahead of it.
            node.last_seen = node.last_seen.max(after(held.last_seen));
        }
        self.departed.remove(name);
        self.hear(name, node.into(), now);
        self.spoke(name, now);
        Ok(news)
    }

    /// Notes that a node answered over verified mutual TLS: it lives, whatever its stamp says.
    pub fn answered(&mut self, name: &NodeName, now: Now) {
        self.heard(now);
        if *name != self.local
            && let Some(member) = self.touch(name)
        {
            (member.moved_at, member.moved, member.heard) = (now.instant, true, true);
            member.spoke_at = Some(now.instant);
            member.lives(now);
        }
    }

    /// Notes that a node could not be reached over the network. Where nothing else shows that it lives, it goes stale
    /// by that, although the file may be blind.
    pub fn unanswered(&mut self, name: &NodeName, now: Now) {
        if let Some(member) = self.touch(name) {
            let failures = member.unanswered.map_or(0, |(_, failures)| failures);
            member.unanswered = Some((now.instant, failures.saturating_add(1)));
        }
    }

    /// Takes in a node's newer entry from the network.
    fn hear(&mut self, name: &NodeName, node: Arc<Node>, now: Now) {
        self.heard(now);
        if let Some(member) = self.touch(name) {
            member.accept(name, node, now);
            (member.by_network, member.heard) = (true, true);
        }
    }

    /// Takes in what one node says of another. Only "it lives" is believed, with a stamp that can be true; for
    /// anything else the node itself has to be asked, so that nobody can change, remove or freeze another's entry.
    pub fn hear_of(&mut self, name: &NodeName, node: &Node, now: Now) -> Hearsay {
        if *name == self.local {
            let own = self.local().map_or(0, |own| own.last_seen);
            self.rival.seen(node, own, self.threshold, now);
            return Hearsay::Settled;
        }
        let Some(member) = self.members.get(name) else {
            let departed = self.departed.get(name).is_some_and(|&last| node.last_seen <= last);
            return match node.status == Status::Offline || departed {
                true => Hearsay::Settled,
                false => Hearsay::Ask,
            };
        };
        let (held, told) = (&member.node, member.told);
        if self.is_leased() && member.listed {
            // The store says it first.
            return Hearsay::Settled;
        }
        if node.last_seen <= held.last_seen
            || (node.status, held.status) == (Status::Offline, Status::Offline)
        {
            return Hearsay::Settled;
        }
        // Words take their time, so the stamp may be ahead of it; by so little that true ones move it again before the
        // node counts as stale.
        let passed = now.instant.saturating_duration_since(told.1) + self.ttl(held) / 2;
        let possible = u128::from(node.last_seen.saturating_sub(told.0)) <= passed.as_millis();
        if node.status != held.status || !possible || !same_claims(held, node) {
            return Hearsay::Ask;
        }
        let heard = Node { last_seen: node.last_seen, ..Node::clone(held) };
        self.hear(name, heard.into(), now);
        if let Some(member) = self.members.get_mut(name) {
            // Or many words that are each a little ahead would go any way.
            member.told = told;
        }
        Hearsay::Settled
    }

    /// Takes a goodbye for granted that another node or mDNS reported and that the node did not refute when asked.
    pub fn gone(&mut self, name: &NodeName) {
        if *name != self.local
            && let Some(member) = self.touch(name)
        {
            Arc::make_mut(&mut member.node).status = Status::Offline;
            member.said_goodbye = true;
        }
    }

    /// Nodes silent for so long that they are worth asking before they count as offline, also while nobody could see
    /// whether their stamp moves.
    pub fn silent(&self, now: Now) -> Vec<NodeName> {
        let silent = |member: &Member| {
            let ask_after = self.ttl(&member.node).mul_f64(0.6);
            now.instant.saturating_duration_since(member.signed_at) > ask_after
        };
        let others = self.members.iter().filter(|(name, _)| **name != self.local);
        others
            .filter(|(name, member)| {
                let told = matches!(&self.liveness, Liveness::Leased(leases) if leases.tells(name));
                member.node.heartbeats() && member.status != Status::Offline && !told && silent(member)
            })
            .map(|(name, _)| name.clone())
            .collect()
    }
}
