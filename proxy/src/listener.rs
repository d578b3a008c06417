//! What all listening sides share: binding, accepting, counting connections, and ending them in order.
//!
//! The accept loop is this file's own, for pingora's applications: the one of pingora's
//! `Service` waits a second after EMFILE, but after ENFILE, ENOBUFS or ENOMEM it tries again at once and for ever,
//! with an ERROR line each time. Such an error leaves the connection in the queue, so the next try fails as well.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::config::{LocalUser, SocketAccess};
use mesh_shared::logging::Repeats;
use mesh_shared::unix_socket::{self, ListenError};
use nix::unistd::{Group, User};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use crate::drain::Drain;
use crate::io::accepted::Accepted;
use crate::tcp;

/// A socket that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}): {source}")]
pub struct BindError {
    address: Address,
    key: String,
    source: io::Error,
}

impl BindError {
    /// `key` is the configuration key of the socket at `address`.
    pub fn new(address: Address, key: &str, source: io::Error) -> Self {
        Self { address, key: key.to_owned(), source }
    }
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An address and port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Where `socket` listens.
    ///
    /// # Errors
    /// It is of another kind, or the system does not say.
    pub fn of(socket: &Socket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        match (address.as_socket(), address.as_pathname()) {
            (Some(address), _) => Ok(Self::Tcp(address)),
            (None, Some(path)) => Ok(Self::Unix(path.into())),
            (None, None) => Err(io::Error::other("it is neither a TCP socket nor a unix socket with a path")),
        }
    }

    /// The address and port; `None` for a unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = AddrParseError;

    fn try_from(text: String) -> Result<Self, AddrParseError> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

/// A bound socket on which nothing is accepted yet.
pub struct Listener {
    socket: Socket,
    /// Where it listens; a port that was left to the system is known here.
    pub address: Address,
    /// Where the configuration wants it.
    pub configured: Address,
    /// The only users that are served; `None`: all that can connect.
    users: Option<Arc<Users>>,
}

/// Users of this host whose processes a unix socket serves.
#[derive(Debug)]
pub struct Users {
    key: String,
    ids: Vec<u32>,
}

impl Users {
    /// Looks names up; `key` is what the configuration calls the socket.
    ///
    /// # Errors
    /// A name that no user of this host has.
    pub fn find(users: &[LocalUser], key: &str) -> io::Result<Self> {
        let id = |user: &LocalUser| match user {
            LocalUser::Id(id) => Ok(*id),
            LocalUser::Name(name) => match User::from_name(name)? {
                Some(user) => Ok(user.uid.as_raw()),
                None => Err(io::Error::new(
                    ErrorKind::NotFound,
                    format!("there is no user {name} on this host ({key}.users)"),
                )),
            },
        };
        Ok(Self { key: key.into(), ids: users.iter().map(id).collect::<io::Result<_>>()? })
    }

    /// Whether a process of this user is served; `None`: the system does not say whose it is. Fails closed.
    fn admit(&self, user: Option<u32>, address: &Address) -> bool {
        let admitted = user.is_some_and(|user| self.ids.contains(&user));
        let who = || user.map_or_else(|| "an unknown user".into(), |user| format!("user {user}"));
        if !admitted && STRANGERS.admits(&who(), None) {
            tracing::warn!(target: "Outbound", "refusing a connection of {} to {address} ({}.users)", who(), self.key);
        }
        admitted
    }
}

/// Connections of users that are not served.
static STRANGERS: Repeats =
    Repeats::new(|more| tracing::warn!(target: "Outbound", "connections of other users: {more}"));

const BACKLOG: i32 = 4096;
/// How long the accept loop waits after an error that the next try would meet again; doubled each time.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often such an error is told.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

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
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        open(address)
            .or_else(|error: io::Error| match address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() && error.kind() != ErrorKind::AddrInUse => {
                    open(SocketAddr::from(([0, 0, 0, 0], address.port())))
                }
                _ => Err(error),
            })
            .and_then(|socket| Self::prepared(socket, Address::Tcp(address)))
            .map_err(|source| BindError { address: Address::Tcp(address), key: key.to_owned(), source })
    }

    /// Makes a unix socket at `path` that those may connect to whom `access` names; `key` as above. A socket that a process
    /// left behind is replaced.
    ///
    /// # Errors
    /// Something else is there, or a process that listens; a group that does not exist or that cannot be given.
    pub fn bind_unix(path: &Path, access: &SocketAccess, key: &str) -> Result<Self, BindError> {
        let open = || {
            let group = access.group.as_deref().map(group_id).transpose()?;
            let socket = unix_socket::listen(path, access.mode, group)?;
            Ok(Self::prepared(socket.into(), Address::Unix(path.into()))?)
        };
        open().map_err(|error: ListenError| BindError {
            address: Address::Unix(path.into()),
            key: key.to_owned(),
            source: error.into(),
        })
    }

    /// Takes a socket that listens already, for the place that the configuration calls `key` and `configured`.
    ///
    /// # Errors
    /// The system refuses an option.
    pub fn adopt(socket: Socket, configured: Address, key: &str) -> Result<Self, BindError> {
        Self::prepared(socket, configured.clone()).map_err(|source| BindError {
            address: configured,
            key: key.to_owned(),
            source,
        })
    }

    fn prepared(socket: Socket, configured: Address) -> io::Result<Self> {
        let address = Address::of(&socket)?;
        if address.tcp().is_some() {
            // Accepted connections inherit it.
            socket.set_tcp_keepalive(&tcp::keepalive())?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, configured, users: None })
    }

    /// Serves processes of these users only (SO_PEERCRED).
    pub fn only_for(mut self, users: Users) -> Self {
        self.users = Some(users.into());
        self
    }

    /// Says that peers connect here, whose answers may stay unread for `unread` ([`tcp`]).
    ///
    /// # Errors
    /// The system refuses an option.
    pub fn expect_peers(&self, unread: Option<Duration>) -> io::Result<()> {
        tcp::prepare_listener_for_peers(&SockRef::from(&self.socket), unread)
    }

    /// The same socket once more: whoever is free first accepts a connection.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let (address, configured) = (self.address.clone(), self.configured.clone());
        Ok(Self { socket: self.socket.try_clone()?, address, configured, users: self.users.clone() })
    }

    /// Gives each connection to `app`, until `drain` begins. What is in the socket's queue then stays there for
    /// whoever else has the socket; if nobody has, the system resets it.
    pub async fn serve<A: ServerApp + Send + Sync + 'static>(self, app: A, drain: Drain) {
        let _open = drain.connection();
        let Self { socket, address, users, .. } = self;
        let acceptor = match &address {
            Address::Tcp(_) => TcpListener::from_std(socket.into()).map(Acceptor::Tcp),
            Address::Unix(_) => UnixListener::from_std(socket.into()).map(Acceptor::Unix),
        };
        let acceptor = match acceptor {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!(target: "Mesh", "cannot accept connections on {address}: {error}");
                return;
            }
        };
        let (app, mut shutdown) = (Arc::new(app), drain.watch());
        let mut pause = ACCEPT_PAUSE.0;
        let mut told: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                _ = shutdown.wait_for(|begun| *begun) => return,
                accepted = accept(&acceptor) => accepted,
            };
            let error = match accepted {
                Ok((stream, user)) => {
                    pause = ACCEPT_PAUSE.0;
                    if users.as_ref().is_some_and(|users| !users.admit(user, &address)) {
                        continue;
                    }
                    let (app, shutdown, open) = (app.clone(), shutdown.clone(), drain.connection());
                    tokio::spawn(async move {
                        let _open = open;
                        app.process_new(Box::new(stream), &shutdown).await;
                    });
                    continue;
                }
                Err(error) => error,
            };
            if is_of_one_connection(&error) {
                continue;
            }
            if told.is_none_or(|at| at.elapsed() >= ACCEPT_WARNING) {
                told = Some(Instant::now());
                tracing::warn!(target: "Mesh", "cannot accept connections on {address}: {error}; trying again");
            }
            tokio::select! {
                _ = shutdown.wait_for(|begun| *begun) => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(ACCEPT_PAUSE.1);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket whose connections are accepted.
enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The next connection, and on a unix socket the user that its other side had when it connected.
async fn accept(acceptor: &Acceptor) -> io::Result<(Accepted, Option<u32>)> {
    match acceptor {
        Acceptor::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
            Ok((Accepted::unix(stream), user))
        }
        Acceptor::Tcp(listener) => {
            let (stream, from) = listener.accept().await?;
            Ok((Accepted::tcp(stream, from), None))
        }
    }
}

fn group_id(name: &str) -> io::Result<u32> {
    match Group::from_name(name)? {
        Some(group) => Ok(group.gid.as_raw()),
        None => Err(io::Error::new(ErrorKind::NotFound, format!("there is no group {name} on this host"))),
    }
}

/// Whether an error of accept(2) came with the connection that it took from the queue, so that the next one may do
/// better. Anything else, such as a lack of descriptors or memory, is met again at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    use ErrorKind as E;
    matches!(error.kind(), E::ConnectionAborted | E::ConnectionReset | E::Interrupted)
}

/// The remote address of an accepted connection, IPv4 in its plain form.
pub fn remote_address(stream: &Stream) -> Option<SocketAddr> {
    stream.as_any().downcast_ref::<Accepted>()?.remote_address()
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
}

/// Serves one connection to its end. After `shutdown`, `finish` tells it to take no new request; those in flight
/// finish. Right where the protocol tells the client so without a request being lost (HTTP/2).
///
/// # Errors
/// How the connection broke off.
pub fn run_to_end<C, E>(
    connection: C,
    finish: fn(Pin<&mut C>),
    mut shutdown: ShutdownWatch,
) -> impl Future<Output = Result<(), E>> + use<C, E>
where
    C: Future<Output = Result<(), E>>,
{
    finish_after(Box::pin(connection), finish, async move {
        // Fails only when nobody can begin any more.
        let _ = shutdown.wait_for(|stop| *stop).await;
    })
}

/// As [`run_to_end`], but an HTTP/1.1 client cannot be told before its next answer (see [`crate::exchange::finish`]): a
/// request may be on its way on a connection that is idle, so such a one is kept for a little while.
///
/// # Errors
/// How the connection broke off.
pub fn linger_to_end<C, E>(
    connection: C,
    finish: fn(Pin<&mut C>),
    drain: &Drain,
) -> impl Future<Output = Result<(), E>> + use<C, E>
where
    C: Future<Output = Result<(), E>>,
{
    let drain = drain.clone();
    finish_after(Box::pin(connection), finish, async move { drain.lingered().await })
}

/// The connection is boxed: what an async function takes and then pins, it has room for twice, and there are thousands
/// of connections.
async fn finish_after<C, E>(
    mut connection: Pin<Box<C>>,
    finish: fn(Pin<&mut C>),
    told: impl Future<Output = ()>,
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = told => finish(connection.as_mut()),
    }
    connection.await
}
