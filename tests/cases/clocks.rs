//! Nodes whose clocks are an hour off, by libfaketime: they neither die nor become immortal, nobody else suffers,
//! and the skew is shown.

use std::process::Command;
use std::time::{Duration, Instant};

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node, epoch_ms};
use mesh_tests::process::{Daemon, succeed};
use serde_json::json;

const THRESHOLD: Duration = Duration::from_secs(4);
const HOUR_MS: i64 = 3_600_000;
/// Delays of reading and writing, on a busy machine.
const SLACK_MS: i64 = 60_000;

/// Starts registryd with its wall clock off by so many hours; its monotonic clock is the machine's.
async fn start(node: &mut Node, hours: i64) {
    let mut command = node.command("registryd");
    if hours != 0 {
        let offset = format!("{hours:+}h");
        // What the wrapper would set; without the wrapper, the process is the test's own child.
        let library = succeed(Command::new("faketime").args(["-f", &offset, "printenv", "LD_PRELOAD"]));
        command
            .env("LD_PRELOAD", library.trim())
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
    node.registryd = Some(Daemon::start(&format!("{} registryd ({hours:+} h)", node.name), &mut command));
    node.registryd().wait_log(&["registryd ready"]).await;
}

/// What libfaketime leaves behind of a process that is killed.
struct Leftovers(Vec<u32>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for pid in &self.0 {
            for name in ["faketime_shm", "sem.faketime_sem"] {
                // There is none of a process that ended in order.
                let _ = std::fs::remove_file(format!("/dev/shm/{name}_{pid}"));
            }
        }
    }
}

async fn seen_by(observer: &Node, node: &str) -> serde_json::Value {
    observer.local(&format!("/mesh/nodes?node={node}")).await.unwrap().json()[0].clone()
}

async fn becomes(observer: &Node, node: &str, status: &str) {
    eventually(&format!("{node} is {status} for {}", observer.name), async || {
        (seen_by(observer, node).await["status"] == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn clocks_an_hour_off_neither_kill_nor_keep_alive() {
    let mesh = Mesh::new();
    let mut leftovers = Leftovers(Vec::new());
    let mut nodes = Vec::new();
    for (name, hours) in [("ct110", 0), ("ct111", 1), ("ct112", -1), ("ct113", 0)] {
        let plan = mesh.node(name).with(|config| {
            config["mesh"]["heartbeat_interval_ms"] = json!(300);
            config["mesh"]["stale_threshold_ms"] = json!(THRESHOLD.as_millis() as u64);
        });
        let mut node = plan.prepare().await;
        start(&mut node, hours).await;
        leftovers.0.push(node.registryd().pid());
        nodes.push((node, hours));
    }
    let names: Vec<_> = nodes.iter().map(|(node, _)| node.name.clone()).collect();
    for (observer, _) in &nodes {
        for name in &names {
            becomes(observer, name, "online").await;
        }
    }
    // The stamps are really off: registryd's own clock is.
    for (node, hours) in &nodes {
        let ahead = mesh.entry(&node.name).unwrap()["lastSeen"].as_i64().unwrap() - epoch_ms() as i64;
        assert!((ahead - hours * HOUR_MS).abs() < SLACK_MS, "{}: {ahead}", node.name);
    }
    let started = Instant::now();
    while started.elapsed() < 2 * THRESHOLD {
        for (observer, _) in &mut nodes {
            let silent = observer.registryd().lines_with(&["fell silent"]);
            assert!(silent.is_empty(), "{}: {silent:?}", observer.name);
        }
        for name in &names {
            assert_eq!(mesh.entry(name).unwrap()["status"], "online", "{name}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Each sees the others' clocks against its own.
    for (observer, own) in &nodes {
        for (node, hours) in nodes.iter().filter(|(node, _)| node.name != observer.name) {
            let skew = seen_by(observer, &node.name).await["skewMs"].as_i64().unwrap();
            assert!((skew - (hours - own) * HOUR_MS).abs() < SLACK_MS, "{}: {skew}", node.name);
        }
    }
    let shown = succeed(nodes[0].0.command("meshctl").arg("nodes"));
    for (name, words) in [("ct111", "min ahead"), ("ct112", "min behind"), ("ct113", "ok")] {
        let row = shown.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row.contains(words), "{shown}");
    }

    // Dead, they go offline for everybody as soon as any other node does.
    for dead in [1, 2] {
        let name = names[dead].clone();
        let killed = Instant::now();
        nodes[dead].0.registryd().kill();
        for (observer, _) in
            nodes.iter().enumerate().filter(|(i, _)| *i == 0 || *i == 3).map(|(_, node)| node)
        {
            becomes(observer, &name, "offline").await;
        }
        assert!(killed.elapsed() > THRESHOLD / 2, "{name} was given up after {:?}", killed.elapsed());
        eventually("the file says so", async || (mesh.entry(&name)?["status"] == "offline").then_some(()))
            .await;
    }
    // With their clocks put right, hence one of them set back by an hour, they are back at once.
    for back in [1, 2] {
        start(&mut nodes[back].0, 0).await;
        for (observer, _) in &nodes[..1] {
            becomes(observer, &names[back], "online").await;
        }
    }
    let settled = Instant::now();
    while settled.elapsed() < 2 * THRESHOLD {
        for name in &names {
            assert_eq!(mesh.entry(name).unwrap()["status"], "online", "{name}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
