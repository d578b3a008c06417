//! What one node's registryd and its sidecar's roster cost in a mesh of so many nodes: the real state, socket, DNS zone
//! and roster follower in one process, with everybody else played by calls.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proxy::roster::registryd::RegistryLink;
use mesh_proxy::roster::store::RosterStore;
use mesh_proxy::roster::sync;
use mesh_shared::config::Config;
use mesh_shared::registry::{Node, Status};
use registryd::api;
use registryd::backend::file::{Amend, Store, worker};
use registryd::backend::{Ledger, Look, Observation};
use registryd::limits::Limits;
use registryd::resolver::Resolver;
use registryd::state::{State, own_claims};
use registryd::{addresses, dns_server};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::sleep;

/// The default heartbeat interval, on the mean.
const INTERVAL_S: f64 = 28.5;
const CHANGES: usize = 200;
const READS: usize = 10;
const MIB: f64 = 1024.0 * 1024.0;

/// What a node costs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cost {
    nodes: usize,
    /// Resident memory of the process.
    memory_mib: f64,
    /// CPU while nothing happens, and while every node beats over the network, in percent of a core.
    idle_percent: f64,
    beats_percent: f64,
    /// CPU for one node that changes its state, until the sidecar knows it.
    change_us: f64,
    known_after_p99_ms: f64,
    /// CPU for one look at a file in which one node has beaten.
    read_ms: f64,
}

impl Cost {
    /// The heads of the columns.
    pub const HEAD: &str =
        "nodes   MiB    idle   beats   us a change   p99 known, ms   ms a read of the file";

    /// As a line below [`Self::HEAD`].
    pub fn line(&self) -> String {
        format!(
            "{:5} {:5.0} {:6.2}% {:6.2}% {:13.0} {:15.1} {:12.1}",
            self.nodes,
            self.memory_mib,
            self.idle_percent,
            self.beats_percent,
            self.change_us,
            self.known_after_p99_ms,
            self.read_ms
        )
    }
}

/// Measures the node `config` in the mesh that its registry file holds.
pub fn measure(config: Config, others: &[Node], seconds: f64) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cost = runtime.block_on(run(Arc::new(config), others, seconds));
    runtime.shutdown_background();
    cost
}

async fn run(config: Arc<Config>, others: &[Node], seconds: f64) -> Cost {
    let state = Arc::new(State::new(config.clone(), own_claims(&config)));
    let store = Store::new(config.mesh.registry_path(), state.local());
    let (backend, _watchdog) = worker::start(store.clone(), state.clone()).unwrap();
    let socket = UnixListener::from_std(api::bind(&config.registryd.socket).unwrap()).unwrap();
    let resolver = Arc::new(Resolver::new(&config.registryd.dns));
    tokio::spawn(api::serve(socket, state.clone(), backend, Limits::of_this_process()));
    tokio::spawn(addresses::run(state.clone(), resolver.clone()));
    let (zones, _zone) = watch::channel(None);
    tokio::spawn(dns_server::feed::run(state.clone(), resolver, zones));
    sleep(Duration::from_secs(12)).await;
    let memory_mib = memory_bytes() / MIB;

    let link = Arc::new(RegistryLink::new(&config));
    let folder = config.proxy.state_dir.clone();
    let roster = RosterStore::open(&folder, state.local().clone(), ([127, 0, 0, 1], 3000).into());
    let roster = Arc::new(roster);
    tokio::spawn(sync::follow(link, roster.clone(), None));
    let last = others.last().and_then(Node::node_name).unwrap();
    while roster.node(&last).is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(2)).await;
    let idle_percent = percent(seconds, sleep(Duration::from_secs_f64(seconds))).await;
    let beating = async {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let pause = Duration::from_secs_f64(INTERVAL_S / others.len() as f64);
        let mut due = tokio::time::Instant::now();
        for node in others.iter().cycle() {
            if Instant::now() >= until {
                break;
            }
            hear(&state, node.clone());
            due += pause;
            tokio::time::sleep_until(due).await;
        }
    };
    let beats_percent = percent(seconds, beating).await;

    let (mut known_after_ms, before) = (Vec::new(), cpu());
    for (i, node) in others.iter().cycle().take(CHANGES).enumerate() {
        let status = [Status::Degraded, Status::Updating][i / others.len() % 2];
        let name = node.node_name().unwrap();
        let begun = Instant::now();
        hear(&state, Node { status, ..node.clone() });
        while roster.node(&name).is_ok_and(|route| route.status != status) {
            sleep(Duration::from_micros(500)).await;
        }
        known_after_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        sleep(Duration::from_millis(20)).await;
    }
    let change_us = (cpu() - before) * 1e6 / CHANGES as f64;
    known_after_ms.sort_by(f64::total_cmp);
    Cost {
        nodes: others.len() + 1,
        memory_mib,
        idle_percent,
        beats_percent,
        change_us,
        known_after_p99_ms: known_after_ms[CHANGES * 99 / 100],
        read_ms: reads(&store, &config),
    }
}

fn hear(state: &State, node: Node) {
    let name = node.node_name().unwrap();
    let last_seen = State::now().epoch_ms;
    state.with(|inner, now| inner.members.hear_itself(&name, Node { last_seen, ..node }, now)).unwrap();
}

/// Looks at the file, each time after one node has beaten in it.
fn reads(store: &Store, config: &Arc<Config>) -> f64 {
    let state = State::new(config.clone(), own_claims(config));
    let look = Look { writes_pass: true, pause: Duration::ZERO };
    let mut read_ms = 0.0;
    for beat in 0..=READS {
        let written = store.change(None, |registry| {
            let entry = registry.nodes.values_mut().nth(beat + 1).unwrap();
            let node = entry.node().unwrap();
            let moved = Node { last_seen: node.last_seen + 1000, ..Node::clone(node) };
            entry.update(moved);
            true
        });
        written.unwrap();
        let before = cpu_of_thread();
        let before_it = state.last_good();
        let (registry, _) = match &before_it {
            Some(known) => store.read_after(known).unwrap(),
            None => store.read().unwrap(),
        };
        state.observed(Observation::Read { registry, look });
        // The first one is all news.
        read_ms += if beat > 0 { (cpu_of_thread() - before) * 1e3 } else { 0.0 };
    }
    read_ms / READS as f64
}

/// How much of a core `during` takes.
async fn percent(seconds: f64, during: impl Future<Output = ()>) -> f64 {
    let before = cpu();
    during.await;
    (cpu() - before) * 100.0 / seconds
}

fn memory_bytes() -> f64 {
    let pages = fs::read_to_string(Path::new("/proc/self/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    seconds_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_of_thread() -> f64 {
    seconds_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[allow(unsafe_code, reason = "a plain call that fills a struct")]
fn seconds_of(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives for the call.
    assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut time) }, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
