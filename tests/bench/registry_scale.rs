//! How far one shared `mesh.json` goes: registryd's own store and state, written from several processes; and what one
//! node costs in meshes of several sizes.
//!
//! Each writer is a thread that does what registryd's storage thread does for one heartbeat, with a lock and a view
//! of its own; where there are more nodes than writers, each beats for several. One more process is a node that
//! only reads, as every node does between its heartbeats. `tests/bench/README.md` says what the columns mean.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

mod one_node;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use mesh_shared::config::Config;
use mesh_shared::registry::{Node, Status};
use one_node::Cost;
use registryd::backend::file::{Amend, Store, StoreError, worker};
use registryd::backend::{Ledger, Look, Observation, Wish};
use registryd::jitter;
use registryd::state::{State, own_claims};
use serde::{Deserialize, Serialize};

/// The default interval, 30 s, and up to a tenth earlier.
const BEATS_PER_HOUR: f64 = 3600.0 / (30.0 * 0.95);
/// A few nodes beat too rarely for a percentile: then this often in all, which is worse than the truth.
const LEAST_RATE: f64 = 5.0;
/// Writers at once. Each keeps a view of all nodes in memory.
const MAX_WRITERS: usize = 64;
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Parser)]
struct Cli {
    /// Where to put the file, for example on an NFS mount; below target/ unless given
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Sizes of the mesh
    #[arg(long, value_delimiter = ',', default_value = "10,50,200,1000")]
    nodes: Vec<usize>,
    /// How long each of the two loads takes
    #[arg(long, default_value_t = 25)]
    seconds: u64,
    /// Measure instead what one node costs in a mesh of each size
    #[arg(long)]
    one_node: bool,
    /// How many processes write
    #[arg(long, default_value_t = 4)]
    processes: usize,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// A child process.
#[derive(Clone, Subcommand)]
enum Part {
    /// Heartbeats of the nodes `first`, `first + step`, … below `end`.
    #[command(hide = true)]
    Write {
        folder: PathBuf,
        first: usize,
        step: usize,
        end: usize,
        seconds: f64,
        /// Between two heartbeats of one node; 0: as fast as it goes.
        pause_s: f64,
    },
    /// A node that looks at the file.
    #[command(hide = true)]
    Read { folder: PathBuf, node: usize, seconds: f64 },
    /// One node in the mesh that the folder's file holds.
    #[command(hide = true)]
    OneNode { folder: PathBuf, nodes: usize, seconds: f64 },
}

fn main() {
    let cli = Cli::parse();
    let outcome = match &cli.part {
        None if cli.one_node => return measure_one_node(&cli),
        None => return measure(&cli),
        Some(Part::OneNode { folder, nodes, seconds }) => {
            let others: Vec<Node> = (1..*nodes).map(|i| registered(folder, i)).collect();
            let cost = one_node::measure(config(folder, 0), &others, *seconds);
            return println!("{}", serde_json::to_string(&cost).unwrap());
        }
        Some(Part::Write { folder, first, step, end, seconds, pause_s }) => {
            write(folder, (*first..*end).step_by(*step), *seconds, *pause_s)
        }
        Some(Part::Read { folder, node, seconds }) => read(folder, *node, *seconds),
    };
    println!("{}", serde_json::to_string(&outcome).unwrap());
}

/// Measures one node in a mesh of each size, in a process of its own, and prints its line.
fn measure_one_node(cli: &Cli) {
    println!("{}", Cost::HEAD);
    for &nodes in &cli.nodes {
        let folder = tempfile::Builder::new().prefix("registry-scale-").tempdir().unwrap();
        seed(folder.path(), nodes);
        let part = Part::OneNode { folder: folder.path().into(), nodes, seconds: cli.seconds as f64 };
        let mut command = Command::new(std::env::current_exe().unwrap());
        let told = command.args(arguments(&part)).stderr(Stdio::inherit()).output().unwrap().stdout;
        let cost: Cost = serde_json::from_slice(&told).expect("an outcome");
        println!("{}", cost.line());
    }
}

/// Measures each size and prints its line.
fn measure(cli: &Cli) {
    let above = cli.dir.clone().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    fs::create_dir_all(&above).unwrap();
    let filesystem = Command::new("stat").args(["-f", "-c", "%T"]).arg(&above).output().unwrap().stdout;
    let filesystem = String::from_utf8_lossy(&filesystem);
    println!(
        "in {} ({}), {} CPUs\n",
        above.display(),
        filesystem.trim(),
        thread::available_parallelism().unwrap()
    );
    println!(
        "nodes   file       alone, ms  heartbeats/s          at real rate, ms            node and hour, MiB  all nodes"
    );
    println!(
        "         KiB    p50    p99    most   real   busy     p50    p99     max  failed   written    read   read MiB/s"
    );
    for &nodes in &cli.nodes {
        let folder = tempfile::Builder::new().prefix("registry-scale-").tempdir_in(&above).unwrap();
        println!("{}", measure_size(cli, folder.path(), nodes));
    }
}

fn measure_size(cli: &Cli, folder: &Path, nodes: usize) -> String {
    seed(folder, nodes);
    let file = fs::metadata(folder.join("mesh.json")).unwrap().len() as f64;
    let writers = nodes.min(MAX_WRITERS);
    let part = |first, step, end, seconds, pause_s| Part::Write {
        folder: folder.into(),
        first,
        step,
        end,
        seconds,
        pause_s,
    };
    let all = |seconds, pause_s| -> Vec<Part> {
        (0..cli.processes).map(|first| part(first, cli.processes, writers, seconds, pause_s)).collect()
    };
    let seconds = cli.seconds as f64;

    let alone = merged(&run(&[part(0, 1, 1, 4.0, 0.0)]));
    let most = merged(&run(&all(seconds, 0.0)));
    let real = nodes as f64 * BEATS_PER_HOUR / 3600.0;
    let rate = real.max(LEAST_RATE);
    let reader = Part::Read { folder: folder.into(), node: nodes - 1, seconds };
    let outcomes = run(&[vec![reader], all(seconds, writers as f64 / rate)].concat());
    let (reader, paced) = (&outcomes[0], merged(&outcomes[1..]));

    let most_per_s = most.latencies_ms.len() as f64 / seconds;
    let written_per_beat = paced.written_bytes as f64 / paced.latencies_ms.len() as f64;
    let read_per_s = reader.read_bytes as f64 / seconds * looks_with_news(real) / looks_with_news(rate);
    format!(
        "{nodes:5} {:6.0} {:6.1} {:6.1} {most_per_s:7.0} {real:6.1} {:5.1}% {:7.1} {:6.1} {:7.1} {:7} {:9.1} {:7.0} {:12.1}",
        file / 1024.0,
        alone.percentile(50.0),
        alone.percentile(99.0),
        real / most_per_s * 100.0,
        paced.percentile(50.0),
        paced.percentile(99.0),
        paced.percentile(100.0),
        most.failed + paced.failed,
        written_per_beat * BEATS_PER_HOUR / MIB,
        read_per_s * 3600.0 / MIB,
        read_per_s * nodes as f64 / MIB,
    )
}

/// Of a node's four looks a second at a small file, how many find it changed where all nodes write `rate` times.
fn looks_with_news(rate: f64) -> f64 {
    4.0 * (1.0 - (-rate / 4.0).exp())
}

/// What a child tells at its end.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    /// From when a heartbeat was due until it was on disk.
    latencies_ms: Vec<f64>,
    failed: usize,
    read_bytes: u64,
    written_bytes: u64,
}

impl Outcome {
    fn percentile(&self, percent: f64) -> f64 {
        let last = self.latencies_ms.len().saturating_sub(1);
        self.latencies_ms.get((last as f64 * percent / 100.0).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

fn merged(outcomes: &[Outcome]) -> Outcome {
    let mut all = Outcome::default();
    for outcome in outcomes {
        all.latencies_ms.extend(&outcome.latencies_ms);
        all.failed += outcome.failed;
        all.read_bytes += outcome.read_bytes;
        all.written_bytes += outcome.written_bytes;
    }
    all.latencies_ms.sort_by(f64::total_cmp);
    all
}

/// Runs the parts as processes that begin at the same time.
fn run(parts: &[Part]) -> Vec<Outcome> {
    let mut children: Vec<(Child, BufReader<_>)> = parts
        .iter()
        .map(|part| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(arguments(part)).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let output = BufReader::new(child.stdout.take().unwrap());
            (child, output)
        })
        .collect();
    for (_, output) in &mut children {
        assert_eq!(line(output), "ready");
    }
    for (child, _) in &mut children {
        writeln!(child.stdin.as_mut().unwrap(), "go").unwrap();
    }
    let mut outcomes = Vec::new();
    for (child, output) in &mut children {
        outcomes.push(serde_json::from_str(&line(output)).expect("an outcome"));
        assert!(child.wait().unwrap().success());
    }
    outcomes
}

fn arguments(part: &Part) -> Vec<String> {
    match part {
        Part::Write { folder, first, step, end, seconds, pause_s } => {
            let numbers = format!("{first} {step} {end} {seconds} {pause_s}");
            let numbers = numbers.split(' ').map(String::from);
            ["write".into(), folder.display().to_string()].into_iter().chain(numbers).collect()
        }
        Part::Read { folder, node, seconds } => {
            vec!["read".into(), folder.display().to_string(), node.to_string(), seconds.to_string()]
        }
        Part::OneNode { folder, nodes, seconds } => {
            vec!["one-node".into(), folder.display().to_string(), nodes.to_string(), seconds.to_string()]
        }
    }
}

fn line(input: &mut impl BufRead) -> String {
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    line.trim().into()
}

/// Tells the parent that everything is prepared, and waits for its word.
fn begin() -> Instant {
    println!("ready");
    line(&mut std::io::stdin().lock());
    Instant::now()
}

fn write(folder: &Path, nodes: impl Iterator<Item = usize>, seconds: f64, pause_s: f64) -> Outcome {
    let writers: Vec<_> = nodes.map(|i| prepared(folder, i)).collect();
    let before = own_io("wchar");
    let begun = begin();
    let until = begun + Duration::from_secs_f64(seconds);
    let threads: Vec<_> = writers
        .into_iter()
        .map(|(store, state)| thread::spawn(move || write_one(&store, &state, begun, until, pause_s)))
        .collect();
    let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    Outcome { written_bytes: own_io("wchar") - before, ..merged(&outcomes) }
}

fn write_one(store: &Store, state: &State, begun: Instant, until: Instant, pause_s: f64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut due = begun + Duration::from_secs_f64(pause_s * jitter::unit());
    while due < until {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match beat(store, state) {
            Ok(()) => outcome.latencies_ms.push(due.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                if outcome.failed == 0 {
                    eprintln!("{}: {error}", state.local());
                }
                outcome.failed += 1;
            }
        }
        // At the real rate a heartbeat that is late does not put off the next one. On the mean, `pause_s` lies
        // between two.
        due = match pause_s > 0.0 {
            true => due + jitter::heartbeat(Duration::from_secs_f64(pause_s / 0.95)),
            false => Instant::now(),
        };
    }
    outcome
}

/// What registryd's storage thread does for a heartbeat.
fn beat(store: &Store, state: &State) -> Result<(), StoreError> {
    state.with(|inner, now| inner.members.beat(now));
    let last_good = state.last_good();
    let mut held = None;
    let outcome = store.change(last_good.as_deref(), |registry| {
        let wanted = state.amend(registry, &Wish { beat: true, ..Wish::default() });
        held = Some(registry.clone());
        wanted
    });
    let written = outcome?;
    state.observed(Observation::Written {
        registry: held,
        replaced: written.replaced,
        beat: true,
        took: Duration::ZERO,
        set_aside: None,
    });
    Ok(())
}

fn read(folder: &Path, node: usize, seconds: f64) -> Outcome {
    let (store, state) = prepared(folder, node);
    let before = own_io("rchar");
    begin();
    let _parts = worker::start(store, state).unwrap();
    thread::sleep(Duration::from_secs_f64(seconds));
    Outcome { read_bytes: own_io("rchar") - before, ..Outcome::default() }
}

/// What this process asked the kernel to read or write.
fn own_io(which: &str) -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let value = io.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(": "));
    value.unwrap().parse().unwrap()
}

/// A node that has read the file.
fn prepared(folder: &Path, i: usize) -> (Store, Arc<State>) {
    let config = config(folder, i);
    let store = Store::new(config.mesh.registry_path(), &config.mesh.node_name);
    let own = own_claims(&config);
    let state = Arc::new(State::new(Arc::new(config), own));
    let (registry, _) = store.read().unwrap();
    state.observed(Observation::Read { registry, look: Look { writes_pass: true, pause: Duration::ZERO } });
    (store, state)
}

/// A file in which all nodes are registered.
fn seed(folder: &Path, nodes: usize) {
    let first = config(folder, 0);
    let written = Store::new(first.mesh.registry_path(), &first.mesh.node_name).change(None, |registry| {
        for i in 0..nodes {
            let node = registered(folder, i);
            registry.nodes.insert(node.id.clone(), node.into());
        }
        true
    });
    written.unwrap();
}

fn registered(folder: &Path, i: usize) -> Node {
    let now = State::now().epoch_ms;
    let own = own_claims(&config(folder, i));
    Node { id: own.name.clone(), status: Status::Online, last_seen: now, registered_at: now, ..own }
}

/// Two agents and what else a node usually says; an entry takes about 600 bytes.
fn config(folder: &Path, i: usize) -> Config {
    let yaml = format!(
        "mesh:
  enabled: true
  node_name: ct{i}
  tls: true
  storage_dir: {}
  # Writers that stand for several nodes leave the entries of the others as they are.
  stale_threshold_ms: 86400000
  advertise_host: 10.1.{}.{}
proxy:
  state_dir: {}
registryd:
  socket: {}/registryd.sock
  agents: [{{name: opus-{i}, provider: anthropic, model: claude-opus}}, {{name: grok-{i}, provider: xai, model: grok}}]
  capabilities: [code, research]
",
        folder.display(),
        i / 250,
        i % 250 + 1,
        folder.display(),
        folder.display(),
    );
    Config::parse(&yaml).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}
