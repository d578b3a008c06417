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

use crate::caller::{Caller, Connection};
use crate::drain::Drain;
use crate::http::h2;
use crate::inbound::pipeline::Pipeline;
use crate::listener::{Connections, Handshakes, linger_to_end, remote_address, run_to_end};
use crate::metrics::{Direction, HandshakeFailure, METRICS, Resumption};
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
    drain: Drain,
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
        drain: Drain,
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
            drain,
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
            Some(_handshake) => tokio::select! {
                done = self.handshake(stream, address) => done?,
                // Whoever connected just before is still let in, to hear that it is over or to be served once.
                () = self.drain.lingered() => return None,
            },
            None => {
                METRICS.handshake_failed(Direction::Inbound, HandshakeFailure::Limit);
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
        let peer = Arc::new(peer);
        let from = Arc::new(Connection::new(Caller::Peer(peer.clone())));
        let service = service_fn(|request| {
            let (this, from, peer) = (self.clone(), from.clone(), peer.clone());
            // Boxed, because it is some kilobytes and would be moved several times on its way to a task.
            Box::pin(async move {
                let version = request.version();
                let answer = this.pipeline.handle(&from, &peer, request);
                Ok::<_, Infallible>(this.drain.carry(version, answer).await)
            })
        });
        let serve = async {
            let io = TokioIo::new(tls);
            if http2 {
                let connection = self.http2.serve_connection(io, service);
                return run_to_end(connection, http2::Connection::graceful_shutdown, shutdown.clone()).await;
            }
            let connection = self.http1.serve_connection(io, service).with_upgrades();
            let finish = http1::UpgradeableConnection::graceful_shutdown;
            linger_to_end(connection, finish, &self.drain).await?;
            let _carried = self.drain.request();
            from.tunnel.ended().await;
            Ok(())
        };
        let lost = trust::lost(&self.credentials, replaced, peer.chain(), |credentials| {
            credentials.clients.still_trusts(&peer, UnixTime::now())
        });
        tokio::select! {
            ended = serve => if let Err(error) = ended {
                tracing::debug!(target: "AgentChannel", "the connection of {} ended: {error}", peer.name());
            },
            reason = lost => {
                from.cut("the peer is trusted no more");
                tracing::warn!(
                    target: "AgentChannel",
                    "cutting off peer.cn={} from {address}: {}",
                    peer.name(),
                    describe(&reason, Role::Client)
                );
            }
        }
        None
    }
}

impl Inbound {
    /// Mutual TLS: who is it? `None` after a handshake that failed, which is one WARN line.
    async fn handshake(&self, stream: Stream, address: IpAddr) -> Option<(TlsStream<Stream>, PeerIdentity)> {
        let credentials = self.credentials.load_full();
        let acceptor = TlsAcceptor::from(credentials.server.clone());
        let (why, reason) = match tokio::time::timeout(self.handshake_limit, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => match identify(&credentials, &tls, address) {
                Ok(peer) => {
                    let resumption = Resumption::of(tls.get_ref().1.handshake_kind());
                    METRICS.handshake_done(Direction::Inbound, resumption);
                    return Some((tls, peer));
                }
                Err(error) => (HandshakeFailure::of_tls(&error), describe(&error, Role::Client)),
            },
            Ok(Err(error)) => (HandshakeFailure::of(&error), handshake_reason(&error)),
            Err(_) => (
                HandshakeFailure::Timeout,
                format!("timed out after {} ms", self.handshake_limit.as_millis()),
            ),
        };
        METRICS.handshake_failed(Direction::Inbound, why);
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
