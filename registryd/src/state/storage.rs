//! What the storage tells the state, and what it is told in turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::logging::{Excerpt, Quoted};
use mesh_shared::registry::{Node, Registry, Status};

use super::problems::About;
use super::{Counters, Inner, State};
use crate::backend::etcd::{Living, Speak};
use crate::backend::file::Amend;
use crate::backend::{Change, Failure, Ledger, Look, Observation, Wish};
use crate::membership::Now;

/// Entries that do not count as nodes and were told of; beyond that, the log is told again.
const MAX_TOLD: usize = 1000;

impl Ledger for State {
    fn observed(&self, observation: Observation) {
        match observation {
            Observation::Read { registry, look } => {
                Counters::add(&self.counters.reads);
                self.with(|inner, now| {
                    inner.take_in(&registry, look.writes_pass, now);
                    inner.last_good = Some(Arc::new(registry));
                    inner.looked(look, now);
                    inner.problems.solve(&About::Reading);
                    if inner.own_entry_lost(self.local()) && !inner.leaving {
                        self.write_wanted.notify_one();
                    }
                });
                self.looked.send_replace(true);
            }
            Observation::Unchanged(look) => self.with(|inner, now| inner.looked(look, now)),
            Observation::Unreadable(failure) => self.unreadable(&failure),
            Observation::Written { registry, replaced, beat, took, set_aside } => {
                if replaced {
                    Counters::add(&self.counters.writes);
                    self.counters.write_ms.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
                }
                let path = self.config.mesh.registry_path();
                if let Some(aside) = &set_aside {
                    Counters::add(&self.counters.set_aside);
                    tracing::error!(
                        target: "Registry",
                        "{} held broken content that nobody completed; it was set aside as {aside} and the registry \
                         rebuilt from the last good view",
                        path.display()
                    );
                }
                self.with(|inner, now| {
                    self.written(inner, registry, beat || replaced, now);
                    if let Some(aside) = set_aside {
                        let sentence = format!(
                            "broken content of the registry was set aside as {aside}; look who wrote it, then remove \
                             that file"
                        );
                        inner.problems.state(About::Content, sentence);
                    }
                });
            }
            Observation::Unwritable(failure) => {
                Counters::add(&self.counters.write_errors);
                self.with(|inner, _| {
                    inner.writable = false;
                    let sentence =
                        format!("{}; registrations and heartbeats are kept in memory", failure.sentence);
                    inner.problems.state(About::Writing, sentence);
                });
            }
            Observation::Snapshot { entries, leases, missed, .. } => {
                Counters::add(&self.counters.reads);
                if missed {
                    self.events.missed();
                }
                self.with(|inner, now| {
                    inner.members.store_answers(true, now);
                    let nodes =
                        entries.into_iter().filter_map(|(name, entry)| Some((name, entry.node()?.clone())));
                    inner.members.entered_all(nodes.collect(), &leases, now);
                    inner.entries_seen = true;
                    inner.all_touched = true;
                });
                self.looked.send_replace(true);
                self.write_wanted.notify_one();
            }
            Observation::Changes { changes, .. } => self.with(|inner, now| {
                inner.members.store_answers(true, now);
                let mut own = false;
                for change in changes {
                    own |= inner.take_in_change(change, self.local(), now);
                }
                if own && inner.last_heartbeat.is_some() && !inner.leaving {
                    self.write_wanted.notify_one();
                }
            }),
            Observation::Renewed { ttl } => self.with(|inner, now| {
                inner.members.store_answers(true, now);
                inner.lease = Some((now.instant, ttl));
            }),
            Observation::AsideCleared => self.solved(&About::Content),
            Observation::Hangs(hangs) => self.with(|inner, now| match hangs {
                Some(sentence) => {
                    inner.members.store_answers(false, now);
                    inner.problems.state(About::Storage, sentence);
                }
                None if inner.problems.solve(&About::Storage) => {
                    inner.members.store_answers(true, now);
                    // A lease may have run out.
                    self.write_wanted.notify_one();
                }
                None => {}
            }),
        }
    }
}

impl Amend for State {
    fn amend(&self, registry: &mut Registry, wish: &Wish) -> bool {
        self.with(|inner, now| {
            inner.take_in(registry, true, now);
            // The first look may have shown that this node is being updated.
            let status = inner.own_status(now);
            inner.members.set_own_status(status);
            let due = wish.beat && inner.heartbeats();
            let mut forget = wish.forget.clone();
            if let Some(after) = self.config.registryd.forget_after.filter(|_| due) {
                forget.extend(inner.members.long_offline(after, now));
            }
            let forgotten = inner.forget(&forget, registry);
            inner.members.amend(registry, due, now) || forgotten
        })
    }

    fn last_good(&self) -> Option<Arc<Registry>> {
        self.read(|inner, _| inner.last_good.clone())
    }
}

impl Speak for State {
    fn speaks_for(&self) -> Vec<NodeName> {
        self.read(|inner, _| {
            let mut names = inner.members.unwritten();
            names.push(self.local().clone());
            names
        })
    }

    fn amend_entries(&self, entries: &mut Registry) {
        self.with(|inner, now| {
            let status = inner.own_status(now);
            inner.members.set_own_status(status);
            inner.members.amend(entries, false, now);
        });
    }

    fn living(&self) -> Vec<Living> {
        self.read(|inner, now| {
            let spoken_for = inner.members.spoken_for(now).into_iter();
            let mut living: Vec<Living> =
                spoken_for.map(|(name, ttl, at)| Living { name, ttl, at }).collect();
            if inner.heartbeats() && !inner.leaving {
                let ttl = self.config.mesh.stale_threshold;
                // One that was renewed just now will do.
                let fresh =
                    |(at, _): &(Instant, Duration)| now.instant.saturating_duration_since(*at) < ttl / 8;
                let at = inner.lease.filter(fresh).map_or(now.instant, |(at, _)| at);
                living.push(Living { name: self.local().clone(), ttl, at });
            }
            living
        })
    }

    fn to_forget(&self, wish: &Wish) -> Vec<NodeName> {
        self.read(|inner, now| {
            let mut forget = wish.forget.clone();
            if let Some(after) = self.config.registryd.forget_after.filter(|_| wish.beat) {
                forget.extend(inner.members.long_offline(after, now));
            }
            forget.retain(|name| inner.is_gone(name));
            forget
        })
    }

    fn forgotten(&self, name: &NodeName) {
        self.with(|inner, _| inner.members.forget(name));
        tracing::info!(target: "Registry", "node {name} is forgotten node={name}");
    }
}

impl State {
    fn written(&self, inner: &mut Inner, registry: Option<Registry>, alive: bool, now: Now) {
        inner.writable = true;
        inner.problems.solve(&About::Writing);
        if alive {
            inner.last_heartbeat = Some(now.instant);
        }
        if let Some(registry) = registry {
            inner.take_in(&registry, true, now);
            inner.last_good = Some(Arc::new(registry));
            inner.looked(Look { writes_pass: true, pause: Duration::ZERO }, now);
            inner.problems.solve(&About::Reading);
        }
    }

    fn unreadable(&self, failure: &Failure) {
        Counters::add(&self.counters.read_errors);
        self.with(|inner, _| {
            if failure.missing && inner.last_good.is_none() {
                // Nothing is wrong with a registry that is about to be created.
                return;
            }
            if failure.missing {
                self.write_wanted.notify_one();
            }
            let what_now = match inner.last_good {
                Some(_) => "continuing with the last good view",
                None => "nothing is known of the mesh yet",
            };
            inner.problems.state(About::Reading, format!("{}; {what_now}", failure.sentence));
        });
        self.looked.send_replace(true);
    }
}

impl Inner {
    /// Whether a node can be taken out: it is offline, and not this one.
    fn is_gone(&self, name: &NodeName) -> bool {
        let offline = self.members.members().get(name).is_none_or(|member| member.status == Status::Offline);
        offline && self.own().and_then(Node::node_name).as_ref() != Some(name)
    }

    /// Takes in the change of one entry. Returns whether this node's own is to be put right.
    fn take_in_change(&mut self, change: Change, local: &NodeName, now: Now) -> bool {
        match change {
            Change::Entry(name, entry) => {
                let Some(node) = entry.node() else { return false };
                self.members.entered(&name, node.clone(), now);
                name == *local && !self.members.is_own(node)
            }
            Change::Removed(name) => {
                self.members.taken_out(&name);
                name == *local
            }
            Change::Lease(name, holder) => {
                self.members.leased(&name, holder, now);
                name == *local && holder.is_none()
            }
        }
    }

    /// Takes nodes out of the registry, unless they live or are this one.
    fn forget(&mut self, names: &[NodeName], registry: &mut Registry) -> bool {
        let mut forgotten = false;
        for name in names {
            if !self.is_gone(name) {
                continue;
            }
            self.members.forget(name);
            let of_it = |node: &Arc<Node>| node.name.eq_ignore_ascii_case(name.as_str());
            let before = registry.nodes.len();
            registry.nodes.retain(|_, entry| !entry.node().is_some_and(of_it));
            forgotten |= registry.nodes.len() < before;
            tracing::info!(target: "Registry", "node {name} is forgotten node={name}");
        }
        forgotten
    }

    fn take_in(&mut self, registry: &Registry, writes_pass: bool, now: Now) {
        self.all_touched |= self.last_good.is_none();
        self.tell_of_odd_entries(registry);
        let others_beat = self.members.read(registry, now);
        if others_beat && !(writes_pass && self.writable) {
            self.members.others_write(now);
        }
    }

    /// Storage that takes no writes stops everybody's heartbeats, so then silence means nothing either.
    fn looked(&mut self, look: Look, now: Now) {
        if look.writes_pass && self.writable {
            self.members.looked(now, look.pause);
        }
    }

    /// Says once of each entry that has a node's name but cannot be read as a node.
    fn tell_of_odd_entries(&mut self, registry: &Registry) {
        for (id, entry) in &registry.nodes {
            let Some(why) = entry.problem() else { continue };
            if self.told.len() >= MAX_TOLD {
                self.told.clear();
            }
            if self.told.insert((id.clone(), why.into())) {
                tracing::warn!(
                    target: "Registry",
                    "the registry's entry {} is not a valid node, and is kept unchanged: {}",
                    Quoted { text: id, max_chars: 80 },
                    Excerpt { text: why, max_chars: 200 }
                );
            }
        }
    }

    /// Whether somebody overwrote or mistook this node's entry so that others would not reach it.
    fn own_entry_lost(&mut self, local: &NodeName) -> bool {
        let registered = self.last_heartbeat.is_some();
        let held = self.last_good.as_ref().and_then(|registry| registry.named(local));
        registered && held.is_none_or(|(_, node)| node.status == Status::Offline)
    }
}
