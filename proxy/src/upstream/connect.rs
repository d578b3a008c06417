//! One connection to a peer: TCP to the first address that answers, then mutual TLS with the right node.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper_util::client::legacy::connect::{Connected, Connection};
use mesh_shared::NodeName;
use mesh_shared::certificate::{Role, describe};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::peers::Refusals;
use crate::error::ProxyError;
use crate::metrics::Resumption;
use crate::roster::table::Route;
use crate::tcp;
use crate::tls::credentials::ALPN_H2;
use crate::tls::verify::WrongPeer;

/// RFC 8305, section 8: how long one address may keep the next one waiting.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Connects and verifies, within `limit` in all.
///
/// # Errors
/// Everything that can keep a connection from being made, each as its own error. Fails closed.
pub async fn dial(
    route: &Route,
    tls: Arc<ClientConfig>,
    limit: Duration,
    refusals: Arc<Refusals>,
) -> Result<PeerStream, ProxyError> {
    let node = &route.node;
    if route.addresses.is_empty() {
        let reason = route.unresolved.clone();
        let reason =
            reason.unwrap_or_else(|| "the name does not resolve, and its entry names no usable host".into());
        return Err(ProxyError::PeerUnresolved { node: node.clone(), reason });
    }
    let attempt = async {
        let tcp = connect(&route.addresses)
            .await
            .map_err(|reason| ProxyError::PeerUnreachable { node: node.clone(), reason })?;
        let name = ServerName::try_from(node.mesh_host())
            .map_err(|error| ProxyError::BadDestination(format!("{node}.mesh: {error}")))?;
        let tls =
            TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| tls_error(node, &error))?;
        Ok(PeerStream { tls, node: node.clone(), refusals })
    };
    timeout(limit, attempt).await.unwrap_or_else(|_| {
        Err(ProxyError::PeerTimeout {
            node: node.clone(),
            limit_ms: limit.as_millis(),
            addresses: list(&route.addresses),
        })
    })
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

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn tls_error(node: &NodeName, error: &io::Error) -> ProxyError {
    let node = node.clone();
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return ProxyError::PeerUnreachable { node, reason: format!("the TLS handshake broke off: {error}") };
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
        rustls::Error::AlertReceived(alert) if *alert != AlertDescription::NoApplicationProtocol => {
            ProxyError::PeerRefusedUs { node, reason: format!("alert {alert:?}") }
        }
        _ => ProxyError::PeerUnreachable {
            node,
            reason: format!("it does not speak TLS as the mesh does: {reason}"),
        },
    }
}

/// A verified connection to a peer.
///
/// In TLS 1.3 a server refuses a client's certificate only after the client has finished; the alert then
/// arrives in place of the first answer. It is noted here, because HTTP reports no more than a lost connection.
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    node: NodeName,
    refusals: Arc<Refusals>,
}

impl PeerStream {
    /// Whether the peer chose h2.
    pub fn speaks_h2(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(ALPN_H2)
    }

    /// Whether an earlier session was resumed.
    pub fn resumption(&self) -> Resumption {
        Resumption::of(self.tls.get_ref().1.handshake_kind())
    }

    fn note(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = cause {
            self.refusals.note(&self.node, format!("alert {alert:?}"));
        }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.tls).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &polled {
            self.note(error);
        }
        polled
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

impl Connection for PeerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
