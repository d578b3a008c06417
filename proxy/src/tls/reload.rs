//! Certificates, keys, trust bundle and revocation lists are read again when their content changes, and on SIGHUP.
//!
//! Content counts, not dates: a volume of Kubernetes swaps a link, NFS shows dates late. All files are judged together and
//! used whole or not at all; while they do not fit together, those in use stay.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::config::Config;
use rustls::pki_types::UnixTime;
use tokio::signal::unix::Signal;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::METRICS;
use crate::tls::credentials::{CredentialStore, Credentials, CredentialsError};
use crate::tls::fingerprint::Fingerprint;
use crate::tls::revocation::Lists;

/// The longest time between two looks; with shorter heartbeats it is theirs, so that the whole mesh knows of a revocation
/// within two of them.
const LOOKS: Duration = Duration::from_secs(5);
/// How often files that did not fit are tried again although they did not change: a certificate may begin to be valid.
const RETRIES: Duration = Duration::from_secs(60);
/// How often the same warning is repeated.
const WARNS: Duration = Duration::from_secs(86_400);

/// Reads the files again for as long as the sidecar runs. They may be on a mount that hangs; nothing else waits for it.
///
/// Revocation lists that others passed on are applied at once.
pub async fn follow(mut hangup: Signal, config: Arc<Config>, store: Arc<CredentialStore>, lists: Arc<Lists>) {
    let mut looks = interval(config.mesh.heartbeat_interval.min(LOOKS));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed: Option<Failed> = None;
    let mut warned = HashMap::new();
    loop {
        let told = tokio::select! {
            told = hangup.recv() => match told {
                Some(()) => true,
                None => return,
            },
            () = lists.learned() => {
                apply(&config, &store, &lists).await;
                continue;
            }
            () = store.asked_to_look() => false,
            _ = looks.tick() => false,
        };
        let skip = Skip {
            used: store.load().fingerprint,
            failed: failed.as_ref().filter(|failed| !failed.is_due()).map(|failed| failed.fingerprint),
        };
        let (config, known) = (config.clone(), lists.clone());
        let looked =
            tokio::task::spawn_blocking(move || look(&config, &known, (!told).then_some(skip))).await;
        match looked {
            // One that panicked has said so already.
            Err(_) | Ok(Looked::NotTriedAgain) => {}
            Ok(Looked::InUse) => {
                if failed.take().is_some_and(|failed| failed.told) {
                    tracing::info!(target: "Mesh", "the certificates in use are those in the files again");
                }
                store.failed(None);
            }
            Ok(Looked::Loaded(fresh)) => {
                failed = None;
                store.replace(*fresh);
                METRICS.reloaded(true);
                tracing::info!(target: "Mesh", "certificates reloaded");
            }
            Ok(Looked::Failed(fingerprint, error)) => {
                let before = failed.take().filter(|failed| failed.fingerprint == fingerprint);
                // Somebody may be in the middle of replacing them: they get until the next look.
                let tell = told || before.is_some();
                let was_told = before.is_some_and(|failed| failed.told);
                if tell && (told || !was_told) {
                    METRICS.reloaded(false);
                    let text = format!("certificates not reloaded, continuing with the ones in use: {error}");
                    match told {
                        true => tracing::error!(target: "Mesh", "{text}"),
                        false => tracing::warn!(target: "Mesh", "{text}"),
                    }
                    store.failed(Some(text));
                }
                failed = Some(Failed { fingerprint, told: tell || was_told, at: Instant::now() });
            }
        }
        warn(&store, &mut warned);
    }
}

/// Files that do not fit together.
struct Failed {
    fingerprint: Fingerprint,
    told: bool,
    at: Instant,
}

impl Failed {
    fn is_due(&self) -> bool {
        !self.told || self.at.elapsed() >= RETRIES
    }
}

/// Files that need no reading.
struct Skip {
    used: Fingerprint,
    failed: Option<Fingerprint>,
}

enum Looked {
    InUse,
    NotTriedAgain,
    Loaded(Box<Credentials>),
    Failed(Fingerprint, CredentialsError),
}

/// Uses the revocation lists that are known by now with the files in use.
async fn apply(config: &Arc<Config>, store: &CredentialStore, lists: &Arc<Lists>) {
    let (used, known, node) = (store.load_full(), lists.clone(), config.mesh.node_name.clone());
    match tokio::task::spawn_blocking(move || used.with_lists(&node, &known)).await {
        // One that panicked has said so already.
        Err(_) => {}
        Ok(Ok(fresh)) => {
            store.apply(fresh);
            tracing::info!(target: "Mesh", "newer revocation lists are in use");
        }
        Ok(Err(error)) => {
            tracing::error!(target: "Mesh", "newer revocation lists cannot be used: {error}");
        }
    }
}

fn look(config: &Config, lists: &Lists, skip: Option<Skip>) -> Looked {
    let fingerprint = Fingerprint::of(config);
    match skip {
        Some(skip) if skip.used == fingerprint => return Looked::InUse,
        Some(skip) if skip.failed == Some(fingerprint) => return Looked::NotTriedAgain,
        _ => {}
    }
    match Credentials::load(config, lists) {
        Ok(fresh) => Looked::Loaded(Box::new(fresh)),
        Err(error) => Looked::Failed(fingerprint, error),
    }
}

/// Says what an operator has to know, each thing once a day.
fn warn(store: &CredentialStore, warned: &mut HashMap<String, Instant>) {
    let warnings = store.load().warnings(UnixTime::now());
    warned.retain(|about, at| at.elapsed() < WARNS && warnings.iter().any(|warning| warning.about == *about));
    for warning in warnings {
        warned.entry(warning.about).or_insert_with(|| {
            tracing::warn!(target: "Mesh", "{}", warning.text);
            Instant::now()
        });
    }
}
