//! The harness of the end-to-end tests: real `mesh-proxy`, `registryd` and `meshctl` processes on loopback
//! addresses of their own, with throw-away certificates, example agents and hand-made peers.
//!
//! - [`mesh`]: nodes, their folders, configuration and processes
//! - [`network`]: a network namespace for each node, and how to cut the network
//! - [`process`]: child processes with captured logs, ended with the test
//! - [`resolved`]: systemd-resolved beside a node
//! - [`by_hand`]: a peer whose every frame a test writes
//! - [`ca`]: certificates, good and bad
//! - [`chaos`]: many registryds on one file, killed at random
//! - [`fake_ca`]: the CA's process behind its socket
//! - [`failover`]: an agent on several nodes of which some cannot be reached
//! - [`supervised`]: a supervisor that keeps listening sockets, and load that must not notice
//! - [`live`]: readers of the live view
//! - [`tls`]: clients and servers that play the other sidecar
//! - [`agent`]: the backend behind a node
//! - [`recorder`]: an agent that reads every byte
//! - [`frames`]: HTTP/2 frame by frame
//! - [`view`]: a mount that can be made to hang
//! - [`web`]: plain HTTP requests
//! - [`dns`]: the resolver that nodes ask
//!
//! A harness fails by panicking, with what it saw. Deadlines only bound failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod agent;
pub mod by_hand;
pub mod ca;
pub mod chaos;
pub mod collector;
pub mod dns;
pub mod etcd;
pub mod failover;
pub mod fake_ca;
pub mod frames;
pub mod live;
pub mod loopback;
pub mod mesh;
pub mod network;
pub mod process;
pub mod recorder;
pub mod resolved;
pub mod supervised;
pub mod tls;
pub mod view;
pub mod web;

use std::io::Write;
use std::time::Duration;

/// Bounds every wait; far above what a busy machine needs, so that only a real failure meets it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Says that something is not tested here, and why. Past the test runner, which hides what a test that passes prints.
///
/// # Panics
/// Where `MESH_NO_SKIP` is set: there, a test that cannot run has failed.
pub fn skipped(what: &str) {
    assert!(std::env::var_os("MESH_NO_SKIP").is_none(), "skipped: {what}");
    let _ = writeln!(std::io::stderr(), "##### SKIPPED: {what} #####");
}

/// Waits until `probe` gives a value.
///
/// # Panics
/// With `what` when it does not within [`DEADLINE`].
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, probe).await
}

/// Waits until `probe` gives a value, for a promise that names its own `limit`.
///
/// # Panics
/// With `what` when it does not within `limit`.
pub async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = std::time::Instant::now();
    // A probe that never waits is always in time for `timeout`, so the clock is read as well.
    while started.elapsed() < limit {
        let left = limit.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Some(value)) => return value,
            Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(_) => break,
        }
    }
    panic!("within {limit:?} this did not come true: {what}")
}

/// Waits for `future`.
///
/// # Panics
/// With `what` when it takes longer than [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("within {DEADLINE:?} this did not end: {what}"),
    }
}
