//! Many registryds on one file that are killed at random instants, with one reader that is never tired and, if
//! wanted, one program that rewrites the file in place and without a lock. What must hold is judged at every read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mesh::{Mesh, Node};
use crate::process::Daemon;
use crate::view::{self, Mode, View};

/// What a run takes at least, however long a busy machine needs for it.
const READS: u64 = 200;
const KILLS: u64 = 5;

/// How much of it, and of what kind.
#[derive(Debug, Clone)]
pub struct Chaos {
    /// Determines who is killed when, as far as the machine lets it.
    pub seed: u64,
    /// How many registryds share the file.
    pub nodes: usize,
    /// For how long they are killed, at least.
    pub lasting: Duration,
    /// The nodes' heartbeat interval; with a careless program, also the time in which all it overwrote is back.
    pub heartbeat: Duration,
    /// Whether one more program rewrites the file in place, without a lock, from what it read a moment ago.
    pub careless: bool,
    /// Whether every other node has the file through a mount of its own, which hangs for short times.
    pub mounted: bool,
}

/// What happened, for people.
#[derive(Debug, Default)]
pub struct Report {
    /// Reads of the file, each judged.
    pub reads: u64,
    /// Those that met the careless program in the middle of writing; none without it.
    pub half_written: u64,
    /// kill -9 of a registryd, whatever it was doing.
    pub kills: u64,
    /// Goodbyes of nodes that came back, while a careless program wrote.
    pub goodbyes: u64,
    /// Changes by a program that takes the lock.
    pub careful_writes: u64,
    /// Rewrites in place.
    pub careless_writes: u64,
    /// How often the mount hung.
    pub hangs: u64,
    /// Goodbyes for good.
    pub left: usize,
    /// The longest time in which an entry was not as its node had it.
    pub longest_gap: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads ({} of half-written content), {} kills, {} goodbyes, {} careful and {} careless writes, \
             {} nodes left for good, {} hangs of the mount, longest gap {:?}",
            self.reads,
            self.half_written,
            self.kills,
            self.goodbyes,
            self.careful_writes,
            self.careless_writes,
            self.left,
            self.hangs,
            self.longest_gap
        )
    }
}

/// SplitMix64: the same numbers for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// A time below `end`.
    pub fn time(&mut self, end: Duration) -> Duration {
        end.mul_f64(self.below(1_000_000) as f64 / 1e6)
    }
}

/// The seed from `MESH_SEED`, to see a failure again; else a new one.
pub fn seed() -> u64 {
    match std::env::var("MESH_SEED") {
        Ok(seed) => seed.parse().expect("MESH_SEED is a number"),
        Err(_) => crate::mesh::epoch_ms(),
    }
}

/// What the file must say from now on.
#[derive(Debug, Clone, Default)]
struct Expected {
    /// By id: what registryd acknowledged by being ready.
    registered: BTreeMap<String, Registered>,
    /// The careful program's last number, which only it changes.
    counter: u64,
    /// Nodes that run, and since when their entries have to say so.
    alive: BTreeMap<String, Instant>,
    /// Nodes that said goodbye, and since when their entries have to say so.
    left: BTreeMap<String, Instant>,
}

#[derive(Debug, Clone)]
struct Registered {
    name: String,
    registered_at: Value,
}

/// Reads the file again and again.
struct Reader {
    path: PathBuf,
    careless: bool,
    /// How long an entry may differ from what its node has it to be.
    limit: Duration,
    good_at: BTreeMap<String, Instant>,
    report: Report,
    /// The reads of the report, for those who wait for them.
    reads: Arc<AtomicU64>,
}

impl Reader {
    fn read(&mut self, expected: &Expected) -> Result<(), String> {
        let started = Instant::now();
        let content = fs::read(&self.path).map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.report.reads += 1;
        self.reads.store(self.report.reads, Ordering::SeqCst);
        let registry: Value = match serde_json::from_slice(&content) {
            Ok(registry) => registry,
            Err(_) if self.careless => {
                self.report.half_written += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("it does not parse: {error}")),
        };
        if registry["owner"] != json!({"team": "rivet"}) || registry["version"] != 1 {
            return Err("an unknown field at the top is lost".into());
        }
        // A careless program takes back what the careful one wrote; nobody can know that it was not meant.
        if !self.careless && registry["counter"].as_u64().unwrap_or_default() < expected.counter {
            return Err(format!("write {} is lost", expected.counter));
        }
        for (id, registered) in &expected.registered {
            let entry = &registry["nodes"][id];
            let Registered { name, registered_at } = registered;
            if entry["name"] != *name || entry["registeredAt"] != *registered_at {
                return Err(format!("the registration of {name} is lost"));
            }
            if entry["asset"]["of"] != *name {
                return Err(format!("an unknown field of {name} is lost"));
            }
        }
        let status_of = |name: &str| {
            let mut entries = registry["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values());
            entries.find(|entry| entry["name"] == name).map(|entry| entry["status"].clone())
        };
        for (wanted, nodes) in [("online", &expected.alive), ("offline", &expected.left)] {
            for (name, since) in nodes {
                let status = status_of(name);
                if status.as_ref().is_some_and(|status| status == wanted) {
                    self.good_at.insert(name.clone(), started);
                    continue;
                }
                let good_at = self.good_at.get(name).map_or(*since, |good_at| *good_at.max(since));
                let gap = started.saturating_duration_since(good_at);
                self.report.longest_gap = self.report.longest_gap.max(gap);
                if gap > self.limit {
                    return Err(format!("{name} is not {wanted} for {gap:?}, but {status:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Threads that end with this value.
struct Until {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Result<Report, String>>>,
    careless: Option<JoinHandle<u64>>,
    hanging: Option<JoinHandle<u64>>,
}

impl Drop for Until {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Chaos {
    /// Runs it.
    ///
    /// # Panics
    /// With what did not hold, and the seed.
    pub async fn run(self) -> Report {
        eprintln!("seed {} (MESH_SEED={} repeats it): {self:?}", self.seed, self.seed);
        let Some(mut run) = Run::begin(self).await else { return Report::default() };
        while !run.is_long_enough() {
            run.go_on().await;
            tokio::time::sleep(run.random.time(Duration::from_millis(50))).await;
        }
        run.end_careless_writes();
        run.bring_all_back().await;
        run.end()
    }

    /// With a careless program: the first so many nodes live until they say goodbye for good, one after the other, and as
    /// many register for the first time while the file is being overwritten.
    fn sixth(&self) -> usize {
        if self.careless { self.nodes / 6 } else { 0 }
    }

    async fn prepare_nodes(&self, mesh: &Mesh) -> Vec<Node> {
        let mut nodes = Vec::new();
        for i in 0..self.nodes {
            let plan = mesh.node(&format!("ct{}", 200 + i));
            let heartbeat = self.heartbeat.as_millis() as u64;
            let plan = plan.with(|config| {
                config["mesh"]["heartbeat_interval_ms"] = json!(heartbeat);
                if self.mounted && i % 2 == 1 {
                    config["mesh"]["storage_dir"] = json!(mesh.folder().join("view"));
                }
            });
            nodes.push(plan.prepare().await);
        }
        nodes
    }
}

/// A run under way. What its fields hold ends in their order: threads, the mount, the nodes, the folder.
struct Run {
    plan: Chaos,
    until: Until,
    _view: Option<View>,
    nodes: Vec<Node>,
    mesh: Mesh,
    expected: Arc<Mutex<Expected>>,
    reads: Arc<AtomicU64>,
    /// Since when all nodes that register early have.
    started: Option<Instant>,
    random: Random,
    report: Report,
}

impl Run {
    /// `None`: nothing can be mounted on this host.
    async fn begin(plan: Chaos) -> Option<Self> {
        let mesh = Mesh::new();
        mesh.edit_registry(|registry| {
            registry["owner"] = json!({"team": "rivet"});
            registry["counter"] = json!(0);
        });
        let mut nodes = plan.prepare_nodes(&mesh).await;
        let view = match plan.mounted {
            true => Some(View::mount(&mesh.folder().join("shared"), &mesh.folder().join("view"))?),
            false => None,
        };
        let expected = Arc::new(Mutex::new(Expected::default()));
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let reader = Reader {
            path: mesh.registry_path(),
            careless: plan.careless,
            limit: if plan.careless { plan.heartbeat } else { Duration::MAX },
            good_at: BTreeMap::new(),
            report: Report::default(),
            reads: reads.clone(),
        };
        let reader = thread::spawn({
            let (expected, stop) = (expected.clone(), stop.clone());
            move || read_until(reader, &expected, &stop)
        });
        let mut until = Until { stop, reader: Some(reader), careless: None, hanging: None };
        if let Some(view) = &view {
            let (view, stop, seed) = (view.handle(), until.stop.clone(), plan.seed);
            until.hanging = Some(thread::spawn(move || hang_until(&view, seed, &stop)));
        }
        let early = plan.nodes - plan.sixth();
        nodes[..early].iter_mut().for_each(start);
        Some(Self {
            random: Random::new(plan.seed),
            plan,
            until,
            _view: view,
            nodes,
            mesh,
            expected,
            reads,
            started: None,
            report: Report::default(),
        })
    }

    /// How many nodes register before the file is overwritten.
    fn early(&self) -> usize {
        self.nodes.len() - self.plan.sixth()
    }

    fn is_long_enough(&self) -> bool {
        self.started.is_some_and(|at| at.elapsed() >= self.plan.lasting)
            && self.reads.load(Ordering::SeqCst) > READS
            && self.report.kills > KILLS
    }

    async fn go_on(&mut self) {
        self.until.must_go_on();
        self.acknowledge();
        if self.started.is_none() && self.expected.lock().unwrap().registered.len() == self.early() {
            self.started = Some(Instant::now());
            if self.plan.careless {
                let (path, seed) = (self.mesh.registry_path(), self.plan.seed);
                let stop = self.until.stop.clone();
                self.until.careless = Some(thread::spawn(move || rewrite_until(path, seed, &stop)));
            }
        }
        let lasting = self.plan.lasting.as_secs_f64();
        let passed = self.started.map_or(0.0, |at| at.elapsed().as_secs_f64() / lasting);
        let (sixth, left) = (self.plan.sixth(), self.report.left);
        if passed * (sixth + 2) as f64 > (left + 1) as f64 && left < sixth {
            say_goodbye(&mut self.nodes[left], &self.expected).await;
            self.report.left += 1;
        }
        let i = sixth + self.random.below(self.nodes.len() - sixth);
        self.happen_to(i).await;
    }

    /// Starts a node or ends it, or writes as a careful program does.
    async fn happen_to(&mut self, i: usize) {
        let early = self.early();
        let Self { plan, nodes, mesh, expected, random, report, .. } = self;
        let node = &mut nodes[i];
        let since = expected.lock().unwrap().alive.get(&node.name).copied();
        match &mut node.registryd {
            None if i >= early && self.started.is_none() => {}
            None => {
                expected.lock().unwrap().left.remove(&node.name);
                start(node);
            }
            // A first registration that is overwritten before anybody saw it comes back only with its node.
            Some(_) if i >= early && since.is_none_or(|since| since.elapsed() < plan.heartbeat) => {}
            // Only a registryd that is ready says goodbye in order.
            Some(_) if plan.careless && since.is_none() => {}
            Some(daemon) if random.below(3) == 0 => {
                if plan.careless && random.below(2) == 0 {
                    say_goodbye(node, expected).await;
                    report.goodbyes += 1;
                } else {
                    expected.lock().unwrap().alive.remove(&node.name);
                    daemon.kill();
                    report.kills += 1;
                    node.registryd = None;
                }
            }
            Some(_) if !plan.careless => {
                mesh.edit_registry(|registry| {
                    report.careful_writes += 1;
                    registry["counter"] = json!(report.careful_writes);
                });
                expected.lock().unwrap().counter = report.careful_writes;
            }
            Some(_) => {}
        }
    }

    /// Takes note of nodes that are ready: what they said is not to be lost from now on.
    fn acknowledge(&mut self) {
        let early = self.early();
        let Self { nodes, mesh, expected, report, .. } = self;
        for (i, node) in nodes.iter_mut().enumerate() {
            let Some(daemon) = &mut node.registryd else { continue };
            assert!(daemon.is_running(), "{} ended by itself", node.name);
            if expected.lock().unwrap().alive.contains_key(&node.name) {
                continue;
            }
            if daemon.lines_with(&["registryd ready"]).is_empty()
                || !daemon.lines_with(&["not in the registry yet"]).is_empty()
            {
                continue;
            }
            let known = expected.lock().unwrap().registered.values().any(|known| known.name == node.name);
            // The careful way of writing can't be gone while a careless program writes.
            if !known && i < early {
                let entry = mesh.entry(&node.name);
                let entry = entry.unwrap_or_else(|| panic!("{} is ready but not registered", node.name));
                let id = entry["id"].as_str().unwrap().to_owned();
                mesh.edit_registry(|registry| {
                    report.careful_writes += 1;
                    registry["counter"] = json!(report.careful_writes);
                    registry["nodes"][&id]["asset"] = json!({"of": node.name});
                });
                let registered =
                    Registered { name: node.name.clone(), registered_at: entry["registeredAt"].clone() };
                let mut expected = expected.lock().unwrap();
                expected.counter = report.careful_writes;
                expected.registered.insert(id, registered);
            }
            expected.lock().unwrap().alive.insert(node.name.clone(), Instant::now());
        }
    }

    fn end_careless_writes(&mut self) {
        if let Some(careless) = self.until.careless.take() {
            self.until.stop.store(true, Ordering::SeqCst);
            self.report.careless_writes = careless.join().unwrap();
            assert!(self.report.careless_writes > 10, "{}", self.report);
        }
    }

    /// Everybody but those who left for good comes back as it was.
    async fn bring_all_back(&mut self) {
        let stay = &mut self.nodes[self.plan.sixth()..];
        for node in stay.iter_mut().filter(|node| node.registryd.is_none()) {
            self.expected.lock().unwrap().left.remove(&node.name);
            start(node);
        }
        let mesh = &self.mesh;
        let last_seen = |name: &str| mesh.entry(name).and_then(|entry| entry["lastSeen"].as_u64());
        let before: Vec<_> = stay.iter().map(|node| last_seen(&node.name)).collect();
        for (node, before) in stay.iter().zip(before) {
            crate::eventually(&format!("{} heartbeats", node.name), async || {
                let online = mesh.entry(&node.name)?["status"] == "online";
                (online && last_seen(&node.name) > before).then_some(())
            })
            .await;
        }
    }

    /// Ends the threads, and judges what is there at the end.
    fn end(mut self) -> Report {
        self.until.stop.store(true, Ordering::SeqCst);
        let read = self.until.reader.take().unwrap().join().unwrap();
        let read = read.unwrap_or_else(|error| panic!("{error}"));
        if let Some(hanging) = self.until.hanging.take() {
            self.report.hangs = hanging.join().unwrap();
        }
        let (mesh, nodes) = (&self.mesh, &self.nodes);
        let registry = mesh.registry();
        assert_eq!(registry["nodes"].as_object().unwrap().len(), nodes.len(), "{registry}");
        for Node { name, .. } in &nodes[..self.plan.sixth()] {
            assert_eq!(mesh.entry(name).unwrap()["status"], "offline", "{name} had left");
            for observer in nodes {
                if let Some(daemon) = &observer.registryd {
                    let revived = daemon.lines_with(&[&format!("node={name} "), "recovered"]);
                    assert!(revived.is_empty(), "{} saw {name} come back: {revived:?}", observer.name);
                }
            }
        }
        let folder = fs::read_dir(mesh.registry_path().parent().unwrap()).unwrap();
        let files: Vec<_> = folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert!(files.iter().all(|name| !name.contains("corrupt")), "{files:?}");
        // A kill may leave a temporary file, one for each node.
        assert!(files.len() <= 2 + nodes.len(), "{files:?}");
        let report = std::mem::take(&mut self.report);
        Report { reads: read.reads, half_written: read.half_written, longest_gap: read.longest_gap, ..report }
    }
}

impl Until {
    /// Ends the run as soon as the reader saw what must not be.
    fn must_go_on(&mut self) {
        if self.reader.as_ref().is_some_and(|reader| reader.is_finished()) {
            let outcome = self.reader.take().unwrap().join().unwrap();
            panic!("the reader ended: {}", outcome.err().unwrap_or_default());
        }
    }
}

fn start(node: &mut Node) {
    let name = format!("{} registryd", node.name);
    node.registryd = Some(Daemon::start(&name, &mut node.command("registryd")));
}

async fn say_goodbye(node: &mut Node, expected: &Mutex<Expected>) {
    expected.lock().unwrap().alive.remove(&node.name);
    assert!(node.registryd().stop().await.success());
    expected.lock().unwrap().left.insert(node.name.clone(), Instant::now());
    node.registryd = None;
}

fn read_until(mut reader: Reader, expected: &Mutex<Expected>, stop: &AtomicBool) -> Result<Report, String> {
    while !stop.load(Ordering::SeqCst) {
        // Taken before reading, so that the file can only be newer.
        let now = expected.lock().unwrap().clone();
        if let Err(error) = reader.read(&now) {
            return Err(format!("after {}: {error}", reader.report));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(reader.report)
}

/// What programs in the field do: read, take a while, truncate and write.
fn rewrite_until(path: PathBuf, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = Random::new(seed + 1);
    let mut written = 0;
    while !stop.load(Ordering::SeqCst) {
        let content = fs::read(&path).unwrap_or_default();
        let Ok(mut registry) = serde_json::from_slice::<Value>(&content) else { continue };
        registry["updatedAt"] = json!(crate::mesh::epoch_ms());
        thread::sleep(random.time(Duration::from_millis(50)));
        if fs::write(&path, registry.to_string()).is_err() {
            // The run ended early and its folder is gone.
            return written;
        }
        written += 1;
        thread::sleep(random.time(Duration::from_millis(200)));
    }
    written
}

/// Hangs now and then, for short times: a process that waits for a mount can't even be killed.
fn hang_until(view: &view::Handle, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = Random::new(seed + 2);
    let mut hangs = 0;
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(random.time(Duration::from_secs(2)));
        view.set(Mode::Hanging);
        thread::sleep(random.time(Duration::from_millis(800)));
        view.set(Mode::Passing);
        hangs += 1;
    }
    hangs
}
