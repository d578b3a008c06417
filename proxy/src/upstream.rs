//! From "which node" to "which connection": [`Upstream::send`] is the entry.
//!
//! [`mod@choose`] picks a node, by what [`endpoint`] observes of each ([`health`] knows which are ejected) and by [`session`];
//! [`ways`] finds its [`pool`] of connections, which [`connect`] makes. When a request fails there, [`retry`] says whether it
//! may be sent again.

pub mod choose;
pub mod connect;
pub mod endpoint;
pub mod health;
pub mod pool;
pub mod retry;
pub mod session;
pub mod ways;

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::header::HOST;
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Request, Response};
use mesh_shared::certificate::Leaf;
use mesh_shared::config::{Config, Proxy};
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, NodeName, root_cause};
use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use tokio::time::timeout;

use crate::error::{BoxError, ProxyError, Sent};
use crate::http::body::RequestBody;
use crate::http::h2::in_flight::{InFlight, SendError};
use crate::http::h2::shared::Taken;
use crate::http::headers::{absolute, announce_body, to_origin_form};
use crate::http::incoming::{self, Incoming};
use crate::http::interim;
use crate::http::problem;
use crate::http::replay::{Replay, Source, once_more};
use crate::io::link::Link;
use crate::metrics::{METRICS, RetryReason, RetryRefusal};
use crate::roster::store::RosterStore;
use crate::roster::table::Route;
use crate::tls::credentials::CredentialStore;
use crate::upstream::choose::{Candidate, Readiness, choose};
use crate::upstream::connect::list;
use crate::upstream::endpoint::{Endpoint, RESERVE, RequestSlot};
use crate::upstream::pool::{Connection, PeerStreamSlot};
use crate::upstream::retry::{Again, Budget, again};
use crate::upstream::session::{Sessions, rank};
use crate::upstream::ways::{Endpoints, Way, Ways};

/// How long a request waits for a connection where another node could do the work.
const PATIENCE: Duration = Duration::from_secs(1);

/// A peer whose certificate lacks an agent is asked for its certificate again when that one was shown longer ago.
const CERTIFICATE_AGE: Duration = Duration::from_secs(10);
/// Certificates that one request waits for.
const MOST_RENEWALS: u32 = 2;

/// So many connections in a row may turn out to have ended just when a request was given to them.
const STALE: u32 = 4;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The session that a server of the Model Context Protocol hands out.
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// To whom.
    pub to: Recipient,
    /// The session that the caller names; requests of one session go to one node.
    pub session: Option<HeaderValue>,
    /// The agent that the node's certificate has to name; `None`: what the registry says is enough.
    pub certified: Option<AgentName>,
    /// Whether the path is one of the mesh's own, which also reach a node that is offline or busy.
    pub own_path: bool,
    /// Whether it asks for another protocol, which needs HTTP/1.1.
    pub upgrade: bool,
}

impl Target {
    /// One of the mesh's own paths at this node.
    pub fn own_path(node: NodeName) -> Self {
        Self { to: Recipient::Node(node), session: None, certified: None, own_path: true, upgrade: false }
    }
}

/// Who gets a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    /// This node.
    Node(NodeName),
    /// A node that hosts this agent.
    Agent(AgentName),
}

/// A request that was answered.
pub struct Delivered {
    /// The answer.
    pub response: Response<Incoming>,
    /// Who answered.
    pub endpoint: Arc<Endpoint>,
    /// How long it waited for a connection; `None`: there was one.
    pub connect: Option<Duration>,
    /// To be held until the answer has ended.
    pub slot: Slot,
}

/// What becomes of a request on its way.
pub enum Attempt<'a> {
    /// It is sent, or about to be, to this node.
    To(&'a Endpoint),
    /// That failed; it may be sent again.
    Failed(&'a ProxyError),
    /// The sidecar there did not reach the agent; it is sent again.
    AgentAway,
}

/// The places that a request takes, given back on drop.
pub struct Slot {
    /// Its stream on a shared connection.
    #[allow(dead_code, reason = "held")]
    stream: Option<PeerStreamSlot>,
    request: RequestSlot,
}

impl Slot {
    /// Only the place on the connection, for what is read for long without being work for the node: it is not to count as
    /// the node's load.
    pub fn of_stream(self) -> impl Send + 'static {
        self.stream
    }
}

/// What all threads know together of the nodes.
pub struct Nodes {
    credentials: Arc<CredentialStore>,
    roster: Arc<RosterStore>,
    proxy: Proxy,
    endpoints: Endpoints,
    budget: Mutex<Budget>,
    sessions: Sessions,
    random: (RandomState, AtomicU64),
}

impl Nodes {
    /// Nothing is known yet of the nodes of `roster`.
    pub fn new(config: &Config, credentials: Arc<CredentialStore>, roster: Arc<RosterStore>) -> Self {
        Self {
            credentials,
            roster,
            proxy: config.proxy.clone(),
            endpoints: Endpoints::default(),
            budget: Mutex::new(Budget::new(Instant::now())),
            sessions: Sessions::new(&config.proxy.state_dir),
            random: (RandomState::new(), AtomicU64::new(0)),
        }
    }

    fn random(&self) -> u64 {
        self.random.0.hash_one(self.random.1.fetch_add(1, Ordering::Relaxed))
    }

    /// What the nodes' certificates said at their last handshakes.
    pub fn certificates(&self) -> Vec<(NodeName, Arc<Leaf>, SystemTime)> {
        self.endpoints.certificates()
    }

    /// Most requests to a node at once.
    fn most(&self, own_path: bool) -> usize {
        let most = self.proxy.outbound.max_requests_per_node;
        if own_path { most + RESERVE } else { most }
    }
}

/// One thread's way to the nodes.
pub struct Upstream {
    nodes: Arc<Nodes>,
    ways: Ways,
}

/// The session of a request that a server handed out.
struct IssuedSession {
    id: HeaderValue,
    /// The node that did; `None`: that is not known.
    issuer: Option<NodeName>,
}

/// The node that gets a request next.
struct Picked<'c> {
    way: &'c Way,
    /// Whether others are ready as well.
    others: bool,
    /// Whether the request's session was issued there.
    at_home: bool,
}

/// A request that one node did not answer.
struct Unanswered {
    error: ProxyError,
    /// What proves that nothing of it was processed, if it was sent.
    reason: Option<RetryReason>,
    /// Whether the node is to show its certificate again.
    renewed: bool,
}

impl From<ProxyError> for Unanswered {
    fn from(error: ProxyError) -> Self {
        Self { error, reason: None, renewed: false }
    }
}

/// A request as it is sent, as often as need be.
struct Message<'r> {
    parts: &'r Parts,
    source: &'r Source,
    target: &'r Target,
}

impl Upstream {
    /// Without connections; they are made when requests need them, as the agent `presents` or else as this node. Nothing
    /// of them is shared with other identities.
    pub fn new(nodes: Arc<Nodes>, presents: Option<AgentName>) -> Self {
        let ways = Ways::new(nodes.credentials.clone(), nodes.roster.clone(), &nodes.proxy, presents);
        Self { nodes, ways }
    }

    /// Sends a request to a node, whose name its connection has proved.
    ///
    /// Where that fails and it is certain that nobody processed any byte of it, it is sent again, to another node first. A task
    /// for an agent that does not accept connections on one node goes to another one that hosts it. `told` learns of each
    /// attempt when it begins and when it fails.
    ///
    /// # Errors
    /// Nobody can be reached, or whoever was failed before the answer.
    pub async fn send(
        &self,
        target: Target,
        request: Request<RequestBody>,
        mut told: impl FnMut(Attempt<'_>),
    ) -> Result<Delivered, ProxyError> {
        let (mut parts, body) = request.into_parts();
        parts.headers.remove(HOST);
        let source = Source::new(body);
        let issued = match (&target.to, parts.headers.get(SESSION_ID)) {
            (Recipient::Agent(agent), Some(id)) => {
                let issuer = self.nodes.sessions.issuer(agent, id.as_bytes()).await;
                Some(IssuedSession { id: id.clone(), issuer })
            }
            _ => None,
        };
        self.nodes.budget.lock().deposit();
        let message = Message { parts: &parts, source: &source, target: &target };
        let mut tried: SmallVec<[Arc<Endpoint>; 2]> = SmallVec::new();
        let mut last = None;
        // Nodes whose certificates do not name the agent: for this request they do not host it.
        let (mut uncertified, mut renewals): (SmallVec<[NodeName; 1]>, _) = (SmallVec::new(), 0);
        loop {
            let mut ways = self.ways_to(&target)?;
            if !uncertified.is_empty() {
                ways.retain(|way| !uncertified.contains(&way.route.node));
            }
            let picked = self.pick(&ways, &target, issued.as_ref(), &tried);
            let Some(Picked { way, others, at_home }) = picked else {
                return Err(last.unwrap_or_else(|| self.nobody(&target, &ways, &uncertified)));
            };
            tried.push(way.endpoint.clone());
            told(Attempt::To(&way.endpoint));
            let outcome = self.attempt(way, &message, others).await;
            let Unanswered { error, reason, renewed } = match outcome {
                Ok((response, connect, slot)) => {
                    let endpoint = way.endpoint.clone();
                    let delivered = Delivered { response, endpoint, connect, slot };
                    if matches!(target.to, Recipient::Agent(_))
                        && problem::says_agent_is_away(delivered.response.headers())
                    {
                        delivered.endpoint.agent_away();
                        let elsewhere = !at_home && ways.iter().any(|way| !way.is_among(&tried));
                        match self.kept_from_another_attempt(elsewhere, &tried, &source) {
                            Some(refusal) => METRICS.not_retried(refusal),
                            None => {
                                METRICS.retried(RetryReason::AgentAway);
                                told(Attempt::AgentAway);
                                continue;
                            }
                        }
                    }
                    self.remember(&target, &delivered.response, &way.route.node).await;
                    return Ok(delivered);
                }
                Err(unanswered) => unanswered,
            };
            told(Attempt::Failed(&error));
            if let ProxyError::AgentNotCertified { .. } = &error {
                // Nothing was sent, and no other attempt is lost by it.
                tried.pop();
                match renewed && renewals < MOST_RENEWALS {
                    true => renewals += 1,
                    false => uncertified.push(way.route.node.clone()),
                }
                continue;
            }
            let elsewhere = ways.iter().any(|way| !way.is_among(&tried));
            let place = match again(&error) {
                Again::Nowhere => return Err(error),
                // The session lives there and nowhere else.
                _ if at_home && matches!(error, ProxyError::PeerBusy { .. }) => false,
                Again::Elsewhere => elsewhere,
                Again::Anywhere => true,
            };
            let refusal = self.kept_from_another_attempt(place, &tried, &source);
            if let Some(refusal) = refusal {
                METRICS.not_retried(refusal);
                return Err(error);
            }
            METRICS.retried(reason.unwrap_or_else(|| retry::reason(&error)));
            last = Some(error);
        }
    }

    /// What keeps a request of which nothing was processed from being sent once more, if there is a `place` for it; `None`:
    /// nothing, and the budget is charged.
    fn kept_from_another_attempt(
        &self,
        place: bool,
        tried: &[Arc<Endpoint>],
        source: &Source,
    ) -> Option<RetryRefusal> {
        if !place {
            Some(RetryRefusal::NoEndpoint)
        } else if tried.len() >= self.nodes.proxy.outbound.max_attempts as usize {
            Some(RetryRefusal::Attempts)
        } else if !source.can_repeat() {
            Some(RetryRefusal::Body)
        } else if !self.nodes.budget.lock().withdraw(Instant::now()) {
            Some(RetryRefusal::Budget)
        } else if !source.take_back() {
            // More has gone out meanwhile.
            Some(RetryRefusal::Body)
        } else {
            None
        }
    }

    /// The ways to the nodes that could get the request, as the roster knows them.
    fn ways_to(&self, target: &Target) -> Result<SmallVec<[Way; 1]>, ProxyError> {
        let roster = &self.nodes.roster;
        match &target.to {
            Recipient::Node(name) => {
                let route = roster.node(name)?;
                match route.status {
                    // The mesh's own paths are how one learns that a node is back.
                    Status::Offline if !target.own_path => Err(ProxyError::NodeOffline(name.clone())),
                    _ => Ok(smallvec![self.ways.to(&route, &self.nodes.endpoints)]),
                }
            }
            Recipient::Agent(agent) => {
                let routes = roster.agent(agent)?;
                let takes_tasks =
                    |route: &&Arc<Route>| matches!(route.status, Status::Online | Status::Degraded);
                let ways: SmallVec<[Way; 1]> = routes
                    .iter()
                    .filter(takes_tasks)
                    .map(|route| self.ways.to(route, &self.nodes.endpoints))
                    .collect();
                if ways.is_empty() {
                    let nodes =
                        routes.iter().map(|route| format!("{} ({})", route.node, route.status.as_str()));
                    let nodes = nodes.collect::<Vec<_>>().join(", ");
                    return Err(ProxyError::AgentOffline { agent: agent.clone(), nodes });
                }
                Ok(ways)
            }
        }
    }

    /// The node to try next. Those that were `tried` come last.
    fn pick<'c>(
        &self,
        ways: &'c [Way],
        target: &Target,
        issued: Option<&IssuedSession>,
        tried: &[Arc<Endpoint>],
    ) -> Option<Picked<'c>> {
        if let [only] = ways {
            return Some(Picked { way: only, others: false, at_home: false });
        }
        let (now, most) = (Instant::now(), self.nodes.most(target.own_path));
        if let Some(issuer) = issued.and_then(|session| session.issuer.as_ref())
            && let Some(home) = ways.iter().find(|way| way.route.node == *issuer)
            && !home.is_among(tried)
        {
            return Some(Picked { way: home, others: true, at_home: true });
        }
        let session =
            target.session.as_ref().or(issued.map(|session| &session.id)).map(HeaderValue::as_bytes);
        let consider = |fresh: bool| -> (Vec<&Way>, Vec<Candidate>) {
            let considered = ways.iter().filter(|way| !fresh || !way.is_among(tried));
            considered.map(|way| (way, self.candidate(way, session, most, now))).unzip()
        };
        let (mut considered, mut candidates) = consider(true);
        if considered.is_empty() {
            (considered, candidates) = consider(false);
        }
        let chosen = choose(&candidates, self.nodes.random())?;
        let others = candidates
            .iter()
            .enumerate()
            .any(|(i, candidate)| i != chosen && candidate.readiness == Readiness::Ready);
        Some(Picked { way: considered[chosen], others, at_home: false })
    }

    fn candidate(&self, way: &Way, session: Option<&[u8]>, most: usize, now: Instant) -> Candidate {
        let endpoint = &way.endpoint;
        let readiness = endpoint.readiness(most, now);
        if matches!(readiness, Readiness::Ejected(_)) && endpoint.begin_probe() {
            way.pool.probe();
        }
        Candidate {
            own: self.nodes.roster.is_own(&way.route.node),
            degraded: way.route.status == Status::Degraded || endpoint.is_agent_away(now),
            readiness,
            in_flight: endpoint.in_flight(),
            latency: endpoint.latency(now),
            rank: session.map(|session| rank(session, &way.route.node)),
        }
    }

    /// Why no node can be chosen: all that could be are full.
    fn nobody(&self, target: &Target, ways: &[Way], uncertified: &[NodeName]) -> ProxyError {
        if let (Some(agent), [_, ..]) = (&target.certified, uncertified)
            && ways.is_empty()
        {
            return not_certified(agent, uncertified);
        }
        let most = self.nodes.most(target.own_path);
        match (ways.first(), &target.to) {
            (Some(way), _) => ProxyError::PeerBusy { node: way.route.node.clone(), most },
            (None, Recipient::Node(node)) => ProxyError::UnknownNode(node.clone()),
            (None, Recipient::Agent(agent)) => ProxyError::UnknownAgent(agent.clone()),
        }
    }

    /// Remembers the session that a server handed out.
    async fn remember(&self, target: &Target, response: &Response<Incoming>, node: &NodeName) {
        if let Recipient::Agent(agent) = &target.to
            && let Some(id) = response.headers().get(SESSION_ID)
        {
            self.nodes.sessions.remember(agent, id.as_bytes(), node).await;
        }
    }

    /// Sends the request to one node. Where there are `others`, it does not wait for long to be connected.
    async fn attempt(
        &self,
        way: &Way,
        message: &Message<'_>,
        others: bool,
    ) -> Result<(Response<Incoming>, Option<Duration>, Slot), Unanswered> {
        let most = self.nodes.most(message.target.own_path);
        let busy = || ProxyError::PeerBusy { node: way.route.node.clone(), most };
        let mut request_slot = way.endpoint.enter(most).ok_or_else(busy)?;
        let begun = Instant::now();
        let mut stale = 0;
        loop {
            let (connection, connect) = self.connect(way, message.target, others).await?;
            if let Some(agent) = &message.target.certified {
                self.check_certificate(way, agent, &connection)?;
            }
            message.source.sent(true);
            let (error, untouched, link): (BoxError, _, _) = match connection {
                Taken::Stream(sender, link, stream) => {
                    let request = message.for_http2(&way.route, &link);
                    let slot = Slot { stream: Some(stream), request: request_slot };
                    let sent = InFlight::send(sender, link.clone(), request, slot);
                    let (answer, slot) = sent.await;
                    match answer {
                        Ok(answer) => {
                            way.endpoint.answered(begun.elapsed());
                            return Ok((answer, connect, slot));
                        }
                        Err(SendError { error, untouched }) => {
                            request_slot = slot.request;
                            (error.into(), untouched, link)
                        }
                    }
                }
                Taken::Other((mut sender, link)) => {
                    let mut request = message.for_http1(&way.route, &link);
                    interim::hear(&mut request, message.source.interim());
                    match sender.try_send_request(request).await {
                        Ok(answer) => {
                            way.endpoint.answered(begun.elapsed());
                            way.pool.give_back(sender, link, keep_alive(&answer));
                            let slot = Slot { stream: None, request: request_slot };
                            return Ok((incoming::parsed(answer), connect, slot));
                        }
                        Err(mut error) => {
                            let untouched = error.take_message().is_some();
                            (error.into_error().into(), untouched, link)
                        }
                    }
                }
            };
            // The connection had ended before it took the request.
            if untouched {
                message.source.sent(false);
            }
            stale += 1;
            if !untouched || stale > STALE || link.refusal().is_some() {
                return Err(explain(way, &*error, &link, untouched, self.ways.presents()));
            }
        }
    }

    /// Lets a connection pass whose peer proved in its handshake that it may host `agent`. Fails closed.
    fn check_certificate(
        &self,
        way: &Way,
        agent: &AgentName,
        connection: &Connection,
    ) -> Result<(), Unanswered> {
        let (Taken::Stream(_, link, _) | Taken::Other((_, link))) = connection;
        if link.certifies(agent) {
            return Ok(());
        }
        let renewed = link.age() >= CERTIFICATE_AGE;
        if renewed {
            self.ways.renew(way);
        }
        let error = not_certified(agent, std::slice::from_ref(&way.route.node));
        Err(Unanswered { error, reason: None, renewed })
    }

    /// A connection to one node, and how long it took if none was there.
    async fn connect(
        &self,
        way: &Way,
        target: &Target,
        others: bool,
    ) -> Result<(Connection, Option<Duration>), ProxyError> {
        let handshake = self.nodes.proxy.timeouts.handshake;
        let patience = if others { PATIENCE.min(handshake) } else { handshake };
        let begun = Instant::now();
        // What makes a connection is kilobytes, and rarely needed: boxed, so that each request's future is small.
        let pool = &way.pool;
        let connection = if target.upgrade {
            Box::pin(pool.connection_for_upgrade(patience)).await?
        } else if let Some(connection) = pool.try_connection(target.own_path) {
            return Ok((connection, None));
        } else if others {
            match timeout(patience, Box::pin(pool.connection(target.own_path))).await {
                Ok(connection) => connection?,
                Err(_) => return Err(slow(way, patience)),
            }
        } else {
            Box::pin(pool.connection(target.own_path)).await?
        };
        Ok((connection, Some(begun.elapsed())))
    }
}

/// A request waited as long for a connection as it may where another node can do the work.
fn slow(way: &Way, patience: Duration) -> ProxyError {
    let node = way.route.node.clone();
    match way.pool.busy() {
        Some(most) => ProxyError::PeerBusy { node, most },
        None => {
            let addresses = list(&way.route.addresses);
            let error = ProxyError::PeerTimeout { node, limit_ms: patience.as_millis(), addresses };
            way.endpoint.unreachable(&error.to_string());
            error
        }
    }
}

/// What it means that a connection failed with a request on it. `untouched`: it had ended before.
fn explain(
    way: &Way,
    error: &(dyn Error + 'static),
    link: &Link,
    untouched: bool,
    presents: Option<&AgentName>,
) -> Unanswered {
    let node = way.route.node.clone();
    if let Some(reason) = link.refusal() {
        if presents.is_none() {
            way.endpoint.unreachable("it refuses this node's certificate");
        }
        return ProxyError::PeerRefusedUs { node, reason: reason.into() }.into();
    }
    if link.is_lost() {
        way.endpoint.unreachable("it has requests and answers no ping");
    }
    let unprocessed = if untouched { Some(RetryReason::StaleConnection) } else { retry::unprocessed(error) };
    let sent = unprocessed.map_or(Sent::Perhaps, |_| Sent::Nothing);
    let error = ProxyError::PeerFailed { node, reason: root_cause(error).to_string(), sent };
    Unanswered { error, reason: unprocessed, renewed: false }
}

/// No node's certificate names the agent.
fn not_certified(agent: &AgentName, nodes: &[NodeName]) -> ProxyError {
    let nodes = nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
    ProxyError::AgentNotCertified { agent: agent.clone(), nodes }
}

/// For how long the peer keeps an http/1.1 connection that is not used, if it says so.
fn keep_alive<B>(answer: &Response<B>) -> Option<Duration> {
    let value = answer.headers().get(KEEP_ALIVE)?.to_str().ok()?;
    let timeout = value.split(',').find_map(|part| {
        let (name, seconds) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then_some(seconds)
    });
    timeout?.trim().parse().ok().map(Duration::from_secs)
}

impl Message<'_> {
    fn for_http2(&self, route: &Route, link: &Arc<Link>) -> Request<Replay> {
        let mut request = once_more(self.parts, self.source.attempt(link));
        let path = self.parts.uri.path_and_query().cloned();
        *request.uri_mut() = absolute(Scheme::HTTPS, route.authority.clone(), path);
        request
    }

    fn for_http1(&self, route: &Route, link: &Arc<Link>) -> Request<Replay> {
        let mut request = once_more(self.parts, self.source.attempt(link));
        *request.uri_mut() = self.parts.uri.clone();
        to_origin_form(request.uri_mut());
        // An authority is always a valid value.
        if let Ok(host) = HeaderValue::from_str(route.authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        announce_body(&mut request);
        request
    }
}
