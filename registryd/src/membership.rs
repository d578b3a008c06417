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
mod hearing;
mod judging;
mod leased;
mod member;
mod reading;
mod rivals;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Status};

use deadlines::Deadlines;
pub use hearing::Hearsay;
pub use judging::{Change, Judgement};
pub use leased::Holder;
use leased::Liveness;
use member::after;
pub use member::{Member, same_claims};
pub use rivals::Duplicate;
use rivals::{Endpoint, OwnRival};
use watch::Watch;

/// The moment at which something is judged.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// This host's monotonic clock: the only one that liveness is judged by.
    pub instant: Instant,
    /// This host's wall clock, epoch ms: for writing time stamps and showing skew.
    pub epoch_ms: u64,
}

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
}

#[cfg(test)]
mod tests;
