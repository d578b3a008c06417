//! What this node knows, in one place: the only owner of a [`Membership`], and the publisher of what follows from
//! it. Every change goes through [`State::with`], which judges anew and publishes once.

mod own;
mod publish;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_shared::local_api::{Roster, SidecarReport};
use mesh_shared::registry::{Node, Registry, Status};
use tokio::sync::{Notify, watch};

use crate::discovery::Candidate;
use crate::events::EventLog;
use crate::membership::{Membership, Now};
use crate::store::{StoreError, Written};
use crate::view::View;

pub use own::{follow_host, own_claims};

/// How long a sidecar's report counts.
const REPORT_LIFETIME: Duration = Duration::from_secs(15);

/// The state of the daemon. Locks are held for memory operations only.
#[derive(Debug)]
pub struct State {
    /// The configuration it was started with.
    pub config: Arc<Config>,
    /// Changes, for those who listen.
    pub events: EventLog,
    /// Numbers for `/metrics`.
    pub counters: Counters,
    /// Wakes the heartbeat: the file lacks something that should not wait for the next beat.
    pub write_wanted: Notify,
    inner: Mutex<Inner>,
    looked: watch::Sender<bool>,
    view: watch::Sender<Arc<View>>,
    roster: watch::Sender<Arc<Roster>>,
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
    problems: BTreeMap<&'static str, String>,
    last_good: Option<Arc<Registry>>,
    writable: bool,
    last_heartbeat: Option<Instant>,
    /// Something outside `members` changed that the roster or view shows.
    touched: bool,
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
        let members = Membership::new(local.clone(), own, config.mesh.stale_threshold, now);
        let state = Self {
            events: EventLog::new(now.epoch_ms),
            counters: Counters::default(),
            write_wanted: Notify::new(),
            looked: watch::channel(false).0,
            view: watch::channel(Arc::new(View::empty(local))).0,
            roster: watch::channel(Arc::new(Roster::default())).0,
            inner: Mutex::new(Inner {
                members,
                addresses: HashMap::new(),
                announced: HashMap::new(),
                candidates: BTreeMap::new(),
                leaving: false,
                sidecar: None,
                problems: BTreeMap::new(),
                last_good: None,
                writable: true,
                last_heartbeat: None,
                touched: true,
            }),
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

    /// Looks at or changes the state, then judges and publishes.
    pub fn with<R>(&self, act: impl FnOnce(&mut Inner, Now) -> R) -> R {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Self::now();
        let result = act(&mut inner, now);
        self.publish(&mut inner, now);
        result
    }

    /// The snapshots as they are published.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// The rosters as they are published.
    pub fn rosters(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }

    /// States what is wrong, in a sentence; says so in the log if it is new.
    pub fn problem(&self, about: &'static str, sentence: String) {
        self.with(|inner, _| inner.problem(about, sentence));
    }

    /// Takes back what was stated under `about`.
    pub fn solved(&self, about: &'static str) {
        self.with(|inner, _| inner.solved(about));
    }

    /// Waits until the registry was looked at once, with whatever outcome.
    pub async fn first_look(&self) {
        // Fails only when the sender, which is here, is gone.
        let _ = self.looked.subscribe().wait_for(|looked| *looked).await;
    }

    /// Takes in the file as it was read, which is done again after `pause`. `writes_pass` tells whether it could have
    /// been written just now.
    pub fn file_read(&self, registry: Registry, writes_pass: bool, pause: Duration) {
        Counters::add(&self.counters.reads);
        self.with(|inner, now| {
            inner.take_in(&registry, writes_pass, now);
            inner.last_good = Some(Arc::new(registry));
            inner.looked(writes_pass, pause, now);
            inner.solved("read");
            if inner.own_entry_lost(self.local()) && !inner.leaving {
                self.write_wanted.notify_one();
            }
        });
        self.looked.send_replace(true);
    }

    /// Notes that the file, which is looked at again after `pause`, is as it was read last. `writes_pass` tells
    /// whether it could have been written just now.
    pub fn file_unchanged(&self, writes_pass: bool, pause: Duration) {
        self.with(|inner, now| inner.looked(writes_pass, pause, now));
    }

    /// Notes that the file could not be read.
    pub fn file_unreadable(&self, error: &StoreError) {
        Counters::add(&self.counters.read_errors);
        self.with(|inner, _| {
            if error.is_missing() && inner.last_good.is_none() {
                // Nothing is wrong with a registry that is about to be created.
                return;
            }
            if error.is_missing() {
                self.write_wanted.notify_one();
            }
            let what_now = match inner.last_good {
                Some(_) => "going on with the last good view",
                None => "nothing is known of the mesh yet",
            };
            inner.problem("read", format!("{error}; {what_now}"));
        });
        self.looked.send_replace(true);
    }

    /// The content to start from where the file is gone or broken.
    pub fn last_good(&self) -> Option<Arc<Registry>> {
        self.with(|inner, _| inner.last_good.clone())
    }

    /// Under the lock: takes in the file and brings it up to date. Returns whether to write it.
    pub fn amend(&self, registry: &mut Registry, due: bool) -> bool {
        self.with(|inner, now| {
            inner.take_in(registry, true, now);
            // The first look may have shown that this node is being updated.
            let status = inner.own_status(now);
            inner.members.set_own_status(status);
            let due = due && inner.heartbeats();
            inner.members.amend(registry, due, now)
        })
    }

    /// Notes how a write went; `registry` is what the file holds now.
    pub fn write_ended(&self, outcome: &Result<Written, StoreError>, registry: Option<Registry>, due: bool) {
        match outcome {
            Ok(written) => {
                if written.replaced {
                    Counters::add(&self.counters.writes);
                }
                if let Some(path) = &written.set_aside {
                    Counters::add(&self.counters.set_aside);
                    tracing::error!(
                        target: "Registry",
                        "{} held broken content that nobody completed; it was set aside as {} and the registry \
                         rebuilt from the last good view",
                        self.config.mesh.registry_path().display(),
                        path.display()
                    );
                }
            }
            Err(_) => Counters::add(&self.counters.write_errors),
        }
        self.with(|inner, now| match outcome {
            Ok(written) => {
                inner.writable = true;
                inner.solved("write");
                if due || written.replaced {
                    inner.last_heartbeat = Some(now.instant);
                }
                if let Some(registry) = registry {
                    inner.take_in(&registry, true, now);
                    inner.last_good = Some(Arc::new(registry));
                    inner.looked(true, Duration::ZERO, now);
                    inner.solved("read");
                }
                if let Some(path) = &written.set_aside {
                    let aside = path.display();
                    inner.problem("corrupt", format!("broken content of the registry was set aside as {aside}; look who wrote it, then remove that file"));
                }
            }
            Err(error) => {
                inner.writable = false;
                inner.problem("write", format!("{error}; registrations and heartbeats are kept in memory"));
            }
        });
    }

    /// Notes what the sidecar says of itself.
    pub fn sidecar_reported(&self, report: SidecarReport) {
        self.with(|inner, now| {
            inner.sidecar = Some((report, now.instant));
            inner.solved("sidecar");
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
            let own = inner.members.own();
            if own.host == host {
                return;
            }
            if registered {
                let before = &own.host;
                tracing::info!(target: "Registry", "this node's address is {host} now, it was {before}");
            }
            own.host = host;
            self.write_wanted.notify_one();
        });
    }

    /// From now on this node is on its way out.
    pub fn leave(&self) {
        self.with(|inner, _| inner.leaving = true);
    }

    /// The own entry as others should have it.
    pub fn own_node(&self) -> Node {
        self.with(|inner, _| inner.members.own().clone())
    }
}

impl Inner {
    /// States what is wrong, in a sentence; says so in the log if it is new.
    pub fn problem(&mut self, about: &'static str, sentence: String) {
        if self.problems.get(about) != Some(&sentence) {
            tracing::warn!(target: "Registry", "{sentence}");
            self.problems.insert(about, sentence);
        }
    }

    /// States what is wrong where the log has it already.
    pub fn problem_quietly(&mut self, about: &'static str, sentence: String) {
        self.problems.insert(about, sentence);
    }

    /// Takes back what was stated under `about`.
    pub fn solved(&mut self, about: &'static str) {
        if let Some(sentence) = self.problems.remove(about) {
            tracing::info!(target: "Registry", "no longer so: {sentence}");
        }
    }

    /// What is wrong now.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values()
    }

    /// Whether the registry was read or written at least once.
    pub fn has_view(&self) -> bool {
        self.last_good.is_some()
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

    /// Marks the roster and view as to be published anew.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// Whether this node writes heartbeats; only agents do.
    pub fn heartbeats(&mut self) -> bool {
        self.members.own().is_agent()
    }

    fn take_in(&mut self, registry: &Registry, writes_pass: bool, now: Now) {
        if self.last_good.is_none() {
            self.touched = true;
        }
        let others_beat = self.members.read(registry, now);
        if others_beat && !(writes_pass && self.writable) {
            self.members.others_write(now);
        }
    }

    /// Storage that takes no writes stops everybody's heartbeats, so then silence means nothing either.
    fn looked(&mut self, writes_pass: bool, pause: Duration, now: Now) {
        if writes_pass && self.writable {
            self.members.looked(now, pause);
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
            Some(report) => report.backend_up == Some(false),
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
