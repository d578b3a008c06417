//! What a mesh of so many nodes costs whose registry is in etcd: real pairs of daemons and a real cluster of three, and for
//! the other nodes their entries, under one lease.

use std::fs;
use std::time::{Duration, Instant};

use clap::Parser;
use etcd_client::{Client, Error, PutOptions};
use mesh_tests::etcd::Cluster;
use mesh_tests::mesh::{Mesh, Node, entry};
use mesh_tests::{eventually_within, process};
use tokio::time::sleep;

/// A change counts as lost after this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the entries that stand for nodes, in seconds.
const LEASE: i64 = 7200;

#[derive(Parser)]
struct Cli {
    /// Sizes of the mesh
    #[arg(long, value_delimiter = ',', default_value = "200,1000,5000")]
    nodes: Vec<usize>,
    /// How many of them are real
    #[arg(long, default_value_t = 6)]
    real: usize,
    /// Changes whose way is measured
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// How long the idle daemons are looked at
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let cli = Cli::parse();
    println!(
        "| Nodes | Change known by all real ones: p50, p99 | registryd idle, MiB | mesh-proxy idle, MiB |"
    );
    println!("|---|---|---|---|");
    for nodes in &cli.nodes {
        measure(&cli, *nodes).await?;
    }
    Ok(())
}

async fn measure(cli: &Cli, nodes: usize) -> Result<(), Error> {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let mut client = Client::connect(cluster.urls(), None).await?;
    let lease = client.lease_grant(LEASE, None).await?.id();
    let others = nodes.saturating_sub(cli.real).max(1);
    for i in 0..others {
        put(&mut client, i, &format!("agent-{i}")).await?;
        let held = PutOptions::new().with_lease(lease);
        client.put(format!("/mesh/alive/n{i}"), format!("n{i}"), Some(held)).await?;
    }
    let mut real = Vec::new();
    for i in 0..cli.real {
        let store = cluster.store();
        let plan = mesh.node(&format!("ct{}", 110 + i)).with(|config| config["registryd"]["store"] = store);
        real.push(plan.start().await);
    }
    for node in &real {
        let all = async || {
            let known = node.local("/mesh/nodes").await?.json();
            (known.as_array()?.len() == others + cli.real).then_some(())
        };
        eventually_within(PATIENCE, "every node is known", all).await;
    }
    let mut took = Vec::new();
    for change in 0..cli.changes {
        let agent = format!("new-{change}");
        let begun = Instant::now();
        put(&mut client, change * 7 % others, &agent).await?;
        for node in &real {
            knows(node, &agent).await;
        }
        took.push(begun.elapsed().as_millis());
    }
    took.sort_unstable();
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
    // What the changes left to do is done.
    sleep(Duration::from_secs(10)).await;
    let pids = |daemon: fn(&Node) -> u32| real.iter().map(daemon).collect::<Vec<_>>();
    let (registryds, proxies) = (
        pids(|node| node.registryd.as_ref().map_or(0, |daemon| daemon.pid())),
        pids(|node| node.proxy.as_ref().map_or(0, |daemon| daemon.pid())),
    );
    let before = (cpu(&registryds), cpu(&proxies));
    sleep(Duration::from_secs(cli.seconds)).await;
    let share = |used: f64| 100.0 * used / cli.seconds as f64 / cli.real as f64;
    println!(
        "| {nodes} | {} ms, {} ms | {:.2} % of a core, {:.0} | {:.2} % of a core, {:.0} |",
        at(50).unwrap_or(&0),
        at(99).unwrap_or(&0),
        share(cpu(&registryds) - before.0),
        mebibytes(&registryds),
        share(cpu(&proxies) - before.1),
        mebibytes(&proxies),
    );
    Ok(())
}

async fn put(client: &mut Client, i: usize, agent: &str) -> Result<(), Error> {
    let host = format!("10.{}.{}.{}", i >> 16 & 255, i >> 8 & 255, i & 255);
    let entry = entry(&format!("n{i}"), &host, 3000, &[agent]);
    client.put(format!("/mesh/nodes/n{i}"), entry.to_string(), None).await?;
    Ok(())
}

/// Waits until a node shows who has the agent.
async fn knows(node: &Node, agent: &str) {
    let shown = async || {
        let nodes = node.local(&format!("/mesh/nodes?agent={agent}")).await?.json();
        (nodes.as_array()?.len() == 1).then_some(())
    };
    let end = Instant::now() + PATIENCE;
    while shown().await.is_none() {
        assert!(Instant::now() < end, "{} does not know {agent}", node.name);
        sleep(Duration::from_millis(5)).await;
    }
}

/// The CPU time of these processes, in seconds.
fn cpu(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| process::cpu_ticks(*pid)).sum::<u64>() as f64 / 100.0
}

/// What they have in memory, on average.
fn mebibytes(pids: &[u32]) -> f64 {
    let resident = |pid: &u32| -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(resident).sum::<f64>() / 1024.0 / pids.len().max(1) as f64
}
