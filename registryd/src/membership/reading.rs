//! What the registry says of its nodes.

use std::sync::Arc;

use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Registry, Status};

use super::member::normalized;
use super::{Member, Membership, Now, amend};

impl Membership {
    /// Takes in the whole content of the registry file. Returns whether it shows the beat of another node. Entries
    /// that are shared with what was read before cost little.
    pub fn read(&mut self, registry: &Registry, now: Now) -> bool {
        let newest = registry.by_name();
        let mut unlisted = Vec::new();
        for (name, member) in &mut self.members {
            if newest.contains_key(name) == member.listed && (member.listed || !member.is_by_file_alone()) {
                continue;
            }
            unlisted.push(name.clone());
        }
        for name in unlisted {
            self.list(&name, newest.contains_key(&name));
        }
        if self.updating.is_none() {
            self.updating = Some(newest.get(&self.local).is_some_and(|(_, own)| amend::says_updating(own)));
            if self.updating() {
                tracing::info!(
                    target: "Registry",
                    "this node is still being updated, as it was before the restart; `meshctl status set online` ends it"
                );
            }
        }
        let mut beats = false;
        for (name, (id, node)) in newest {
            if name == self.local {
                let own = self.local().map_or(0, |own| own.last_seen);
                self.rival.seen(node, own, self.threshold, now);
            } else {
                beats |= self.read_one(&name, id, node, now);
            }
        }
        if !self.loaded {
            self.loaded = true;
            // Until now nobody was dropped.
            self.touched.extend(self.members.keys().cloned());
        }
        beats
    }

    /// Notes whether the registry has an entry of this member.
    fn list(&mut self, name: &NodeName, listed: bool) {
        let local = *name == self.local;
        let Some(member) = self.touch(name) else { return };
        member.listed = listed;
        if listed {
            return;
        }
        member.entry = None;
        // Nobody heartbeats for such a node, so there is no silence to wait for: the file alone tells.
        if member.is_by_file_alone() && !local {
            Arc::make_mut(&mut member.node).status = Status::Offline;
            member.said_goodbye = true;
        }
    }

    /// Whether the entry shows a beat of its node.
    fn read_one(&mut self, name: &NodeName, id: &String, entry: &Arc<Node>, now: Now) -> bool {
        if self.members.get(name).is_some_and(|member| member.is_as_read(entry)) {
            return false;
        }
        let mut node = entry.clone();
        if node.id != *id {
            Arc::make_mut(&mut node).id.clone_from(id);
        }
        let Some(member) = self.touch(name) else {
            // An old copy of an entry whose node had left is not a node that came back.
            let old = self.departed.get(name).is_some_and(|&last| node.last_seen <= last);
            if old && node.heartbeats() {
                Arc::make_mut(&mut node).status = Status::Offline;
            } else {
                self.departed.remove(name);
            }
            let mut member = Member::new(name, node, now);
            (member.listed, member.entry) = (true, Some(entry.clone()));
            self.enter(name, member);
            return false;
        };
        member.entry = Some(entry.clone());
        let held = &member.node;
        let before = held.last_seen;
        if node.last_seen > before || !node.heartbeats() {
            member.accept(name, node, now);
        } else if node.last_seen == held.last_seen {
            // Whoever marked the node offline at this beat is right until its next one, except where it says itself
            // after which time it counts as that. A goodbye moves the stamp.
            let marked = node.status == Status::Offline && node.ttl().is_some();
            if (held.status == Status::Offline || marked) && node.status != held.status {
                Arc::make_mut(&mut node).status = held.status;
            }
            member.node = normalized(name, node);
        } else if member.node.status != Status::Offline && member.rose_below(node.last_seen) {
            member.accept(name, node, now);
        } else {
            return false;
        }
        member.by_network = false;
        let beats = member.node.last_seen != before;
        member.heard &= !beats;
        beats
    }
}
