//! The configuration file that `mesh-proxy`, `registryd` and `meshctl` share: one YAML file, read once at the
//! start, every mistake in it reported together.

pub mod keys;
mod mesh;
mod proxy;
mod reference;
mod registryd;
mod schema;
mod store;
mod telemetry;
mod yaml;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::address::LocalAddr;
use crate::policy::LocalAgents;

pub use mesh::{Discovery, Hosting, Mesh, Seed, StaticPeer, TlsFiles};
pub use proxy::{
    Admin, AgentIdentity, AgentServer, Backend, Group, HostHeader, Inbound, Limits, ListenerTarget,
    LocalUser, Origin, Outbound, OutboundListener, Policy, Protocol, Proxy, SocketAccess, Timeouts, Tls,
    TlsVersion,
};
pub use reference::reference;
pub use registryd::{Dns, Registryd};
pub use schema::schema;
pub use store::{Endpoint, Etcd, Store, StoreKind};
pub use telemetry::{Collector, Otlp, Telemetry};
pub use yaml::Mistake;

/// Where the file lies unless `--config` or [`PATH_VARIABLE`] says otherwise.
pub const DEFAULT_PATH: &str = "/etc/mesh/mesh.yaml";
/// Environment variable that names the file.
pub const PATH_VARIABLE: &str = "MESH_CONFIG";
/// Exit code for a configuration that cannot work (EX_CONFIG of sysexits.h); restarting does not help.
pub const EXIT_CODE: u8 = 78;

/// Everything both daemons are told. All parts are checked against each other.
#[derive(Debug, Clone)]
pub struct Config {
    /// The reference document's section.
    pub mesh: Mesh,
    /// The sidecar.
    pub proxy: Proxy,
    /// The registry daemon.
    pub registryd: Registryd,
    /// Where the traces of both go.
    pub telemetry: Telemetry,
    /// Remarks that are not mistakes, such as a deprecated key.
    pub warnings: Vec<Mistake>,
    /// The file that it was read from.
    pub source: Option<PathBuf>,
}

/// A file that cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: ConfigErrorCause,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum ConfigErrorCause {
    /// It cannot be read.
    Unreadable(std::io::Error),
    /// It can be read and has these mistakes, at least one.
    Mistakes(Vec<Mistake>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.cause {
            ConfigErrorCause::Unreadable(error) => write!(
                f,
                "cannot read the configuration {path}: {error} (name another file with --config or {PATH_VARIABLE})"
            ),
            ConfigErrorCause::Mistakes(mistakes) if mistakes.len() == 1 => {
                write!(f, "{path}: {}", mistakes[0])
            }
            ConfigErrorCause::Mistakes(mistakes) => {
                write!(f, "{path}: {} mistakes", mistakes.len())?;
                mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Where the registry is kept, in words: the file, or the members of the etcd cluster.
    pub fn registry_place(&self) -> String {
        let store = &self.registryd.store;
        match (store.kind, &store.etcd) {
            (StoreKind::Etcd, Some(etcd)) => {
                let members: Vec<&str> = etcd.endpoints.iter().map(Endpoint::as_str).collect();
                format!("etcd {}{}", members.join(","), etcd.prefix)
            }
            _ => self.mesh.registry_path().display().to_string(),
        }
    }

    /// The agents of this node that a policy can tell apart.
    pub fn local_agents(&self) -> LocalAgents {
        let registered = self.registryd.agents.iter().filter_map(|agent| agent.name.parse().ok());
        LocalAgents::of(registered.chain(self.proxy.backend.agents.keys().cloned()).collect())
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// An unreadable file, or all mistakes in it at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |cause| ConfigError { path: path.into(), cause };
        let bytes = std::fs::read(path).map_err(|error| fail(ConfigErrorCause::Unreadable(error)))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let message = "is not UTF-8 text; save the file in that encoding".into();
            fail(ConfigErrorCause::Mistakes(vec![Mistake { key: String::new(), line: Some(line), message }]))
        })?;
        let config = Self::parse(text).map_err(|mistakes| fail(ConfigErrorCause::Mistakes(mistakes)))?;
        Ok(Self { source: Some(path.into()), ..config })
    }

    /// Whether both say the same, apart from what registryd publishes of its node, which can be read while it runs.
    pub fn same_but_published(&self, other: &Self) -> bool {
        let rest = |config: &Self| {
            let published = &mut config.registryd.clone();
            (published.agents, published.metadata) = (Vec::new(), None);
            (published.providers, published.models, published.capabilities) = Default::default();
            published.role = String::new();
            format!("{:?} {:?} {published:?} {:?}", config.mesh, config.proxy, config.telemetry)
        };
        rest(self) == rest(other)
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// All mistakes in it, in the order of their lines; that the mesh is not enabled is one.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let document = yaml::Document::parse(text).map_err(|mistake| vec![mistake])?;
        document.remark_on_unknown_sections(&["mesh", "proxy", "registryd", "telemetry"]);
        let mesh = mesh::read(&document);
        let proxy = proxy::read(document.section("proxy"));
        let registryd = registryd::read(document.section("registryd"));
        let telemetry = telemetry::read(document.section("telemetry"));
        if let Some(mesh) = &mesh {
            for listener in &proxy.outbound.listeners {
                if listener.to == Some(ListenerTarget::Node(mesh.node_name.clone())) {
                    let key = format!("{}.node", listener.key);
                    document
                        .mistake(&key, format!("{} is this node itself; name another one", mesh.node_name));
                }
            }
        }
        report_clashes(&document, mesh.as_ref(), &proxy, &registryd);
        let warnings = document.finish()?;
        // Where there is no mesh section to speak of, that was a mistake.
        mesh.map(|mesh| Self { mesh, proxy, registryd, telemetry, warnings, source: None })
            .ok_or_else(Vec::new)
    }
}

/// Reports every address of this host that is given away twice. Several agents may share a server.
fn report_clashes(document: &yaml::Document<'_>, mesh: Option<&Mesh>, proxy: &Proxy, registryd: &Registryd) {
    let inbound = mesh.map(|mesh| SocketAddr::new(proxy.inbound.address, mesh.agent_channel_port));
    let named = |key: &str, address| (key.to_owned(), address);
    let mut used = vec![named("proxy.outbound.listen", proxy.outbound.listen.socket_addr())];
    used.extend(inbound.map(|address| named("mesh.agent_channel_port", address)));
    let mut sockets: Vec<(String, &Path)> = Vec::new();
    for listener in &proxy.outbound.listeners {
        let key = format!("{}.listen", listener.key);
        match &listener.listen {
            LocalAddr::Tcp(address) => used.push((key, address.socket_addr())),
            LocalAddr::Unix(path) => sockets.push((key, path)),
        }
    }
    if proxy.admin.socket_is_named {
        sockets.push(("proxy.admin.socket".to_owned(), &proxy.admin.socket));
    }
    used.extend(proxy.admin.listen.map(|admin| named("proxy.admin.listen", admin.socket_addr())));
    let ours = used.len();
    let backends = proxy.backend.addresses();
    for (key, address) in &backends {
        used.extend(address.socket_addrs().map(|address| (key.clone(), address)));
    }
    let backends_end = used.len();
    used.extend(
        registryd.metrics.map(|metrics| ("registryd.metrics.listen".to_owned(), metrics.socket_addr())),
    );
    // DNS is served over TCP as well.
    used.extend(registryd.dns.listen.map(|address| named("registryd.dns.listen", address)));
    let mut told: Vec<(&str, &str)> = Vec::new();
    for (i, (key, address)) in used.iter().enumerate() {
        // Agents' servers are nobody's but their own.
        let before = if (ours..backends_end).contains(&i) { &used[..ours] } else { &used[..i] };
        let Some((other_key, other)) = before.iter().find(|(_, other)| overlap(*address, *other)) else {
            continue;
        };
        // Both addresses of localhost may be taken by one.
        if told.contains(&(key, other_key)) {
            continue;
        }
        told.push((key, other_key));
        // At the one that is written down, so that there is a line to look at.
        let (here, there) = match document.has(key) {
            true => ((key, address), (other_key, other)),
            false => ((other_key, other), (key, address)),
        };
        document.mistake(
            here.0,
            format!("{} is taken by {} ({}); each needs a port of its own", here.1, there.0, there.1),
        );
    }
    for (key, address) in &backends {
        if address.socket_path() == Some(&registryd.socket) {
            document.mistake(key, format!("{address} is taken by registryd.socket"));
        }
    }
    for (i, (key, path)) in sockets.iter().enumerate() {
        let taken = sockets[..i].iter().find(|(_, other)| other == path).map(|(other, _)| other.as_str());
        let by_agent = || backends.iter().find(|(_, address)| address.socket_path() == Some(*path));
        let by_registryd = (*path == registryd.socket).then_some("registryd.socket");
        if let Some(other) = taken.or(by_agent().map(|(other, _)| other.as_str())).or(by_registryd) {
            document.mistake(key, format!("unix:{} is taken by {other}", path.display()));
        }
    }
}

/// Whether no two programs can listen there at the same time. `::` takes IPv4 too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let covers = |all: IpAddr, each: IpAddr| all.is_unspecified() && (all.is_ipv6() || each.is_ipv4());
    // Port 0 is a different one each time.
    one.port() == other.port() && one.port() != 0 && (a == b || covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests;
