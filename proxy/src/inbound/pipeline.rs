//! A peer's request on its way to the agent. The steps, in order.

use std::sync::Arc;

use http::header::HOST;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use mesh_shared::AgentName;
use mesh_shared::config::{Config, Limits, Policy};

use crate::access_log::AccessRecord;
use crate::error::ProxyError;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::headers;
use crate::http::upgrade::{Tunnel, Upgrade};
use crate::inbound::backend::Backend;
use crate::inbound::mesh_api::{self, Endpoint};
use crate::metrics::METRICS;
use crate::policy;
use crate::roster::registryd::RegistryLink;
use crate::tls::verify::PeerIdentity;

/// What a peer's request passes.
pub struct Pipeline {
    backend: Backend,
    registry: Arc<RegistryLink>,
    policy: Policy,
    limits: Limits,
    node: String,
    /// Whom a delegation is for when the request does not say.
    default_agent: String,
    preview_chars: usize,
}

impl Pipeline {
    /// The steps as configured.
    pub fn new(config: &Config, registry: Arc<RegistryLink>) -> Self {
        let (proxy, node) = (&config.proxy, config.mesh.node_name.to_string());
        let default_agent = match config.registryd.agents.as_slice() {
            [only] => only.name.clone(),
            _ => node.clone(),
        };
        Self {
            backend: Backend::new(proxy.backend.address),
            registry,
            policy: proxy.policy.clone(),
            limits: proxy.limits.clone(),
            node,
            default_agent,
            preview_chars: proxy.task_preview_chars,
        }
    }

    /// One request, with the log line that must not be forgotten.
    pub async fn handle(
        &self,
        peer: &Arc<PeerIdentity>,
        tunnel: &Tunnel,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        METRICS.inbound_requests.add_one();
        let mut record = self.record(peer, &request);
        let upgrade = Upgrade::wanted(&mut request);
        let outcome = self.answer(peer, request, &record, upgrade.as_ref()).await;
        let mut response = outcome.unwrap_or_else(|error| {
            record.failed(&error);
            error.into_response()
        });
        record.answered(response.status());
        let record = match upgrade {
            Some(upgrade) => upgrade.join(&mut response, tunnel, record),
            None => Some(record),
        };
        response.map(|body| body.recorded(record))
    }

    fn record(&self, peer: &Arc<PeerIdentity>, request: &Request<Incoming>) -> AccessRecord {
        if !mesh_api::is_delegation(request) {
            return AccessRecord::request(peer.clone(), request.method().clone(), request.uri().clone());
        }
        let named = request.headers().get(headers::MESH_AGENT).and_then(|agent| agent.to_str().ok());
        let agent = named.filter(|agent| agent.parse::<AgentName>().is_ok()).unwrap_or(&self.default_agent);
        AccessRecord::delegation(peer.clone(), agent.into(), self.preview_chars)
    }

    /// Policy, the mesh's own paths, then the agent.
    async fn answer(
        &self,
        peer: &PeerIdentity,
        request: Request<Incoming>,
        record: &AccessRecord,
        upgrade: Option<&Upgrade>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        let body = RequestBody::new(body, parts.version);
        if parts.method == Method::CONNECT {
            return Err(ProxyError::ConnectNotSupported);
        }
        if parts.headers.get_all(HOST).iter().nth(1).is_some() {
            return Err(ProxyError::BadRequest("it has more than one Host header".into()));
        }
        if !policy::allows(&self.policy, peer.identity()) {
            return Err(ProxyError::PeerNotAllowed(peer.name().into()));
        }
        let (body, overrun) = body.limited(self.limits.max_body_bytes)?;
        let body = body.scanned(record.scanner());
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::set_identity(&mut parts.headers, peer);
        headers::set_host(&mut parts);
        headers::join_cookies(&mut parts.headers);
        let sent = match mesh_api::endpoint(&parts)? {
            Some(Endpoint::Ping) => return Ok(mesh_api::ping(&self.node, peer)),
            Some(Endpoint::Registry) => self.registry.send(Request::from_parts(parts, body)).await,
            None => {
                if let Some(upgrade) = upgrade {
                    upgrade.ask(&mut parts.headers);
                }
                let sent = self.backend.send(Request::from_parts(parts, body)).await;
                sent.map(|mut response| {
                    // Only a sidecar's or registryd's errors have it.
                    response.headers_mut().remove(headers::MESH_ERROR);
                    response
                })
            }
        };
        let mut response = sent.map_err(|error| overrun.or(error))?;
        headers::remove_hop_by_hop(response.headers_mut());
        Ok(response.map(ResponseBody::passing))
    }
}
