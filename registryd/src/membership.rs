//! Who is in the mesh and who is alive: merging what is read and heard, and judging silence. Pure: the clock is
//! passed in and nothing here waits, reads or writes.
//!
//! Liveness never compares two hosts' clocks. A node lives while its `lastSeen` keeps moving, counted on this
//! reader's monotonic clock and only over time in which this reader could look; how far a `lastSeen` is from this
//! host's own time is shown as skew and decides nothing.

pub mod admission;
mod amend;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Registry, Status};

use crate::events::Kind;

/// The moment at which something is judged.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// This host's monotonic clock: the only one that liveness is judged by.
    pub instant: Instant,
    /// This host's wall clock, epoch ms: for writing time stamps and showing skew.
    pub epoch_ms: u64,
}

/// Longest time between two looks that still counts as having watched all along.
const BLIND_AFTER: Duration = Duration::from_secs(2);
/// A `lastSeen` that went back counts as a clock set back once it has risen this often below the highest one.
const RISES_AFTER_SET_BACK: u8 = 2;
/// Departed nodes remembered, so that old copies of their entries do not bring them back.
const MAX_DEPARTED: usize = 10_000;
/// Observations of which the least delayed one tells a node's skew.
const SKEW_SAMPLES: usize = 8;

/// All nodes this one knows.
#[derive(Debug)]
pub struct Membership {
    local: NodeName,
    threshold: Duration,
    members: BTreeMap<NodeName, Member>,
    departed: HashMap<NodeName, u64>,
    /// Until when this reader could see whether `lastSeen` moves.
    looked_at: Instant,
    loaded: bool,
    /// Whether the operator updates this node; `None` until the file or the operator says.
    updating: Option<bool>,
    /// Whether changes are news yet: what the first reading shows is not.
    announcing: bool,
}

/// One node.
#[derive(Debug, Clone)]
pub struct Member {
    /// The newest accepted claims. `name` is normalized; `status` is what the node or a writer of the file said.
    pub node: Node,
    /// The judged state.
    pub status: Status,
    /// When `lastSeen` last moved here, or when the entry was first read.
    pub moved_at: Instant,
    /// Whether it has moved since this reader watches.
    pub moved: bool,
    /// Whether the file has the entry.
    pub listed: bool,
    /// Whether the newest claims came over the network rather than from the file.
    pub by_network: bool,
    said_goodbye: bool,
    below: Option<(u64, u8)>,
    skews_ms: Vec<i64>,
    announced: Option<(Status, Node)>,
}

/// What a third node's word about a node leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearsay {
    /// Nothing new, or only that the node lives.
    Settled,
    /// New claims: the node itself has to be asked.
    Ask,
}

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

impl Membership {
    /// A mesh of the local node alone, which makes the claims in `own`.
    pub fn new(local: NodeName, own: Node, threshold: Duration, now: Now) -> Self {
        let mut membership = Self {
            local: local.clone(),
            threshold,
            members: BTreeMap::new(),
            departed: HashMap::new(),
            looked_at: now.instant,
            loaded: false,
            updating: None,
            announcing: false,
        };
        let mut member = Member::new(&local, own, now);
        member.node.status = Status::Online;
        member.status = Status::Online;
        membership.members.insert(local, member);
        membership
    }

    /// All members by name, the local one among them.
    pub fn members(&self) -> &BTreeMap<NodeName, Member> {
        &self.members
    }

    /// The local node's claims. It is always a member.
    pub fn own(&mut self) -> &mut Node {
        let local = self.local.clone();
        // `new` inserts the entry and nothing removes it; the closure only keeps this total.
        &mut self.members.entry(local.clone()).or_insert_with(|| Member::absent(&local)).node
    }

    /// Sets the own status. Returns whether it is another one.
    pub fn set_own_status(&mut self, status: Status) -> bool {
        let local = self.local.clone();
        let Some(member) = self.members.get_mut(&local) else { return false };
        member.said_goodbye = status == Status::Offline;
        std::mem::replace(&mut member.node.status, status) != status
    }

    /// Whether the operator updates this node.
    pub fn updating(&self) -> bool {
        self.updating == Some(true)
    }

    /// Notes what the operator says.
    pub fn set_updating(&mut self, updating: bool) {
        self.updating = Some(updating);
    }

    /// Moves the own `lastSeen`: forward even where this host's clock was set back.
    pub fn beat(&mut self, now: Now) {
        let own = self.own();
        own.last_seen = now.epoch_ms.max(own.last_seen.saturating_add(1));
    }

    /// Notes that the registry could be read (and, as far as is known, written) just now.
    ///
    /// Time in which this reader was blind is not held against anybody: as long as it cannot see whether
    /// `lastSeen` moves, or nobody can move it because the storage takes no writes, nobody goes stale.
    pub fn looked(&mut self, now: Now) {
        let blind = now.instant.saturating_duration_since(self.looked_at);
        if blind > BLIND_AFTER {
            for member in self.members.values_mut() {
                member.moved_at = (member.moved_at + blind).min(now.instant);
            }
        }
        self.looked_at = now.instant;
    }

    /// Takes in the whole content of the registry file.
    pub fn read(&mut self, registry: &Registry, now: Now) {
        let mut newest: BTreeMap<NodeName, (&String, &Node)> = BTreeMap::new();
        for (id, node) in registry.iter_nodes() {
            let Some(name) = node.node_name() else { continue };
            let held = newest.entry(name).or_insert((id, node));
            if node.last_seen > held.1.last_seen {
                *held = (id, node);
            }
        }
        for (name, member) in &mut self.members {
            member.listed = newest.contains_key(name);
            // Nobody heartbeats for such a node, so there is no silence to wait for: the file alone tells.
            let by_file_alone = !member.node.is_agent() && !member.by_network && *name != self.local;
            if by_file_alone && !member.listed {
                member.node.status = Status::Offline;
                member.said_goodbye = true;
            }
        }
        for (name, (id, node)) in newest {
            let mut node = node.clone();
            node.id = id.clone();
            if name != self.local {
                self.read_one(&name, node, now);
            }
        }
        self.loaded = true;
        if self.updating.is_none() {
            let own = registry.id_of(&self.local).and_then(|id| registry.nodes.get(id)?.node());
            self.updating = Some(own.is_some_and(amend::says_updating));
            if self.updating() {
                tracing::info!(
                    target: "Registry",
                    "this node is still being updated, as it was before the restart; `meshctl status set online` ends it"
                );
            }
        }
    }

    fn read_one(&mut self, name: &NodeName, mut node: Node, now: Now) {
        let Some(member) = self.members.get_mut(name) else {
            // An old copy of an entry whose node had left is not a node that came back.
            let old = self.departed.get(name).is_some_and(|&last| node.last_seen <= last);
            if old && node.is_agent() {
                node.status = Status::Offline;
            } else {
                self.departed.remove(name);
            }
            let mut member = Member::new(name, node, now);
            member.listed = true;
            self.members.insert(name.clone(), member);
            return;
        };
        let held = &member.node;
        if node.last_seen > held.last_seen || !node.is_agent() {
            member.accept(name, node, now);
        } else if node.last_seen == held.last_seen {
            // Whoever marked the node offline at this beat is right until its next one.
            if held.status == Status::Offline {
                node.status = Status::Offline;
            }
            member.node = normalized(name, node);
        } else if member.node.status != Status::Offline && member.rose_below(node.last_seen) {
            member.accept(name, node, now);
        } else {
            return;
        }
        member.by_network = false;
    }

    /// Takes in what a node says of itself over verified mutual TLS. `true` if it is new or said something new
    /// beyond being alive.
    pub fn hear_itself(&mut self, name: &NodeName, mut node: Node, now: Now) -> bool {
        if *name == self.local {
            return false;
        }
        if node.last_seen == 0 {
            // It gives no stamp, so the one of its word counts.
            node.last_seen = now.epoch_ms;
        }
        if node.registered_at == 0 {
            node.registered_at = node.last_seen;
        }
        self.departed.remove(name);
        let Some(member) = self.members.get_mut(name) else {
            let mut member = Member::new(name, node, now);
            member.by_network = true;
            member.moved = true;
            self.members.insert(name.clone(), member);
            return true;
        };
        if member.node.last_seen == node.last_seen
            && member.node.status == node.status
            && same_claims(&member.node, &node)
        {
            return false;
        }
        let news = !same_claims(&member.node, &node) || member.node.status != node.status;
        let mut node = Node { id: member.node.id.clone(), registered_at: member.node.registered_at, ..node };
        for (key, value) in &member.node.extra {
            node.extra.entry(key.clone()).or_insert_with(|| value.clone());
        }
        member.accept(name, node, now);
        member.by_network = true;
        news
    }

    /// Takes in what one node says of another. Only "it lives" is believed; for anything else the node itself
    /// has to be asked, so that nobody can change or remove another's entry.
    pub fn hear_of(&mut self, name: &NodeName, node: &Node, now: Now) -> Hearsay {
        if *name == self.local {
            return Hearsay::Settled;
        }
        match self.members.get_mut(name) {
            Some(member) if node.last_seen <= member.node.last_seen => Hearsay::Settled,
            Some(member) if node.status != Status::Offline && same_claims(&member.node, node) => {
                let heard = Node { last_seen: node.last_seen, status: node.status, ..member.node.clone() };
                member.accept(name, heard, now);
                member.by_network = true;
                Hearsay::Settled
            }
            Some(member) if node.status == Status::Offline && member.node.status == Status::Offline => {
                Hearsay::Settled
            }
            Some(_) => Hearsay::Ask,
            None => {
                let departed = self.departed.get(name).is_some_and(|&last| node.last_seen <= last);
                match node.status == Status::Offline || departed {
                    true => Hearsay::Settled,
                    false => Hearsay::Ask,
                }
            }
        }
    }

    /// Takes a goodbye for granted that another node or mDNS reported and that the node did not refute when asked.
    pub fn gone(&mut self, name: &NodeName) {
        if let Some(member) = self.members.get_mut(name).filter(|_| *name != self.local) {
            member.node.status = Status::Offline;
            member.said_goodbye = true;
        }
    }

    /// Nodes silent for so long that they are worth asking before they count as offline.
    pub fn silent(&self) -> Vec<NodeName> {
        let ask_after = self.threshold.mul_f64(0.6);
        let silent = |member: &Member| self.looked_at.saturating_duration_since(member.moved_at) > ask_after;
        self.members
            .iter()
            .filter(|(name, member)| **name != self.local && member.node.is_agent() && silent(member))
            .filter(|(_, member)| member.status != Status::Offline)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Judges everybody anew. Returns what changed since the last time; nothing for the first reading.
    pub fn judge(&mut self) -> Judgement {
        let mut judgement = Judgement::default();
        self.judge_status();
        for (name, member) in &mut self.members {
            if let Some(kind) = member.news(self.announcing) {
                judgement.changed = true;
                judgement.changes.extend(kind.map(|kind| Change {
                    kind,
                    name: name.clone(),
                    status: member.status,
                }));
            }
        }
        self.announcing = self.loaded;
        let (local, departed) = (&self.local, &mut self.departed);
        self.members.retain(|name, member| {
            let keep = member.listed || *name == *local || member.status != Status::Offline || !self.loaded;
            if !keep {
                judgement.changed = true;
                departed.insert(name.clone(), member.node.last_seen);
            }
            keep
        });
        if departed.len() > MAX_DEPARTED {
            departed.clear();
        }
        judgement
    }

    fn judge_status(&mut self) {
        for (name, member) in &mut self.members {
            let silence = self.looked_at.saturating_duration_since(member.moved_at);
            let stale = *name != self.local && member.node.is_agent() && silence > self.threshold;
            member.status = if stale { Status::Offline } else { member.node.status };
        }
    }
}

/// The outcome of [`Membership::judge`].
#[derive(Debug, Default)]
pub struct Judgement {
    /// Whether anything but a mere `lastSeen` changed.
    pub changed: bool,
    /// The changes worth an event.
    pub changes: Vec<Change>,
}

impl Member {
    fn new(name: &NodeName, node: Node, now: Now) -> Self {
        Self {
            status: node.status,
            node: normalized(name, node),
            moved_at: now.instant,
            moved: false,
            listed: false,
            by_network: false,
            said_goodbye: false,
            below: None,
            skews_ms: Vec::new(),
            announced: None,
        }
    }

    fn absent(name: &NodeName) -> Self {
        Self::new(name, Node::default(), Now { instant: Instant::now(), epoch_ms: 0 })
    }

    fn accept(&mut self, name: &NodeName, node: Node, now: Now) {
        if node.last_seen != self.node.last_seen {
            self.moved_at = now.instant;
            self.moved = true;
            self.said_goodbye = node.status == Status::Offline;
            if self.skews_ms.len() == SKEW_SAMPLES {
                self.skews_ms.remove(0);
            }
            self.skews_ms.push(node.last_seen as i64 - now.epoch_ms as i64);
        }
        self.below = None;
        self.node = normalized(name, node);
    }

    /// Whether a `lastSeen` below the highest one has risen often enough to mean a clock that was set back, and
    /// not an old copy of the file.
    fn rose_below(&mut self, last_seen: u64) -> bool {
        let rises = match self.below {
            Some((last, rises)) if last_seen == last => rises,
            Some((last, rises)) if last_seen > last => rises + 1,
            _ => 0,
        };
        self.below = Some((last_seen, rises));
        rises >= RISES_AFTER_SET_BACK
    }

    /// The node's clock minus this host's, in ms: what the least delayed of the last observations shows.
    pub fn skew_ms(&self) -> Option<i64> {
        self.skews_ms.iter().max().copied()
    }

    /// `None`: nothing new. `Some(None)`: new, but no event.
    fn news(&mut self, announcing: bool) -> Option<Option<Kind>> {
        let kind = match &self.announced {
            None if announcing => (self.status != Status::Offline).then_some(Kind::Joined),
            None => None,
            Some((before, _)) if *before != self.status => Some(match (before, self.status) {
                (_, Status::Offline) if self.said_goodbye => Kind::Left,
                (_, Status::Offline) => Kind::Stale,
                (_, Status::Degraded) => Kind::Degraded,
                (Status::Offline | Status::Degraded, Status::Online) => Kind::Recovered,
                _ => Kind::Updated,
            }),
            Some((_, node)) if !same_claims(node, &self.node) => Some(Kind::Updated),
            Some(_) => return None,
        };
        self.announced = Some((self.status, self.node.clone()));
        Some(kind)
    }
}

/// Whether two entries say the same of a node, apart from how it is and when it was last seen.
pub fn same_claims(a: &Node, b: &Node) -> bool {
    a.name.eq_ignore_ascii_case(&b.name)
        && (&a.role, &a.agents, &a.host, a.port) == (&b.role, &b.agents, &b.host, b.port)
        && (&a.providers, &a.models, &a.capabilities) == (&b.providers, &b.models, &b.capabilities)
        && (&a.version, &a.metadata) == (&b.version, &b.metadata)
}

fn normalized(name: &NodeName, node: Node) -> Node {
    Node { name: name.to_string(), ..node }
}

#[cfg(test)]
mod tests;
