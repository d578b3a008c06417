//! A peer's request on its way to the agent. The steps, in order.

use std::collections::HashSet;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use mesh_shared::config::Config;
use mesh_shared::policy::{Asked, LocalAgents};
use mesh_shared::{AgentName, Identity};

use crate::access_log::Subject;
use crate::ca_link::CaLink;
use crate::caller::Connection;
use crate::error::ProxyError;
use crate::exchange::{Exchange, Rules, finish, within_deadline};
use crate::http::body::ResponseBody;
use crate::http::headers::{self, Writer};
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use crate::http::message;
use crate::http::upgrade::Upgrade;
use crate::inbound::admission::Peer;
use crate::inbound::backend::{Backend, SlotsByAddress};
use crate::inbound::lists::ListsApi;
use crate::live;
use crate::mesh_api::{self, Endpoint};
use crate::metrics::Direction;
use crate::policy::{self, PolicyStore};
use crate::roster::registryd::RegistryLink;
use crate::tls::verify::PeerIdentity;

/// What a peer's request passes.
pub struct Pipeline {
    backend: Backend,
    registry: Arc<RegistryLink>,
    ca: CaLink,
    lists: Arc<ListsApi>,
    policies: Arc<PolicyStore>,
    local_agents: LocalAgents,
    rules: Rules,
    node: String,
    /// The agents that live here; others are not distinguished.
    agents: HashSet<String>,
    /// Whom a delegation is for when the request does not say.
    default_agent: String,
    preview_chars: usize,
}

impl Pipeline {
    /// The steps as configured.
    pub fn new(
        config: &Config,
        registry: Arc<RegistryLink>,
        lists: Arc<ListsApi>,
        policies: Arc<PolicyStore>,
        slots: &SlotsByAddress,
    ) -> Self {
        let (proxy, node) = (&config.proxy, config.mesh.node_name.to_string());
        let default_agent = match config.registryd.agents.as_slice() {
            [only] => only.name.clone(),
            _ => node.clone(),
        };
        Self {
            backend: Backend::new(&proxy.backend, &proxy.limits, slots),
            registry,
            ca: CaLink::new(config),
            lists,
            policies,
            local_agents: config.local_agents(),
            rules: Rules::new(proxy),
            node,
            agents: config.registryd.agents.iter().map(|agent| agent.name.clone()).collect(),
            default_agent,
            preview_chars: proxy.task_preview_chars,
        }
    }

    /// Whether policy lets a peer in at all.
    pub fn lets_in(&self, peer: &PeerIdentity) -> bool {
        policy::allows(&self.policies.load().inbound, peer.identity())
    }

    /// Takes a peer's request to the head of its answer; its body takes the exchange to its end.
    pub async fn handle(
        &self,
        connection: &Arc<Connection>,
        peer: &PeerIdentity,
        share: &Arc<Peer>,
        mut request: Request<Incoming>,
        interim: Arc<Interim>,
    ) -> Response<ResponseBody> {
        let named = headers::named_agent(request.headers());
        let mut exchange = self.begin(connection, &request, named.as_ref(), interim);
        let upgrade = Upgrade::wanted(&mut request);
        let outcome = match exchange.read_deadline(&request) {
            Ok(()) => {
                let answer = async |exchange: &mut Exchange| {
                    self.answer(exchange, peer, share, request, named.as_ref(), upgrade.as_ref()).await
                };
                within_deadline(&mut exchange, answer).await
            }
            Err(error) => Err(error),
        };
        finish(exchange, connection, upgrade, outcome).await
    }

    fn begin(
        &self,
        connection: &Arc<Connection>,
        request: &Request<Incoming>,
        named: Option<&AgentName>,
        interim: Arc<Interim>,
    ) -> Box<Exchange> {
        let subject = match mesh_api::is_delegation(request) {
            true => {
                let to = named.map_or(self.default_agent.as_str(), AgentName::as_str);
                Subject::delegation(to.into(), self.preview_chars)
            }
            false => Subject::Request,
        };
        let mut exchange = Box::new(Exchange::begin(connection, request, interim, subject, self.rules));
        exchange.account().agent = named.filter(|agent| self.agents.contains(agent.as_str())).cloned();
        exchange.show();
        exchange
    }

    fn check_rules(
        &self,
        peer: &PeerIdentity,
        parts: &Parts,
        named: Option<&AgentName>,
        of_mesh: bool,
    ) -> Result<(), ProxyError> {
        let asked = Asked {
            peer: Some(peer.identity()),
            caller: None,
            agent: self.local_agents.called(named),
            method: parts.method.as_str(),
            path: parts.uri.path(),
            of_mesh,
        };
        let rules = &self.policies.load().inbound.rules;
        policy::check(rules, Direction::Inbound, format_args!("peer.cn={}", peer.name()), parts, asked)
    }

    /// What this node carries, for the nodes that the configuration names. Fails closed.
    fn live_view(&self, peer: &PeerIdentity) -> Result<Response<ResponseBody>, ProxyError> {
        let check = || match peer.identity() {
            Identity::Node(node) if self.policies.load().live_peers.contains(node) => Ok(()),
            _ => Err(ProxyError::LivePeerNotNamed(peer.name().into())),
        };
        check()?;
        let answer = live::api::answer(Direction::Inbound)?;
        // A reload in between has not ended what was not open yet.
        check()?;
        Ok(answer)
    }

    /// Policy, the mesh's own paths, then the agent.
    async fn answer(
        &self,
        exchange: &mut Exchange,
        peer: &PeerIdentity,
        share: &Arc<Peer>,
        request: Request<Incoming>,
        named: Option<&AgentName>,
        upgrade: Option<&Upgrade>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        message::check_request(&parts, !body.is_end_stream())?;
        let body = exchange.body(body, parts.version);
        if parts.method == Method::CONNECT {
            return Err(ProxyError::ConnectNotSupported);
        }
        if !self.lets_in(peer) {
            return Err(ProxyError::PeerNotAllowed(peer.name().into()));
        }
        let endpoint = mesh_api::endpoint(&parts);
        self.check_rules(peer, &parts, named, !matches!(endpoint, Ok(None)))?;
        exchange.hold(share.request()?);
        exchange.check_size(&body)?;
        let body = body.tapped(exchange.account().tap());
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::set_host(&mut parts);
        headers::set_identity(&mut parts.headers, peer);
        headers::join_cookies(&mut parts.headers);
        exchange.pass_trace(&mut parts.headers);
        exchange.pass_deadline(&mut parts.headers);
        exchange.pass_expectation(&mut parts.headers);
        let endpoint = endpoint?;
        match endpoint {
            Some((Endpoint::Ping, _)) => return Ok(mesh_api::ping(&self.node, peer)),
            Some((Endpoint::Lists, _)) => {
                let answer = Box::pin(self.lists.answer(peer, &parts, body)).await?;
                exchange.account().routine = answer.status() == StatusCode::NOT_MODIFIED;
                return Ok(answer);
            }
            Some((Endpoint::Live, _)) => return self.live_view(peer),
            Some((Endpoint::Registry | Endpoint::Ca, _)) | None => {}
        }
        let mut response = match endpoint {
            Some((Endpoint::Ca, path)) => {
                headers::set_path(&mut parts.uri, path);
                self.ca.pass(Request::from_parts(parts, body)).await?.map(ResponseBody::passing)
            }
            Some((_, path)) => {
                headers::set_path(&mut parts.uri, path);
                self.registry.send(Request::from_parts(parts, body)).await?.map(ResponseBody::passing)
            }
            None => {
                if let Some(upgrade) = upgrade {
                    upgrade.ask(&mut parts.headers);
                }
                let (mut response, occupied) =
                    self.backend.send(share, named, Request::from_parts(parts, body)).await?;
                let checked = Upgrade::check(upgrade, &response).map_err(|reason| occupied.failed(reason));
                exchange.hold(occupied);
                checked?;
                headers::remove_forged(response.headers_mut(), Writer::Agent);
                response.map(ResponseBody::passing)
            }
        };
        if matches!(endpoint, Some((Endpoint::Ca, _))) {
            exchange.account().routine = response.status() == StatusCode::NOT_MODIFIED;
        }
        headers::remove_hop_by_hop(response.headers_mut());
        Ok(response)
    }
}
