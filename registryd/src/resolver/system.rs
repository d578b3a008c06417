//! What this host knows of name resolution: `/etc/resolv.conf` and `/etc/hosts`, read again when they change.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use tokio::sync::Mutex;

use mesh_shared::hosts_file;

/// How often the files are looked at, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The longest wait for one server to answer one question.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// How long a server that failed is asked after the others.
const SET_BACK: Duration = Duration::from_secs(30);
/// The longest time a cache keeps an address, whatever its TTL says.
const POSITIVE_MAX: Duration = Duration::from_secs(3600);
/// The longest time a cache keeps "does not exist". The root zone, which answers for `.mesh` where a host asks a
/// public resolver, says a day: a node whose name is entered meanwhile would stay unknown for as long.
pub(super) const NEGATIVE_MAX: Duration = Duration::from_secs(60);

/// Where the files lie.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
}

impl Sources {
    pub(super) fn of_this_host() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() }
    }
}

/// Keeps a [`Snapshot`] that is at most [`CHECK_INTERVAL`] behind the files.
pub(super) struct System {
    upstream: Vec<SocketAddr>,
    sources: Sources,
    pub(super) current: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

/// Servers in the order of the configuration; at least one.
pub(super) type Servers = Vec<Server>;

/// One server with its cache.
///
/// Each has a resolver of its own because hickory's pool gives up after the time of one attempt, however many
/// servers are left, and takes SERVFAIL and REFUSED of the first for the answer of all.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) resolver: TokioResolver,
    failed: StdMutex<Option<Instant>>,
}

/// Both files as they were at one moment.
pub(super) struct Snapshot {
    /// Rises with every change of them.
    pub(super) generation: u64,
    stamps: [Option<Stamp>; 2],
    host_servers: Result<Servers, String>,
    /// `None`: the host's are asked for mesh names, too.
    mesh_servers: Option<Result<Servers, String>>,
    hosts: HostsFile,
}

/// What is known of a file without reading it.
type Stamp = (u64, u64, i64, i64);

/// The entries of a hosts file.
pub(super) struct HostsFile(Hosts);

impl System {
    pub(super) fn new(upstream: Vec<SocketAddr>, sources: Sources) -> Self {
        Self { upstream, sources, current: Mutex::new(None) }
    }

    /// The present state. When a file has changed, the caches start empty.
    pub(super) async fn snapshot(&self) -> Arc<Snapshot> {
        let mut current = self.current.lock().await;
        if let Some((checked, snapshot)) = &*current
            && checked.elapsed() < CHECK_INTERVAL
        {
            return snapshot.clone();
        }
        let previous = current.as_ref().map(|(_, snapshot)| snapshot.clone());
        let (upstream, sources) = (self.upstream.clone(), self.sources.clone());
        let loaded = tokio::task::spawn_blocking({
            let previous = previous.clone();
            move || load(&upstream, &sources, previous)
        });
        // Fails only while the runtime shuts down.
        let snapshot = match (loaded.await, previous) {
            (Ok(snapshot), _) | (Err(_), Some(snapshot)) => snapshot,
            (Err(error), None) => Arc::new(Snapshot::without_files(error.to_string())),
        };
        *current = Some((Instant::now(), snapshot.clone()));
        snapshot
    }
}

fn load(upstream: &[SocketAddr], sources: &Sources, previous: Option<Arc<Snapshot>>) -> Arc<Snapshot> {
    let stamps = [&sources.resolv_conf, &sources.hosts].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    });
    let generation = previous.as_ref().map_or(0, |previous| previous.generation + 1);
    if let Some(previous) = previous
        && previous.stamps == stamps
    {
        return previous;
    }
    let hosts = match std::fs::read_to_string(&sources.hosts) {
        Ok(text) => HostsFile::parse(&text),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                let path = sources.hosts.display();
                tracing::warn!(target: "DNS", "cannot read {path}: {error}; continuing without it");
            }
            HostsFile(Hosts::default())
        }
    };
    let mesh_servers = (!upstream.is_empty()).then(|| configured(upstream));
    Arc::new(Snapshot { generation, stamps, host_servers: of_host(sources), mesh_servers, hosts })
}

impl Snapshot {
    fn without_files(why: String) -> Self {
        let hosts = HostsFile(Hosts::default());
        Self { generation: 0, stamps: [None; 2], host_servers: Err(why), mesh_servers: None, hosts }
    }

    /// Whom to ask for mesh names, or why nobody.
    pub(super) fn mesh_servers(&self) -> &Result<Servers, String> {
        self.mesh_servers.as_ref().unwrap_or(&self.host_servers)
    }

    /// Whom to ask for other names, or why nobody.
    pub(super) fn host_servers(&self) -> &Result<Servers, String> {
        &self.host_servers
    }

    /// The hosts file, where it counts for mesh names: only together with this host's own resolver.
    pub(super) fn mesh_hosts(&self) -> Option<&HostsFile> {
        self.mesh_servers.is_none().then_some(&self.hosts)
    }

    /// The hosts file for other names.
    pub(super) fn hosts(&self) -> &HostsFile {
        &self.hosts
    }
}

/// The servers in the order to ask now: as configured, but those that failed lately at the end.
///
/// One after the other as in the C library: asked at the same time, a public one would win with "does not exist".
pub(super) fn in_turn(servers: &Servers) -> impl Iterator<Item = &Server> {
    let (late, first): (Vec<_>, Vec<_>) = servers.iter().partition(|server| server.failed_lately());
    first.into_iter().chain(late)
}

fn configured(upstream: &[SocketAddr]) -> Result<Servers, String> {
    let no_search = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    upstream.iter().map(|address| Server::new(*address, &no_search, ResolverOpts::default())).collect()
}

fn of_host(sources: &Sources) -> Result<Servers, String> {
    let path = sources.resolv_conf.display();
    let text = std::fs::read(&sources.resolv_conf).map_err(|error| format!("cannot read {path}: {error}"))?;
    let (config, options) =
        system_conf::parse_resolv_conf(text).map_err(|error| format!("{path} cannot be used: {error}"))?;
    let addresses = config.name_servers.iter().map(|server| SocketAddr::new(server.ip, 53));
    addresses.map(|address| Server::new(address, &config, options.clone())).collect()
}

impl Server {
    /// A resolver for one server, with the search list and options given.
    fn new(address: SocketAddr, config: &ResolverConfig, mut options: ResolverOpts) -> Result<Self, String> {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        let mut config = config.clone();
        config.name_servers = vec![NameServerConfig::new(address.ip(), true, connections.into())];
        options.timeout = options.timeout.min(ATTEMPT_MAX);
        // Within an attempt hickory sends the question again by itself.
        options.attempts = 0;
        options.positive_max_ttl = Some(POSITIVE_MAX);
        options.negative_max_ttl = Some(NEGATIVE_MAX);
        // Looked up in `HostsFile`, which lets a single entry answer for both address families.
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| format!("cannot make a resolver for {address}: {error}"))?;
        Ok(Self { address, resolver, failed: StdMutex::new(None) })
    }

    /// Remembers whether the last question was answered.
    pub(super) fn note(&self, answered: bool) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = (!answered).then(Instant::now);
    }

    fn failed_lately(&self) -> bool {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|when| when.elapsed() < SET_BACK)
    }
}

impl HostsFile {
    fn parse(text: &str) -> Self {
        let mut hosts = Hosts::default();
        // Reading from memory cannot fail.
        let _ = hosts.read_hosts_conf(hosts_file::without_block(text).as_bytes());
        Self(hosts)
    }

    /// All addresses of a name, IPv6 first; empty if it is not in the file.
    pub(super) fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        [RecordType::AAAA, RecordType::A]
            .into_iter()
            .filter_map(|kind| self.0.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|lookup| {
                lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
            })
            .collect()
    }
}
