//! A request of this host on its way to a peer. The steps, in order.

use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_shared::logging::Excerpt;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::headers;
use crate::http::upgrade::{Tunnel, Upgrade};
use crate::inbound::mesh_api;
use crate::metrics::{Direction, METRICS};
use crate::outbound::browser_guard;
use crate::outbound::destination::{self, Destination};
use crate::roster::sync::RegistryLink;
use crate::roster::table::RosterStore;
use crate::upstream::peers::Peers;

/// What a request of this host passes.
pub struct Pipeline {
    roster: Arc<RosterStore>,
    peers: Peers,
    registry: Arc<RegistryLink>,
    max_body_bytes: u64,
}

impl Pipeline {
    /// The steps as configured.
    pub fn new(config: &Config, roster: Arc<RosterStore>, peers: Peers, registry: Arc<RegistryLink>) -> Self {
        Self { roster, peers, registry, max_body_bytes: config.proxy.limits.max_body_bytes }
    }

    /// Takes a request of this host to its end.
    pub async fn handle(
        &self,
        only: Option<&NodeName>,
        tunnel: &Tunnel,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let _in_flight = METRICS.request(Direction::Outbound);
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
