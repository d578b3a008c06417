//! Keeping this node's entry alive in the registry file.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::jitter;
use crate::state::State;
use crate::store::worker::Writer;

/// The least time between two writes that somebody wished for.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// The first and longest wait after a failed write; the longest is also bounded by the heartbeat interval.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Registers this node, then writes a heartbeat every interval and whenever something should not wait for it.
pub async fn run(state: Arc<State>, writer: Writer) {
    let interval = state.config.mesh.heartbeat_interval;
    let mut failures = 0;
    let mut due = true;
    loop {
        if due {
            state.with(|inner, now| {
                if inner.heartbeats() {
                    inner.members.beat(now);
                }
            });
        }
        let started = Instant::now();
        // A storage that hangs must not stop the stamp: peers that are in touch over the network see it move.
        let written = timeout(interval.max(MIN_PAUSE), writer.write(due)).await;
        failures = match written {
            Ok(Ok(())) => 0,
            _ => failures + 1,
        };
        let next = match failures {
            0 => jitter::heartbeat(interval),
            n => jitter::backoff(n, RETRY.0, RETRY.1).min(interval),
        };
        due = tokio::select! {
            () = sleep_until(started + next) => true,
            () = state.write_wanted.notified() => {
                sleep_until(started + MIN_PAUSE.min(interval).mul_f64(1.0 + jitter::unit())).await;
                false
            }
        };
    }
}

/// Writes the goodbye, waiting for it no longer than `limit`.
pub async fn leave(state: &State, writer: &Writer, limit: Duration) {
    state.leave();
    match timeout(limit, writer.write(true)).await {
        Ok(Ok(())) => tracing::info!(target: "Registry", "left the mesh node={}", state.local()),
        Ok(Err(_)) => {}
        Err(_) => {
            tracing::warn!(target: "Registry", "the goodbye could not be written in {} s", limit.as_secs())
        }
    }
}
