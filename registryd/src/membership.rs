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
//!
//! Judging looks at those to whom something happened and at those whose silence may have become too long, so that what
//! it costs depends on what changed and not on how many there are.

pub mod admission;
pub mod amend;
mod deadlines;
mod leased;
mod rivals;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::event::Kind;
use mesh_shared::registry::{END_OF_TIME_MS, Node, Registry, Status};

use admission::Refusal;
use deadlines::{Deadline, Deadlines};
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
    /// To whom something happened since the last judgement.
    touched: BTreeSet<NodeName>,
    /// Until when everybody else's status holds.
    deadlines: Deadlines,
    /// How many there are of each status, in the order of [`Status`].
    counts: [usize; 4],
    /// Whose endpoint went back to a former one lately.
    flipping: BTreeSet<NodeName>,
    /// Who registered a literal address.
    at: HashMap<(IpAddr, u16), BTreeSet<NodeName>>,
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

impl Watch {
    /// Until when it was seen whether a member moves.
    fn watched_to(&self, heard: bool) -> Instant {
        if heard { self.looked_at.max(self.heard_at) } else { self.looked_at }
    }

    /// For how long nobody could see whether a member moves.
    fn blind(&self, heard: bool, now: Now) -> Duration {
        let until = if heard { self.next_look.max(self.heard_at) } else { self.next_look };
        now.instant.saturating_duration_since(until)
    }
}

/// One node.
#[derive(Debug, Clone)]
pub struct Member {
    /// The newest accepted claims. `name` is normalized; `status` is what the node or a writer of the file said.
    pub node: Arc<Node>,
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
    announced: Option<(Status, Arc<Node>)>,
    /// The entry that was taken in last, as it stands in the registry.
    entry: Option<Arc<Node>>,
    deadline: Option<Deadline>,
    /// Where it can be dialled, if that is a literal address.
    at: Option<(IpAddr, u16)>,
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
            touched: BTreeSet::new(),
            deadlines: Deadlines::default(),
            counts: [0; 4],
            flipping: BTreeSet::new(),
            at: HashMap::new(),
        };
        membership.rival.is_here(Endpoint::of(&own));
        let own = Node { status: Status::Online, ..own };
        membership.enter(&local, Member::new(&local, own.into(), now));
        membership
    }

    fn enter(&mut self, name: &NodeName, member: Member) {
        self.counts[member.status as usize] += 1;
        self.members.insert(name.clone(), member);
        self.touched.insert(name.clone());
    }

    /// A member to whom something happens.
    fn touch(&mut self, name: &NodeName) -> Option<&mut Member> {
        let member = self.members.get_mut(name)?;
        self.touched.insert(name.clone());
        Some(member)
    }

    /// How many members have this status.
    pub fn count(&self, status: Status) -> usize {
        self.counts[status as usize]
    }

    /// Which member that is not offline registered this address and port.
    pub fn lives_at(&self, address: IpAddr, port: u16) -> Option<&NodeName> {
        let names = self.at.get(&(address.to_canonical(), port))?;
        let alive =
            |name: &&NodeName| self.members.get(*name).is_some_and(|member| member.status != Status::Offline);
        names.iter().find(alive)
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
    pub fn duplicates(&mut self, now: Now) -> Vec<Duplicate> {
        let mut duplicates: Vec<Duplicate> = self.own_duplicate(now).into_iter().collect();
        let (members, threshold) = (&self.members, self.threshold);
        self.flipping.retain(|name| {
            let Some(member) = members.get(name) else { return false };
            let ttl = member.node.ttl().unwrap_or(threshold);
            duplicates.extend(member.flips.duplicate(name, &member.node, ttl, now));
            member.flips.is_recent(ttl, now)
        });
        duplicates
    }

    fn own_duplicate(&self, now: Now) -> Option<Duplicate> {
        self.rival.duplicate(&self.local, self.local()?, self.threshold, now)
    }

    /// Whether another host of this node's name was seen lately.
    pub fn has_rival(&self, now: Now) -> bool {
        self.own_duplicate(now).is_some()
    }

    /// The local node's claims, to look at.
    pub fn local(&self) -> Option<&Node> {
        self.members.get(&self.local).map(|member| &*member.node)
    }

    /// The local node's claims. It is always a member.
    pub fn own(&mut self) -> &mut Node {
        let local = self.local.clone();
        self.touched.insert(local.clone());
        // `new` inserts the entry and nothing removes it; the closure only keeps this total.
        let own = self.members.entry(local.clone()).or_insert_with(|| Member::absent(&local));
        Arc::make_mut(&mut own.node)
    }

    /// Sets the own status. Returns whether it is another one.
    pub fn set_own_status(&mut self, status: Status) -> bool {
        let local = self.local.clone();
        let Some(member) = self.members.get_mut(&local) else { return false };
        member.said_goodbye = status == Status::Offline;
        if member.node.status == status {
            return false;
        }
        self.own().status = status;
        true
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
        self.skip_blind(now, longest_gap, true);
        self.watch.looked_at = now.instant;
        self.watch.next_look = self.watch.next_look.max(next_look);
    }

    /// Notes that the network brought the beat of a node.
    fn heard(&mut self, now: Now) {
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

    /// Drops a node that the operator, or its long silence, takes out of the registry. One that lives comes back with
    /// its next beat.
    pub fn forget(&mut self, name: &NodeName) {
        if *name != self.local
            && let Some(member) = self.touch(name)
        {
            Arc::make_mut(&mut member.node).status = Status::Offline;
            member.entry = None;
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

    /// Judges those to whom something happened and those whose silence has become too long. Returns what changed since
    /// the last time; nothing for the first reading.
    pub fn judge(&mut self) -> Judgement {
        let mut judgement = Judgement::default();
        self.judge_status();
        // What the first reading shows is no news, but whom it drops is.
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

    fn judge_status(&mut self) {
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
}

/// The outcome of [`Membership::judge`].
#[derive(Debug, Default)]
pub struct Judgement {
    /// Those of whom anything but a mere `lastSeen` changed, in the order of their names.
    pub changed: Vec<NodeName>,
    /// The changes worth an event.
    pub changes: Vec<Change>,
}

impl Member {
    fn new(name: &NodeName, node: Arc<Node>, now: Now) -> Self {
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
            entry: None,
            deadline: None,
            at: None,
        }
    }

    fn absent(name: &NodeName) -> Self {
        Self::new(name, Arc::default(), Now { instant: Instant::now(), epoch_ms: 0 })
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

    /// Whether only the file tells of it.
    fn is_by_file_alone(&self) -> bool {
        !self.node.heartbeats() && !self.by_network
    }

    /// Whether taking in this entry would change nothing, because it was the last one that was taken in. Who does not
    /// heartbeat is seen anew at each look.
    fn is_as_read(&self, entry: &Arc<Node>) -> bool {
        self.listed
            && !self.by_network
            && self.node.heartbeats()
            && self.node.last_seen == entry.last_seen
            && self.entry.as_ref().is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    fn accept(&mut self, name: &NodeName, node: Arc<Node>, now: Now) {
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
        watch.watched_to(self.heard).saturating_duration_since(self.moved_at)
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
            Some(_) => {
                // Of two that say the same, one is enough to keep.
                self.announced = Some((self.status, self.node.clone()));
                return None;
            }
        };
        self.announced = Some((self.status, self.node.clone()));
        Some(kind)
    }
}

/// Whether two entries say the same of a node, apart from how it is and when it was last seen.
pub fn same_claims(a: &Node, b: &Node) -> bool {
    std::ptr::eq(a, b)
        || a.name.eq_ignore_ascii_case(&b.name)
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

fn normalized(name: &NodeName, mut node: Arc<Node>) -> Arc<Node> {
    if node.name != name.as_str() {
        Arc::make_mut(&mut node).name = name.to_string();
    }
    node
}

#[cfg(test)]
mod tests;
