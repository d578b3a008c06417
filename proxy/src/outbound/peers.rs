//! Requests to peers over verified mutual TLS, on connections that are used again.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use http::header::HOST;
use http::uri::Scheme;
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_shared::NodeName;
use mesh_shared::config::{Limits, Timeouts};
use rustls::ClientConfig;

use super::dial::{PeerStream, dial};
use crate::body::RequestBody;
use crate::credentials::{CredentialStore, Credentials};
use crate::early_answer::EarlyAnswer;
use crate::error::{ProxyError, root_cause};
use crate::headers::absolute;
use crate::http2_settings;
use crate::metrics::METRICS;
use crate::roster::{CONNECTIONS_PER_NODE, RosterStore, Route, STREAMS_PER_CONNECTION, StreamPlace};

/// Moves of a node after which a connection of before could be used again, if it still were in the pool.
const MOVES_APART: usize = 4;

/// One worker's connections to peers.
pub struct Peers {
    credentials: Arc<CredentialStore>,
    clients: ArcSwap<Clients>,
    roster: Arc<RosterStore>,
    timeouts: Timeouts,
    limits: Limits,
    refusals: Arc<Refusals>,
}

/// The connections made with one set of credentials.
struct Clients {
    made_with: Arc<Credentials>,
    /// h2 where the peer speaks it, else http/1.1. Each has at most one h2 connection to a node; which one carries a
    /// request, its place and the node's moves decide.
    any: Vec<Client<Connector, RequestBody>>,
    /// http/1.1 only, for protocol upgrades.
    http1: Client<Connector, RequestBody>,
}

impl Peers {
    /// Connections with these credentials to nodes of this roster; made when they are needed.
    pub fn new(
        credentials: Arc<CredentialStore>,
        roster: Arc<RosterStore>,
        timeouts: Timeouts,
        limits: Limits,
    ) -> Self {
        let refusals = Arc::new(Refusals::default());
        let current = Guard::into_inner(credentials.load());
        let clients = Clients::new(current, &roster, &timeouts, &limits, &refusals);
        Self { credentials, clients: ArcSwap::from_pointee(clients), roster, timeouts, limits, refusals }
    }

    /// The clients of the credentials that are in use now. After a reload, connections made with the old ones
    /// end when their requests have ended.
    fn clients(&self) -> Guard<Arc<Clients>> {
        let clients = self.clients.load();
        let credentials = self.credentials.load();
        if Arc::ptr_eq(&clients.made_with, &credentials) {
            return clients;
        }
        let credentials = Guard::into_inner(credentials);
        let clients = Clients::new(credentials, &self.roster, &self.timeouts, &self.limits, &self.refusals);
        self.clients.store(Arc::new(clients));
        self.clients.load()
    }

    /// Sends a request to a node, whose name its connection has proved.
    ///
    /// The answer's place on its connection is to be held until it has passed.
    ///
    /// # Errors
    /// The node cannot be reached, is somebody else, refuses this node, is busy, or fails before it answers.
    pub async fn send(
        &self,
        route: &Route,
        mut request: Request<RequestBody>,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, Option<StreamPlace>), ProxyError> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(Scheme::HTTPS, route.authority.clone(), path);
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().remove(HOST);
        let started = Instant::now();
        let clients = self.clients();
        let (client, place) = match upgrade {
            true => (&clients.http1, None),
            false => {
                let place = route.enter().ok_or_else(|| ProxyError::PeerBusy {
                    node: route.node.clone(),
                    most: STREAMS_PER_CONNECTION * CONNECTIONS_PER_NODE,
                })?;
                let era = route.moves % MOVES_APART;
                (&clients.any[era * CONNECTIONS_PER_NODE + place.connection()], Some(place))
            }
        };
        let answer = client.request(request);
        drop(clients);
        match answer.await {
            Ok(answer) => Ok((answer, place)),
            Err(error) => Err(self.explain(&route.node, started, &error)),
        }
    }

    fn explain(&self, node: &NodeName, started: Instant, error: &(dyn Error + 'static)) -> ProxyError {
        let mut cause = Some(error);
        while let Some(each) = cause {
            if let Some(known) = each.downcast_ref::<ProxyError>() {
                return known.clone();
            }
            cause = each.source();
        }
        match self.refusals.since(node, started) {
            Some(reason) => ProxyError::PeerRefusedUs { node: node.clone(), reason },
            None => ProxyError::PeerFailed { node: node.clone(), reason: root_cause(error).to_string() },
        }
    }
}

impl Clients {
    fn new(
        credentials: Arc<Credentials>,
        roster: &Arc<RosterStore>,
        timeouts: &Timeouts,
        limits: &Limits,
        refusals: &Arc<Refusals>,
    ) -> Self {
        let client = |tls: &Arc<ClientConfig>| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(timeouts.pool_idle)
                .timer(TokioTimer::new())
                .http2_initial_stream_window_size(http2_settings::STREAM_WINDOW_BYTES)
                .http2_initial_connection_window_size(http2_settings::connection_window_bytes(
                    STREAMS_PER_CONNECTION as u32,
                ))
                .http2_max_frame_size(http2_settings::FRAME_BYTES)
                .http2_max_header_list_size(limits.max_header_bytes)
                .http2_keep_alive_while_idle(true)
                .http2_keep_alive_interval(http2_settings::PING_INTERVAL)
                .http2_keep_alive_timeout(http2_settings::PING_TIMEOUT)
                .build(Connector {
                    tls: tls.clone(),
                    roster: roster.clone(),
                    limit: timeouts.handshake,
                    refusals: refusals.clone(),
                })
        };
        let any = (0..MOVES_APART * CONNECTIONS_PER_NODE).map(|_| client(&credentials.client)).collect();
        Self { any, http1: client(&credentials.client_http1), made_with: credentials }
    }
}

/// Makes a connection to the node whose mesh name a URI holds.
#[derive(Clone)]
struct Connector {
    tls: Arc<ClientConfig>,
    roster: Arc<RosterStore>,
    limit: Duration,
    refusals: Arc<Refusals>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<EarlyAnswer<PeerStream>>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ProxyError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let node = NodeName::from_mesh_host(host).ok_or_else(|| ProxyError::NotInMesh(host.into()))?;
            let route = this.roster.route(&node).ok_or_else(|| ProxyError::UnknownNode(node.clone()))?;
            let dialled = dial(&route, this.tls, this.limit, this.refusals).await;
            match &dialled {
                Ok(_) => METRICS.outbound_dials.add_one(),
                Err(_) => METRICS.outbound_dial_failures.add_one(),
            }
            dialled.map(|peer| TokioIo::new(EarlyAnswer::new(peer)))
        })
    }
}

/// When each peer last refused this node's certificate, and how.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<NodeName, (Instant, String)>>);

impl Refusals {
    /// Notes a refusal of now.
    pub fn note(&self, node: &NodeName, reason: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), (Instant::now(), reason));
    }

    fn since(&self, node: &NodeName, start: Instant) -> Option<String> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(node).filter(|(when, _)| *when >= start).map(|(_, reason)| reason.clone())
    }
}
