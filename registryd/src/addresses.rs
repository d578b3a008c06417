//! Keeping the roster's addresses fresh: every node's name is looked up again when its answer is out of date.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::NodeName;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::resolver::{Resolution, Resolver};
use crate::state::{Inner, Resolved, State, Wanted};

/// Least and longest time between two lookups of one name.
const RANGE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Lookups under way at once.
const AT_ONCE: usize = 8;
/// How long to sleep when nothing is due; a new node wakes earlier.
const IDLE: Duration = Duration::from_secs(60);

struct Due {
    host: String,
    at: Instant,
    running: bool,
}

/// Looks up all nodes that are or may be in the mesh, for as long as the daemon runs.
pub async fn run(state: Arc<State>, resolver: Arc<Resolver>) {
    // Not the rosters: one whose host changed has the same addresses until it was looked up.
    let mut views = state.views();
    let mut known: HashMap<NodeName, Due> = HashMap::new();
    let mut lookups = JoinSet::new();
    loop {
        views.mark_unchanged();
        follow(&mut known, state.read(|inner, _| hosts(inner, state.local())));
        let now = Instant::now();
        let mut due: Vec<_> = known.iter_mut().filter(|(_, due)| !due.running && due.at <= now).collect();
        due.sort_by_key(|(_, due)| due.at);
        for (name, due) in due {
            if lookups.len() >= AT_ONCE {
                break;
            }
            due.running = true;
            let (name, host, resolver) = (name.clone(), due.host.clone(), resolver.clone());
            let loopback = state.read(|inner, _| {
                let configured = |wanted: &Wanted| wanted.configured && wanted.candidate.host == host;
                inner.is_on_loopback() || inner.candidates.get(&name).is_some_and(configured)
            });
            lookups.spawn(async move {
                let resolution = resolver.resolve(&name, &host, loopback).await;
                (name, host, resolution)
            });
        }
        let waiting = known.values().filter(|due| !due.running).map(|due| due.at);
        let next = match lookups.len() < AT_ONCE {
            true => waiting.min().unwrap_or(now + IDLE),
            false => now + IDLE,
        };
        tokio::select! {
            Some(done) = lookups.join_next() => {
                // A lookup that panicked is tried again with the others when its host changes or IDLE is over.
                let Ok((name, host, resolution)) = done else { continue };
                if let Some(due) = known.get_mut(&name) {
                    due.running = false;
                    // Of a host that the node no longer has, the answer counts for nothing.
                    if due.host == host {
                        due.at = Instant::now() + resolution.valid_for.clamp(RANGE.0, RANGE.1);
                        state.with(|inner, _| take(inner, name, host, resolution));
                    }
                }
            }
            changed = views.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
    }
}

/// Which names to look up, with the host that each falls back to. The own one is nobody's destination here.
fn hosts(inner: &Inner, local: &NodeName) -> HashMap<NodeName, String> {
    let members = inner.members.members().iter().map(|(name, member)| (name, &member.node.host));
    let candidates = inner.candidates.iter().map(|(name, wanted)| (name, &wanted.candidate.host));
    let all = candidates.chain(members).filter(|(name, _)| *name != local);
    all.map(|(name, host)| (name.clone(), host.clone())).collect()
}

fn follow(known: &mut HashMap<NodeName, Due>, hosts: HashMap<NodeName, String>) {
    known.retain(|name, _| hosts.contains_key(name));
    for (name, host) in hosts {
        let due = known.entry(name).or_insert_with(|| Due {
            host: host.clone(),
            at: Instant::now(),
            running: false,
        });
        if due.host != host {
            due.host = host;
            due.at = Instant::now();
        }
    }
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
        inner.addresses.insert(name, resolved);
        inner.touch();
    }
}
