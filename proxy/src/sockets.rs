//! The listening sockets that the configuration asks for: those that somebody hands over, the others bound here.

use std::net::{SocketAddr, TcpListener};

use mesh_shared::LoopbackAddr;
use mesh_shared::config::{Config, ListenerTarget};

use crate::listener::{BindError, Listener};

/// Name of the socket for peers, as `FileDescriptorName=` has it.
pub const INBOUND: &str = "inbound";
/// Name of the socket for this host's programs.
pub const OUTBOUND: &str = "outbound";
/// Name of the socket for `/healthz`, `/readyz` and `/metrics`.
pub const ADMIN: &str = "admin";

/// A socket that listens already.
#[derive(Debug)]
pub struct Given {
    /// The socket.
    pub socket: TcpListener,
    /// What it is for, if it is one of the names above. Any other name means nothing; the address tells then.
    pub name: String,
    /// Where it listens, or where the configuration of the process that had it before wanted it.
    pub address: SocketAddr,
}

/// Why the sockets cannot be had.
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
        address: SocketAddr,
    },
}

/// The listening sockets, open before anything starts.
pub struct Sockets {
    /// For peers.
    pub inbound: Listener,
    /// For this host's programs.
    pub outbound: Listener,
    /// For this host's programs, to one place each.
    pub listeners: Vec<(Listener, ListenerTarget)>,
    /// For supervisors.
    pub admin: Option<Listener>,
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
                .map(|each| Ok((local(&mut given, "", each.listen, &each.key)?, each.to.clone())))
                .collect::<Result<_, BindError>>()?,
            admin: proxy
                .admin
                .map(|address| local(&mut given, ADMIN, address, "proxy.admin.listen"))
                .transpose()?,
        };
        if let Err(error) = sockets.inbound.expect_peers(proxy.timeouts.unread) {
            tracing::warn!(target: "Mesh", "peers that vanish will be noticed late: {error}");
        }
        match given.0.pop() {
            Some(Given { name, address, .. }) if strict => Err(SocketsError::Unasked { name, address }),
            _ => Ok(sockets),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        let listeners = self.listeners.iter().map(|(listener, _)| listener);
        [&self.inbound, &self.outbound].into_iter().chain(listeners).chain(&self.admin)
    }
}

struct Offer(Vec<Given>);

impl Offer {
    fn take_or_bind(&mut self, name: &str, address: SocketAddr, key: &str) -> Result<Listener, BindError> {
        let fits =
            |given: &Given| (!name.is_empty() && given.name == name) || same_place(given.address, address);
        let Some(at) = self.0.iter().position(fits) else { return Listener::bind(address, key) };
        let Given { socket, address: found, .. } = self.0.swap_remove(at);
        if !same_place(found, address) {
            tracing::warn!(
                target: "Config",
                "the supervisor's socket {name} listens on {found}, {key} says {address}; the socket counts"
            );
        }
        Listener::adopt(socket, address, key)
    }
}

/// Whether both take the same connections; `::` takes IPv4 too.
fn same_place(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() && b.ip().is_unspecified();
    a.port() == b.port() && (everywhere || a.ip().to_canonical() == b.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(inbound: u16, outbound: u16) -> Config {
        let yaml = format!(
            "mesh: {{enabled: true, node_name: ct110, tls: true, agent_channel_port: {inbound}}}\n\
             proxy: {{inbound: {{address: 127.0.0.1}}, outbound: {{listen: \"127.0.0.1:{outbound}\"}}}}"
        );
        Config::parse(&yaml).unwrap()
    }

    fn given(name: &str) -> (Given, u16) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (Given { socket, name: name.into(), address }, address.port())
    }

    #[test]
    fn sockets_are_known_by_name_or_address() {
        let ((by_name, port), (by_address, outbound)) = (given(INBOUND), given("mesh-proxy.socket"));
        // Not the configured port: the name counts.
        let sockets = Sockets::open(&config(1, outbound), vec![by_address, by_name], true).unwrap();
        assert_eq!((sockets.inbound.address.port(), sockets.outbound.address.port()), (port, outbound));
        assert_eq!((sockets.inbound.configured.port(), sockets.all().count()), (1, 2));
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
        let place = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(same_place(place("[::]:3000"), place("0.0.0.0:3000")));
        assert!(same_place(place("[::ffff:127.0.0.1]:3000"), place("127.0.0.1:3000")));
        assert!(!same_place(place("[::]:3000"), place("127.0.0.1:3000")));
        assert!(!same_place(place("127.0.0.1:3000"), place("127.0.0.1:3001")));
    }
}
