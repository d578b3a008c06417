//! Follows registryd: its view of the mesh comes in as soon as it changes, and is saved for the next start.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use mesh_shared::local_api::{ROSTER_WATCH, RosterUpdate};
use mesh_shared::root_cause;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::error::BoxError;
use crate::metrics::METRICS;
use crate::roster::hosts::Hosts;
use crate::roster::registryd::{ANSWER, RegistryLink, request};
use crate::roster::store::RosterStore;

/// registryd sends at least an empty line this often; silence for longer means it hangs.
const SILENCE: Duration = Duration::from_secs(15);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// A roster of 10,000 nodes is far smaller.
const MAX_LINE_BYTES: usize = 64 << 20;
/// How much of the roster is written for the next start in a second, on the mean: in a large mesh something changes all
/// the time. One of a few nodes is saved at once.
const SAVE_BYTES_PER_S: usize = 128 * 1024;

/// Keeps `roster` at registryd's view, and saved, for ever; each change arrives as soon as registryd knows it. `hosts` is
/// told of them.
pub async fn follow(registry: Arc<RegistryLink>, roster: Arc<RosterStore>, hosts: Option<Arc<Hosts>>) {
    let unsaved = Notify::new();
    tokio::join!(keep_current(&registry, &roster, &unsaved), keep_saved(&roster, hosts, &unsaved));
}

async fn keep_current(registry: &RegistryLink, roster: &RosterStore, unsaved: &Notify) {
    let mut away = false;
    let mut retry = FIRST_RETRY;
    loop {
        let mut received = false;
        let ended = follow_once(registry, roster, unsaved, &mut received, &mut away).await;
        let reason = ended
            .err()
            .map_or_else(|| "it ended the connection".into(), |error| root_cause(&*error).to_string());
        if !away {
            let view =
                if roster.is_known() { "continuing with the last known roster" } else { "no roster yet" };
            tracing::warn!(target: "Mesh", "registryd does not answer ({}: {reason}); {view}", registry.socket().display());
        }
        roster.unavailable(format!("{}: {reason}", registry.socket().display()));
        away = true;
        retry = if received { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
        sleep(retry).await;
    }
}

async fn follow_once(
    registry: &RegistryLink,
    roster: &RosterStore,
    unsaved: &Notify,
    received: &mut bool,
    away: &mut bool,
) -> Result<(), BoxError> {
    let path = format!("{ROSTER_WATCH}?since={}", roster.revision());
    let request = request(Method::GET, &path, Bytes::new())?;
    let response = timeout(ANSWER, registry.exchange(request)).await??;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()).into());
    }
    let mut body = response.into_body();
    let (mut pending, mut searched) = (BytesMut::new(), 0);
    while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| "it has stopped sending")? {
        let Ok(data) = frame?.into_data() else { continue };
        METRICS.roster_heard();
        pending.extend_from_slice(&data);
        while let Some(end) = memchr::memchr(b'\n', &pending[searched..]) {
            let line = pending.split_to(std::mem::take(&mut searched) + end + 1);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let update: RosterUpdate = serde_json::from_slice(&line)?;
            if std::mem::take(away) {
                tracing::info!(target: "Mesh", "registryd answers again");
            }
            *received = true;
            if roster.publish(update)? {
                unsaved.notify_one();
            }
        }
        searched = pending.len();
        if pending.len() > MAX_LINE_BYTES {
            return Err("its roster is larger than any mesh can be".into());
        }
    }
    Ok(())
}

/// Saves what is `unsaved`, for ever. A view that cannot be saved is used all the same, and no view waits for the
/// one before to be saved.
async fn keep_saved(roster: &Arc<RosterStore>, hosts: Option<Arc<Hosts>>, unsaved: &Notify) {
    loop {
        let (store, hosts) = (roster.clone(), hosts.clone());
        let saved = tokio::task::spawn_blocking(move || {
            if let Some(hosts) = hosts {
                hosts.look(&store);
            }
            store.save()
        });
        match saved.await {
            Ok(Ok(bytes)) => {
                sleep(Duration::from_millis((bytes * 1000 / SAVE_BYTES_PER_S) as u64)).await;
            }
            Ok(Err(error)) => tracing::warn!(
                target: "Mesh",
                "cannot save the roster to {}: {error}; it would be missing after a restart without registryd (proxy.state_dir)",
                roster.path().display()
            ),
            // While the runtime shuts down.
            Err(_) => {}
        }
        unsaved.notified().await;
    }
}
