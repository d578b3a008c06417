//! Port 3000: a peer's connection from TCP through mutual TLS to its end. The steps of a connection, in order.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_shared::certificate::{Role, describe};
use mesh_shared::config::Config;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use rustls::HandshakeKind;
use rustls::pki_types::UnixTime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::http::h2;
use crate::http::upgrade::Tunnel;
use crate::inbound::pipeline::Pipeline;
use crate::listener::{Connections, Handshakes, remote_address, run_to_end};
use crate::metrics::METRICS;
use crate::tls::credentials::{ALPN_H2, CredentialStore, Credentials};
use crate::tls::trust;
use crate::tls::verify::PeerIdentity;

/// The inbound side of the sidecar.
pub struct Inbound {
    credentials: Arc<CredentialStore>,
    pipeline: Pipeline,
    handshake_limit: Duration,
    handshakes: Handshakes,
    connections: Connections,
    full: AtomicBool,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Inbound {
    /// The inbound side as configured, which gives each request to `pipeline`.
    pub fn new(
        config: &Config,
        credentials: Arc<CredentialStore>,
        pipeline: Pipeline,
        handshakes: Handshakes,
        connections: Connections,
    ) -> Self {
        let proxy = &config.proxy;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(proxy.timeouts.header)
            .max_buf_size(proxy.limits.max_header_bytes as usize);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(proxy.limits.max_header_bytes)
            .max_concurrent_streams(proxy.limits.max_streams)
            .initial_stream_window_size(h2::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(proxy.limits.max_streams))
            .max_frame_size(h2::FRAME_BYTES)
            .keep_alive_interval(h2::PING_INTERVAL)
            .keep_alive_timeout(h2::PING_TIMEOUT);
        Self {
            credentials,
            pipeline,
            handshake_limit: proxy.timeouts.handshake,
            handshakes,
            connections,
            full: AtomicBool::new(false),
            http1,
            http2,
        }
    }
}

#[async_trait]
impl ServerApp for Inbound {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let address = remote_address(&stream)?.ip();
        // Before the handshake, so that no new files are missed after it.
        let replaced = self.credentials.replacements();
        let (tls, peer) = match self.handshakes.enter(address) {
            Some(_handshake) => self.handshake(stream, address).await?,
            None => {
                METRICS.inbound_handshake_failures.add_one();
                tracing::warn!(
                    target: "AgentChannel",
                    "TLS handshake failed from {address}: too many handshakes are under way"
                );
                return None;
            }
        };
        let Some(_place) = self.connections.enter() else {
            if !self.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    target: "AgentChannel",
                    "refusing connections, peer.cn={} first: all {} places are taken (proxy.limits.max_connections)",
                    peer.name(),
                    self.connections.most()
                );
            }
            return None;
        };
        self.full.store(false, Ordering::Relaxed);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(ALPN_H2);
        let (peer, tunnel) = (Arc::new(peer), Arc::<Tunnel>::default());
        let service = service_fn(|request| {
            let (this, peer, tunnel) = (self.clone(), peer.clone(), tunnel.clone());
            // Boxed, because it is some kilobytes and would be moved several times on its way to a task.
            Box::pin(async move { Ok::<_, Infallible>(this.pipeline.handle(&peer, &tunnel, request).await) })
        });
        let serve = async {
            let io = TokioIo::new(tls);
            if http2 {
                let connection = self.http2.serve_connection(io, service);
                return run_to_end(connection, http2::Connection::graceful_shutdown, shutdown.clone()).await;
            }
            let connection = self.http1.serve_connection(io, service).with_upgrades();
            let finish = http1::UpgradeableConnection::graceful_shutdown;
            run_to_end(connection, finish, shutdown.clone()).await?;
            tunnel.ended().await;
            Ok(())
        };
        let lost = trust::lost(&self.credentials, replaced, peer.chain(), |credentials| {
            credentials.clients.still_trusts(&peer, UnixTime::now())
        });
        tokio::select! {
            ended = serve => if let Err(error) = ended {
                tracing::debug!(target: "AgentChannel", "the connection of {} ended: {error}", peer.name());
            },
            reason = lost => tracing::warn!(
                target: "AgentChannel",
                "cutting off peer.cn={} from {address}: {}",
                peer.name(),
                describe(&reason, Role::Client)
            ),
        }
        None
    }
}

impl Inbound {
    /// Mutual TLS: who is it? `None` after a handshake that failed, which is one WARN line.
    async fn handshake(&self, stream: Stream, address: IpAddr) -> Option<(TlsStream<Stream>, PeerIdentity)> {
        let credentials = self.credentials.load_full();
        let acceptor = TlsAcceptor::from(credentials.server.clone());
        let reason = match tokio::time::timeout(self.handshake_limit, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => match identify(&credentials, &tls, address) {
                Ok(peer) => {
                    METRICS.inbound_connections.add_one();
                    return Some((tls, peer));
                }
                Err(error) => describe(&error, Role::Client),
            },
            Ok(Err(error)) => handshake_reason(&error),
            Err(_) => format!("timed out after {} ms", self.handshake_limit.as_millis()),
        };
        METRICS.inbound_handshake_failures.add_one();
        tracing::warn!(target: "AgentChannel", "TLS handshake failed from {address}: {reason}");
        None
    }
}

/// Who the peer is. A resumed session says who it was, which is judged anew.
fn identify(
    credentials: &Credentials,
    tls: &TlsStream<Stream>,
    address: IpAddr,
) -> Result<PeerIdentity, rustls::Error> {
    let session = tls.get_ref().1;
    let peer = PeerIdentity::of_client(session, address)?;
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        trust::judge_resumed(credentials, peer.chain(), |credentials| {
            credentials.clients.still_trusts(&peer, UnixTime::now())
        })?;
    }
    Ok(peer)
}

/// A failed handshake in words.
fn handshake_reason(error: &io::Error) -> String {
    use rustls::Error as E;
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<E>());
    match cause {
        Some(E::NoCertificatesPresented) => "peer did not return a certificate".into(),
        Some(E::InvalidMessage(detail)) => format!("not a TLS client ({detail:?})"),
        Some(E::AlertReceived(alert)) => {
            format!("peer refused this node's certificate or offer (alert {alert:?})")
        }
        Some(E::PeerIncompatible(detail)) => {
            format!("no common ground with the peer ({detail:?}); TLS 1.2 or 1.3 is needed")
        }
        Some(other) => describe(other, Role::Client),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "connection closed during the handshake".into()
        }
        None => error.to_string(),
    }
}
