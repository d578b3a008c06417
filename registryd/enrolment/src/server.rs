//! The CA's process: what `meshctl ca serve` runs. It alone reads the signing key, and answers hosts that join (TLS, any
//! network) and the sidecar of its own host, which forwards what members ask (unix socket).

mod accept;
mod enrolling;
mod http;
mod limits;
mod renewing;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_ca::{Ca, CaError, Refreshed, hex, sha256};
use mesh_shared::enrolment::SeedAddress;
use mesh_shared::name::NodeName;
use mesh_shared::service_manager;
use mesh_shared::unix_socket::{self, ListenError};
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::invites::{Invites, InvitesError};
use crate::tls::{Shown, ShownError, server_config};
use crate::token::Address;
use limits::Renewals;

/// How often revocation lists and invitations are looked after.
const UPKEEP: Duration = Duration::from_secs(3600);
/// After how many of those the enrolment port shows a new certificate.
const RENEW_SHOWN_AFTER: u32 = 24;
/// How long answers under way may take when the process stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often in the time that it allows the service manager hears that all is well.
const WATCHDOG_SHARE: u32 = 4;
/// Who may use the socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;

/// What the process of the CA needs to know.
pub struct Settings {
    /// The CA, with the key that signs.
    pub ca: Ca,
    /// Its folder.
    pub dir: PathBuf,
    /// For how many days a revocation list counts that is signed here.
    pub crl_days: u32,
    /// Where hosts that join come in.
    pub listen: SocketAddr,
    /// Where tokens send them.
    pub addresses: Vec<Address>,
    /// Where this host's sidecar comes in.
    pub socket: PathBuf,
    /// The group that may use the socket besides this process's user; `None`: nobody else.
    pub socket_group: Option<u32>,
    /// Where this host is in the mesh. Called for each host that joins, off the runtime's threads, since this host may
    /// join while the process runs.
    pub here: Box<dyn Fn() -> Here + Send + Sync>,
}

/// Where the CA's host is in the mesh.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// Its node, if it is one.
    pub node: Option<NodeName>,
    /// Where to find the mesh.
    pub seed: Option<SeedAddress>,
}

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum ServeError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Invites(#[from] InvitesError),
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {}: {source}; choose another with --socket", path.display())]
    Socket { path: PathBuf, source: ListenError },
    #[error("cannot serve: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Shown(#[from] ShownError),
    #[error("cannot use TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("an internal task exited unexpectedly, which is a bug; the lines before tell where")]
    Part,
}

/// What the answers are made from; shared by all connections.
struct Office {
    ca: Ca,
    invites: Invites,
    here: Box<dyn Fn() -> Here + Send + Sync>,
    renewals: Mutex<Renewals>,
}

/// Runs until `stop` is ready, then ends what is under way.
///
/// # Errors
/// There is no CA that can sign, an address or the socket is not available, or a part of it ended.
pub async fn serve(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let Settings { ca, dir, crl_days, listen, addresses, socket, socket_group, here } = settings;
    let invites = Invites::of_ca(&dir);
    let root = ca.root_certificate()?;
    refresh_lists(&ca, crl_days);
    let shown = Arc::new(Shown::new(ca.clone())?);
    let tls = Arc::new(server_config(shown.clone())?);
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|source| ServeError::Listen { address: listen, source })?;
    let bound = listener.local_addr()?;
    let mut addresses = addresses;
    for address in &mut addresses {
        // Port 0 was asked for: any that is free.
        if address.port == 0 {
            address.port = bound.port();
        }
    }
    invites.announce(&addresses)?;
    let local = unix_socket::listen(&socket, SOCKET_MODE, socket_group)
        .map_err(|source| ServeError::Socket { path: socket.clone(), source })?;
    let local = UnixListener::from_std(local)?;

    let office = Arc::new(Office { ca, invites, here, renewals: Mutex::default() });
    let (stopping, stopped) = watch::channel(false);
    let mut parts = JoinSet::new();
    parts.spawn(accept::run(listener, tls, office.clone(), stopped.clone()));
    parts.spawn(socket::run(local, office.clone(), stopped));
    let upkeep = tokio::spawn(upkeep(office, shown, crl_days));
    let watchdog = tokio::spawn(quiet_watchdog());
    tracing::info!(
        target: "Enrolment",
        "ca ready listen={bound} socket={} dir={} root={}", socket.display(), dir.display(), hex(&sha256(&root))
    );
    notify(NotifyState::Ready);
    let outcome = tokio::select! {
        () = stop => Ok(()),
        // Without one of them the rest would go on, wrong and unnoticed.
        Some(_) = parts.join_next() => Err(ServeError::Part),
    };
    notify(NotifyState::Stopping);
    // Nobody listens any more where that fails.
    let _ = stopping.send(true);
    let _ = timeout(DRAIN_LIMIT, async { while parts.join_next().await.is_some() {} }).await;
    upkeep.abort();
    watchdog.abort();
    // Fails only if somebody removed it already.
    let _ = std::fs::remove_file(&socket);
    outcome
}

/// Keeps what goes out of date by itself.
async fn upkeep(office: Arc<Office>, shown: Arc<Shown>, crl_days: u32) {
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once; `serve` has done the same.
    ticks.tick().await;
    let mut round = 0u32;
    loop {
        ticks.tick().await;
        round = round.wrapping_add(1);
        let (office, shown) = (office.clone(), shown.clone());
        // The folder may be on a mount that hangs.
        let done = tokio::task::spawn_blocking(move || {
            refresh_lists(&office.ca, crl_days);
            if let Err(error) = office.invites.sweep(epoch_seconds()) {
                tracing::warn!(target: "Enrolment", "old invitations are not removed: {error}");
            }
            if round.is_multiple_of(RENEW_SHOWN_AFTER)
                && let Err(error) = shown.renew()
            {
                tracing::warn!(target: "Enrolment", "the enrolment port keeps its old certificate: {error}");
            }
        });
        if done.await.is_err() {
            tracing::error!(target: "Enrolment", "the upkeep failed, which is a bug; it goes on");
        }
    }
}

/// Signs revocation lists again that have half their life behind them.
fn refresh_lists(ca: &Ca, days: u32) {
    match ca.refresh_lists(days) {
        Ok(Refreshed { signed, failed }) => {
            for cn in signed {
                tracing::info!(target: "Enrolment", "signed a new revocation list for {cn}");
            }
            for (cn, error) in failed {
                tracing::warn!(target: "Enrolment", "no new revocation list is signed for {cn}: {error}");
            }
        }
        Err(error) => tracing::warn!(target: "Enrolment", "no new revocation lists are signed: {error}"),
    }
}

async fn quiet_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        notify(NotifyState::Watchdog);
        tokio::time::sleep(limit / WATCHDOG_SHARE).await;
    }
}

/// Tells the service manager, where one started this process.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = service_manager::notify(&format!("{state}\n")) {
        tracing::warn!(target: "Enrolment", "cannot tell the service manager: {error}");
    }
}

/// The time by the host's clock.
fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
