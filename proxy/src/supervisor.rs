//! The service manager: the sockets that it opened, and what it is told (sd_listen_fds(3), sd_notify(3)).

use std::env;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use mesh_shared::service_manager;
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::time::sleep;

use crate::listener::Address;
use crate::pulse::Pulse;
use crate::sockets::Given;

/// What stands for the processes that a supervisor starts, and must not reach the ones that they start.
pub const ENVIRONMENT: [&str; 5] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD", "WATCHDOG_PID"];

/// How long the service manager is to stay patient after each message of a process that stops.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often in the time that it allows the service manager hears that all is well.
const WATCHDOG_SHARE: u32 = 4;
/// How often, and after which pause, a service manager is told again that has too much to read.
const TRIES: u32 = 50;
const NEXT_TRY: Duration = Duration::from_millis(20);

/// The sockets that a supervisor opened for this process; none without one.
///
/// # Errors
/// Something that is not a listening socket, or as many names as there are no sockets.
pub fn given_sockets() -> io::Result<Vec<Given>> {
    let names = env::var("LISTEN_FDNAMES").ok();
    let mut sockets = ListenFd::from_env();
    let mut names: Vec<&str> = names.as_deref().map(|names| names.split(':').collect()).unwrap_or_default();
    if names.is_empty() {
        names.resize(sockets.len(), "unknown");
    }
    // Without sockets the names are somebody else's.
    if sockets.len() > 0 && names.len() != sockets.len() {
        let (names, sockets) = (names.len(), sockets.len());
        return Err(invalid(format!("LISTEN_FDNAMES has {names} names for {sockets} sockets (LISTEN_FDS)")));
    }
    let mut given = Vec::with_capacity(sockets.len());
    for (index, name) in names.into_iter().enumerate().take(sockets.len()) {
        // Closed when this program executes another one.
        let socket: Socket = match sockets.take_unix_listener(index) {
            Ok(Some(socket)) => socket.into(),
            // It is still there.
            _ => match sockets.take_tcp_listener(index) {
                Ok(Some(socket)) => socket.into(),
                Ok(None) => continue,
                Err(error) => return Err(invalid(format!("{name}: {error}"))),
            },
        };
        let address = Address::of(&socket).map_err(|error| invalid(format!("{name}: {error}")))?;
        given.push(Given { socket, name: name.into(), address });
    }
    Ok(given)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Tells the service manager, where there is one.
#[derive(Default)]
pub struct Supervisor {
    /// Another process is the main one.
    silent: AtomicBool,
}

impl Supervisor {
    /// It works.
    pub async fn ready(&self) {
        self.tell(&[NotifyState::Ready]).await;
    }

    /// It is on its way out.
    pub async fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]).await;
    }

    /// What it waits for on its way out. The service manager waits as long as this is repeated.
    pub async fn waits_for(&self, what: &str) {
        let patience = u32::try_from(PATIENCE.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Status(what), NotifyState::ExtendTimeoutUsec(patience)]).await;
    }

    /// Another process is the service from now on; this one says nothing any more.
    pub async fn follow(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid)]).await;
        self.silent.store(true, Ordering::Release);
    }

    /// Keeps the watchdog quiet for as long as all workers turn; returns at once where there is none.
    pub async fn watch(self: Arc<Self>, pulse: Arc<Pulse>) {
        let Some(limit) = sd_notify::watchdog_enabled() else { return };
        loop {
            if pulse.stuck().is_none() {
                self.tell(&[NotifyState::Watchdog]).await;
            }
            sleep(limit / WATCHDOG_SHARE).await;
        }
    }

    async fn tell(&self, state: &[NotifyState<'_>]) {
        let message: String = state.iter().map(|line| format!("{line}\n")).collect();
        for _ in 0..TRIES {
            if self.silent.load(Ordering::Acquire) {
                return;
            }
            match service_manager::notify(&message) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(NEXT_TRY).await,
                Err(error) => {
                    tracing::warn!(target: "Mesh", "cannot tell the service manager: {error}");
                    return;
                }
            }
        }
        tracing::warn!(target: "Mesh", "the service manager does not read its notifications");
    }
}
