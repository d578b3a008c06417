//! Two hosts with one name: each overwrites what the other says, and neither notices. Others see the node's endpoint
//! go back and forth; the two themselves see their own entry move without them.

use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::Node;

use super::Now;

/// How often an endpoint has to come back before it is more than a move.
const FLIPS: u32 = 2;
/// For how many thresholds what was seen counts.
const THRESHOLDS: u32 = 3;
/// This node's own endpoints that are remembered.
const OWN_MAX: usize = 8;

/// Where a host can be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    pub(super) fn of(node: &Node) -> Self {
        Self { host: node.host.clone(), port: node.port }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A name that two hosts have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The name.
    pub name: NodeName,
    /// Where the two are, in an order of their own.
    pub endpoints: [Endpoint; 2],
}

impl Duplicate {
    fn new(name: &NodeName, one: Endpoint, other: Endpoint) -> Self {
        let mut endpoints = [one, other];
        endpoints.sort_by_key(ToString::to_string);
        Self { name: name.clone(), endpoints }
    }
}

/// Whether another node's endpoint goes back and forth.
#[derive(Debug, Clone, Default)]
pub(super) struct Flips {
    former: Option<(Endpoint, Instant)>,
    count: u32,
    last: Option<Instant>,
}

impl Flips {
    /// Notes that `node` is believed in place of `held`.
    pub(super) fn moved(&mut self, held: &Node, node: &Node, now: Now) {
        let (before, after) = (Endpoint::of(held), Endpoint::of(node));
        if before == after {
            return;
        }
        let back = self.former.as_ref().is_some_and(|(former, _)| *former == after);
        self.count = if back { self.count.saturating_add(1) } else { 0 };
        self.last = back.then_some(now.instant);
        self.former = Some((before, now.instant));
    }

    /// Whether the endpoint went back to the former one when it moved last.
    pub(super) fn is_back(&self) -> bool {
        self.last.is_some()
    }

    /// Whether that was lately.
    pub(super) fn is_recent(&self, ttl: Duration, now: Now) -> bool {
        self.last.is_some_and(|last| now.instant.saturating_duration_since(last) < ttl * THRESHOLDS)
    }

    pub(super) fn duplicate(
        &self,
        name: &NodeName,
        node: &Node,
        ttl: Duration,
        now: Now,
    ) -> Option<Duplicate> {
        let (former, _) = self.former.as_ref()?;
        (self.is_recent(ttl, now) && self.count >= FLIPS)
            .then(|| Duplicate::new(name, Endpoint::of(node), former.clone()))
    }
}

/// Another host that says of itself that it is this node.
#[derive(Debug, Default)]
pub(super) struct OwnRival {
    own: Vec<Endpoint>,
    seen: Option<(Endpoint, u64, Instant)>,
    count: u32,
}

impl OwnRival {
    /// This node can be dialled there from now on.
    pub(super) fn is_here(&mut self, endpoint: Endpoint) {
        if self.own.last() != Some(&endpoint) {
            self.own.push(endpoint);
        }
        if self.own.len() > OWN_MAX {
            self.own.remove(0);
        }
    }

    /// Looks at an entry of this node that somebody else may have written. What this process wrote, and old copies,
    /// have no newer stamp than its own; and a former process of this node cannot move it again and again.
    pub(super) fn seen(&mut self, entry: &Node, own_stamp: u64, threshold: Duration, now: Now) {
        let endpoint = Endpoint::of(entry);
        if entry.last_seen <= own_stamp || self.own.contains(&endpoint) {
            return;
        }
        let again = self.seen.as_ref().filter(|(held, _, at)| {
            *held == endpoint && now.instant.saturating_duration_since(*at) < threshold * THRESHOLDS
        });
        self.count = match again {
            Some((_, stamp, _)) if *stamp == entry.last_seen => return,
            Some(_) => self.count.saturating_add(1),
            None => 1,
        };
        self.seen = Some((endpoint, entry.last_seen, now.instant));
    }

    pub(super) fn duplicate(
        &self,
        name: &NodeName,
        own: &Node,
        threshold: Duration,
        now: Now,
    ) -> Option<Duplicate> {
        let (other, _, at) = self.seen.as_ref()?;
        let recent = now.instant.saturating_duration_since(*at) < threshold * THRESHOLDS;
        (recent && self.count > FLIPS).then(|| Duplicate::new(name, Endpoint::of(own), other.clone()))
    }
}
