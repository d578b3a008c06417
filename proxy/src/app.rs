//! Wiring: reads the configuration, binds, starts, reloads on SIGHUP, drains on SIGTERM.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::config::Config;
use mesh_shared::local_api::SidecarReport;
use mesh_shared::{LoopbackAddr, NodeName};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::Admin;
use crate::descriptors;
use crate::inbound;
use crate::inbound::accept::Inbound;
use crate::listener::{BindError, Connections, Handshakes, Listener};
use crate::metrics::METRICS;
use crate::outbound;
use crate::outbound::accept::{Outbound, OutboundListener};
use crate::roster::registryd::RegistryLink;
use crate::roster::store::RosterStore;
use crate::roster::sync;
use crate::tls::credentials::{CredentialStore, Credentials, CredentialsError};
use crate::upstream::{Nodes, Upstream};
use crate::worker::Worker;

/// Why the sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system gives no more threads or file descriptors.
    #[error("cannot start the threads that carry requests: {0}")]
    Threads(io::Error),
    /// The system refuses signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs until SIGTERM or SIGINT, and then until the requests in flight have ended or the drain time is over.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it ends only when told.
pub async fn run(config: Config) -> Result<(), StartError> {
    let hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;

    let (mesh, proxy) = (&config.mesh, &config.proxy);
    let mut sockets = Sockets::bind(&config)?;
    let shared = Shared::new(&config, dialable(sockets.inbound.address))?;
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let threads = (0..proxy.threads)
        .map(|number| shared.worker(&config, &sockets, stopped.clone())?.start(number, ended.clone()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(StartError::Threads)?;
    if let Some(socket) = sockets.admin.take() {
        tokio::spawn(socket.serve(Admin { roster: shared.roster.clone() }, stopped));
    }
    tokio::spawn(sync::follow(shared.registry.clone(), shared.roster.clone()));
    let (inbound, outbound) = (sockets.inbound.address, sockets.outbound.address);
    // The workers have their own copies; with the last one that stops, the port is closed.
    drop(sockets);
    let (backend, credentials) = (proxy.backend.address, shared.credentials.clone());
    tokio::spawn(shared.registry.clone().report(async move || SidecarReport {
        inbound,
        outbound,
        backend_up: Some(accepts_connections(backend).await),
        certificate_not_after: credentials.load().not_after,
    }));
    tracing::info!(
        target: "Mesh",
        "mesh-proxy ready node={} inbound={inbound} outbound={outbound} backend={backend}",
        mesh.node_name
    );
    notify_supervisor(&[sd_notify::NotifyState::Ready]);

    tokio::spawn(reload_on(hangup, config.clone(), shared.credentials.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify_supervisor(&[sd_notify::NotifyState::Stopping]);
    tracing::info!(target: "Mesh", "stopping; {} connections finish their requests first", shared.open());
    // Fails only when every listener has ended already.
    let _ = stop.send(true);
    let drained = async { tokio::join!(shared.peers.all_closed(), shared.locals.all_closed()) };
    if tokio::time::timeout(proxy.timeouts.drain, drained).await.is_err() {
        tracing::warn!(
            target: "Mesh",
            "{} connections still had requests after {} ms (proxy.timeouts.drain_ms); they are cut off",
            shared.open(),
            proxy.timeouts.drain.as_millis()
        );
    }
    let _ = end.send(true);
    for thread in threads {
        // A thread that panicked has said so already.
        let _ = thread.join();
    }
    Ok(())
}

/// The listening sockets, bound before anything starts.
struct Sockets {
    inbound: Listener,
    outbound: Listener,
    nodes: Vec<(Listener, NodeName)>,
    admin: Option<Listener>,
}

impl Sockets {
    fn bind(config: &Config) -> Result<Self, BindError> {
        let proxy = &config.proxy;
        let inbound = SocketAddr::new(proxy.inbound.address, config.mesh.agent_channel_port);
        let local = |address: LoopbackAddr, key| Listener::bind(address.socket_addr(), key);
        Ok(Self {
            inbound: Listener::bind(inbound, "proxy.inbound.address")?,
            outbound: local(proxy.outbound.listen, "proxy.outbound.listen")?,
            nodes: proxy
                .outbound
                .listeners
                .iter()
                .map(|each| Ok((local(each.listen, &each.key)?, each.node.clone())))
                .collect::<Result<_, BindError>>()?,
            admin: proxy.admin.map(|address| local(address, "proxy.admin.listen")).transpose()?,
        })
    }
}

/// What all workers share.
struct Shared {
    credentials: Arc<CredentialStore>,
    roster: Arc<RosterStore>,
    nodes: Arc<Nodes>,
    registry: Arc<RegistryLink>,
    handshakes: Handshakes,
    /// Connections of peers, and of this host's programs.
    peers: Connections,
    locals: Connections,
}

impl Shared {
    fn new(config: &Config, own_inbound: SocketAddr) -> Result<Self, CredentialsError> {
        let (node, proxy) = (config.mesh.node_name.clone(), &config.proxy);
        let most = descriptors::carry(proxy.limits.max_connections);
        let credentials = Arc::new(CredentialStore::new(Credentials::load(config)?));
        let roster = Arc::new(RosterStore::open(&proxy.state_dir, node, own_inbound));
        Ok(Self {
            nodes: Arc::new(Nodes::new(config, credentials.clone(), roster.clone())),
            credentials,
            roster,
            registry: Arc::new(RegistryLink::new(config)),
            handshakes: Handshakes::beside(most),
            peers: Connections::new(most),
            locals: Connections::new(most),
        })
    }

    /// Connections open now.
    fn open(&self) -> usize {
        self.peers.open() + self.locals.open()
    }

    fn worker(
        &self,
        config: &Config,
        sockets: &Sockets,
        shutdown: watch::Receiver<bool>,
    ) -> io::Result<Worker> {
        let worker = Worker::new(shutdown)?;
        let inbound = Inbound::new(
            config,
            self.credentials.clone(),
            inbound::pipeline::Pipeline::new(config, self.registry.clone()),
            self.handshakes.clone(),
            self.peers.clone(),
        );
        worker.serve(sockets.inbound.try_clone()?, inbound);
        let upstream = Upstream::new(self.nodes.clone());
        let pipeline = outbound::pipeline::Pipeline::new(config, upstream, self.registry.clone());
        let outbound = Arc::new(Outbound::new(config, pipeline, self.locals.clone()));
        let everywhere = OutboundListener { outbound: outbound.clone(), only: None };
        worker.serve(sockets.outbound.try_clone()?, everywhere);
        for (socket, node) in &sockets.nodes {
            let to_node = OutboundListener { outbound: outbound.clone(), only: Some(node.clone()) };
            worker.serve(socket.try_clone()?, to_node);
        }
        Ok(worker)
    }
}

/// New certificates are used whole or not at all. Their files may lie on a mount that hangs; nothing else waits.
async fn reload_on(mut hangup: Signal, config: Config, credentials: Arc<CredentialStore>) {
    let config = Arc::new(config);
    while hangup.recv().await.is_some() {
        let config = config.clone();
        let loaded = tokio::task::spawn_blocking(move || Credentials::load(&config)).await;
        // A load that panicked has said so already.
        let Ok(loaded) = loaded else { continue };
        match loaded {
            Ok(fresh) => {
                credentials.replace(fresh);
                tracing::info!(target: "Mesh", "certificates reloaded");
            }
            Err(error) => {
                METRICS.credential_reload_failures.add_one();
                tracing::error!(
                    target: "Mesh",
                    "certificates not reloaded, going on with the ones in use: {error}"
                );
            }
        }
    }
}

/// Where this host itself reaches a socket that listens on `address`.
fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn accepts_connections(backend: LoopbackAddr) -> bool {
    let attempt = TcpStream::connect(backend.socket_addr());
    matches!(tokio::time::timeout(Duration::from_secs(2), attempt).await, Ok(Ok(_)))
}

fn notify_supervisor(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(target: "Mesh", "cannot tell the service manager: {error}");
    }
}
