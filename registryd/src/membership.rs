//! Who is in the mesh and who is alive: merging what is read and heard, and judging silence. Pure: the clock is
//! passed in and nothing here waits, reads or writes.
//!
//! Liveness never compares two hosts' clocks. A node lives while its `lastSeen` keeps moving, counted on this
//! reader's monotonic clock and only over time in which this reader could look; how far a `lastSeen` is from this
//! host's own time is shown as skew and decides nothing.
//!
//! A node's own word, over mutual TLS, always counts: where its stamp does not come after the one held, it is moved
//! there. Of what the file says the later stamp wins, and of a third node's word only that the node lives, with a
//! stamp that is no further on than the time which has passed.

pub mod admission;
pub mod amend;
mod leased;
mod rivals;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::event::Kind;
use mesh_shared::registry::{END_OF_TIME_MS, Node, Registry, Status};

use admission::Refusal;
pub use leased::Holder;
use leased::Liveness;
pub use rivals::Duplicate;
use rivals::{Endpoint, Flips, OwnRival};

/// The moment at which something is judged.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// This host's monotonic clock: the only one that liveness is judged by.
    pub instant: Instant,
    /// This host's wall clock, epoch ms: for writing time stamps and showing skew.
    pub epoch_ms: u64,
}

/// Longest time by which a look may be late and this reader still counts as having watched all along.
const BLIND_AFTER: Duration = Duration::from_secs(2);
/// A `lastSeen` that went back counts as a clock set back once it has risen this often below the highest one.
const RISES_AFTER_SET_BACK: u8 = 2;
/// Departed nodes remembered, so that old copies of their entries do not bring them back.
const MAX_DEPARTED: usize = 10_000;
/// Observations of which the least delayed one tells a node's skew.
const SKEW_SAMPLES: usize = 8;

/// Questions to a node that fail one after the other before it counts as unreachable.
const UNREACHABLE_AFTER: u32 = 2;
/// For how long, at most, this reader has to have watched a node before it is forgotten for its long silence.
const LONG_WATCH: Duration = Duration::from_secs(600);

/// All nodes this one knows.
#[derive(Debug)]
pub struct Membership {
    local: NodeName,
    threshold: Duration,
    members: BTreeMap<NodeName, Member>,
    departed: HashMap<NodeName, u64>,
    watch: Watch,
    liveness: Liveness,
    loaded: bool,
    /// Whether the operator updates this node; `None` until the file or the operator says.
    updating: Option<bool>,
    /// Whether changes are news yet: what the first reading shows is not.
    announcing: bool,
    /// Another host of this node's name.
    rival: OwnRival,
}

/// Until when this reader could see whether `lastSeen` moves.
#[derive(Debug, Clone, Copy)]
struct Watch {
    /// In the file.
    looked_at: Instant,
    /// When it means to look at the file again.
    next_look: Instant,
    /// By network: when one moved.
    heard_at: Instant,
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
    /// Whether `lastSeen` last moved by network rather than in the file.
    heard: bool,
    /// The last stamp that was in the file or the node's own word, and when it came.
    told: (u64, Instant),
    said_goodbye: bool,
    /// When it last gave a sign of life, whatever this reader could see since.
    signed_at: Instant,
    /// When it last spoke for itself over the network.
    spoke_at: Option<Instant>,
    /// When a question to it last failed since then, and how many did.
    unanswered: Option<(Instant, u32)>,
    flips: Flips,
    forgotten: bool,
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
            watch: Watch { looked_at: now.instant, next_look: now.instant, heard_at: now.instant },
            liveness: Liveness::SeenToMove,
            loaded: false,
            updating: None,
            announcing: false,
            rival: OwnRival::default(),
        };
        membership.rival.is_here(Endpoint::of(&own));
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

    /// The silence after which a node counts as offline: what it says itself, else this reader's threshold.
    fn ttl(&self, node: &Node) -> Duration {
        node.ttl().unwrap_or(self.threshold)
    }

    /// Notes where this node can be dialled from now on.
    pub fn set_own_host(&mut self, host: String) {
        let own = self.own();
        own.host = host;
        let endpoint = Endpoint::of(own);
        self.rival.is_here(endpoint);
    }

    /// Nodes of whose name there are two hosts.
    pub fn duplicates(&self, now: Now) -> Vec<Duplicate> {
        let own = self.members.get(&self.local).map(|member| &member.node);
        let own = own.and_then(|own| self.rival.duplicate(&self.local, own, self.threshold, now));
        let others = self.members.iter().filter(|(name, _)| **name != self.local);
        let others = others.filter_map(|(name, member)| {
            member.flips.duplicate(name, &member.node, self.ttl(&member.node), now)
        });
        own.into_iter().chain(others).collect()
    }

    /// Whether another host of this node's name was seen lately.
    pub fn has_rival(&self, now: Now) -> bool {
        self.duplicates(now).iter().any(|duplicate| duplicate.name == self.local)
    }

    /// The local node's claims, to look at.
    pub fn local(&self) -> Option<&Node> {
        self.members.get(&self.local).map(|member| &member.node)
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
        own.last_seen = now.epoch_ms.max(after(own.last_seen));
    }

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
        for member in self.members.values_mut() {
            member.skip_blind(self.watch, now, longest_gap);
        }
        self.watch.looked_at = now.instant;
        self.watch.next_look = self.watch.next_look.max(next_look);
    }

    /// Notes that the network brought the beat of a node.
    fn heard(&mut self, now: Now) {
        let longest_gap = self.threshold / 2;
        for member in self.members.values_mut().filter(|member| member.heard) {
            member.skip_blind(self.watch, now, longest_gap);
        }
        self.watch.heard_at = now.instant;
    }

    /// Takes in the whole content of the registry file. Returns whether it shows the beat of another node.
    pub fn read(&mut self, registry: &Registry, now: Now) -> bool {
        let newest = registry.by_name();
        for (name, member) in &mut self.members {
            member.listed = newest.contains_key(name);
            // Nobody heartbeats for such a node, so there is no silence to wait for: the file alone tells.
            let by_file_alone = !member.node.heartbeats() && !member.by_network && *name != self.local;
            if by_file_alone && !member.listed {
                member.node.status = Status::Offline;
                member.said_goodbye = true;
            }
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
                let own = self.own().last_seen;
                self.rival.seen(node, own, self.threshold, now);
            } else {
                beats |= self.read_one(&name, Node { id: id.clone(), ..node.clone() }, now);
            }
        }
        self.loaded = true;
        beats
    }

    /// Whether the entry shows a beat of its node.
    fn read_one(&mut self, name: &NodeName, mut node: Node, now: Now) -> bool {
        let Some(member) = self.members.get_mut(name) else {
            // An old copy of an entry whose node had left is not a node that came back.
            let old = self.departed.get(name).is_some_and(|&last| node.last_seen <= last);
            if old && node.heartbeats() {
                node.status = Status::Offline;
            } else {
                self.departed.remove(name);
            }
            let mut member = Member::new(name, node, now);
            member.listed = true;
            self.members.insert(name.clone(), member);
            return false;
        };
        let held = &member.node;
        let before = held.last_seen;
        if node.last_seen > before || !node.heartbeats() {
            member.accept(name, node, now);
        } else if node.last_seen == held.last_seen {
            // Whoever marked the node offline at this beat is right until its next one, except where it says itself
            // after which time it counts as that. A goodbye moves the stamp.
            if held.status == Status::Offline || (node.status == Status::Offline && node.ttl().is_some()) {
                node.status = held.status;
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

    /// Takes in what a node says of itself over verified mutual TLS. `true` if it is new or said something new
    /// beyond being alive.
    ///
    /// # Errors
    /// With the fields that other programs or earlier words of the node added, its entry would be too large.
    pub fn hear_itself(&mut self, name: &NodeName, mut node: Node, now: Now) -> Result<bool, Refusal> {
        if *name == self.local {
            let own = self.own().last_seen;
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
            let mut member = Member::new(name, node, now);
            (member.by_network, member.heard, member.moved) = (true, true, true);
            self.departed.remove(name);
            self.members.insert(name.clone(), member);
            self.heard(now);
            self.spoke(name, now);
            return Ok(true);
        };
        let news = !same_claims(held, &node) || held.status != node.status;
        // A program beside the node's registryd that only wants to know the mesh: it has the node's certificate, and
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
        self.hear(name, node, now);
        self.spoke(name, now);
        Ok(news)
    }

    /// Notes that a node answered over verified mutual TLS: it lives, whatever its stamp says.
    pub fn answered(&mut self, name: &NodeName, now: Now) {
        self.heard(now);
        if let Some(member) = self.members.get_mut(name).filter(|_| *name != self.local) {
            (member.moved_at, member.moved, member.heard) = (now.instant, true, true);
            member.spoke_at = Some(now.instant);
            member.lives(now);
        }
    }

    /// Notes that a node could not be reached over the network. Where nothing else shows that it lives, it goes stale
    /// by that, although the file may be blind.
    pub fn unanswered(&mut self, name: &NodeName, now: Now) {
        if let Some(member) = self.members.get_mut(name) {
            let failures = member.unanswered.map_or(0, |(_, failures)| failures);
            member.unanswered = Some((now.instant, failures.saturating_add(1)));
        }
    }

    /// Takes in a node's newer entry from the network.
    fn hear(&mut self, name: &NodeName, node: Node, now: Now) {
        self.heard(now);
        if let Some(member) = self.members.get_mut(name) {
            member.accept(name, node, now);
            (member.by_network, member.heard) = (true, true);
        }
    }

    /// Takes in what one node says of another. Only "it lives" is believed, with a stamp that can be true; for
    /// anything else the node itself has to be asked, so that nobody can change, remove or freeze another's entry.
    pub fn hear_of(&mut self, name: &NodeName, node: &Node, now: Now) -> Hearsay {
        if *name == self.local {
            let own = self.own().last_seen;
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
        let heard = Node { last_seen: node.last_seen, ..held.clone() };
        self.hear(name, heard, now);
        if let Some(member) = self.members.get_mut(name) {
            // Or many words that are each a little ahead would go any way.
            member.told = told;
        }
        Hearsay::Settled
    }

    /// Takes a goodbye for granted that another node or mDNS reported and that the node did not refute when asked.
    pub fn gone(&mut self, name: &NodeName) {
        if let Some(member) = self.members.get_mut(name).filter(|_| *name != self.local) {
            member.node.status = Status::Offline;
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

    /// Drops a node that the operator, or its long silence, takes out of the registry. One that lives comes back with
    /// its next beat.
    pub fn forget(&mut self, name: &NodeName) {
        if *name != self.local
            && let Some(member) = self.members.get_mut(name)
        {
            member.node.status = Status::Offline;
            (member.said_goodbye, member.listed, member.by_network) = (true, false, false);
            member.forgotten = true;
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
                let told = judgement.changes.iter().any(|change| change.name == *name);
                if member.announced.is_some() && self.announcing && (!told || member.forgotten) {
                    let (name, status) = (name.clone(), member.status);
                    judgement.changes.push(Change { kind: Kind::Removed, name, status });
                }
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
            let ttl = member.node.ttl().unwrap_or(self.threshold);
            let silent = match &self.liveness {
                Liveness::SeenToMove => member.silence(self.watch) > ttl || member.is_unreachable(ttl),
                Liveness::Leased(leases) => !leases.shows(name, member, ttl, self.watch.heard_at),
            };
            let stale = silent && *name != self.local && member.node.heartbeats();
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
            told: (node.last_seen, now.instant),
            node: normalized(name, node),
            moved_at: now.instant,
            moved: false,
            listed: false,
            by_network: false,
            heard: false,
            said_goodbye: false,
            signed_at: now.instant,
            spoke_at: None,
            unanswered: None,
            flips: Flips::default(),
            forgotten: false,
            below: None,
            skews_ms: Vec::new(),
            announced: None,
        }
    }

    fn absent(name: &NodeName) -> Self {
        Self::new(name, Node::default(), Now { instant: Instant::now(), epoch_ms: 0 })
    }

    /// Notes a sign of life.
    fn lives(&mut self, now: Now) {
        (self.signed_at, self.unanswered) = (now.instant, None);
    }

    /// Whether questions failed, and nothing has shown that it lives, for longer than `ttl`.
    fn is_unreachable(&self, ttl: Duration) -> bool {
        self.unanswered.is_some_and(|(last, failures)| {
            failures >= UNREACHABLE_AFTER && last.saturating_duration_since(self.signed_at) > ttl
        })
    }

    fn accept(&mut self, name: &NodeName, node: Node, now: Now) {
        self.flips.moved(&self.node, &node, now);
        if node.last_seen != self.node.last_seen {
            self.lives(now);
            self.moved_at = now.instant;
            self.moved = true;
            self.said_goodbye = node.status == Status::Offline;
            if self.skews_ms.len() == SKEW_SAMPLES {
                self.skews_ms.remove(0);
            }
            self.skews_ms.push(node.last_seen.cast_signed().saturating_sub(now.epoch_ms.cast_signed()));
        }
        self.below = None;
        self.told = (node.last_seen, now.instant);
        self.node = normalized(name, node);
    }

    /// For how long this reader has watched and seen no sign of life.
    fn silence(&self, watch: Watch) -> Duration {
        let watched_to = if self.heard { watch.looked_at.max(watch.heard_at) } else { watch.looked_at };
        watched_to.saturating_duration_since(self.moved_at)
    }

    /// Takes the time in which nobody could see this node move off its silence, if it is longer than `longest_gap`.
    fn skip_blind(&mut self, watch: Watch, now: Now, longest_gap: Duration) {
        let watched_to = if self.heard { watch.next_look.max(watch.heard_at) } else { watch.next_look };
        let blind = now.instant.saturating_duration_since(watched_to);
        if blind > longest_gap {
            self.moved_at = (self.moved_at + blind).min(now.instant);
        }
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

/// The stamp that comes after this one.
fn after(last_seen: u64) -> u64 {
    Some(last_seen.saturating_add(1)).filter(|next| *next < END_OF_TIME_MS).unwrap_or(0)
}

/// The entry that `node` makes in place of an older one, of which stays what is not the node's to say.
fn successor(node: Node, held: &Node) -> Node {
    let mut node = Node { id: held.id.clone(), registered_at: held.registered_at, ..node };
    for (key, value) in &held.extra {
        node.extra.entry(key.clone()).or_insert_with(|| value.clone());
    }
    node
}

fn normalized(name: &NodeName, node: Node) -> Node {
    Node { name: name.to_string(), ..node }
}

#[cfg(test)]
mod tests;
