//! Keeping the roster's addresses fresh: every node's name is looked up again when its answer is out of date.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::NodeName;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use crate::resolver::{Resolution, Resolver};
use crate::state::{Inner, Resolved, State, Wanted};

/// Least and longest time between two lookups of one name.
const RANGE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Lookups under way at once.
const AT_ONCE: usize = 8;
/// How long to sleep when nothing is due; a new node wakes earlier.
const IDLE: Duration = Duration::from_secs(60);
/// From so many nodes on, no server is asked for a node that registered a literal address: each of them would be asked
/// for all nodes by all nodes, over and over.
const MANY: usize = 50;
/// How often this host's own files are looked at.
const FILES: Duration = Duration::from_secs(10);

/// When to look up which name.
#[derive(Debug, Default)]
struct Schedule {
    known: HashMap<NodeName, Due>,
    /// Those that are not being looked up.
    waiting: BTreeSet<(Instant, NodeName)>,
}

#[derive(Debug)]
struct Due {
    host: String,
    at: Instant,
    running: bool,
}

impl Schedule {
    /// Takes in a name with the host that it falls back to now; `None`: the name is no longer there.
    fn follow(&mut self, name: &NodeName, host: Option<String>, now: Instant) {
        let Some(host) = host else {
            if let Some(gone) = self.known.remove(name) {
                self.waiting.remove(&(gone.at, name.clone()));
            }
            return;
        };
        match self.known.get_mut(name) {
            Some(due) if due.host == host => return,
            Some(due) => due.host = host,
            None => drop(self.known.insert(name.clone(), Due { host, at: now, running: false })),
        }
        self.set(name, now);
    }

    /// The name is due then, unless it is being looked up: then it is when that has ended.
    fn set(&mut self, name: &NodeName, at: Instant) {
        let Some(due) = self.known.get_mut(name) else { return };
        self.waiting.remove(&(due.at, name.clone()));
        due.at = at;
        if !due.running {
            self.waiting.insert((at, name.clone()));
        }
    }

    /// All names are due.
    fn set_all(&mut self, now: Instant) {
        let names: Vec<NodeName> = self.known.keys().cloned().collect();
        names.iter().for_each(|name| self.set(name, now));
    }

    /// The next name that is due, with its host; it is being looked up from now on.
    fn start(&mut self, now: Instant) -> Option<(NodeName, String)> {
        let (_, name) = self.waiting.first().filter(|(at, _)| *at <= now)?;
        let name = name.clone();
        self.waiting.pop_first();
        let due = self.known.get_mut(&name)?;
        due.running = true;
        Some((name, due.host.clone()))
    }

    /// The lookup of the name with this host has ended; its answer holds for so long. Returns whether it counts: of a
    /// host that the node no longer has, it does not.
    fn ended(&mut self, name: &NodeName, host: &str, valid_for: Duration, now: Instant) -> bool {
        let Some(due) = self.known.get_mut(name) else { return false };
        due.running = false;
        let counts = due.host == host;
        self.set(name, if counts { now + valid_for.clamp(RANGE.0, RANGE.1) } else { now });
        counts
    }
}

/// Looks up all nodes that are or may be in the mesh, for as long as the daemon runs.
pub async fn run(state: Arc<State>, resolver: Arc<Resolver>) {
    // Not the rosters: one whose host changed has the same addresses until it was looked up.
    let mut views = state.views();
    views.mark_changed();
    let (mut schedule, mut followed) = (Schedule::default(), 0);
    let mut lookups = JoinSet::new();
    let mut files = interval(FILES);
    let mut sources = resolver.sources().await;
    loop {
        let now = Instant::now();
        while lookups.len() < AT_ONCE
            && let Some((name, host)) = schedule.start(now)
        {
            let loopback = state.read(|inner, _| {
                let configured = |wanted: &Wanted| wanted.configured && wanted.candidate.host == host;
                inner.is_on_loopback() || inner.candidates.get(&name).is_some_and(configured)
            });
            let (resolver, many) = (resolver.clone(), schedule.known.len() >= MANY);
            lookups.spawn(async move {
                let unasked = match many {
                    true => resolver.unasked(&name, &host, loopback).await,
                    false => None,
                };
                let resolution = match unasked {
                    Some(resolution) => resolution,
                    None => resolver.resolve(&name, &host, loopback).await,
                };
                (name, host, resolution)
            });
        }
        let next = match (lookups.len() < AT_ONCE, schedule.waiting.first()) {
            (true, Some((at, _))) => *at,
            _ => now + IDLE,
        };
        tokio::select! {
            Some(done) = lookups.join_next() => {
                // A lookup that panicked is tried again when the files change.
                let Ok((name, host, resolution)) = done else { continue };
                if schedule.ended(&name, &host, resolution.valid_for, Instant::now()) {
                    state.with(|inner, _| take(inner, name, host, resolution));
                }
            }
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
                views.mark_unchanged();
                followed = state.read(|inner, _| follow(&mut schedule, inner, state.local(), followed));
            }
            _ = files.tick() => {
                let now = resolver.sources().await;
                if std::mem::replace(&mut sources, now) != now {
                    schedule.set_all(Instant::now());
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

/// Takes in who changed since revision `followed`, everybody where that is unknown. Returns the revision now.
fn follow(schedule: &mut Schedule, inner: &Inner, local: &NodeName, followed: u64) -> u64 {
    let now = Instant::now();
    let names = inner.changes.since(followed).unwrap_or_else(|| {
        let known: BTreeMap<_, _> = hosts(inner).collect();
        let gone = schedule.known.keys().filter(|name| !known.contains_key(*name)).cloned();
        gone.collect::<Vec<_>>().into_iter().chain(known.keys().copied().cloned()).collect()
    });
    // The own one is nobody's destination here.
    for name in names.iter().filter(|name| *name != local) {
        schedule.follow(name, host_of(inner, name).cloned(), now);
    }
    inner.changes.revision()
}

/// The names to look up. Where two say it, the member's host counts.
fn hosts(inner: &Inner) -> impl Iterator<Item = (&NodeName, &String)> {
    let candidates = inner.candidates.iter().map(|(name, wanted)| (name, &wanted.candidate.host));
    candidates.chain(inner.members.members().iter().map(|(name, member)| (name, &member.node.host)))
}

fn host_of<'i>(inner: &'i Inner, name: &NodeName) -> Option<&'i String> {
    let member = inner.members.members().get(name).map(|member| &member.node.host);
    member.or_else(|| inner.candidates.get(name).map(|wanted| &wanted.candidate.host))
}

/// Takes in an answer. A lookup that failed leaves the last good addresses of the same host in use.
fn take(inner: &mut Inner, name: NodeName, host: String, resolution: Resolution) {
    let held = inner.addresses.get(&name);
    let addresses: Vec<IpAddr> = match (resolution.addresses.is_empty(), held) {
        (true, Some(held)) if held.host == host => held.addresses.clone(),
        _ => resolution.addresses,
    };
    let resolved = Resolved { host, addresses, problem: resolution.problem };
    if held != Some(&resolved) {
        if let Some(problem) = resolved.problem.as_ref().filter(|_| resolved.addresses.is_empty()) {
            tracing::warn!(target: "Names", "{problem} node={name}");
        }
        inner.touch(&name);
        inner.addresses.insert(name, resolved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_when_it_is_due_and_when_its_host_changes() {
        let (mut schedule, begun) = (Schedule::default(), Instant::now());
        let (ct111, ct112): (NodeName, NodeName) = ("ct111".parse().unwrap(), "ct112".parse().unwrap());
        let at = |s| begun + Duration::from_secs(s);
        schedule.follow(&ct111, Some("a".into()), at(0));
        assert_eq!(schedule.start(at(0)), Some((ct111.clone(), "a".into())));
        schedule.follow(&ct112, Some("c".into()), at(1));
        assert_eq!(schedule.start(at(0)), None, "one is under way, the other due in a second");
        assert!(schedule.ended(&ct111, "a", Duration::from_secs(20), at(0)));
        assert_eq!(schedule.start(at(1)), Some((ct112.clone(), "c".into())));
        assert_eq!(schedule.start(at(19)), None);
        assert_eq!(schedule.start(at(20)), Some((ct111.clone(), "a".into())));
        // Its host changes meanwhile.
        schedule.follow(&ct111, Some("b".into()), at(21));
        assert_eq!(schedule.start(at(21)), None);
        assert!(!schedule.ended(&ct111, "a", Duration::from_secs(20), at(22)));
        assert_eq!(schedule.start(at(22)), Some((ct111.clone(), "b".into())));
        assert!(schedule.ended(&ct111, "b", Duration::from_secs(20), at(22)));
        schedule.set_all(at(23));
        assert_eq!(schedule.start(at(23)), Some((ct111.clone(), "b".into())));
        schedule.follow(&ct111, None, at(24));
        assert!(!schedule.ended(&ct111, "b", Duration::from_secs(20), at(24)));
        assert!(schedule.ended(&ct112, "c", Duration::from_secs(20), at(24)));
        assert_eq!(schedule.waiting.len(), schedule.known.len());
    }
}
