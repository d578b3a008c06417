//! Port 3001: this host's programs go out. The steps of a request, in order.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_shared::logging::Excerpt;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::h2;
use crate::http::headers;
use crate::http::upgrade::{Tunnel, Upgrade};
use crate::inbound::mesh_api;
use crate::listener::{Connections, run_to_end};
use crate::metrics::METRICS;
use crate::outbound::browser_guard;
use crate::outbound::destination::{self, Destination};
use crate::roster::sync::RegistryLink;
use crate::roster::table::RosterStore;
use crate::upstream::peers::Peers;

/// What all outbound listeners share.
pub struct Outbound {
    roster: Arc<RosterStore>,
    peers: Peers,
    registry: Arc<RegistryLink>,
    connections: Connections,
    max_body_bytes: u64,
    http: auto::Builder<TokioExecutor>,
}

/// One outbound listener.
pub struct OutboundListener {
    /// The shared part.
    pub outbound: Arc<Outbound>,
    /// Where everything goes that comes in here; `None`: each request says where.
    pub only: Option<NodeName>,
}

impl Outbound {
    /// The outbound side as configured.
    pub fn new(
        config: &Config,
        roster: Arc<RosterStore>,
        peers: Peers,
        registry: Arc<RegistryLink>,
        connections: Connections,
    ) -> Self {
        let limits = &config.proxy.limits;
        let mut http = auto::Builder::new(TokioExecutor::new());
        // A program of this host may keep a connection for as long as it likes: the system tells when it is gone.
        http.http1().header_read_timeout(None).max_buf_size(limits.max_header_bytes as usize);
        http.http2()
            .timer(TokioTimer::new())
            .max_header_list_size(limits.max_header_bytes)
            .max_concurrent_streams(limits.max_streams)
            .initial_stream_window_size(h2::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(h2::connection_window_bytes(limits.max_streams));
        Self { roster, peers, registry, connections, max_body_bytes: limits.max_body_bytes, http }
    }

    async fn handle(
        &self,
        only: Option<&NodeName>,
        tunnel: &Tunnel,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        METRICS.outbound_requests.add_one();
        let upgrade = Upgrade::wanted(&mut request);
        let mut response = self.answer(only, request, upgrade.as_ref()).await.unwrap_or_else(|error| {
            let (status, code, _) = error.parts();
            let text = error.to_string();
            let text = Excerpt { text: &text, max_chars: 500 };
            match status.is_server_error() {
                true => tracing::warn!(target: "Outbound", "{code}: {text}"),
                // The caller's mistake, which its answer tells.
                false => tracing::info!(target: "Outbound", "{code}: {text}"),
            }
            error.into_response()
        });
        if let Some(upgrade) = upgrade {
            upgrade.join(&mut response, tunnel, ());
        }
        response
    }

    async fn answer(
        &self,
        only: Option<&NodeName>,
        request: Request<Incoming>,
        upgrade: Option<&Upgrade>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        let body = RequestBody::new(body, parts.version);
        browser_guard::check(&parts.headers)?;
        let destination = destination::read(&mut parts, only)?;
        let (body, overrun) = body.limited(self.max_body_bytes)?;
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::remove_identity(&mut parts.headers);
        headers::join_cookies(&mut parts.headers);
        let route = match destination {
            Destination::Registry => {
                let sent = self.registry.send(Request::from_parts(parts, body)).await;
                return sent.map(|response| response.map(ResponseBody::passing));
            }
            Destination::Node(node) => match mesh_api::endpoint(&parts) {
                Ok(None) => self.roster.node(&node)?,
                // The mesh's own paths are how one learns that a node is back.
                _ => self.roster.node_in_any_state(&node)?,
            },
            Destination::Agent(agent) => {
                let route = self.roster.agent(&agent)?;
                if let Ok(agent) = HeaderValue::from_str(agent.as_str()) {
                    parts.headers.insert(headers::MESH_AGENT, agent);
                }
                route
            }
        };
        parts.headers.remove(headers::MESH_NODE);
        if let Some(upgrade) = upgrade {
            upgrade.ask(&mut parts.headers);
        }
        let sent = self.peers.send(&route, Request::from_parts(parts, body), upgrade.is_some()).await;
        let (mut response, place) = sent.map_err(|error| overrun.or(error))?;
        headers::remove_hop_by_hop(response.headers_mut());
        Ok(response.map(|body| ResponseBody::passing(body).on(place)))
    }
}

#[async_trait]
impl ServerApp for OutboundListener {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let outbound = &self.outbound;
        let Some(_place) = outbound.connections.enter() else {
            tracing::warn!(target: "Outbound", "refusing a connection: all places are taken (proxy.limits.max_connections)");
            return None;
        };
        let tunnel = Arc::<Tunnel>::default();
        let service = service_fn(|request| {
            let (this, tunnel) = (self.clone(), tunnel.clone());
            // Boxed, because it is some kilobytes and would be moved several times on its way to a task.
            Box::pin(async move {
                Ok::<_, Infallible>(this.outbound.handle(this.only.as_ref(), &tunnel, request).await)
            })
        });
        let connection = outbound.http.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) =
            run_to_end(connection, auto::UpgradeableConnection::graceful_shutdown, shutdown.clone()).await
        {
            tracing::debug!(target: "Outbound", "a local connection ended: {error}");
        }
        tunnel.ended().await;
        None
    }
}
