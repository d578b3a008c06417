//! Minutes of chaos with one registry file; the short forms of the same are among the cases.
//! `tests/soak.sh` runs it.

use std::time::Duration;

use mesh_tests::chaos::{self, Chaos};
use mesh_tests::failover::Failover;

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
