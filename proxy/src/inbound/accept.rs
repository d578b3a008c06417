//! Port 3000: a peer's connection from TCP through mutual TLS to its end. The steps of a connection, in order.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryFutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use mesh_shared::certificate::{Role, describe};
use mesh_shared::config::{Config, Timeouts};
use mesh_shared::logging::Repeats;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use rustls::HandshakeKind;
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::caller::{Caller, Connection};
use crate::downstream;
use crate::downstream::http1::Http1;
use crate::downstream::socket::Socket;
use crate::downstream::watch::Watched;
use crate::drain::Drain;
use crate::error::BoxError;
use crate::http::h1;
use crate::http::h2::TLS_WRITE_BYTES;
use crate::http::h2::server::{self, Server};
use crate::http::headers::Writer;
use crate::inbound::admission::{Admission, Peer};
use crate::inbound::pipeline::Pipeline;
use crate::listener::{linger_to_end, remote_address, run_to_end};
use crate::live::refused::REFUSED;
use crate::metrics::{Direction, HandshakeFailure, METRICS, Resumption};
use crate::tls::credentials::{ALPN_H2, CredentialStore, Credentials};
use crate::tls::verify::PeerIdentity;
use crate::tls::{failure, trust};

/// A peer that policy keeps out is told so for as long as this, and then its connection ends.
const DENIED: Duration = Duration::from_secs(2);
/// The cause, in the live view, of a refusal by policy.
const POLICY: &str = "policy";

type PeerStream = TlsStream<Socket<Stream>>;

/// The inbound side of the sidecar.
pub struct Inbound {
    credentials: Arc<CredentialStore>,
    pipeline: Pipeline,
    admission: Arc<Admission>,
    drain: Drain,
    timeouts: Timeouts,
    http1: Arc<http1::Builder>,
    http2: Server,
}

impl Inbound {
    /// The inbound side as configured, which gives each request to `pipeline`.
    pub fn new(
        config: &Config,
        credentials: Arc<CredentialStore>,
        pipeline: Pipeline,
        admission: Arc<Admission>,
        drain: Drain,
    ) -> Self {
        let proxy = &config.proxy;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(proxy.timeouts.header)
            .max_buf_size(proxy.limits.max_header_bytes as usize)
            .max_header_size(proxy.limits.max_header_bytes as usize)
            .max_headers(h1::MAX_HEADERS);
        let http2 = Server::new(&proxy.limits, proxy.timeouts.unread, Writer::Agent);
        Self {
            credentials,
            pipeline,
            admission,
            drain,
            timeouts: proxy.timeouts.clone(),
            http1: http1.into(),
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
        // Boxed, so that what only the handshake needs is not kept for as long as the connection.
        let (tls, peer) = Box::pin(self.handshake(stream, address)).await?;
        let peer = Arc::new(peer);
        if !self.pipeline.lets_in(&peer) {
            Box::pin(self.turn_away(tls, peer, address, shutdown)).await;
            return None;
        }
        // A node has one share, however many of its agents have certificates of their own.
        let counted = peer.identity().node().map_or(peer.name(), |node| node.as_str());
        let admitted = match self.admission.connect(counted) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let told = refusal.is_news() && {
                    let line = format_args!("refusing connections, peer.cn={} first: {refusal}", peer.name());
                    warn("all slots are in use", address, line)
                };
                let cause = HandshakeFailure::Limit.as_str();
                REFUSED.note(address, Some(&peer), cause, &refusal.to_string(), told);
                return None;
            }
        };
        let from = Arc::new(Connection::new(Caller::Peer(peer.clone()), self.drain.clone()));
        let serve = self.serve(tls, &from, &peer, &admitted.peer, shutdown);
        let lost = async {
            let reason = trust::lost(&self.credentials, replaced, peer.chain(), |credentials| {
                credentials.clients.still_trusts(&peer, UnixTime::now())
            });
            let reason = reason.await;
            // Before the requests under way end, so that they know why.
            from.cut("the peer is no longer trusted");
            reason
        };
        tokio::select! {
            () = serve => if let Some(reason) = from.why_cut() {
                let line = format_args!("cutting off peer.cn={} from {address}: {reason}", peer.name());
                warn(reason, address, line);
            },
            reason = lost => {
                let reason = describe(&reason, Role::Client);
                // One for each connection of a peer that was revoked, however many they are.
                tracing::warn!(target: "AgentChannel", "cutting off peer.cn={} from {address}: {reason}", peer.name());
            }
        }
        None
    }
}

/// Handshakes that failed, of which anybody who reaches the port can cause as many as they like.
static HANDSHAKES: Repeats = Repeats::new(|more| {
    tracing::warn!(target: "AgentChannel", "TLS handshakes failed: {more}");
});

/// Connections of peers that were refused or cut off, by reason.
static REFUSALS: Repeats = Repeats::new(|more| {
    tracing::warn!(target: "AgentChannel", "connections of peers ended: {more}");
});

/// A line about a connection of a peer that does not go well; whether it was written.
fn warn(reason: &str, address: IpAddr, line: fmt::Arguments<'_>) -> bool {
    let told = REFUSALS.admits(reason, Some(address));
    if told {
        tracing::warn!(target: "AgentChannel", "{line}");
    }
    told
}

impl Inbound {
    /// Mutual TLS: who is it? `None` after a handshake that failed, which is one WARN line.
    async fn handshake(&self, stream: Stream, address: IpAddr) -> Option<(PeerStream, PeerIdentity)> {
        let place = self.admission.handshake(address);
        let credentials = self.credentials.load_full();
        let limit = self.timeouts.handshake;
        let shake = async {
            let mut socket = Socket::new(stream, self.timeouts.unread);
            socket.readable().await?;
            place.speaks();
            TlsAcceptor::from(credentials.server.clone()).accept(socket).await
        };
        let outcome = tokio::select! {
            outcome = timeout(limit, shake) => outcome,
            () = place.displaced() => {
                let reason = "too many handshakes are under way";
                handshake_failed(address, HandshakeFailure::Limit, reason);
                return None;
            }
            // Whoever connected just before the side drained is still let in, to be told so or to be served once.
            () = self.drain.lingered() => return None,
        };
        let (why, reason) = match outcome {
            Ok(Ok(mut tls)) => match identify(&credentials, &tls, address) {
                Ok(peer) => {
                    tls.get_mut().1.set_buffer_limit(Some(TLS_WRITE_BYTES));
                    let resumption = Resumption::of(tls.get_ref().1.handshake_kind());
                    METRICS.handshake_done(Direction::Inbound, resumption);
                    return Some((tls, peer));
                }
                Err(error) => (failure::of_tls(&error), describe(&error, Role::Client)),
            },
            Ok(Err(error)) => (failure::of(&error), handshake_reason(&error)),
            Err(_) => (HandshakeFailure::Timeout, format!("timed out after {} ms", limit.as_millis())),
        };
        handshake_failed(address, why, &reason);
        None
    }

    /// Answers requests until the connection ends; after `shutdown`, those that are under way.
    ///
    /// Not an async function: it would keep the parts of the connection besides the whole for as long as it is open.
    fn serve(
        self: &Arc<Self>,
        tls: PeerStream,
        from: &Arc<Connection>,
        peer: &Arc<PeerIdentity>,
        share: &Arc<Peer>,
        shutdown: &ShutdownWatch,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (this, from, peer, share) = (self.clone(), from.clone(), peer.clone(), share.clone());
        let http2 = tls.get_ref().1.alpn_protocol() == Some(ALPN_H2);
        let io = Watched::new(tls, from.clone(), self.timeouts.first_request);
        let (of, name) = (from.clone(), peer.clone());
        let answer = move |request, interim| {
            from.begins();
            let (this, from, peer, share) = (this.clone(), from.clone(), peer.clone(), share.clone());
            // Boxed, because it is some kilobytes and would be moved several times on its way to a task.
            Box::pin(async move { this.pipeline.handle(&from, &peer, &share, request, interim).await })
        };
        let connection: Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> = match http2 {
            true => {
                let (io, reads) = io.http2(self.timeouts.header);
                let connection = self.http2.serve(io, answer, Some(reads));
                let finish = server::Connection::graceful_shutdown;
                Box::pin(run_to_end(connection, finish, shutdown.clone()))
            }
            false => {
                let header = Some(self.timeouts.header);
                let connection = downstream::serve_http1(
                    self.http1.clone(),
                    io,
                    of.clone(),
                    Writer::Agent,
                    header,
                    answer,
                );
                Box::pin(linger_to_end(connection, Http1::graceful_shutdown, &self.drain).map_err(Into::into))
            }
        };
        async move {
            match connection.await {
                Ok(()) => of.tunnel.ended().await,
                Err(error) => {
                    tracing::debug!(target: "AgentChannel", "the connection of {} ended: {error}", name.name());
                }
            }
        }
    }

    /// Lets a peer that may not come in ask in order to be told so, if it does at once and not too many do.
    async fn turn_away(
        self: &Arc<Self>,
        tls: PeerStream,
        peer: Arc<PeerIdentity>,
        address: IpAddr,
        shutdown: &ShutdownWatch,
    ) {
        let from = Arc::new(Connection::new(Caller::Peer(peer.clone()), self.drain.clone()));
        if let Some((_place, share)) = self.admission.denied(peer.name()) {
            // Its requests are logged as those of others are; the connection ends in order if it can.
            let (end, ended) = watch::channel(false);
            let serve = self.serve(tls, &from, &peer, &share, &ended);
            let mut told = shutdown.clone();
            let time = async {
                let _ = timeout(DENIED, told.wait_for(|stop| *stop)).await;
                let _ = end.send(true);
                tokio::time::sleep(DENIED).await;
            };
            tokio::select! {
                () = serve => {}
                () = time => {}
            }
        }
        if !from.has_begun() {
            let reason = "not allowed to connect by proxy.policy";
            let line = format_args!("refusing peer.cn={} from {address}: it is {reason}", peer.name());
            let told = warn(reason, address, line);
            REFUSED.note(address, Some(&peer), POLICY, reason, told);
        }
    }
}

/// Who the peer is. A resumed session says who it was, which is judged again.
fn identify(
    credentials: &Credentials,
    tls: &PeerStream,
    address: IpAddr,
) -> Result<PeerIdentity, rustls::Error> {
    let session = tls.get_ref().1;
    let peer = PeerIdentity::of_client(session, &credentials.clients, address)?;
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        trust::judge_resumed(credentials, peer.chain(), |credentials| {
            credentials.clients.still_trusts(&peer, UnixTime::now())
        })?;
    }
    Ok(peer)
}

fn handshake_failed(address: IpAddr, why: HandshakeFailure, reason: &str) {
    METRICS.handshake_failed(Direction::Inbound, why);
    let told = HANDSHAKES.admits(reason, Some(address));
    if told {
        tracing::warn!(target: "AgentChannel", "TLS handshake failed from {address}: {reason}");
    }
    REFUSED.note(address, None, why.as_str(), reason, told);
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
            format!(
                "no TLS parameters in common with the peer ({detail:?}); TLS 1.3 is needed, or 1.2 where proxy.tls.min_version allows it"
            )
        }
        Some(other) => describe(other, Role::Client),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "connection closed during the handshake".into()
        }
        None => error.to_string(),
    }
}
