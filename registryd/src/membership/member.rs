//! One node as it is known, and what its next entry makes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::event::Kind;
use mesh_shared::registry::{END_OF_TIME_MS, Node, Status};

use super::Now;
use super::deadlines::Deadline;
use super::rivals::Flips;
use super::watch::Watch;

/// A `lastSeen` that went back counts as a clock set back once it has risen this often below the highest one.
const RISES_AFTER_SET_BACK: u8 = 2;
/// Observations of which the least delayed one tells a node's skew.
const SKEW_SAMPLES: usize = 8;
/// Questions to a node that fail one after the other before it counts as unreachable.
const UNREACHABLE_AFTER: u32 = 2;

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
    pub(super) heard: bool,
    /// The last stamp that was in the file or the node's own word, and when it came.
    pub(super) told: (u64, Instant),
    pub(super) said_goodbye: bool,
    /// When it last gave a sign of life, whatever this reader could see since.
    pub(super) signed_at: Instant,
    /// When it last spoke for itself over the network.
    pub(super) spoke_at: Option<Instant>,
    /// When a question to it last failed since then, and how many did.
    pub(super) unanswered: Option<(Instant, u32)>,
    pub(super) flips: Flips,
    pub(super) forgotten: bool,
    pub(super) below: Option<(u64, u8)>,
    pub(super) skews_ms: Vec<i64>,
    pub(super) announced: Option<(Status, Arc<Node>)>,
    /// The entry that was taken in last, as it is in the registry.
    pub(super) entry: Option<Arc<Node>>,
    pub(super) deadline: Option<Deadline>,
    /// Where it can be dialled, if that is a literal address.
    pub(super) at: Option<(IpAddr, u16)>,
}

impl Member {
    pub(super) fn new(name: &NodeName, node: Arc<Node>, now: Now) -> Self {
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

    pub(super) fn absent(name: &NodeName) -> Self {
        Self::new(name, Arc::default(), Now { instant: Instant::now(), epoch_ms: 0 })
    }

    /// Notes a sign of life.
    pub(super) fn lives(&mut self, now: Now) {
        (self.signed_at, self.unanswered) = (now.instant, None);
    }

    /// Whether questions failed, and nothing has shown that it lives, for longer than `ttl`.
    pub(super) fn is_unreachable(&self, ttl: Duration) -> bool {
        self.unanswered.is_some_and(|(last, failures)| {
            failures >= UNREACHABLE_AFTER && last.saturating_duration_since(self.signed_at) > ttl
        })
    }

    /// Whether only the file tells of it.
    pub(super) fn is_by_file_alone(&self) -> bool {
        !self.node.heartbeats() && !self.by_network
    }

    /// Whether taking in this entry would change nothing, because it was the last one that was taken in. Who does not
    /// heartbeat is seen again at each look.
    pub(super) fn is_as_read(&self, entry: &Arc<Node>) -> bool {
        self.listed
            && !self.by_network
            && self.node.heartbeats()
            && self.node.last_seen == entry.last_seen
            && self.entry.as_ref().is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    pub(super) fn accept(&mut self, name: &NodeName, node: Arc<Node>, now: Now) {
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
    pub(super) fn silence(&self, watch: Watch) -> Duration {
        watch.watched_to(self.heard).saturating_duration_since(self.moved_at)
    }

    /// Whether a `lastSeen` below the highest one has risen often enough to mean a clock that was set back, and
    /// not an old copy of the file.
    pub(super) fn rose_below(&mut self, last_seen: u64) -> bool {
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
    pub(super) fn news(&mut self, announcing: bool) -> Option<Option<Kind>> {
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
pub(super) fn after(last_seen: u64) -> u64 {
    Some(last_seen.saturating_add(1)).filter(|next| *next < END_OF_TIME_MS).unwrap_or(0)
}

/// The entry that `node` makes in place of an older one, of which stays what is not the node's to say.
pub(super) fn successor(node: Node, held: &Node) -> Node {
    let mut node = Node { id: held.id.clone(), registered_at: held.registered_at, ..node };
    for (key, value) in &held.extra {
        node.extra.entry(key.clone()).or_insert_with(|| value.clone());
    }
    node
}

pub(super) fn normalized(name: &NodeName, mut node: Arc<Node>) -> Arc<Node> {
    if node.name != name.as_str() {
        Arc::make_mut(&mut node).name = name.to_string();
    }
    node
}
