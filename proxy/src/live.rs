//! The live view: the exchanges in flight, and those that have just ended, for whoever may look (`mesh_shared::live`).
//!
//! A request pays for it with a few uncontended locks of its own thread's shard, in which it enters, changes and leaves what is
//! known of it; nothing is allocated for that, since all of it is shared or small. Text is made by [`publish`], for readers
//! only, and what has ended is kept only while there are some. [`feed`] hands the lines to them: whoever does not take them
//! loses some, which are counted, and holds up nobody. [`api`] answers on the sidecar's own socket.

pub mod api;
pub mod feed;
pub mod publish;
pub mod refused;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::{Method, Uri};
use mesh_shared::live::{MAX_ENDED, MAX_IN_FLIGHT, MAX_TRIES};
use mesh_shared::{AgentName, NodeName};
use mesh_telemetry::TraceId;
use parking_lot::Mutex;
use slab::Slab;
use smallvec::SmallVec;

use crate::access_log::{Account, End};
use crate::caller::{ActingAgent, Caller};
use crate::http::body::Traffic;
use crate::metrics::Outcome;
use crate::tls::verify::PeerIdentity;

/// What this process carries.
pub static LIVE: LazyLock<Live> = LazyLock::new(Live::new);

/// More than there usually are threads that carry requests; a power of two, so that ids stay exact in JSON for long.
const SHARDS: usize = 16;

thread_local! {
    /// The shard of this thread.
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The exchanges in flight, and those that ended since somebody was told.
pub struct Live {
    shards: [Shard; SHARDS],
    threads: AtomicUsize,
    /// Whether anybody reads.
    read: AtomicBool,
}

/// On cache lines of its own: threads do not slow each other.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<Table>);

#[derive(Default)]
struct Table {
    in_flight: Slab<Entry>,
    entered: u64,
    ended: Vec<Ended>,
    ended_omitted: u64,
}

struct Entry {
    facts: Facts,
    traffic: Arc<Traffic>,
}

/// What is known of an exchange.
#[derive(Clone)]
struct Facts {
    id: u64,
    who: Who,
    method: Method,
    uri: Uri,
    agent: Option<AgentName>,
    node: Option<NodeName>,
    trace: TraceId,
    attempts: u32,
    started: Instant,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
}

/// Who asks.
#[derive(Clone)]
enum Who {
    Peer(Arc<PeerIdentity>),
    Program(Option<Arc<ActingAgent>>),
}

/// An exchange that has ended.
struct Ended {
    facts: Facts,
    at: Instant,
    outcome: Outcome,
    code: Option<String>,
    reason: Option<String>,
    took: Duration,
    first_byte: Option<Duration>,
    connect: Option<Duration>,
    tries: Tries,
}

/// Where a request was sent, the first [`MAX_TRIES`] times.
#[derive(Debug, Clone, Default)]
pub struct Tries(SmallVec<[Tried; 1]>);

#[derive(Debug, Clone)]
struct Tried {
    node: NodeName,
    error: Option<&'static str>,
}

impl Tries {
    /// One more begins.
    pub fn begin(&mut self, node: &NodeName) {
        if self.0.len() < MAX_TRIES {
            self.0.push(Tried { node: node.clone(), error: None });
        }
    }

    /// The last one failed with an error of this code.
    pub fn failed(&mut self, code: &'static str) {
        if let Some(last) = self.0.last_mut() {
            last.error.get_or_insert(code);
        }
    }
}

/// An exchange's place in the table. Its owner says when it ends ([`Live::leave`]).
#[derive(Debug)]
pub struct Place {
    shard: usize,
    key: usize,
}

impl Live {
    fn new() -> Self {
        Self { shards: Default::default(), threads: AtomicUsize::new(0), read: AtomicBool::new(false) }
    }

    /// Keeps what ends from now on, for readers.
    fn keep(&self) {
        self.read.store(true, Ordering::Relaxed);
    }

    /// Keeps nothing any more of what ends.
    fn rest(&self) {
        self.read.store(false, Ordering::Relaxed);
        drop(self.take_ended());
    }

    fn own_shard(&self) -> usize {
        SHARD.with(|shard| {
            shard.get().unwrap_or_else(|| {
                let number = self.threads.fetch_add(1, Ordering::Relaxed) % SHARDS;
                shard.set(Some(number));
                number
            })
        })
    }

    /// Shows an exchange from now on.
    pub fn enter(&self, caller: &Caller, account: &Account) -> Place {
        let shard = self.own_shard();
        let mut entry = Entry { facts: Facts::of(0, caller, account), traffic: account.traffic.clone() };
        let mut table = self.shards[shard].0.lock();
        entry.facts.id = table.next_id(shard);
        let key = table.in_flight.insert(entry);
        Place { shard, key }
    }

    fn change(&self, place: &Place, change: impl FnOnce(&mut Facts)) {
        if let Some(entry) = self.shards[place.shard].0.lock().in_flight.get_mut(place.key) {
            change(&mut entry.facts);
        }
    }

    /// An exchange has ended; `place`: the one that it had, if it was shown.
    pub fn leave(&self, place: Option<Place>, caller: &Caller, account: &Account, tries: &Tries, end: End) {
        // Whoever begins to read in between has nothing of it.
        let mut ended = self.read.load(Ordering::Relaxed).then(|| {
            let figures = &end.figures;
            let mut facts = Facts::of(0, caller, account);
            (facts.bytes_in, facts.bytes_out) = (figures.bytes_in, figures.bytes_out);
            Ended {
                facts,
                at: Instant::now(),
                outcome: figures.outcome,
                code: account.code().map(str::to_owned),
                reason: account.failure().map(ToString::to_string).or(end.reason),
                took: figures.took,
                first_byte: figures.first_byte,
                connect: account.connect,
                tries: tries.clone(),
            }
        });
        let (shard, key) = match place {
            Some(Place { shard, key }) => (shard, Some(key)),
            None if ended.is_some() => (self.own_shard(), None),
            None => return,
        };
        let mut table = self.shards[shard].0.lock();
        let left = key.and_then(|key| table.in_flight.try_remove(key));
        if let Some(mut ended) = ended.take() {
            ended.facts.id = match &left {
                Some(entry) => entry.facts.id,
                None => table.next_id(shard),
            };
            match table.ended.len() < MAX_ENDED {
                true => table.ended.push(ended),
                false => table.ended_omitted += 1,
            }
        }
        drop(table);
        // What it held may be the last of it: not under the lock.
        drop(left);
    }

    /// The oldest that are in flight, and how many there are in all.
    fn in_flight(&self) -> (Vec<Facts>, usize) {
        let (mut shown, mut total) = (Vec::new(), 0);
        for shard in &self.shards {
            let table = shard.0.lock();
            total += table.in_flight.len();
            let mut oldest: Vec<_> =
                table.in_flight.iter().map(|(key, entry)| (entry.facts.started, key)).collect();
            if oldest.len() > MAX_IN_FLIGHT {
                oldest.select_nth_unstable(MAX_IN_FLIGHT - 1);
                oldest.truncate(MAX_IN_FLIGHT);
            }
            shown.extend(oldest.into_iter().map(|(_, key)| table.in_flight[key].now()));
        }
        shown.sort_unstable_by_key(|facts| (facts.started, facts.id));
        shown.truncate(MAX_IN_FLIGHT);
        (shown, total)
    }

    /// What has ended since this was asked last, and how many more.
    fn take_ended(&self) -> (Vec<Ended>, u64) {
        let (mut ended, mut omitted) = (Vec::new(), 0);
        for shard in &self.shards {
            let mut table = shard.0.lock();
            ended.append(&mut std::mem::take(&mut table.ended));
            omitted += std::mem::take(&mut table.ended_omitted);
        }
        ended.sort_by_key(|ended| ended.at);
        omitted += ended.len().saturating_sub(MAX_ENDED) as u64;
        ended.truncate(MAX_ENDED);
        (ended, omitted)
    }
}

impl Table {
    /// Unique in this process.
    fn next_id(&mut self, shard: usize) -> u64 {
        self.entered += 1;
        self.entered * SHARDS as u64 + shard as u64
    }
}

impl Entry {
    /// As it is now.
    fn now(&self) -> Facts {
        let (bytes_in, bytes_out) = (self.traffic.request.bytes(), self.traffic.answer.bytes());
        Facts { bytes_in, bytes_out, ..self.facts.clone() }
    }
}

impl Facts {
    fn of(id: u64, caller: &Caller, account: &Account) -> Self {
        let who = match caller {
            Caller::Peer(peer) => Who::Peer(peer.clone()),
            Caller::Program(program) => Who::Program(program.acts_as.clone()),
        };
        Self {
            id,
            who,
            method: account.method.clone(),
            uri: account.uri.clone(),
            agent: account.agent.clone(),
            node: account.node.clone(),
            trace: account.trace.trace_id,
            attempts: account.attempts,
            started: account.started,
            status: account.status(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }
}

impl Place {
    /// The request is sent to this node.
    pub fn sent_to(&self, node: Option<&NodeName>, attempts: u32) {
        LIVE.change(self, |facts| {
            facts.node = node.cloned();
            facts.attempts = attempts;
        });
    }

    /// The head of the answer is there.
    pub fn answered(&self, status: u16) {
        LIVE.change(self, |facts| facts.status = Some(status));
    }
}
