//! `meshctl ca serve`: the CA's process, which lets hosts join and renews certificates.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use mesh_ca::Ca;
use mesh_enrolment::{Address, Here, MAX_ADDRESSES, Settings, serve};
use mesh_shared::config;
use mesh_shared::confinement::{Confined, Confinement};
use mesh_shared::enrolment::{DEFAULT_PORT, DEFAULT_SOCKET, SeedAddress};
use mesh_shared::logging;
use nix::unistd::Group;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Failure, own_config};

/// The group of mesh-proxy, which forwards what members ask.
const GROUP: &str = "mesh";

/// Arguments of `meshctl ca serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The address for hosts that join (TLS)
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)))]
    listen: SocketAddr,
    /// The unix socket for this host's mesh-proxy
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The group that may use the socket: that of mesh-proxy
    #[arg(long, value_name = "GROUP", default_value = GROUP)]
    socket_group: String,
    /// This process's address for tokens, with or without :port; can be given several times [default:
    /// mesh.advertise_host, else this host's addresses]
    #[arg(long, value_name = "HOST")]
    address: Vec<String>,
    /// The configuration of this host's node, if it is one (or will be): it is the seed for hosts that join
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The form of log lines
    #[arg(long, value_name = "FORMAT", env = logging::FORMAT_VARIABLE, default_value = "text")]
    log_format: logging::Format,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// There is no CA that can sign, or an address or the socket is not available.
pub async fn run(args: ServeArgs, ca: Ca, dir: &Path, crl_days: u32) -> Result<ExitCode, Failure> {
    // First of all: what is confined is this thread, with all that it starts.
    let confined = confine(&args, dir);
    let _log = logging::init(args.log_format)?;
    match confined {
        Ok(confined) => tracing::info!(target: "Enrolment", "{confined}"),
        Err(error) => return Err(Failure::Said(format!("cannot be confined by Landlock: {error}"))),
    }
    let addresses = addresses(&args)?;
    let host = addresses.first().map(|address| address.host.clone()).unwrap_or_default();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let socket_group = match Group::from_name(&args.socket_group) {
        Ok(Some(group)) => Some(group.gid.as_raw()),
        Ok(None) | Err(_) => {
            tracing::warn!(
                target: "Enrolment", "there is no group {}, so only this process's user may use the socket", args.socket_group
            );
            None
        }
    };
    let settings = Settings {
        ca,
        dir: dir.into(),
        crl_days,
        listen: args.listen,
        addresses,
        socket: args.socket,
        socket_group,
        here: here(args.config, host),
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    match serve(settings, stop).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(target: "Enrolment", "the CA's process stops: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Takes from this process what it never needs: it writes to the CA's folder and makes its socket, and starts no program.
fn confine(args: &ServeArgs, dir: &Path) -> Result<Confined, impl std::fmt::Display + use<>> {
    let beside = args.socket.parent().unwrap_or(&args.socket);
    Confinement::default().writing_mounted(dir).writing(beside).apply()
}

/// Where this host is in the mesh, by its configuration as it is whenever somebody asks. One that breaks later
/// counts as it was before.
fn here(path: PathBuf, host: String) -> Box<dyn Fn() -> Here + Send + Sync> {
    let last = Mutex::new(Here::default());
    Box::new(move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match own_config(&path) {
            Ok(Some(config)) => {
                let mesh = config.mesh;
                let seed = SeedAddress {
                    node: mesh.node_name.clone(),
                    host: mesh.advertise_host.unwrap_or_else(|| host.clone()),
                    port: mesh.agent_channel_port,
                };
                *last = Here { node: Some(mesh.node_name), seed: Some(seed) };
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(target: "Enrolment", "{error}; the address that was known before is used")
            }
        }
        last.clone()
    })
}

fn addresses(args: &ServeArgs) -> Result<Vec<Address>, Failure> {
    let port = args.listen.port();
    let usage = |error: mesh_enrolment::TokenError| Failure::Usage(error.to_string());
    let mut addresses: Vec<Address> = Vec::new();
    for text in &args.address {
        addresses.push(Address::parse(text, port).map_err(usage)?);
    }
    let of = |host: String| Address { host, port };
    if addresses.is_empty() && !args.listen.ip().is_unspecified() {
        addresses.push(of(args.listen.ip().to_string()));
    }
    if addresses.is_empty()
        && let Ok(Some(config)) = own_config(&args.config)
    {
        addresses.extend(config.mesh.advertise_host.map(of));
    }
    if addresses.is_empty() {
        addresses.extend(own_addresses()?.into_iter().map(|address| of(address.to_string())));
    }
    match addresses.len() {
        // It may get one: an interface may come up later than this.
        0 => Err(Failure::Said(
            "this host has no address by which others could find it; name one with --address".into(),
        )),
        1..=MAX_ADDRESSES => Ok(addresses),
        _ => Err(Failure::Usage(format!("at most {MAX_ADDRESSES} addresses fit into a token"))),
    }
}

/// This host's addresses on its networks, IPv4 first, as many as fit into a token.
fn own_addresses() -> Result<Vec<IpAddr>, Failure> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .collect();
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    Ok(addresses)
}
