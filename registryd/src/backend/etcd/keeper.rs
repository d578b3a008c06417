//! What this node keeps in etcd: the entries that it writes, and the leases that it holds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::{Entry, Registry};

use super::connection::{Connection, Held, Trouble};
use super::{Keys, Living, Speak};
use crate::backend::{Observation, Wish};

/// How often a change is made again because somebody wrote meanwhile.
const RETRIES: u32 = 8;

/// Brings etcd up to date.
pub(super) struct Keeper<L> {
    ledger: Arc<L>,
    local: NodeName,
    keys: Keys,
    /// The entries that this node writes, as they stand in etcd; `None`: not there.
    entries: HashMap<NodeName, Option<Held>>,
    /// The leases that this node holds.
    leases: HashMap<NodeName, Lease>,
    /// On which lease each node lives, and who renews it.
    lives: HashMap<NodeName, Life>,
}

struct Lease {
    id: i64,
    /// How long it lasts once it was renewed.
    ttl: Duration,
    /// The sign of life for which it was renewed last.
    at: Instant,
}

#[derive(PartialEq, Eq)]
pub(super) struct Life {
    pub lease: i64,
    pub by: Vec<u8>,
}

impl<L: Speak> Keeper<L> {
    pub(super) fn new(ledger: Arc<L>, local: NodeName, keys: Keys) -> Self {
        let (entries, leases, lives) = Default::default();
        Self { ledger, local, keys, entries, leases, lives }
    }

    /// Notes that everything may be otherwise than it was.
    pub(super) fn begin_anew(&mut self) {
        self.entries.clear();
        self.lives.clear();
    }

    /// Notes what stands in etcd as of a revision, unless something newer is known.
    pub(super) fn saw_entry(&mut self, name: &NodeName, value: Option<Vec<u8>>, revision: i64) {
        if let Some(known) = self.entries.get_mut(name)
            && known.as_ref().is_none_or(|known| known.revision < revision)
        {
            *known = value.map(|value| Held { value, revision });
        }
    }

    /// Notes on which lease a node lives.
    pub(super) fn saw_life(&mut self, name: &NodeName, life: Option<Life>) {
        match life {
            Some(life) => drop(self.lives.insert(name.clone(), life)),
            None => drop(self.lives.remove(name)),
        }
    }

    /// Brings leases and entries up to date. Returns whether an entry was written.
    pub(super) async fn publish(
        &mut self,
        connection: &mut Connection,
        wish: &Wish,
    ) -> Result<bool, Trouble> {
        // First, so that an entry that says online is never there without a lease.
        let no_lease = self.renew(connection).await?;
        let (mut written, no_entry) = self.write(connection).await?;
        // And one that says offline before its lease ends: a goodbye is not silence.
        self.end(connection).await?;
        for name in self.ledger.to_forget(wish) {
            match self.forget(connection, &name).await {
                Ok(()) => written = true,
                // Others may be allowed to, who come to it as well.
                Err(Trouble::Denied { .. }) if !wish.forget.contains(&name) => {}
                Err(error) => return Err(error),
            }
        }
        match no_entry.or(no_lease) {
            Some(refused) => Err(refused),
            None => Ok(written),
        }
    }

    async fn forget(&mut self, connection: &mut Connection, name: &NodeName) -> Result<(), Trouble> {
        connection.delete(&self.keys.entry(name)).await?;
        connection.delete(&self.keys.alive(name)).await?;
        self.ledger.forgotten(name);
        Ok(())
    }

    /// Renews the leases of those who gave a sign of life since the last time. Returns what was refused for another
    /// node: this node's own life does not wait for that.
    async fn renew(&mut self, connection: &mut Connection) -> Result<Option<Trouble>, Trouble> {
        let living = self.ledger.living();
        let mut refused = None;
        for node in &living {
            let own = node.name == self.local;
            if !own && self.renews_itself(&node.name) {
                // Its own registryd does.
                self.leases.remove(&node.name);
                continue;
            }
            match self.renew_one(connection, node).await {
                Ok(ttl) if own => self.ledger.observed(Observation::Renewed { ttl }),
                Ok(_) => {}
                Err(denied @ Trouble::Denied { .. }) if !own => refused = Some(denied),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// Ends the leases of those who are no longer alive.
    async fn end(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        let living = self.ledger.living();
        let living: HashSet<&NodeName> = living.iter().map(|node| &node.name).collect();
        let ended: Vec<NodeName> =
            self.leases.keys().filter(|name| !living.contains(name)).cloned().collect();
        for name in ended {
            if let Some(lease) = self.leases.get(&name) {
                connection.revoke(lease.id).await?;
                self.leases.remove(&name);
            }
        }
        Ok(())
    }

    fn renews_itself(&self, name: &NodeName) -> bool {
        self.lives.get(name).is_some_and(|life| life.lease != 0 && life.by == name.as_str().as_bytes())
    }

    /// Returns how long the lease lasts from now on.
    async fn renew_one(&mut self, connection: &mut Connection, node: &Living) -> Result<Duration, Trouble> {
        if let Some(lease) = self.leases.get_mut(&node.name).filter(|lease| lease.at != node.at) {
            match connection.renew(lease.id).await? {
                true => lease.at = node.at,
                false => drop(self.leases.remove(&node.name)),
            }
        }
        loop {
            let (id, ttl) = match self.leases.get(&node.name) {
                Some(lease) => (lease.id, lease.ttl),
                None => {
                    let (id, ttl) = connection.grant(node.ttl).await?;
                    self.leases.insert(node.name.clone(), Lease { id, ttl, at: node.at });
                    (id, ttl)
                }
            };
            if self.lives.get(&node.name).is_some_and(|life| life.lease == id) {
                return Ok(ttl);
            }
            let key = self.keys.alive(&node.name);
            if connection.put_leased(&key, self.local.as_str(), id).await? {
                let life = Life { lease: id, by: self.local.as_str().into() };
                self.lives.insert(node.name.clone(), life);
                return Ok(ttl);
            }
            // It has run out meanwhile.
            self.leases.remove(&node.name);
        }
    }

    /// Writes the entries that say something else than they should. Returns whether one was written, and what was refused
    /// for another node.
    async fn write(&mut self, connection: &mut Connection) -> Result<(bool, Option<Trouble>), Trouble> {
        let names = self.ledger.speaks_for();
        let wanted: HashSet<&NodeName> = names.iter().collect();
        self.entries.retain(|name, _| wanted.contains(name));
        for name in &names {
            if !self.entries.contains_key(name) {
                let held = connection.get(&self.keys.entry(name)).await?;
                self.entries.insert(name.clone(), held);
            }
        }
        let (mut written, mut refused) = (false, None);
        for _ in 0..RETRIES {
            let mut registry = self.registry();
            self.ledger.amend_entries(&mut registry);
            let mut again = false;
            for entry in registry.nodes.values() {
                let Some(name) = entry.node().and_then(|node| node.node_name()) else { continue };
                let before = self.entries.get(&name).and_then(Option::as_ref);
                if before.is_some_and(|held| held.value == entry.text().as_bytes()) {
                    continue;
                }
                let revision = before.map_or(0, |held| held.revision);
                let value = entry.text().as_bytes().to_vec();
                match connection.replace(&self.keys.entry(&name), &value, revision).await {
                    Ok(Ok(revision)) => {
                        written = true;
                        self.entries.insert(name, Some(Held { value, revision }));
                    }
                    Ok(Err(held)) => {
                        again = true;
                        self.entries.insert(name, held);
                    }
                    Err(denied @ Trouble::Denied { .. }) if name != self.local => refused = Some(denied),
                    Err(error) => return Err(error),
                }
            }
            if !again {
                break;
            }
        }
        Ok((written, refused))
    }

    /// The entries that this node writes, as they stand in etcd. What is not the entry of its key's node counts as not
    /// there.
    fn registry(&self) -> Registry {
        let mut registry = Registry::empty();
        for (name, held) in &self.entries {
            let Some(entry) = held.as_ref().and_then(|held| Entry::parse(&held.value)) else { continue };
            let Some(node) = entry.node().filter(|node| node.node_name().as_ref() == Some(name)) else {
                continue;
            };
            let taken = node.id.is_empty() || registry.nodes.contains_key(&node.id);
            let id = if taken { name.to_string() } else { node.id.clone() };
            registry.nodes.insert(id, entry);
        }
        registry
    }
}
