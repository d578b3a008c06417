//! Minutes of chaos with one registry file, and sidecars that are replaced under load time and again; the short forms
//! of the same are among the cases.
//! `tests/soak.sh` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod floods;

use std::time::Duration;

use mesh_tests::chaos::{self, Chaos};
use mesh_tests::failover::Failover;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::supervised::{self, Supervised};

const LASTING: Duration = Duration::from_secs(120);
/// What the reader reaches by far, even on a busy machine.
const READS: u64 = 10_000;

#[tokio::test]
async fn registryds_that_are_killed_at_random_lose_nothing() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 24,
        lasting: LASTING,
        heartbeat: Duration::from_millis(500),
        careless: false,
        mounted: false,
    };
    let report = chaos.run().await;
    println!("only registryds: {report}");
    assert!(report.reads > READS && report.kills > 100, "{report}");
}

#[tokio::test]
async fn what_a_program_without_a_lock_overwrites_is_back_within_a_heartbeat() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 24,
        lasting: LASTING,
        heartbeat: Duration::from_secs(5),
        careless: true,
        mounted: false,
    };
    let report = chaos.run().await;
    println!("with a careless program: {report}");
    assert!(report.reads > READS && report.kills > 100, "{report}");
}

#[tokio::test]
async fn nothing_is_lost_where_some_have_the_file_through_a_mount_that_hangs() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 24,
        lasting: LASTING,
        heartbeat: Duration::from_millis(500),
        careless: false,
        mounted: true,
    };
    let report = chaos.run().await;
    println!("with a mount that hangs: {report}");
    assert!(report.hangs > 20 && report.kills > 100, "{report}");
}

#[tokio::test]
async fn of_a_thousand_tasks_only_those_on_a_stopped_node_are_lost() {
    let report = Failover { posts: 1000, every: Duration::from_millis(20) }.run().await;
    println!("one of three nodes killed, one stopped: {report}");
    assert!(report.after > 300, "{report}");
    // Nobody waits for a node that is known to be away.
    assert!(report.p99.1 < Duration::from_millis(500).max(report.p99.0 * 3), "{report}");
}

/// How often a sidecar is replaced, with how many requests a second and how many event streams.
const ROUNDS: u32 = 20;
const PER_SECOND: u32 = 200;
const STREAMS: usize = 20;

/// Two nodes, of which one's sidecar is under a supervisor: the calling one's, or the one that is called.
async fn pair(mesh: &Mesh, calling: bool) -> (Node, Node, Supervised) {
    let patient = |name: &str, agent: &str| {
        let plan = mesh.node(name).agent(agent);
        plan.with(|config| config["proxy"]["timeouts"]["drain_ms"] = 25_000.into())
    };
    let (mut near, mut far) =
        (patient("ct110", "opus").prepare().await, patient("ct111", "grok").prepare().await);
    near.start_registryd().await;
    far.start_registryd().await;
    let (supervised, other) = if calling { (&mut near, &mut far) } else { (&mut far, &mut near) };
    let sidecar = Supervised::start(supervised).await;
    other.start_proxy().await;
    near.has_roster().await;
    far.has_roster().await;
    near.reaches("ct111").await;
    (near, far, sidecar)
}

#[tokio::test]
async fn sidecars_are_restarted_under_load_and_nobody_is_refused() {
    for calling in [true, false] {
        let mesh = Mesh::new();
        let (near, far, mut sidecar) = pair(&mesh, calling).await;
        let sent = supervised::restarts(&near, &far, &mut sidecar, PER_SECOND, STREAMS, ROUNDS).await;
        println!("{ROUNDS} restarts, of the calling side: {calling}: {sent} requests, none failed");
    }
}

#[tokio::test]
async fn sidecars_are_upgraded_under_load_and_nobody_notices() {
    for calling in [true, false] {
        let mesh = Mesh::new();
        let (near, far, mut sidecar) = pair(&mesh, calling).await;
        let sent = supervised::upgrades(&near, &far, &mut sidecar, PER_SECOND, STREAMS, ROUNDS).await;
        println!(
            "{ROUNDS} upgrades, of the calling side: {calling}: {sent} requests, none failed, no stream cut"
        );
    }
}
