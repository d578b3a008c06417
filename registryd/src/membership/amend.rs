//! What this node would write into the registry file.

use std::collections::BTreeMap;

use mesh_shared::NodeName;
use mesh_shared::json;
use mesh_shared::registry::{MESH_METADATA, Node, Registry, Status};
use serde_json::Value;

use super::member::{after, same_claims, successor};
use super::{Membership, Now};

/// Field of this node's own entry: since when, epoch ms, the operator updates this node; `null` if no longer. Kept in addition to
/// `status`, which says `offline` while the node is down for the update, and `updating` also while a sidecar stops.
const UPDATING_SINCE: &str = "updatingSince";

/// Keys in `metadata` that this program publishes of itself.
pub const AGENT_DETAILS: &str = "agentDetails";
const PUBLISHED: [&str; 2] = [MESH_METADATA, AGENT_DETAILS];

/// Whether an entry says that the operator updates its node, even if the node is down now.
pub(super) fn says_updating(entry: &Node) -> bool {
    match entry.extra.get(UPDATING_SINCE) {
        Some(since) => since.is_number(),
        // As another program writes it.
        None => entry.status == Status::Updating,
    }
}

impl Membership {
    /// Brings the registry, as it was read just now under the lock and taken in with [`Membership::read`], up to
    /// what this node knows. Returns whether anything has to be written; a time stamp alone counts only if a
    /// heartbeat is `due`.
    pub fn amend(&mut self, registry: &mut Registry, due: bool, now: Now) -> bool {
        self.judge_status();
        let ids: BTreeMap<NodeName, String> =
            registry.by_name().into_iter().map(|(name, (id, _))| (name, id.clone())).collect();
        let mut changed = self.amend_own(registry, ids.get(&self.local).cloned(), due, now);
        for (name, member) in &self.members {
            if *name == self.local {
                continue;
            }
            let ours = &member.node;
            let listed = ids.get(name).and_then(|id| Some((id, registry.nodes.get_mut(id)?)));
            let Some((id, entry)) = listed else {
                if member.by_network && member.status != Status::Offline {
                    let id = free_id(registry, ours);
                    let node = Node { id: id.clone(), ..Node::clone(ours) };
                    registry.nodes.insert(id, node.into());
                    changed = true;
                }
                continue;
            };
            let Some(held) = entry.node() else { continue };
            if member.by_network && ours.last_seen > held.last_seen {
                // A file that only lags behind what was heard is brought up to date at the next heartbeat.
                if due || !same_claims(ours, held) || ours.status != held.status {
                    let node = Node { id: id.clone(), ..successor(Node::clone(ours), held) };
                    entry.update(node);
                    changed = true;
                }
            } else if held.heartbeats()
                && held.status != Status::Offline
                && member.status == Status::Offline
                && held.last_seen <= ours.last_seen
                && (ours.status == Status::Offline || held.ttl().is_some())
            {
                // An old copy of an entry whose node had said goodbye, or stale. After which silence one is stale
                // that does not say so itself is each reader's own matter.
                entry.mark_offline((ours.status == Status::Offline).then_some(ours.last_seen));
                changed = true;
            }
        }
        if changed {
            registry.updated_at = now.epoch_ms.max(registry.updated_at);
        }
        changed
    }

    fn amend_own(&mut self, registry: &mut Registry, id: Option<String>, due: bool, now: Now) -> bool {
        let updating = self.updating();
        let own = self.own();
        let held = id.as_ref().and_then(|id| registry.nodes.get(id)?.node()).cloned();
        let Some((id, held)) = id.zip(held) else {
            own.id = free_id(registry, own);
            if own.registered_at == 0 {
                own.registered_at = now.epoch_ms;
            }
            own.last_seen = own.last_seen.max(own.registered_at);
            mark_updating(own, updating, now);
            registry.nodes.insert(own.id.clone(), own.clone().into());
            return true;
        };
        // The stamp moves on even where an earlier process of this node, or another writer, put one from a clock that
        // was ahead.
        let last_seen = own.last_seen.max(now.epoch_ms).max(after(held.last_seen));
        own.id = id.clone();
        let registered = (1..=last_seen).contains(&held.registered_at);
        own.registered_at = if registered { held.registered_at } else { now.epoch_ms };
        own.extra = held.extra.clone();
        mark_updating(own, updating, now);
        let mut wanted = Node { name: held.name.clone(), ..own.clone() };
        // Where the operator publishes nothing, what others put there stays.
        let ours = json::as_map(own.metadata.as_ref());
        if ours.keys().all(|key| PUBLISHED.contains(&key.as_str())) {
            match &held.metadata {
                None => {}
                Some(Value::Object(theirs)) => {
                    let mut all = theirs.clone();
                    PUBLISHED.iter().for_each(|key| drop(all.remove(*key)));
                    all.extend(ours);
                    wanted.metadata = Some(Value::Object(all));
                }
                other => wanted.metadata = other.clone(),
            }
        }
        let same = same_claims(&wanted, &held)
            && wanted.status == held.status
            && wanted.registered_at == held.registered_at
            && wanted.extra == held.extra
            && wanted.id == held.id;
        if same && !due {
            return false;
        }
        // A write for another reason is a heartbeat for free.
        own.last_seen = last_seen;
        wanted.last_seen = last_seen;
        match registry.nodes.get_mut(&id) {
            Some(entry) => entry.update(wanted),
            None => drop(registry.nodes.insert(id, wanted.into())),
        }
        true
    }
}

fn mark_updating(own: &mut Node, updating: bool, now: Now) {
    let extra = &mut own.extra;
    match (updating, extra.get(UPDATING_SINCE)) {
        (true, Some(Value::Number(_))) | (false, Some(Value::Null)) => {}
        (true, _) => drop(extra.insert(UPDATING_SINCE.into(), now.epoch_ms.into())),
        (false, None) if own.status != Status::Updating => {}
        // Not removed: peers that keep what they do not know would bring it back.
        (false, _) => drop(extra.insert(UPDATING_SINCE.into(), Value::Null)),
    }
}

/// The id under which a node is entered: its own if nothing else has it, else its name, else its name and a
/// number.
fn free_id(registry: &Registry, node: &Node) -> String {
    let free = |id: &String| !id.is_empty() && !registry.nodes.contains_key(id);
    let numbered = (2..).map(|n: u32| format!("{}-{n}", node.name));
    [node.id.clone(), node.name.clone()].into_iter().chain(numbered).find(free).unwrap_or_default()
}
