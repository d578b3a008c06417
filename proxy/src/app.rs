//! Wiring: reads the configuration, binds, starts, reloads on SIGHUP, drains on SIGTERM.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_shared::LoopbackAddr;
use mesh_shared::config::Config;
use mesh_shared::local_api::SidecarReport;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::credentials::{Credentials, CredentialsError};
use crate::inbound::Inbound;
use crate::listener::{BindError, Connections, Listener};
use crate::metrics::METRICS;
use crate::outbound::peers::Peers;
use crate::outbound::{Outbound, OutboundListener};
use crate::registry_link::RegistryLink;
use crate::roster::RosterStore;

/// Why the sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The backend's address is no URI authority.
    #[error("proxy.backend.address: {0}")]
    Backend(#[from] http::uri::InvalidUri),
    /// The system refuses signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs until SIGTERM or SIGINT, and then until the requests in flight have ended or the drain time is over.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it ends only when told.
pub async fn run(config: Config) -> Result<(), StartError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;

    let (mesh, proxy) = (&config.mesh, &config.proxy);
    let credentials = Arc::new(ArcSwap::from_pointee(Credentials::load(&config)?));
    let inbound_socket = Listener::bind(
        SocketAddr::new(proxy.inbound.address, mesh.agent_channel_port),
        "proxy.inbound.address",
    )?;
    let bind = |address: LoopbackAddr, key| Listener::bind(address.socket_addr(), key);
    let outbound_socket = bind(proxy.outbound.listen, "proxy.outbound.listen")?;
    let node_sockets = proxy
        .outbound
        .listeners
        .iter()
        .map(|each| Ok((bind(each.listen, "proxy.outbound.listeners")?, each.node.clone())))
        .collect::<Result<Vec<_>, BindError>>()?;
    let admin_socket = proxy.admin.map(|address| bind(address, "proxy.admin.listen")).transpose()?;
    let (inbound_address, outbound_address) = (inbound_socket.address, outbound_socket.address);

    let roster =
        Arc::new(RosterStore::open(&proxy.state_dir, mesh.node_name.clone(), dialable(inbound_address)));
    let registry = Arc::new(RegistryLink::new(&config));
    let peers = Arc::new(Peers::new(&credentials.load(), roster.clone(), proxy.timeouts.clone()));
    let connections = Connections::new(proxy.limits.max_connections);
    let inbound = Inbound::new(&config, credentials.clone(), registry.clone(), connections.clone())?;
    let local_connections = Connections::new(proxy.limits.max_connections);
    let outbound = Arc::new(Outbound::new(
        &config,
        roster.clone(),
        peers.clone(),
        registry.clone(),
        local_connections.clone(),
    ));

    let (stop, stopped) = watch::channel(false);
    let mut listeners = JoinSet::new();
    listeners.spawn(inbound_socket.serve(inbound, stopped.clone()));
    let everywhere = OutboundListener { outbound: outbound.clone(), only: None };
    listeners.spawn(outbound_socket.serve(everywhere, stopped.clone()));
    for (socket, node) in node_sockets {
        let listener = OutboundListener { outbound: outbound.clone(), only: Some(node) };
        listeners.spawn(socket.serve(listener, stopped.clone()));
    }
    if let Some(socket) = admin_socket {
        listeners.spawn(socket.serve(Admin { roster: roster.clone() }, stopped));
    }
    tokio::spawn(registry.clone().follow(roster));
    let (backend, shared) = (proxy.backend.address, credentials.clone());
    tokio::spawn(registry.report(async move || SidecarReport {
        inbound: inbound_address,
        outbound: outbound_address,
        backend_up: Some(accepts_connections(backend).await),
        certificate_not_after: shared.load().not_after,
    }));
    tracing::info!(
        target: "Mesh",
        "mesh-proxy ready node={} inbound={inbound_address} outbound={outbound_address} backend={backend}",
        mesh.node_name
    );
    notify_supervisor(&[sd_notify::NotifyState::Ready]);

    loop {
        tokio::select! {
            _ = hangup.recv() => reload(&config, &credentials, &peers),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify_supervisor(&[sd_notify::NotifyState::Stopping]);
    let open = connections.open() + local_connections.open();
    tracing::info!(target: "Mesh", "stopping; {open} connections finish their requests first");
    // Fails only when every listener has ended already.
    let _ = stop.send(true);
    let drained = async {
        while listeners.join_next().await.is_some() {}
        connections.all_closed().await;
        local_connections.all_closed().await;
    };
    if tokio::time::timeout(config.proxy.timeouts.drain, drained).await.is_err() {
        let open = connections.open() + local_connections.open();
        tracing::warn!(
            target: "Mesh",
            "{open} connections still had requests after {} ms (proxy.timeouts.drain_ms); they are cut off",
            config.proxy.timeouts.drain.as_millis()
        );
    }
    Ok(())
}

/// New certificates are used whole or not at all.
fn reload(config: &Config, credentials: &ArcSwap<Credentials>, peers: &Peers) {
    match Credentials::load(config) {
        Ok(fresh) => {
            peers.renew(&fresh);
            credentials.store(Arc::new(fresh));
            tracing::info!(target: "Mesh", "certificates reloaded");
        }
        Err(error) => {
            METRICS.credential_reload_failures.add_one();
            tracing::error!(target: "Mesh", "certificates not reloaded, going on with the ones in use: {error}");
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
