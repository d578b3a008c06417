//! Keeping this node's entry alive in the registry file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::backend::Backend;
use crate::jitter;
use crate::span;
use crate::state::State;

/// The least time between two writes that somebody wished for.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// The first and longest wait after a failed write; the longest is also bounded by the heartbeat interval.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Everybody alive has looked at the file by then.
const SEEN_AFTER: Duration = Duration::from_millis(400);

/// Registers this node, then writes a heartbeat every interval and whenever something should not wait for it.
pub async fn run(state: Arc<State>, backend: Backend) {
    let interval = state.config.mesh.heartbeat_interval;
    let mut failures = 0;
    // A deadline of its own: however often something else wants to be written, the beat is not put off.
    let mut beat_at = Instant::now();
    loop {
        let started = Instant::now();
        let due = started >= beat_at;
        if due {
            beat_at = started + jitter::heartbeat(interval);
            state.with(|inner, now| {
                if inner.heartbeats() {
                    inner.members.beat(now);
                }
            });
        }
        // A storage that hangs must not stop the stamp: peers that are in touch over the network see it move.
        let limit = interval.max(MIN_PAUSE);
        let written = timeout(limit, backend.publish(due)).await;
        let written = written
            .unwrap_or_else(|_| Err(format!("the storage does not answer within {} ms", limit.as_millis())));
        failures = if written.is_ok() { 0 } else { failures + 1 };
        span::published(started.into_std(), state.config.registryd.store.kind, due, written.err());
        if failures > 0 {
            let retry = jitter::backoff(failures, RETRY.0, RETRY.1).min(interval);
            beat_at = beat_at.min(started + retry);
        }
        tokio::select! {
            () = sleep_until(beat_at) => {}
            () = state.write_wanted.notified() => {
                let paused = started + MIN_PAUSE.min(interval).mul_f64(1.0 + jitter::unit());
                sleep_until(paused.min(beat_at)).await;
            }
        }
    }
}

/// Writes the goodbye and stays until the others can have seen it, both together no longer than `limit`.
pub async fn leave(state: &State, backend: &Backend, limit: Duration) {
    state.leave();
    let until = Instant::now() + limit;
    match timeout_at(until, backend.publish(true)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return,
        Err(_) => {
            tracing::warn!(target: "Registry", "the goodbye could not be written in {} s", limit.as_secs());
            return;
        }
    }
    // A program that takes no lock may overwrite it from what it read before. Once the others know, they put that
    // right; until then, only this node can.
    let stays = async {
        loop {
            let written = state.counters.writes.load(Ordering::Relaxed);
            sleep(SEEN_AFTER).await;
            if backend.publish(false).await.is_err()
                || state.counters.writes.load(Ordering::Relaxed) == written
            {
                return;
            }
        }
    };
    let _ = timeout_at(until, stays).await;
    tracing::info!(target: "Registry", "left the mesh node={}", state.local());
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::Config;

    use super::*;
    use crate::backend::file::{Store, worker};
    use crate::state::own_claims;

    #[tokio::test]
    async fn news_do_not_put_off_the_beat() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = format!(
            "mesh: {{enabled: true, node_name: ct110, tls: true, heartbeat_interval_ms: 1000, storage_dir: {}}}",
            folder.path().display()
        );
        let config = Arc::new(Config::parse(&yaml).unwrap());
        let state = Arc::new(State::new(config.clone(), own_claims(&config)));
        let store = Store::new(config.mesh.registry_path(), state.local());
        let (backend, _watchdog) = worker::start(store.clone(), state.clone()).unwrap();
        tokio::spawn(run(state.clone(), backend));
        let stamp = || store.read().ok()?.0.named(state.local()).map(|(_, own)| own.last_seen);
        let mut seen = Vec::new();
        let until = Instant::now() + Duration::from_secs(30);
        while seen.len() < 4 {
            assert!(Instant::now() < until, "with news all the time, there were only the beats {seen:?}");
            state.write_wanted.notify_one();
            seen.extend(stamp().filter(|stamp| seen.last() != Some(stamp)));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
