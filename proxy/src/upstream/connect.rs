//! One connection to a peer: TCP to the first address that answers, then mutual TLS with the right node. It ends when the
//! peer is no longer trusted.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_shared::certificate::{Leaf, Role, describe};
use mesh_shared::{AgentName, NodeName};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, HandshakeKind, NamedGroup};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::ProxyError;
use crate::http::h2::TLS_WRITE_BYTES;
use crate::io::link::{Hosted, Link, Linked};
use crate::io::read_ahead::ReadAhead;
use crate::metrics::Resumption;
use crate::roster::table::Route;
use crate::tcp;
use crate::tls::credentials::{ALPN_H2, CredentialStore, Credentials};
use crate::tls::trust;
use crate::tls::verify::WrongPeer;

/// RFC 8305, section 8: how long one address may keep the next one waiting.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// A connection gets new requests for so long at least.
const SHORTEST_USE: Duration = Duration::from_secs(1);

/// A verified connection to a peer.
pub type PeerStream = Linked<TlsStream<ReadAhead<TcpStream>>>;

/// Which protocols a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// The peer chooses.
    Any,
    /// HTTP/1.1 only, as protocol upgrades need it.
    Http1,
}

/// Connects and verifies, within `limit` in all. The agent that it `presents` shows its own certificate, where it has one.
/// Returns also what the peer's certificate says.
///
/// # Errors
/// Everything that can keep a connection from being made, each as its own error. Fails closed.
pub async fn dial(
    route: &Route,
    credentials: &Arc<CredentialStore>,
    presents: Option<&AgentName>,
    protocols: Protocols,
    limit: Duration,
) -> Result<(PeerStream, Leaf), ProxyError> {
    let node = &route.node;
    if route.addresses.is_empty() {
        let reason = route.unresolved.clone();
        let reason =
            reason.unwrap_or_else(|| "the name does not resolve, and its entry names no usable host".into());
        return Err(ProxyError::PeerUnresolved { node: node.clone(), reason });
    }
    let connected = AtomicBool::new(false);
    timeout(limit, handshake(route, credentials, presents, protocols, &connected)).await.unwrap_or_else(
        |_| {
            let hint = match connected.into_inner() {
                true => large_hello(&credentials.load().node.any),
                false => "",
            };
            Err(ProxyError::PeerTimeout {
                node: node.clone(),
                limit_ms: limit.as_millis(),
                addresses: list(&route.addresses) + hint,
            })
        },
    )
}

async fn handshake(
    route: &Route,
    credentials: &Arc<CredentialStore>,
    presents: Option<&AgentName>,
    protocols: Protocols,
    connected: &AtomicBool,
) -> Result<(PeerStream, Leaf), ProxyError> {
    let node = &route.node;
    let name = ServerName::try_from(node.mesh_host())
        .map_err(|error| ProxyError::BadDestination(format!("{node}.mesh: {error}")))?;
    // Before the handshake, so that no new files are missed after it.
    let replaced = credentials.replacements();
    let snapshot = credentials.load_full();
    let own = snapshot.presented(presents).map_err(|why| ProxyError::IdentityUnusable(why.into()))?;
    let config = match protocols {
        Protocols::Any => &own.any,
        Protocols::Http1 => &own.http1,
    };
    let mut tls = connect_tls(route, config, &name, connected).await?;
    let resumed = tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    let still_trusts = |credentials: &Credentials| judge(credentials, &chain(&tls), &name);
    if resumed && trust::judge_resumed(&snapshot, &chain(&tls), still_trusts).is_err() {
        // The session's certificate has ended, or the revocation list. The peer may have another certificate by now.
        let mut anew = ClientConfig::clone(config);
        anew.resumption = rustls::client::Resumption::disabled();
        tls = connect_tls(route, &Arc::new(anew), &name, connected).await?;
    }
    tls.get_mut().1.set_buffer_limit(Some(TLS_WRITE_BYTES));
    tcp::prepare_peer(tls.get_ref().0.get_ref(), tls.get_ref().1.alpn_protocol() == Some(ALPN_H2));
    let chain = chain(&tls);
    let leaf = chain.first().map(|leaf| snapshot.servers.read(leaf)).transpose().ok().flatten();
    let leaf = leaf.ok_or_else(|| ProxyError::PeerUntrusted {
        node: node.clone(),
        reason: "its certificate cannot be read".into(),
    })?;
    let (stream, is_gone) = Linked::to(tls, Hosted::new(leaf.hosts(&snapshot.trust_domain)));
    let trust = Trust {
        node: node.clone(),
        name,
        chain,
        // The node's own is judged when it is read, and one that is bad is never taken.
        own: presents
            .filter(|_| !Arc::ptr_eq(&own.chain, &snapshot.node.chain))
            .map(|agent| (agent.clone(), own.chain.clone())),
        credentials: credentials.clone(),
    };
    tokio::spawn(trust.end(stream.link().clone(), is_gone, replaced));
    Ok((stream, leaf))
}

/// Whether an earlier session was resumed.
pub fn resumption(stream: &PeerStream) -> Resumption {
    Resumption::of(stream.get_ref().get_ref().1.handshake_kind())
}

/// Whether the peer chose h2.
pub fn speaks_h2(stream: &PeerStream) -> bool {
    stream.get_ref().get_ref().1.alpn_protocol() == Some(ALPN_H2)
}

fn chain(tls: &TlsStream<ReadAhead<TcpStream>>) -> Vec<CertificateDer<'static>> {
    tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
}

fn judge(
    credentials: &Credentials,
    chain: &[CertificateDer<'static>],
    name: &ServerName<'_>,
) -> Result<(), rustls::Error> {
    credentials.servers.still_trusts(chain, name, UnixTime::now())
}

/// On what the trust in a connection rests, both ways.
struct Trust {
    node: NodeName,
    name: ServerName<'static>,
    chain: Vec<CertificateDer<'static>>,
    /// What an agent of this node presented on it.
    own: Option<(AgentName, Arc<[CertificateDer<'static>]>)>,
    credentials: Arc<CredentialStore>,
}

impl Trust {
    /// Ends the connection once its peer, or the agent that calls, would be refused. When half the time has passed that was
    /// left to the peer's certificate, the connection is retired: it ends with that certificate, in the middle of what it
    /// does, and the peer may have a new one by now.
    async fn end(self, link: Arc<Link>, is_gone: oneshot::Receiver<()>, replaced: watch::Receiver<()>) {
        let of_peer = |credentials: &Credentials| judge(credentials, &self.chain, &self.name);
        let of_agent = |credentials: &Credentials| match &self.own {
            Some((_, chain)) => credentials.clients.accepts(chain, UnixTime::now()),
            None => Ok(()),
        };
        let both = |credentials: &Credentials| of_peer(credentials).and_then(|()| of_agent(credentials));
        let own = self.own.iter().flat_map(|(_, chain)| chain.iter().cloned());
        let chains: Vec<_> = self.chain.iter().cloned().chain(own).collect();
        let half = (trust::left(&self.chain, UnixTime::now()) / 2).max(SHORTEST_USE);
        let retired = async {
            sleep(half).await;
            link.retire();
            std::future::pending::<Infallible>().await
        };
        let reason = tokio::select! {
            _ = is_gone => return,
            never = retired => match never {},
            reason = trust::lost(&self.credentials, replaced, &chains, both) => reason,
        };
        let reason = describe(&reason, Role::Server);
        let whose = match &self.own {
            Some((agent, _)) if of_peer(&self.credentials.load()).is_ok() => {
                format!(" of agent {agent}: its own")
            }
            _ => ":".into(),
        };
        tracing::warn!(target: "Outbound", "cutting off the connection to {}{whose} {reason}", self.node);
        link.cut();
    }
}

async fn connect_tls(
    route: &Route,
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
    connected: &AtomicBool,
) -> Result<TlsStream<ReadAhead<TcpStream>>, ProxyError> {
    let node = &route.node;
    let tcp = connect(&route.addresses)
        .await
        .map_err(|reason| ProxyError::PeerUnreachable { node: node.clone(), reason })?;
    connected.store(true, Ordering::Relaxed);
    let connector = TlsConnector::from(config.clone());
    connector
        .connect(name.clone(), ReadAhead::new(tcp))
        .await
        .map_err(|error| tls_error(node, &error, config))
}

/// What to try where handshakes get no answer: a hello with a post-quantum key does not fit into one packet.
fn large_hello(config: &ClientConfig) -> &'static str {
    let large =
        config.crypto_provider().kx_groups.iter().any(|group| group.name() == NamedGroup::X25519MLKEM768);
    match large {
        true => {
            "; it took the TCP connection and no TLS: if a firewall between drops large handshakes, leave \
             X25519MLKEM768 out of proxy.tls.groups"
        }
        false => "",
    }
}

/// Tries the addresses in order, each as soon as the one before failed or took too long.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    let start = |address: &SocketAddr| {
        let address = *address;
        async move { (address, TcpStream::connect(address).await) }
    };
    attempts.extend(waiting.next().map(start));
    while !attempts.is_empty() {
        let more = waiting.len() > 0;
        tokio::select! {
            Some((address, outcome)) = attempts.next() => match outcome {
                Ok(stream) => {
                    // A connection that is gone already shows with its first use.
                    let _ = tcp::prepare(&stream);
                    return Ok(stream);
                }
                Err(error) => {
                    failures.push(format!("{address}: {error}"));
                    attempts.extend(waiting.next().map(start));
                }
            },
            () = sleep(NEXT_ADDRESS), if more => attempts.extend(waiting.next().map(start)),
        }
    }
    Err(failures.join("; "))
}

/// Addresses as text.
pub fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn tls_error(node: &NodeName, error: &io::Error, config: &ClientConfig) -> ProxyError {
    let node = node.clone();
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return ProxyError::PeerUnreachable {
            node,
            reason: format!("the TLS handshake broke off: {error}{}", large_hello(config)),
        };
    };
    let reason = describe(cause, Role::Server);
    match cause {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ProxyError::PeerIdentityMismatch { node, reason },
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) if other.0.is::<WrongPeer>() => {
            ProxyError::PeerIdentityMismatch { node, reason }
        }
        rustls::Error::InvalidCertificate(_) => ProxyError::PeerUntrusted { node, reason },
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => ProxyError::PeerUnreachable {
            node,
            reason: "it speaks no version of TLS that this node allows (proxy.tls.min_version)".into(),
        },
        rustls::Error::AlertReceived(alert) if *alert != AlertDescription::NoApplicationProtocol => {
            ProxyError::PeerRefusedUs { node, reason: format!("alert {alert:?}") }
        }
        _ => ProxyError::PeerUnreachable {
            node,
            reason: format!("it does not speak TLS as the mesh does: {reason}"),
        },
    }
}
