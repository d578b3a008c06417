//! What this node knows, in one place: the only owner of a [`Membership`], and the publisher of what follows from
//! it. Every change goes through [`State::with`], which judges again and publishes once; [`State::read`] only looks.

mod changes;
mod own;
pub mod problems;
mod publish;
mod roster;
mod storage;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_shared::NodeName;
use mesh_shared::config::{Config, Registryd, StoreKind};
use mesh_shared::local_api::{RosterUpdate, SidecarReport};
use mesh_shared::registry::{Node, Registry, Status};
use tokio::sync::{Notify, watch};

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

    /// Marks the row and view of a node as to be published again.
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
