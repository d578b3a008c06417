//! Wiring: starts the parts, says when they are ready, and ends them in order.

use std::fs;
use std::io;
use std::os::unix::net;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mesh_shared::certificate::{self, MaterialError};
use mesh_shared::config::{Config, Discovery, StoreKind};
use mesh_shared::confinement::Confinement;
use mesh_shared::service_manager;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::{self, SocketError};
use crate::backend::Backend;
use crate::backend::etcd;
use crate::backend::file::{self, Store};
use crate::discovery::mdns::{self, Announcement};
use crate::dns_server::{self, BindError, DnsServer};
use crate::limits::Limits;
use crate::metrics::{self, MetricsError};
use crate::peer_client::PeerClient;
use crate::resolver::Resolver;
use crate::state::problems::About;
use crate::state::{State, follow_host, own_claims};
use crate::{addresses, discovery, export, heartbeat};

/// How long the first look at the certificate, and then at the registry and this host's address, may keep everything
/// else waiting.
const FIRST_LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait for the first registration before this node counts as ready all the same.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(3);
/// How long the goodbyes to the registry and to peers may take, at the same time.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at who could replace the trust bundle.
const TRUST_LOOK: Duration = Duration::from_secs(60);
/// How long reading the configuration again may take.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);
/// How long the last spans may take to the collector.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// How often in the time that it allows the service manager hears that all is well.
const WATCHDOG_SHARE: u32 = 4;
/// How often, and after which pause, a service manager is told again that has too much to read.
const TELL_TRIES: u32 = 50;
const TELL_AGAIN: Duration = Duration::from_millis(20);
/// How long it takes at most until it shows that the sidecar stops at the same time.
const SIDECAR_STOPS_TOO: Duration = Duration::from_millis(400);
/// How soon after the start a sidecar that runs has connected.
const SIDECAR_CONNECTS: Duration = Duration::from_millis(1500);
/// How long a sidecar may stay silent after the start.
const SIDECAR_LIMIT: Duration = Duration::from_secs(20);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum AppError {
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot serve the socket: {0}")]
    Listener(#[source] io::Error),
    #[error("cannot start another thread: {0}")]
    Threads(#[source] io::Error),
    #[error("an internal task exited unexpectedly, which is a bug; the lines before tell where")]
    Part,
    #[error(transparent)]
    Certificate(#[from] MaterialError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Dns(#[from] BindError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// Refuses to speak for a node that this host's certificate contradicts. registryd needs no certificate, so one that
/// cannot be read, or not soon, contradicts nothing.
fn certificate_names_node(config: &Config) -> Result<(), AppError> {
    let (path, node) = (config.mesh.tls.cert_path.clone(), config.mesh.node_name.clone());
    let (looked, look) = std::sync::mpsc::channel();
    // The certificate may be on a mount that hangs.
    let looking = thread::Builder::new().spawn(move || {
        let leaf = certificate::read_leaf(&path);
        // Nobody waits any more where it took too long.
        let _ = looked.send(leaf.map_or(Ok(()), |(_, leaf)| leaf.names_node(&node, &path)));
    });
    looking.map_err(AppError::Threads)?;
    Ok(look.recv_timeout(FIRST_LOOK_LIMIT).unwrap_or(Ok(()))?)
}

/// What the process may do once it runs: keep the registry, and make its socket. The registry's folder is often a mount.
pub fn needs(config: &Config) -> Confinement {
    let mut needs = Confinement::default().writing_mounted(&config.mesh.storage_dir);
    for file in [Some(&config.registryd.socket), config.registryd.store.export.as_ref()].into_iter().flatten()
    {
        needs = needs.writing(file.parent().unwrap_or(file));
    }
    needs
}

/// Runs the daemon until it is told to stop.
pub fn run(config: Config) -> ExitCode {
    if let Err(error) = certificate_names_node(&config) {
        return stopped(&error);
    }
    let path = config.registryd.socket.clone();
    let listener = match api::bind(&path) {
        Ok(listener) => listener,
        Err(error) => return stopped(&error.into()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build();
    let outcome = runtime.map_err(AppError::Runtime).and_then(|runtime| {
        let outcome = runtime.block_on(async {
            let node = config.mesh.node_name.to_string();
            let spans =
                mesh_telemetry::start(&config.telemetry, "registryd", env!("CARGO_PKG_VERSION"), &node);
            let outcome = serve(Arc::new(config), listener).await;
            spans.finish(LAST_SPANS).await;
            outcome
        });
        // Storage that hangs must not keep the process.
        runtime.shutdown_background();
        outcome
    });
    // Fails only if somebody removed it already.
    let _ = fs::remove_file(&path);
    outcome.map_or_else(|error| stopped(&error), |()| ExitCode::SUCCESS)
}

fn stopped(error: &AppError) -> ExitCode {
    tracing::error!(target: "Registry", "registryd stops: {error}");
    ExitCode::FAILURE
}

async fn serve(config: Arc<Config>, listener: net::UnixListener) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(AppError::Signals)?;
    let limits = Limits::of_this_process();
    let listener = UnixListener::from_std(listener).map_err(AppError::Listener)?;
    let dns = match config.registryd.dns.listen {
        Some(address) => Some(DnsServer::bind(address).await?),
        None => None,
    };
    let metrics = match config.registryd.metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };

    let state = Arc::new(State::new(config.clone(), own_claims(&config)));
    let mut parts = JoinSet::new();
    let backend = start_store(&state, &mut parts)?;
    let client = PeerClient::new(config.proxy.outbound.listen);
    let resolver = Arc::new(Resolver::new(&config.registryd.dns));
    let (sightings, sighted) = mpsc::channel(64);
    let (looked, own_host) = oneshot::channel();
    tokio::spawn(follow_host(state.clone(), looked));
    // Whoever asks is answered with the registry in view, and the first registration has the right host, unless
    // the storage is slow.
    let _ = timeout(FIRST_LOOK_LIMIT, async { tokio::join!(own_host, state.first_look()) }).await;

    parts.spawn(heartbeat::run(state.clone(), backend.clone()));
    parts.spawn(api::serve(listener, state.clone(), backend.clone(), limits));
    parts.spawn(addresses::run(state.clone(), resolver.clone()));
    parts.spawn(discovery::run(state.clone(), client.clone(), sighted));
    parts.spawn(watch_sidecar(state.clone()));
    parts.spawn(watch_trust(state.clone()));
    tokio::spawn(quiet_watchdog(state.clone()));
    if let Some(metrics) = metrics {
        parts.spawn(metrics::serve(metrics, state.clone(), limits.metrics));
    }
    if let Some(dns) = dns {
        let (zones, zone) = watch::channel(None);
        parts.spawn(dns.run(zone, state.clone(), limits.dns));
        parts.spawn(dns_server::feed::run(state.clone(), resolver, zones));
    }
    let (stop_mdns, mdns_stopped) = oneshot::channel();
    let announcing = (config.mesh.discovery == Some(Discovery::Mdns)).then(|| {
        let announcement = Announcement::of(&config);
        tokio::spawn(mdns::run(announcement, state.publications(), sightings.clone(), mdns_stopped))
    });

    registered(&state).await;
    tracing::info!(
        target: "Registry",
        "registryd ready node={} registry={} socket={}",
        state.local(),
        config.registry_place(),
        config.registryd.socket.display()
    );
    notify(NotifyState::Ready).await;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(()) = hangup.recv() => reload(&state).await,
            // Without one of them the rest would go on, wrong and unnoticed. The service manager starts all again.
            Some(_) = parts.join_next() => return Err(AppError::Part),
        }
    }
    notify(NotifyState::Stopping).await;
    if stays_in_the_mesh(&state).await {
        tracing::info!(target: "Registry", "registryd stops while mesh-proxy continues to serve: this node stays in the mesh");
        if let Some(announcing) = announcing {
            // Without a goodbye.
            announcing.abort();
        }
        return Ok(());
    }
    drop(stop_mdns);
    leave(&state, &backend, &client).await;
    if let Some(announcing) = announcing {
        let _ = timeout(GOODBYE_LIMIT, announcing).await;
    }
    Ok(())
}

/// Starts what keeps the registry.
fn start_store(state: &Arc<State>, parts: &mut JoinSet<()>) -> Result<Backend, AppError> {
    let config = &state.config;
    let store = &config.registryd.store;
    if let (StoreKind::Etcd, Some(settings)) = (store.kind, &store.etcd) {
        let (backend, worker) = etcd::worker::new(settings.clone(), state.local(), state.clone());
        parts.spawn(worker.run());
        if let Some(path) = &store.export {
            parts.spawn(export::run(state.clone(), path.clone()));
        }
        return Ok(backend);
    }
    let store = Store::new(config.mesh.registry_path(), &config.mesh.node_name);
    let (backend, watchdog) = file::worker::start(store, state.clone()).map_err(AppError::Threads)?;
    parts.spawn(watchdog.run(state.clone()));
    Ok(backend)
}

/// Waits for the first heartbeat, within a limit.
async fn registered(state: &State) {
    let registered = async {
        while state.read(|inner, _| inner.last_heartbeat().is_none()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(REGISTRATION_LIMIT, registered).await.is_err() {
        tracing::warn!(target: "Registry", "this node is not in the registry yet; it keeps trying");
    }
}

/// Whether this node continues without its registryd: a goodbye is for one whose sidecar has stopped too. Of two hosts
/// with one name, none speaks for both.
async fn stays_in_the_mesh(state: &State) -> bool {
    if state.read(|inner, now| inner.members.has_rival(now)) {
        return true;
    }
    // One that lost its connection to the registryd before comes back soon.
    while !state.was_followed() && state.age() < SIDECAR_CONNECTS {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let until = tokio::time::Instant::now() + SIDECAR_STOPS_TOO;
    while state.sidecar_serves() {
        if tokio::time::Instant::now() >= until {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Reads the configuration again and publishes what it says of this node. What cannot be used changes nothing.
async fn reload(state: &Arc<State>) {
    let Some(source) = state.config.source.clone() else { return };
    // It may be on a mount that hangs.
    let loaded = timeout(RELOAD_LIMIT, tokio::task::spawn_blocking(move || Config::load(&source))).await;
    let refused = match loaded {
        Ok(Ok(Ok(config))) if config.mesh.node_name != *state.local() => {
            format!("mesh.node_name is {} now; that needs a restart", config.mesh.node_name)
        }
        Ok(Ok(Ok(config))) => {
            let kept = !config.same_but_published(&state.config);
            state.publish_anew(config.registryd);
            state.solved(&About::Configuration);
            tracing::info!(target: "Registry", "agents, providers, models, capabilities, metadata and role were read again");
            if kept {
                tracing::info!(target: "Registry", "other keys differ too; they take effect after a restart");
            }
            return;
        }
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) | Err(_) => "the configuration cannot be read in time".into(),
    };
    state.problem(About::Configuration, format!("{refused}; continuing as before"));
}

async fn leave(state: &State, backend: &Backend, client: &PeerClient) {
    state.leave();
    state.with(|inner, now| inner.members.beat(now));
    tokio::join!(
        heartbeat::leave(state, backend, GOODBYE_LIMIT),
        discovery::farewell(state, client, GOODBYE_LIMIT),
    );
}

/// Says so while others than root could replace the trust bundle.
async fn watch_trust(state: Arc<State>) {
    loop {
        let path = state.config.mesh.tls.ca_path.clone();
        // It may be on a mount that hangs.
        let looked = tokio::task::spawn_blocking(move || certificate::replaceable(&path)).await;
        match looked {
            Ok(Some(sentence)) => state.problem(About::Trust, sentence),
            _ => state.solved(&About::Trust),
        }
        tokio::time::sleep(TRUST_LOOK).await;
    }
}

/// Says so while the sidecar does not report.
async fn watch_sidecar(state: Arc<State>) {
    tokio::time::sleep(SIDECAR_LIMIT).await;
    loop {
        if state.read(|inner, now| inner.sidecar(now).is_none()) {
            let sentence = "mesh-proxy does not report on this host's socket; is it running?";
            state.problem(About::Sidecar, sentence.into());
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Keeps the service manager's watchdog quiet for as long as this runtime turns and the state can be had; returns at
/// once where there is none.
async fn quiet_watchdog(state: Arc<State>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        state.read(|_, _| ());
        notify(NotifyState::Watchdog).await;
        tokio::time::sleep(limit / WATCHDOG_SHARE).await;
    }
}

/// Tells the service manager, where one started this process.
async fn notify(state: NotifyState<'_>) {
    for _ in 0..TELL_TRIES {
        match service_manager::notify(&format!("{state}\n")) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(TELL_AGAIN).await,
            Err(error) => {
                tracing::warn!(target: "Registry", "cannot tell the service manager: {error}");
                return;
            }
        }
    }
    tracing::warn!(target: "Registry", "the service manager does not read its notifications");
}
