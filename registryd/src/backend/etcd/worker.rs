//! The task that follows etcd and brings it up to date. A member that fails is left for the next one; only when none
//! answers is that a problem.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{EventType, KeyValue, WatchResponse};
use mesh_shared::NodeName;
use mesh_shared::config::Etcd;
use mesh_shared::registry::Entry;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::connection::{Connection, Contents, Trouble};
use super::keeper::{Keeper, Life};
use super::{Key, Keys, Speak};
use crate::backend::{Backend, Change, Failure, Job, Jobs, Observation, Wish};
use crate::jitter;
use crate::membership::Holder;

/// How long the cluster may fail before that is told: longer than it takes to find another member or leader.
const PATIENCE: Duration = Duration::from_secs(4);
/// The first and the longest pause between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// The least time between two writes for nothing but registrations.
const GATHER: Duration = Duration::from_millis(100);

/// Prepares the task, which has to be run for as long as the daemon does.
pub fn new<L: Speak>(settings: Etcd, local: &NodeName, ledger: Arc<L>) -> (Backend, Worker<L>) {
    let (jobs, queue) = mpsc::unbounded_channel();
    let keys = Keys::new(&settings.prefix);
    let keeper = Keeper::new(ledger.clone(), local.clone(), keys.clone());
    let worker = Worker {
        settings,
        ledger,
        keys,
        keeper,
        queue,
        revision: None,
        seen: false,
        outage: None,
        waiting: Vec::new(),
    };
    (Backend { jobs: Jobs::Task(jobs) }, worker)
}

/// The task.
pub struct Worker<L> {
    settings: Etcd,
    ledger: Arc<L>,
    keys: Keys,
    keeper: Keeper<L>,
    queue: UnboundedReceiver<Job>,
    /// Up to where changes are known.
    revision: Option<i64>,
    /// Whether everything was read once.
    seen: bool,
    outage: Option<Outage>,
    /// Taken from the queue and not done yet.
    waiting: Vec<Job>,
}

/// A time in which no member served.
struct Outage {
    since: Instant,
    failures: u32,
    told: bool,
}

impl Outage {
    fn new() -> Self {
        Self { since: Instant::now(), failures: 0, told: false }
    }
}

impl<L: Speak> Worker<L> {
    /// Runs for as long as somebody can ask.
    pub async fn run(mut self) {
        let members = self.settings.endpoints.len();
        // Not all nodes ask the same member.
        let mut member = (jitter::unit().abs() * 1e6) as usize;
        loop {
            let endpoint = self.settings.endpoints[member % members].clone();
            let error = match Connection::open(&self.settings, &endpoint).await {
                Ok(mut connection) => match self.follow(&mut connection).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let Trouble::Compacted(_) = error {
                self.revision = None;
                continue;
            }
            if members > 1 && self.outage.is_none() {
                tracing::info!(target: "Registry", "etcd at {}: {error}; continuing with another member", endpoint.as_str());
            }
            member = member.wrapping_add(1);
            let outage = self.outage.get_or_insert_with(Outage::new);
            outage.failures = outage.failures.saturating_add(1);
            let rounds = outage.failures / members as u32;
            if outage.since.elapsed() >= PATIENCE && rounds > 0 {
                outage.told = true;
                let all: Vec<&str> =
                    self.settings.endpoints.iter().map(|endpoint| endpoint.as_str()).collect();
                let sentence = format!(
                    "no member of etcd serves at {} (the last one: {error}); continuing with the last good view",
                    all.join(", ")
                );
                self.refuse_all(&sentence);
                self.ledger.observed(Observation::Hangs(Some(sentence)));
            }
            // All members once, fast.
            let pause = if rounds == 0 { RETRY.0 } else { jitter::backoff(rounds, RETRY.0, RETRY.1) };
            tokio::time::sleep(pause).await;
        }
    }

    fn refuse_all(&mut self, sentence: &str) {
        self.waiting.extend(std::iter::from_fn(|| self.queue.try_recv().ok()));
        for job in self.waiting.drain(..) {
            // Whoever asked may have stopped waiting.
            let _ = job.done.send(Err(sentence.into()));
        }
    }

    /// Follows one member until it fails; `Ok` when nobody can ask any more.
    async fn follow(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        let known = match self.revision {
            // A store that was restored from a backup has gone back.
            Some(known) => Some((known, connection.revision().await?)),
            None => None,
        };
        let from = match known {
            Some((known, now)) if now >= known => known,
            _ => self.snapshot(connection).await?,
        };
        let mut watch = connection.watch(from + 1).await?;
        if self.outage.take().is_some_and(|outage| outage.told) {
            self.ledger.observed(Observation::Hangs(None));
        }
        loop {
            if !self.waiting.is_empty() {
                self.work(connection).await?;
            }
            tokio::select! {
                answer = watch.message() => {
                    let ended = || Trouble::WatchEnded("the member closed the watch".into());
                    let answer = answer.map_err(Trouble::Call)?.ok_or_else(ended)?;
                    if answer.canceled() {
                        return Err(match answer.compact_revision() {
                            0 => Trouble::WatchEnded(answer.cancel_reason().to_owned()),
                            revision => Trouble::Compacted(revision),
                        });
                    }
                    self.take_in(&answer);
                }
                job = self.queue.recv() => match job {
                    Some(job) => self.waiting.push(job),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Reads everything; returns as of which revision.
    async fn snapshot(&mut self, connection: &mut Connection) -> Result<i64, Trouble> {
        let Contents { entries, lives, revision } = connection.contents().await?;
        self.keeper.begin_anew();
        let mut leases = HashMap::new();
        for kv in &lives {
            if let Some(Key::Alive(name)) = self.keys.parse(kv.key()) {
                leases.extend(holder(&name, kv).map(|holder| (name.clone(), holder)));
                self.keeper.saw_life(&name, Some(life(kv)));
            }
        }
        let entries = entries.iter().filter_map(|kv| self.entry(kv)).collect();
        let missed = std::mem::replace(&mut self.seen, true);
        self.revision = Some(revision);
        self.ledger.observed(Observation::Snapshot { entries, leases, revision, missed });
        Ok(revision)
    }

    /// The entry under a key, if it is the one of the key's node: a role lets a host write its keys, not say who others
    /// are.
    fn entry(&self, kv: &KeyValue) -> Option<(NodeName, Entry)> {
        let Some(Key::Entry(name)) = self.keys.parse(kv.key()) else { return None };
        let entry = Entry::parse(kv.value());
        let named = entry.as_ref().and_then(Entry::node).and_then(|node| node.node_name());
        match entry.filter(|_| named.as_ref() == Some(&name)) {
            Some(entry) => Some((name, entry)),
            None => {
                tracing::warn!(
                    target: "Registry",
                    "the value of {} in etcd is not the entry of node {name}, and is ignored", self.keys.entry(&name)
                );
                None
            }
        }
    }

    fn take_in(&mut self, answer: &WatchResponse) {
        let mut changes = Vec::new();
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let put = event.event_type() == EventType::Put;
            match self.keys.parse(kv.key()) {
                Some(Key::Entry(name)) => {
                    let held = put.then(|| kv.value().to_vec());
                    self.keeper.saw_entry(&name, held, kv.mod_revision());
                    let entry = if put { self.entry(kv) } else { None };
                    changes.push(match entry {
                        Some((name, entry)) => Change::Entry(name, Box::new(entry)),
                        None => Change::Removed(name),
                    });
                }
                Some(Key::Alive(name)) => {
                    self.keeper.saw_life(&name, put.then(|| life(kv)));
                    let holder = if put { holder(&name, kv) } else { None };
                    changes.push(Change::Lease(name, holder));
                }
                None => {}
            }
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        let revision = self.revision.map_or(revision, |known| known.max(revision));
        self.revision = Some(revision);
        self.ledger.observed(Observation::Changes { changes, revision });
    }

    async fn work(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        self.waiting.extend(std::iter::from_fn(|| self.queue.try_recv().ok()));
        if self.waiting.iter().all(|job| job.patient) {
            // Registrations that come one after the other are entered together.
            tokio::time::sleep(GATHER).await;
            self.waiting.extend(std::iter::from_fn(|| self.queue.try_recv().ok()));
        }
        self.waiting.retain(|job| !job.done.is_closed());
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut wish = Wish::default();
        for job in &self.waiting {
            wish.beat |= job.wish.beat;
            wish.forget.extend(job.wish.forget.iter().cloned());
        }
        let started = Instant::now();
        let answer = match self.keeper.publish(connection, &wish).await {
            Ok(replaced) => {
                let (beat, took) = (wish.beat, started.elapsed());
                let written = Observation::Written { registry: None, replaced, beat, took, set_aside: None };
                self.ledger.observed(written);
                Ok(())
            }
            Err(denied @ Trouble::Denied { .. }) => {
                let sentence = format!("etcd: {denied}");
                self.ledger.observed(Observation::Unwritable(Failure {
                    sentence: sentence.clone(),
                    missing: false,
                }));
                Err(sentence)
            }
            // Those who asked wait for the next member.
            Err(error) => return Err(error),
        };
        for job in self.waiting.drain(..) {
            let _ = job.done.send(answer.clone());
        }
        Ok(())
    }
}

/// Who renews the lease of a node's life. A key without one would never end, and shows nothing.
fn holder(name: &NodeName, kv: &KeyValue) -> Option<Holder> {
    let itself = kv.value() == name.as_str().as_bytes();
    (kv.lease() != 0).then_some(if itself { Holder::Itself } else { Holder::Other })
}

fn life(kv: &KeyValue) -> Life {
    Life { lease: kv.lease(), by: kv.value().to_vec() }
}
