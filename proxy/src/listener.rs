//! What all listening sides share: binding, counting connections, and ending them in order.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::IntoRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::Stream;
use pingora_core::server::{Fds, ShutdownWatch};
use pingora_core::services::listening::Service;
use pingora_timeout::fast_timeout::set_fast_timeout_to_tokio_threshold;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tcp;

/// A socket that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}): {source}")]
pub struct BindError {
    address: SocketAddr,
    key: String,
    source: std::io::Error,
}

/// A bound socket on which nothing is accepted yet.
pub struct Listener {
    socket: std::net::TcpListener,
    /// Where it listens; a port that was left to the system is known here.
    pub address: SocketAddr,
}

const BACKLOG: i32 = 4096;

impl Listener {
    /// Binds to `address`; `key` is the configuration key to name when that fails. `::` takes IPv4 too, and
    /// falls back to `0.0.0.0` on hosts without IPv6.
    ///
    /// # Errors
    /// An address that is in use or not of this host.
    pub fn bind(address: SocketAddr, key: &str) -> Result<Self, BindError> {
        let open = |address: SocketAddr| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_address(true)?;
            // Accepted connections inherit it.
            socket.set_tcp_keepalive(&tcp::keepalive())?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let socket = std::net::TcpListener::from(socket);
            socket.local_addr().map(|address| Self { socket, address })
        };
        open(address)
            .or_else(|error| match address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() && error.kind() != std::io::ErrorKind::AddrInUse => {
                    open(SocketAddr::from(([0, 0, 0, 0], address.port())))
                }
                _ => Err(error),
            })
            .map_err(|source| BindError { address, key: key.to_owned(), source })
    }

    /// The same socket once more: whoever is free first accepts a connection.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, address: self.address })
    }

    /// Hands the socket to a pingora service that gives each connection to `app`, until `shutdown`.
    pub async fn serve<A: ServerApp + Send + Sync + 'static>(self, app: A, shutdown: ShutdownWatch) {
        // pingora limits its part of an accept by a clock of its own, a thread that wakes a hundred times a second for
        // as long as the process lives. tokio's timer does as well and sleeps.
        set_fast_timeout_to_tokio_threshold(Some(Duration::ZERO));
        let name = self.address.to_string();
        let mut service = Service::new(name.clone(), app);
        // Buffers that hold memory for every idle connection; whoever needs one has its own.
        service.add_listener(ListenerConfig::tcp(&name).l4_buffer(L4BufferSettings::unbuffered()));
        let mut sockets = Fds::new();
        sockets.add(name, self.socket.into_raw_fd());
        let sockets = Some(Arc::new(parking_lot::Mutex::new(sockets)));
        pingora_core::services::Service::start_service(&mut service, sockets, shutdown, 1).await;
    }
}

/// The remote address of an accepted connection, IPv4 in its plain form.
pub fn remote_address(stream: &Stream) -> Option<SocketAddr> {
    let digest = stream.get_socket_digest()?;
    let address = *digest.peer_addr()?.as_inet()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// How many connections there are, and how many there may be.
#[derive(Clone)]
pub struct Connections {
    slots: Arc<Semaphore>,
    most: usize,
}

impl Connections {
    /// Room for `most` connections.
    pub fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { slots: Arc::new(Semaphore::new(most)), most }
    }

    /// A place for one connection, held until it is dropped; `None` when all are taken.
    pub fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.most - self.slots.available_permits()
    }

    /// Returns once no connection is open.
    pub async fn all_closed(&self) {
        // Fails only on a closed semaphore, and nothing closes this one.
        let _ = self.slots.acquire_many(u32::try_from(self.most).unwrap_or(u32::MAX)).await;
    }
}

/// Serves one connection to its end. After `shutdown`, `finish` tells it to take no new request; those in flight
/// finish.
///
/// # Errors
/// How the connection broke off.
pub async fn run_to_end<C, E>(
    connection: C,
    finish: fn(Pin<&mut C>),
    mut shutdown: ShutdownWatch,
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = shutdown.wait_for(|stop| *stop) => finish(connection.as_mut()),
    }
    connection.await
}
