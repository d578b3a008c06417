//! What this node knows, in one place: the only owner of a [`Membership`], and the publisher of what follows from
//! it. Every change goes through [`State::with`], which judges anew and publishes once; [`State::read`] only looks.

mod changes;
mod own;
pub mod problems;
mod publish;
mod roster;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_shared::NodeName;
use mesh_shared::config::{Config, Registryd, StoreKind};
use mesh_shared::local_api::{RosterUpdate, SidecarReport};
use mesh_shared::logging::{Excerpt, Quoted};
use mesh_shared::registry::{Node, Registry, Status};
use tokio::sync::{Notify, watch};

use crate::backend::etcd::{Living, Speak};
use crate::backend::file::Amend;
use crate::backend::{self, Failure, Ledger, Look, Observation, Wish};
use crate::discovery::Candidate;
use crate::events::EventLog;
use crate::membership::admission::Surroundings;
use crate::membership::{Membership, Now};
use crate::view::View;
use changes::Changes;
use problems::{About, Problems};
use roster::RosterRows;

pub use own::{follow_host, own_claims};

/// How long a sidecar's report counts.
const REPORT_LIFETIME: Duration = Duration::from_secs(15);

/// Entries that do not count as nodes and were told of; beyond that, the log is told anew.
const MAX_TOLD: usize = 1000;

/// The state of the daemon. Locks are held for memory operations only.
#[derive(Debug)]
pub struct State {
    /// The configuration it was started with.
    pub config: Arc<Config>,
    /// What this node publishes of itself; may be read again while it runs.
    published: watch::Sender<Arc<Registryd>>,
    /// Connections on which the sidecar follows the roster.
    followers: AtomicUsize,
    was_followed: AtomicBool,
    started: Instant,
    /// Changes, for those who listen.
    pub events: EventLog,
    /// Numbers for `/metrics`.
    pub counters: Counters,
    /// Wakes the heartbeat: the file lacks something that should not wait for the next beat.
    pub write_wanted: Notify,
    inner: Mutex<Inner>,
    looked: watch::Sender<bool>,
    view: watch::Sender<View>,
    /// The revision of the roster.
    roster: watch::Sender<u64>,
}

/// Everything behind the lock.
#[derive(Debug)]
pub struct Inner {
    /// The nodes.
    pub members: Membership,
    /// What names resolve to.
    pub addresses: HashMap<NodeName, Resolved>,
    /// What nodes announce by mDNS: tried where nothing better is known or answers.
    pub announced: HashMap<NodeName, Vec<IpAddr>>,
    /// Nodes that are being asked, or known from the configuration: routable although not members.
    pub candidates: BTreeMap<NodeName, Wanted>,
    leaving: bool,
    sidecar: Option<(SidecarReport, Instant)>,
    /// What is wrong now.
    pub problems: Problems,
    /// Entries of which the log was told that they are not nodes.
    told: HashSet<(String, String)>,
    inbound_on_loopback: bool,
    last_good: Option<Arc<Registry>>,
    /// Whether a store that keeps no whole registry was read once.
    entries_seen: bool,
    /// When this node's lease was renewed, and how long it lasted then.
    lease: Option<(Instant, Duration)>,
    writable: bool,
    last_heartbeat: Option<Instant>,
    /// Whose row or view changed for a reason outside `members`.
    touched: BTreeSet<NodeName>,
    /// Whether everybody's may have.
    all_touched: bool,
    /// Who changed when.
    pub changes: Changes,
    roster: RosterRows,
}

/// What a node's name resolved to last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The registered host that the lookup fell back to.
    pub host: String,
    /// The addresses, in the order to try; the last good ones where the last lookup failed.
    pub addresses: Vec<IpAddr>,
    /// Why there are none, or what was wrong with the last lookup.
    pub problem: Option<String>,
}

/// A node that is wanted but need not be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where it may be.
    pub candidate: Candidate,
    /// Whether the configuration names it.
    pub configured: bool,
    /// Whether it is being asked right now, so that the sidecar has to let the question through.
    pub asking: bool,
    /// Whether to try the candidate's own account of its endpoint although the registry has another.
    pub by_claim: bool,
}

/// Counts since the start.
#[derive(Debug, Default)]
#[allow(missing_docs)] // named as the metrics are
pub struct Counters {
    pub reads: AtomicU64,
    pub read_errors: AtomicU64,
    pub writes: AtomicU64,
    pub write_errors: AtomicU64,
    pub set_aside: AtomicU64,
    pub joins: AtomicU64,
    pub joins_refused: AtomicU64,
    pub dns_queries: AtomicU64,
    pub syncs: AtomicU64,
    pub sync_errors: AtomicU64,
    pub open_streams: AtomicU64,
    pub write_ms: AtomicU64,
}

impl Counters {
    /// Counts one more.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    /// The state of a node that knows nobody yet.
    pub fn new(config: Arc<Config>, own: Node) -> Self {
        let now = Self::now();
        let local = config.mesh.node_name.clone();
        let mut members = Membership::new(local, own, config.mesh.stale_threshold, now);
        if config.registryd.store.kind == StoreKind::Etcd {
            members.go_by_leases(now);
        }
        let state = Self {
            events: EventLog::new(now.epoch_ms),
            counters: Counters::default(),
            write_wanted: Notify::new(),
            looked: watch::channel(false).0,
            view: watch::channel(View { revision: 0, have_view: false }).0,
            roster: watch::channel(0).0,
            inner: Mutex::new(Inner {
                members,
                addresses: HashMap::new(),
                announced: HashMap::new(),
                candidates: BTreeMap::new(),
                leaving: false,
                sidecar: None,
                problems: Problems::default(),
                told: HashSet::new(),
                inbound_on_loopback: config.proxy.inbound.address.is_loopback(),
                last_good: None,
                entries_seen: false,
                lease: None,
                writable: true,
                last_heartbeat: None,
                touched: BTreeSet::new(),
                all_touched: true,
                changes: Changes::new(now.epoch_ms),
                roster: RosterRows::new(now.epoch_ms),
            }),
            published: watch::channel(Arc::new(config.registryd.clone())).0,
            followers: AtomicUsize::new(0),
            was_followed: AtomicBool::new(false),
            started: now.instant,
            config,
        };
        state.with(|_, _| ());
        state
    }

    /// This node.
    pub fn local(&self) -> &NodeName {
        &self.config.mesh.node_name
    }

    /// Both clocks, now.
    pub fn now() -> Now {
        let epoch_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Now { instant: Instant::now(), epoch_ms }
    }

    /// Looks at or changes the state, then judges and publishes what changed.
    pub fn with<R>(&self, act: impl FnOnce(&mut Inner, Now) -> R) -> R {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Self::now();
        let result = act(&mut inner, now);
        self.publish(&mut inner, now);
        result
    }

    /// Tells when the mesh changes.
    pub fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Tells when the roster changes, by its revision.
    pub fn rosters(&self) -> watch::Receiver<u64> {
        self.roster.subscribe()
    }

    /// What brings a sidecar that has this revision of the roster up to date; all of it where that one is unknown.
    pub fn roster_since(&self, known: Option<u64>) -> RosterUpdate {
        self.read(|inner, _| inner.roster.since(known))
    }

    /// Looks at the state as it was judged last; changes and publishes nothing.
    pub fn read<R>(&self, look: impl FnOnce(&Inner, Now) -> R) -> R {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        look(&inner, Self::now())
    }

    /// States what is wrong, in a sentence; says so in the log if it is new.
    pub fn problem(&self, about: About, sentence: String) {
        self.with(|inner, _| inner.problems.state(about, sentence));
    }

    /// Takes back what was stated.
    pub fn solved(&self, about: &About) {
        self.with(|inner, _| inner.problems.solve(about));
    }

    /// What this node publishes of itself.
    pub fn published(&self) -> Arc<Registryd> {
        self.published.borrow().clone()
    }

    /// Tells when this node publishes something else of itself.
    pub fn publications(&self) -> watch::Receiver<Arc<Registryd>> {
        self.published.subscribe()
    }

    /// Publishes other agents, providers, models, capabilities, metadata and role from now on.
    pub fn publish_anew(&self, registryd: Registryd) {
        let registryd = Arc::new(registryd);
        self.published.send_replace(registryd.clone());
        self.with(|inner, _| own::claim(inner.members.own(), &registryd, self.config.mesh.stale_threshold));
        self.write_wanted.notify_one();
    }

    /// Whether this node is on its host's loopback only, as in tests and demos, so that others can be there too.
    pub fn is_on_loopback(&self) -> bool {
        self.read(|inner, _| inner.is_on_loopback())
    }

    /// Notes that a connection follows the roster, until the returned value is dropped.
    pub fn follower(self: &Arc<Self>) -> Follower {
        self.followers.fetch_add(1, Ordering::Relaxed);
        self.was_followed.store(true, Ordering::Relaxed);
        Follower(self.clone())
    }

    /// Whether a sidecar has followed the roster since the start.
    pub fn was_followed(&self) -> bool {
        self.was_followed.load(Ordering::Relaxed)
    }

    /// For how long this process has known anything.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether this node's sidecar serves its peers: it holds on to its connection, and does not say that it stops.
    pub fn sidecar_serves(&self) -> bool {
        let stops = self.read(|inner, now| inner.sidecar(now).is_some_and(|report| report.draining));
        !stops && self.followers.load(Ordering::Relaxed) > 0
    }

    /// Waits until the registry was looked at once, with whatever outcome.
    pub async fn first_look(&self) {
        // Fails only when the sender, which is here, is gone.
        let _ = self.looked.subscribe().wait_for(|looked| *looked).await;
    }

    /// Notes what the sidecar says of itself.
    pub fn sidecar_reported(&self, report: SidecarReport) {
        self.with(|inner, now| {
            let down = &report.agents_down;
            for agent in down {
                let sentence =
                    format!("agent {agent} does not answer on this host; start it, or see proxy.backend");
                inner.problems.state(About::Agent(agent.clone()), sentence);
            }
            inner.problems.solve_unless(|about| match about {
                About::Agent(agent) => down.contains(agent),
                _ => true,
            });
            inner.members.own().set_agents_down(down);
            inner.sidecar = Some((report, now.instant));
            inner.problems.solve(&About::Sidecar);
        });
    }

    /// Sets the status that the operator wants; it holds until the operator sets another one.
    pub fn set_updating(&self, updating: bool) {
        self.with(|inner, _| inner.members.set_updating(updating));
    }

    /// Sets where others dial this node.
    pub fn set_own_host(&self, host: String) {
        self.with(|inner, _| {
            let registered = inner.last_heartbeat.is_some();
            let before = &inner.members.own().host;
            if *before == host {
                return;
            }
            if registered {
                tracing::info!(target: "Registry", "this node's address is {host} now, it was {before}");
            }
            let on_loopback = inner.is_on_loopback();
            inner.members.set_own_host(host);
            // Who may be there decides which addresses of others count.
            inner.all_touched |= inner.is_on_loopback() != on_loopback;
            self.write_wanted.notify_one();
        });
    }

    /// From now on this node is on its way out.
    pub fn leave(&self) {
        self.with(|inner, _| inner.leaving = true);
    }

    /// The own entry as others should have it.
    pub fn own_node(&self) -> Node {
        self.read(|inner, _| inner.own().cloned().unwrap_or_default())
    }

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
                Some(_) => "going on with the last good view",
                None => "nothing is known of the mesh yet",
            };
            inner.problems.state(About::Reading, format!("{}; {what_now}", failure.sentence));
        });
        self.looked.send_replace(true);
    }
}

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

/// A connection that follows the roster.
#[derive(Debug)]
pub struct Follower(Arc<State>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// Whether this node is on its host's loopback only.
    pub fn is_on_loopback(&self) -> bool {
        let own = self.own().and_then(|own| own.host.parse::<IpAddr>().ok());
        self.inbound_on_loopback || own.is_some_and(|own| own.to_canonical().is_loopback())
    }

    /// This node's own entry.
    pub fn own(&self) -> Option<&Node> {
        self.members.local()
    }

    /// Whether the registry was read or written at least once.
    pub fn has_view(&self) -> bool {
        self.last_good.is_some() || self.entries_seen
    }

    /// Since when, and for how long from then, this node's lease is held.
    pub fn lease(&self) -> Option<(Instant, Duration)> {
        self.lease
    }

    /// When the last heartbeat was written.
    pub fn last_heartbeat(&self) -> Option<Instant> {
        self.last_heartbeat
    }

    /// The sidecar's last report, if it still counts.
    pub fn sidecar(&self, now: Now) -> Option<&SidecarReport> {
        let (report, at) = self.sidecar.as_ref()?;
        (now.instant.saturating_duration_since(*at) < REPORT_LIFETIME).then_some(report)
    }

    /// Marks the row and view of a node as to be published anew.
    pub fn touch(&mut self, name: &NodeName) {
        self.touched.insert(name.clone());
    }

    /// Whether this node writes heartbeats; only agents do.
    pub fn heartbeats(&self) -> bool {
        self.own().is_some_and(Node::is_agent)
    }

    /// Judges something by what is known of all nodes.
    pub fn among_others<R>(&self, loopback: bool, judge: impl FnOnce(&Surroundings<'_>) -> R) -> R {
        let members = self.members.members();
        let is_node = |name: &NodeName| members.contains_key(name);
        let lives_at = |address: IpAddr, port: u16| self.members.lives_at(address, port).cloned();
        judge(&Surroundings { is_node: &is_node, lives_at: &lives_at, loopback })
    }

    /// Whether a node can be taken out: it is offline, and not this one.
    fn is_gone(&self, name: &NodeName) -> bool {
        let offline = self.members.members().get(name).is_none_or(|member| member.status == Status::Offline);
        offline && self.own().and_then(Node::node_name).as_ref() != Some(name)
    }

    /// Takes in the change of one entry. Returns whether this node's own is to be put right.
    fn take_in_change(&mut self, change: backend::Change, local: &NodeName, now: Now) -> bool {
        match change {
            backend::Change::Entry(name, entry) => {
                let Some(node) = entry.node() else { return false };
                self.members.entered(&name, node.clone(), now);
                name == *local && !self.members.is_own(node)
            }
            backend::Change::Removed(name) => {
                self.members.taken_out(&name);
                name == *local
            }
            backend::Change::Lease(name, holder) => {
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
                    "the registry's entry {} does not count as a node, and is kept as it is: {}",
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

    /// The own status as it follows from everything.
    fn own_status(&self, now: Now) -> Status {
        // Before the first report nothing is known of it; after that, a sidecar that is silent carries nothing.
        let no_way_to_the_agent = match self.sidecar(now) {
            Some(report) => report.backend_up == Some(false) || !report.agents_down.is_empty(),
            None => self.sidecar.is_some(),
        };
        match () {
            () if self.leaving => Status::Offline,
            () if self.members.updating() || self.sidecar(now).is_some_and(|report| report.draining) => {
                Status::Updating
            }
            () if no_way_to_the_agent => Status::Degraded,
            () => Status::Online,
        }
    }
}
