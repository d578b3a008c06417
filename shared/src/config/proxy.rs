//! The `proxy:` section: the sidecar. Every key has a default that works.

mod backend;
mod limits;
mod outbound;
mod policy;
mod tls;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::keys::DEFAULT_STATE_DIR;
use super::yaml::Section;
use crate::address::{self, LoopbackAddr};
use crate::enrolment;
use crate::name::NodeName;

pub use backend::{AgentServer, Backend, HostHeader, Protocol};
pub use limits::{Limits, Timeouts};
pub use outbound::{
    AgentIdentity, ListenerTarget, LocalUser, Origin, Outbound, OutboundListener, SocketAccess,
};
pub use policy::Policy;
pub use tls::{Group, Tls, TlsVersion};

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where peers come in.
    pub inbound: Inbound,
    /// Where this host's programs go out.
    pub outbound: Outbound,
    /// The servers of this host's agents.
    pub backend: Backend,
    /// How much one client may take.
    pub limits: Limits,
    /// How long one client may take.
    pub timeouts: Timeouts,
    /// Which peers may come in.
    pub policy: Policy,
    /// Where supervisors and operators of this host ask the sidecar about itself.
    pub admin: Admin,
    /// The nodes whose sidecars may see what this one carries ([`crate::live`]).
    pub live_peers: Vec<NodeName>,
    /// Revocation lists (PEM) to enforce in both directions; `None`: there are none.
    pub crl_path: Option<PathBuf>,
    /// Where the CA's process answers, if it runs on this host.
    pub ca_socket: PathBuf,
    /// What peers and this node must agree on in a handshake.
    pub tls: Tls,
    /// Where the last known roster and the newest revocation lists are kept for the next start.
    pub state_dir: PathBuf,
    /// Threads that carry requests. Each keeps connections of its own to every peer it talks to, and one carries
    /// more than the agents of one host produce.
    pub threads: usize,
    /// How many characters of a task its log line shows; 0: none.
    pub task_preview_chars: usize,
}

/// Where supervisors and operators of this host ask the sidecar about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where to serve `/healthz`, `/readyz` and `/metrics`; `None`: nowhere.
    pub listen: Option<LoopbackAddr>,
    /// The unix socket of the live view ([`crate::live`]).
    pub socket: PathBuf,
    /// Whether the configuration names it. Where it does not, the sidecar also starts without it.
    pub socket_is_named: bool,
}

impl Admin {
    /// [`Admin::socket`] unless configured.
    pub fn default_socket(state_dir: &Path) -> PathBuf {
        state_dir.join("admin.sock")
    }
}

/// Where peers come in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The address to listen on; the port is `mesh.agent_channel_port`. `::` stands for all, IPv4 too.
    pub address: IpAddr,
}

pub(super) fn read(section: Section<'_>) -> Proxy {
    let inbound = section.section("inbound");
    let address = inbound
        .parsed("address")
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |InboundAddress(address)| address);
    inbound.finish();

    let state_dir = section.string("state_dir").map_or_else(|| DEFAULT_STATE_DIR.into(), PathBuf::from);
    let admin = admin(section.section("admin"), &state_dir);

    let live = section.section("live");
    let live_peers = live.list("peers").unwrap_or_default();
    live.finish();

    let log = section.section("log");
    let task_preview_chars = log.number("task_preview_chars").unwrap_or(100) as usize;
    log.finish();

    let proxy = Proxy {
        inbound: Inbound { address },
        outbound: outbound::read(section.section("outbound")),
        backend: backend::read(section.section("backend")),
        limits: limits::read_limits(section.section("limits")),
        timeouts: limits::read_timeouts(section.section("timeouts")),
        policy: policy::read(section.section("policy")),
        admin,
        live_peers,
        crl_path: section.string("crl_path").map(PathBuf::from),
        ca_socket: section
            .string("ca_socket")
            .map_or_else(|| enrolment::DEFAULT_SOCKET.into(), PathBuf::from),
        tls: tls::read(section.section("tls")),
        state_dir,
        threads: section.number("threads").unwrap_or(1) as usize,
        task_preview_chars,
    };
    section.finish();
    proxy
}

fn admin(section: Section<'_>, state_dir: &Path) -> Admin {
    let listen = section.parsed("listen");
    let named = section.string("socket");
    let socket = named.as_deref().and_then(|path| {
        let path = address::socket_path(path.strip_prefix("unix:").unwrap_or(path));
        path.map_err(|error| section.mistake("socket", error.to_string())).ok()
    });
    section.finish();
    Admin {
        listen,
        socket_is_named: socket.is_some(),
        socket: socket.unwrap_or_else(|| Admin::default_socket(state_dir)),
    }
}

/// An address whose port is said elsewhere.
struct InboundAddress(IpAddr);

impl FromStr for InboundAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| match text.parse::<SocketAddr>() {
            Ok(_) => format!(
                "expected an address without a port, found {text:?}; the port is mesh.agent_channel_port"
            ),
            Err(_) => format!("{text:?} is not an IP address such as 0.0.0.0 or ::"),
        })
    }
}
