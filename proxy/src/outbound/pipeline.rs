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
use crate::metrics::METRICS;
use crate::outbound::browser_guard;
use crate::outbound::destination::{self, Destination};
use crate::roster::registryd::RegistryLink;
use crate::upstream::{Recipient, Target, Upstream};

/// What a request of this host passes.
pub struct Pipeline {
    upstream: Upstream,
    registry: Arc<RegistryLink>,
    max_body_bytes: u64,
}

impl Pipeline {
    /// The steps as configured.
    pub fn new(config: &Config, upstream: Upstream, registry: Arc<RegistryLink>) -> Self {
        Self { upstream, registry, max_body_bytes: config.proxy.limits.max_body_bytes }
    }

    /// Takes a request of this host to its end.
    pub async fn handle(
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
        let to = match destination {
            Destination::Registry => {
                let sent = self.registry.send(Request::from_parts(parts, body)).await;
                return sent.map(|response| response.map(ResponseBody::passing));
            }
            Destination::Node(node) => Recipient::Node(node),
            Destination::Agent(agent) => {
                if let Ok(agent) = HeaderValue::from_str(agent.as_str()) {
                    parts.headers.insert(headers::MESH_AGENT, agent);
                }
                Recipient::Agent(agent)
            }
        };
        let own_path = !matches!(mesh_api::endpoint(&parts), Ok(None));
        let session = parts.headers.remove("x-mesh-session");
        parts.headers.remove(headers::MESH_NODE);
        if let Some(upgrade) = upgrade {
            upgrade.ask(&mut parts.headers);
        }
        let target = Target { to, session, own_path, upgrade: upgrade.is_some() };
        let sent = self.upstream.send(target, Request::from_parts(parts, body)).await;
        let delivered = sent.map_err(|failed| overrun.or(failed.error))?;
        let mut response = delivered.response;
        headers::remove_hop_by_hop(response.headers_mut());
        if let Ok(node) = HeaderValue::from_str(delivered.node.as_str()) {
            response.headers_mut().insert("x-mesh-served-by", node);
        }
        Ok(response.map(|body| ResponseBody::passing(body).on(delivered.slot)))
    }
}
