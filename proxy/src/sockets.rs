//! The listening sockets that the configuration asks for: those that somebody hands over, the others bound here.

use std::net::SocketAddr;
use std::path::Path;
use std::{fs, io};

use mesh_shared::config::{Admin, Config, ListenerTarget, OutboundListener, SocketAccess};
use mesh_shared::{AgentName, LocalAddr, LoopbackAddr, address};
use socket2::Socket;

use crate::listener::{Address, BindError, Listener, Users};

/// Name of the socket for peers, as `FileDescriptorName=` has it.
pub const INBOUND: &str = "inbound";
/// Name of the socket for this host's programs.
pub const OUTBOUND: &str = "outbound";
/// Name of the socket for `/healthz`, `/readyz` and `/metrics`.
pub const ADMIN: &str = "admin";

/// Permissions of the sidecar's own socket: its user and its group, which is that of the mesh's operators.
const OWN_MODE: u32 = 0o660;

/// A socket that listens already.
#[derive(Debug)]
pub struct Given {
    /// The socket.
    pub socket: Socket,
    /// What it is for, if it is one of the names above. Any other name means nothing; the address tells then.
    pub name: String,
    /// Where it listens, or where the configuration of the process that had it before wanted it.
    pub address: Address,
}

/// Why the sockets are not available.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// One that has to be bound here.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// One too many.
    #[error(
        "the supervisor hands over a socket {name:?} on {address}, which nothing in the configuration asks for \
         (the names are inbound, outbound and admin; any other one is known by its address, which has to be that of \
         the configuration)"
    )]
    Unasked {
        /// Its name.
        name: String,
        /// Where it listens.
        address: Address,
    },
}

/// A socket for this host's programs that is for one place, or whose programs act as an agent.
pub struct LocalListener {
    /// The socket.
    pub socket: Listener,
    /// Where everything goes; `None`: each request says where.
    pub to: Option<ListenerTarget>,
    /// The agent that programs act as; `None`: this node.
    pub as_agent: Option<AgentName>,
}

/// The listening sockets, open before anything starts.
pub struct Sockets {
    /// For peers.
    pub inbound: Listener,
    /// For this host's programs.
    pub outbound: Listener,
    /// For this host's programs as well, most of them to one place each.
    pub listeners: Vec<LocalListener>,
    /// For supervisors.
    pub admin: Option<Listener>,
    /// For operators of this host; `None` where it could not be had and nobody asked for it.
    pub own: Option<Listener>,
}

impl Sockets {
    /// Opens what `config` asks for. What is left of `given` was for an older configuration, unless a supervisor
    /// gave it (`strict`), which would go on letting clients connect to it.
    ///
    /// # Errors
    /// An address that is in use or not of this host; a socket that nobody asked for.
    pub fn open(config: &Config, given: Vec<Given>, strict: bool) -> Result<Self, SocketsError> {
        let proxy = &config.proxy;
        let mut given = Offer(given);
        let inbound = SocketAddr::new(proxy.inbound.address, config.mesh.agent_channel_port);
        let local = |given: &mut Offer, name, address: LoopbackAddr, key: &str| {
            given.take_or_bind(name, address.socket_addr(), key)
        };
        let sockets = Self {
            inbound: given.take_or_bind(INBOUND, inbound, "proxy.inbound.address")?,
            outbound: local(&mut given, OUTBOUND, proxy.outbound.listen, "proxy.outbound.listen")?,
            listeners: proxy
                .outbound
                .listeners
                .iter()
                .map(|each| {
                    let as_agent = each.as_agent.as_ref().map(|agent| agent.name.clone());
                    Ok(LocalListener {
                        socket: given.take_or_bind_local(each)?,
                        to: each.to.clone(),
                        as_agent,
                    })
                })
                .collect::<Result<_, BindError>>()?,
            admin: proxy
                .admin
                .listen
                .map(|address| local(&mut given, ADMIN, address, "proxy.admin.listen"))
                .transpose()?,
            own: given.take_or_bind_own(&proxy.admin)?,
        };
        if let Err(error) = sockets.inbound.expect_peers(proxy.timeouts.unread) {
            tracing::warn!(target: "Mesh", "peers that vanish will be noticed late: {error}");
        }
        match given.0.pop() {
            Some(Given { name, address, .. }) if strict => Err(SocketsError::Unasked { name, address }),
            _ => Ok(sockets),
        }
    }

    /// Where peers connect, and where this host's programs do.
    pub fn main_addresses(&self) -> (SocketAddr, SocketAddr) {
        // Both are always of TCP.
        let tcp = |listener: &Listener| listener.address.tcp().unwrap_or(SocketAddr::from(([0; 4], 0)));
        (tcp(&self.inbound), tcp(&self.outbound))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        let listeners = self.listeners.iter().map(|listener| &listener.socket);
        [&self.inbound, &self.outbound].into_iter().chain(listeners).chain(&self.admin).chain(&self.own)
    }
}

struct Offer(Vec<Given>);

impl Offer {
    fn take_or_bind(&mut self, name: &str, address: SocketAddr, key: &str) -> Result<Listener, BindError> {
        match self.take(name, &Address::Tcp(address), key) {
            Some(taken) => taken,
            None => Listener::bind(address, key),
        }
    }

    fn take_or_bind_local(&mut self, wanted: &OutboundListener) -> Result<Listener, BindError> {
        let OutboundListener { key, listen, access, .. } = wanted;
        match listen {
            LocalAddr::Tcp(address) => self.take_or_bind("", address.socket_addr(), key),
            LocalAddr::Unix(path) => {
                let address = Address::Unix(path.clone());
                let users = access.users.as_ref().map(|users| Users::find(users, key)).transpose();
                let users = users.map_err(|source| BindError::new(address.clone(), key, source))?;
                let socket = match self.take("", &address, key) {
                    Some(taken) => taken,
                    None => Listener::bind_unix(path, access, key),
                }?;
                Ok(match users {
                    Some(users) => socket.only_for(users),
                    None => socket,
                })
            }
        }
    }

    /// The sidecar's own socket. A mesh also starts without it, unless the configuration names it.
    fn take_or_bind_own(&mut self, admin: &Admin) -> Result<Option<Listener>, BindError> {
        const KEY: &str = "proxy.admin.socket";
        let path = &admin.socket;
        let access = SocketAccess { mode: OWN_MODE, group: None, users: None };
        let opened = match self.take("", &Address::Unix(path.clone()), KEY) {
            Some(taken) => taken,
            None => {
                if !admin.socket_is_named
                    && let Some(folder) = path.parent()
                {
                    // The folder of the sidecar's state, which may not be there yet. What cannot be made shows below.
                    let _ = fs::create_dir_all(folder);
                }
                match fits(path) {
                    Ok(()) => Listener::bind_unix(path, &access, KEY),
                    Err(error) => Err(BindError::new(Address::Unix(path.clone()), KEY, error)),
                }
            }
        };
        match opened {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if admin.socket_is_named => Err(error),
            Err(error) => {
                tracing::warn!(target: "Mesh", "{error}; meshctl top, tap and drain --wait cannot look at this sidecar");
                Ok(None)
            }
        }
    }

    fn take(&mut self, name: &str, wanted: &Address, key: &str) -> Option<Result<Listener, BindError>> {
        let is_named = |given: &Given| {
            !name.is_empty() && given.name == name && given.address.tcp().is_some() == wanted.tcp().is_some()
        };
        let at = self.0.iter().position(|given| is_named(given) || same_place(&given.address, wanted))?;
        let Given { socket, address: found, .. } = self.0.swap_remove(at);
        if !same_place(&found, wanted) {
            tracing::warn!(
                target: "Config",
                "the supervisor's socket {name} listens on {found}, {key} says {wanted}; the socket is used"
            );
        }
        Some(Listener::adopt(socket, wanted.clone(), key))
    }
}

/// Whether a unix socket can have this path.
fn fits(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    address::socket_path(&path.to_string_lossy()).map(drop).map_err(io::Error::other)
}

/// Whether both take the same connections; `::` takes IPv4 too.
fn same_place(a: &Address, b: &Address) -> bool {
    let (Address::Tcp(a), Address::Tcp(b)) = (a, b) else { return a == b };
    let everywhere = a.ip().is_unspecified() && b.ip().is_unspecified();
    a.port() == b.port() && (everywhere || a.ip().to_canonical() == b.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The sidecar's own socket cannot be made in a folder below a file.
    fn config(inbound: u16, outbound: u16) -> Config {
        let yaml = format!(
            "mesh: {{enabled: true, node_name: ct110, tls: true, agent_channel_port: {inbound}}}\n\
             proxy: {{inbound: {{address: 127.0.0.1}}, outbound: {{listen: \"127.0.0.1:{outbound}\"}}, \
             state_dir: /dev/null/none}}"
        );
        Config::parse(&yaml).unwrap()
    }

    fn given(name: &str) -> (Given, u16) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (Given { socket: socket.into(), name: name.into(), address: Address::Tcp(address) }, address.port())
    }

    #[test]
    fn sockets_are_known_by_name_or_address() {
        let ((by_name, port), (by_address, outbound)) = (given(INBOUND), given("mesh-proxy.socket"));
        // Not the configured port: the name counts.
        let sockets = Sockets::open(&config(1, outbound), vec![by_address, by_name], true).unwrap();
        let port_of = |address: &Address| address.tcp().unwrap().port();
        let ports = (port_of(&sockets.inbound.address), port_of(&sockets.outbound.address));
        assert_eq!(ports, (port, outbound));
        assert_eq!((port_of(&sockets.inbound.configured), sockets.all().count()), (1, 2));
    }

    #[test]
    fn a_socket_that_nobody_asked_for_is_an_error_only_from_a_supervisor() {
        let open = |strict| {
            let ((inbound, port), (outbound, outbound_port), (more, _)) =
                (given(INBOUND), given(OUTBOUND), given("else"));
            Sockets::open(&config(port, outbound_port), vec![inbound, outbound, more], strict)
        };
        let error = open(true).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("\"else\"") && error.contains("inbound, outbound and admin"), "{error}");
        assert!(open(false).is_ok());
    }

    #[test]
    fn every_address_is_the_same_place_as_every_ipv4_address() {
        let place = |text: &str| Address::Tcp(text.parse().unwrap());
        let same = |a, b| same_place(&place(a), &place(b));
        assert!(same("[::]:3000", "0.0.0.0:3000"));
        assert!(same("[::ffff:127.0.0.1]:3000", "127.0.0.1:3000"));
        assert!(!same("[::]:3000", "127.0.0.1:3000"));
        assert!(!same("127.0.0.1:3000", "127.0.0.1:3001"));
    }
}
