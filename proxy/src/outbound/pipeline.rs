//! A request of this host on its way to a peer. The steps, in order.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use mesh_shared::config::{Config, Hosting, Origin};
use mesh_shared::local_api::{SeenCertificate, SeenCertificates};
use mesh_shared::logging::Excerpt;
use mesh_shared::policy::Asked;
use mesh_shared::spiffe::TrustDomain;
use mesh_shared::{AgentName, Identity, NodeName};

use crate::access_log::Subject;
use crate::caller::{ActingAgent, Caller, Connection};
use crate::error::{Fault, Kind, ProxyError, Sent};
use crate::exchange::{Exchange, Rules, finish, within_deadline};
use crate::http::body::ResponseBody;
use crate::http::headers::{self, Writer};
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use crate::http::upgrade::Upgrade;
use crate::http::{message, redirect};
use crate::mesh_api;
use crate::metrics::Direction;
use crate::outbound::browser_guard;
use crate::outbound::destination::{self, Destination, Wanted};
use crate::policy::{self, PolicyStore};
use crate::roster::registryd::RegistryLink;
use crate::roster::store::RosterStore;
use crate::upstream::{Nodes, Recipient, Target, Upstream};

/// What a request of this host passes.
pub struct Pipeline {
    upstream: Arc<Upstream>,
    registry: Arc<RegistryLink>,
    roster: Arc<RosterStore>,
    policies: Arc<PolicyStore>,
    rules: Rules,
    allowed_origins: Vec<Origin>,
    /// Whom the programs act as whose requests pass here; `None`: this node.
    acts_as: Option<Arc<ActingAgent>>,
    /// Whether nodes have to prove that they host an agent.
    hosting: Hosting,
    nodes: Arc<Nodes>,
    trust_domain: TrustDomain,
    /// The port of this node, which most others have as well.
    mesh_port: u16,
    /// Where programs of this host come in.
    own_port: u16,
}

impl Pipeline {
    /// The steps as configured, for programs that act as `acts_as` or else as this node; `upstream` presents the same.
    pub fn new(
        config: &Config,
        acts_as: Option<Arc<ActingAgent>>,
        upstream: Arc<Upstream>,
        nodes: Arc<Nodes>,
        registry: Arc<RegistryLink>,
        roster: Arc<RosterStore>,
        policies: Arc<PolicyStore>,
    ) -> Self {
        Self {
            upstream,
            acts_as,
            hosting: config.mesh.agents,
            nodes,
            trust_domain: config.mesh.trust_domain.clone(),
            registry,
            roster,
            policies,
            rules: Rules::new(&config.proxy),
            allowed_origins: config.proxy.outbound.allowed_origins.clone(),
            mesh_port: config.mesh.agent_channel_port,
            own_port: config.proxy.outbound.listen.socket_addr().port(),
        }
    }

    /// Answers a CONNECT. Where that is 200, it also gives where the tunnel leads.
    pub async fn connect(
        &self,
        connection: &Arc<Connection>,
        only: Option<&Destination>,
        request: Request<Incoming>,
        interim: Arc<Interim>,
    ) -> (Response<ResponseBody>, Option<Destination>) {
        let exchange = Box::new(Exchange::begin(connection, &request, interim, Subject::Request, self.rules));
        let (parts, body) = request.into_parts();
        let destination = message::check_request(&parts, !body.is_end_stream())
            .and_then(|()| exchange.check_head(&parts))
            .and_then(|()| browser_guard::check(&parts.headers, &self.allowed_origins))
            .and_then(|()| match connection.is_inside() {
                // Each would add to what a single read has to go through, and they have no bound.
                true => Err(ProxyError::BadDestination(
                    "this is the inside of a tunnel already, where plain HTTP is spoken".into(),
                )),
                false => destination::read_connect(&parts, only, |to, port| self.is_mesh_port(to, port)),
            });
        if let Err(error) = &destination {
            tell(error);
        }
        let (outcome, destination) = match destination {
            Ok(destination) => (Ok(Response::new(ResponseBody::full(""))), Some(destination)),
            Err(error) => (Err(error), None),
        };
        (finish(exchange, connection, None, outcome).await, destination)
    }

    fn is_mesh_port(&self, to: &Destination, port: u16) -> bool {
        let registered = |node: &NodeName| {
            self.roster.node(node).is_ok_and(|route| route.authority.port_u16() == Some(port))
        };
        // The second is for those whose resolver leads the name here.
        port == self.mesh_port
            || port == self.own_port
            || matches!(to, Destination::Node(node) if registered(node))
    }

    /// Takes a request of this host to the head of its answer; its body takes the exchange to its end. `only`: where
    /// everything goes that comes in on this listener, or in this tunnel.
    pub async fn handle(
        &self,
        connection: &Arc<Connection>,
        only: Option<&Destination>,
        mut request: Request<Incoming>,
        interim: Arc<Interim>,
    ) -> Response<ResponseBody> {
        let mut exchange =
            Box::new(Exchange::begin(connection, &request, interim, Subject::Request, self.rules));
        let upgrade = Upgrade::wanted(&mut request);
        let outcome = match exchange.read_deadline(&request) {
            Ok(()) => {
                let answer = async |exchange: &mut Exchange| {
                    let on_unix_socket =
                        matches!(&connection.caller, Caller::Program(program) if program.address.is_none());
                    self.answer(exchange, only, on_unix_socket, request, upgrade.as_ref()).await
                };
                within_deadline(&mut exchange, answer).await
            }
            Err(error) => Err(error),
        };
        let outcome = outcome.map_err(|error| exchange.cause(error));
        if let Err(error) = &outcome {
            tell(error);
        }
        finish(exchange, connection, upgrade, outcome).await
    }

    /// What registryd of this host is asked is for all programs.
    fn check_rules(
        &self,
        to: &Destination,
        agent: Option<&AgentName>,
        parts: &Parts,
        of_mesh: bool,
    ) -> Result<(), ProxyError> {
        let peer = match to {
            Destination::Registry | Destination::Certificates => return Ok(()),
            Destination::Node(node) => Some(Identity::Node(node.clone())),
            // Which node it will be is not known before one is chosen.
            Destination::Agent(_) => None,
        };
        let asked = Asked {
            peer: peer.as_ref(),
            caller: self.acts_as.as_ref().map(|agent| &agent.name),
            agent,
            method: parts.method.as_str(),
            path: parts.uri.path(),
            of_mesh,
        };
        let rules = &self.policies.load().outbound;
        match &self.acts_as {
            Some(agent) => {
                let caller = format_args!("a request of {} to {to}", agent.identity);
                policy::check(rules, Direction::Outbound, caller, parts, asked)
            }
            None => {
                let caller = format_args!("a request to {to}");
                policy::check(rules, Direction::Outbound, caller, parts, asked)
            }
        }
    }

    /// What the nodes' certificates said at their last handshakes, for `meshctl doctor`.
    fn certificates(&self) -> Response<ResponseBody> {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut nodes: Vec<_> = self.nodes.certificates().into_iter().collect();
        nodes.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        let nodes = nodes.into_iter().map(|(node, leaf, at)| SeenCertificate {
            agents: leaf.hosts(&self.trust_domain),
            node,
            seen_at: seconds(at),
            not_before: Some(leaf.not_before),
            not_after: leaf.not_after,
        });
        let certified = self.hosting == Hosting::Certified;
        let seen = SeenCertificates { certified, nodes: nodes.collect() };
        // Names and numbers always are JSON.
        let mut response = Response::new(ResponseBody::full(serde_json::to_vec(&seen).unwrap_or_default()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn answer(
        &self,
        exchange: &mut Exchange,
        only: Option<&Destination>,
        on_unix_socket: bool,
        request: Request<Incoming>,
        upgrade: Option<&Upgrade>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        message::check_request(&parts, !body.is_end_stream())?;
        let body = exchange.body(body, parts.version);
        exchange.check_head(&parts)?;
        browser_guard::check(&parts.headers, &self.allowed_origins)?;
        let Wanted { to: destination, prefix } =
            destination::read(&mut parts, only, on_unix_socket, |to, port| self.is_mesh_port(to, port))?;
        exchange.account().uri = parts.uri.clone();
        let agent = match &destination {
            Destination::Node(_) => headers::named_agent(&parts.headers),
            Destination::Agent(agent) => Some(agent.clone()),
            Destination::Registry | Destination::Certificates => None,
        };
        let of_mesh = mesh_api::is_path_of_mesh(parts.uri.path());
        self.check_rules(&destination, agent.as_ref(), &parts, of_mesh)?;
        exchange.check_size(&body)?;
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::remove_forged(&mut parts.headers, Writer::Caller);
        headers::join_cookies(&mut parts.headers);
        headers::set_way(&mut parts.headers, prefix.clone());
        if let Some(agent) = &self.acts_as {
            parts.headers.insert(headers::MESH_FROM_AGENT, agent.header.clone());
        }
        exchange.pass_trace(&mut parts.headers);
        exchange.pass_deadline(&mut parts.headers);
        exchange.pass_expectation(&mut parts.headers);
        let to = match destination {
            Destination::Registry => {
                exchange.show();
                // Boxed, so that the future of every other request is small.
                let sent = Box::pin(self.registry.send(Request::from_parts(parts, body))).await;
                return sent.map(|response| response.map(ResponseBody::passing));
            }
            Destination::Certificates => return Ok(self.certificates()),
            Destination::Node(node) => Recipient::Node(node),
            Destination::Agent(agent) => {
                if let Ok(agent) = HeaderValue::from_str(agent.as_str()) {
                    parts.headers.insert(headers::MESH_AGENT, agent);
                }
                exchange.account().agent = Some(agent.clone());
                Recipient::Agent(agent)
            }
        };
        if of_mesh && mesh_api::asks_for_live_view(&parts) {
            return Err(ProxyError::LiveNotHere);
        }
        exchange.show();
        let session = parts.headers.get(headers::MESH_SESSION).cloned();
        let certified = agent.filter(|_| self.hosting == Hosting::Certified);
        let target = Target { to, session, certified, own_path: of_mesh, upgrade: upgrade.is_some() };
        if let Some(upgrade) = upgrade {
            upgrade.ask(&mut parts.headers);
        }
        let request = Request::from_parts(parts, body);
        let delivered = self.upstream.send(target, request, |attempt| exchange.tried(attempt)).await;
        let delivered = delivered.inspect_err(|error| {
            if let ProxyError::UnknownAgent(_) = error {
                // Not to be counted under a name that anybody may make up.
                exchange.account().agent = None;
            }
        })?;
        exchange.account().connect = delivered.connect;
        exchange.hold(delivered.slot);
        let (mut response, node) = (delivered.response, delivered.endpoint.node());
        Upgrade::check(upgrade, &response).map_err(|reason| ProxyError::PeerFailed {
            node: node.clone(),
            reason: reason.into(),
            sent: Sent::Perhaps,
        })?;
        headers::remove_hop_by_hop(response.headers_mut());
        headers::remove_forged(response.headers_mut(), Writer::Sidecar);
        let agent = exchange.account().agent.clone();
        let is_own = |place: &str| {
            let host = headers::without_port(place);
            NodeName::from_mesh_host(host).as_ref() == Some(node)
                || (agent.is_some() && AgentName::from_mesh_host(host) == agent)
        };
        redirect::lead_back(response.headers_mut(), is_own, prefix.as_ref());
        exchange.account().far_code = response.headers().get(headers::MESH_ERROR).cloned();
        response.headers_mut().insert(headers::MESH_SERVED_BY, delivered.endpoint.name_header());
        Ok(response.map(ResponseBody::passing))
    }
}

/// Says in the log what kept a request from being answered by who it is for.
fn tell(error: &ProxyError) {
    let &Kind { code, fault, .. } = error.kind();
    let text = error.to_string();
    let text = Excerpt { text: &text, max_chars: 500 };
    match fault {
        // Its answer tells it.
        Fault::Caller => tracing::info!(target: "Outbound", "{code}: {text}"),
        Fault::Here | Fault::Peer | Fault::Agent => tracing::warn!(target: "Outbound", "{code}: {text}"),
    }
}
