//! The metrics of this process, each defined once, in [`Metrics::new`]: name, unit, labels, help.
//!
//! Nothing that a stranger says becomes a label: peers are verified identities, nodes and agents are known ones, and
//! everything else comes from the fixed sets in `labels`. What could still grow is capped by `MAX_LABEL_SETS`.
//!
//! A request costs a few relaxed additions: whatever needs a look-up is looked up once for each connection or endpoint
//! ([`Metrics::peer`]) and kept.

mod definition;
mod labels;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use mesh_shared::Identity;
use mesh_shared::config::Proxy;
use mesh_telemetry::TraceId;
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::registry::{Registry, Unit};

use definition::{
    Age, Count, CountedElsewhere, Definitions, Durations, Labelled, Level, Seconds, Stamp, TracedDurations,
};
pub use definition::{Definition, Held};
pub use labels::{
    CodeClass, Direction, HandshakeFailure, Limit, ListVerdict, ListWay, Outcome, PolicyVerdict, Renewal,
    Resumption, RetryReason, RetryRefusal, Side, Way,
};

/// The metrics.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The `content-type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many pairs of a peer and an agent are distinguished; those that come later are counted as `other`.
pub const MAX_LABEL_SETS: usize = 2000;
/// How many peers are distinguished in each direction.
const MAX_PEERS: usize = 1000;
/// Stands for a peer or an agent beyond those.
const OTHER: &str = "other";

/// All metrics.
pub struct Metrics {
    registry: Registry,
    definitions: Vec<Definition>,
    accepted: [Count; Direction::ALL.len()],
    inbound_connections: Count,
    inbound_handshake_failures: Count,
    outbound_dials: Count,
    outbound_dial_failures: Count,
    sidecar_errors: Count,
    errors: Labelled<Count>,
    credential_reload_failures: Count,
    requests: Labelled<Count>,
    in_flight: [Level; Direction::ALL.len()],
    durations: [TracedDurations; Direction::ALL.len()],
    first_bytes: [Durations; Direction::ALL.len()],
    bytes: [[Count; Way::ALL.len()]; Direction::ALL.len()],
    connections: [[Level; Side::ALL.len()]; Direction::ALL.len()],
    connections_total: [[Count; Side::ALL.len()]; Direction::ALL.len()],
    streams: [[Level; Side::ALL.len()]; Direction::ALL.len()],
    streams_total: [[Count; Side::ALL.len()]; Direction::ALL.len()],
    slots_used: [Level; Limit::ALL.len()],
    slots_max: Labelled<Level>,
    slots_refused: [Count; Limit::ALL.len()],
    policy: [[Count; PolicyVerdict::ALL.len()]; Direction::ALL.len()],
    handshakes_done: [[Count; Resumption::ALL.len()]; Direction::ALL.len()],
    handshakes_failed: [[Count; HandshakeFailure::ALL.len()]; Direction::ALL.len()],
    retries: [Count; RetryReason::ALL.len()],
    retries_refused: [Count; RetryRefusal::ALL.len()],
    ejections: Labelled<Count>,
    ejected: Labelled<Level>,
    certificate_end: Stamp,
    renewals: [Count; Renewal::ALL.len()],
    next_renewal: Stamp,
    crl_end: Stamp,
    lists: [[Count; ListVerdict::ALL.len()]; ListWay::ALL.len()],
    reload_time: Stamp,
    reload_successful: Level,
    roster_age: Age,
    worker_lag: Seconds,
    peers: Peers,
}

impl Metrics {
    /// Defines all metrics.
    pub fn new() -> Self {
        let mut define = Definitions::new();
        let none = None;
        define.info("build", &[("version", env!("CARGO_PKG_VERSION"))], "The version that runs");

        // Requests.
        let accepted = [
            define.metric("inbound_requests", none.clone(), "Requests that peers began", Count::default()),
            define.metric(
                "outbound_requests",
                none.clone(),
                "Requests that programs of this host began",
                Count::default(),
            ),
        ];
        let requests = define.family(
            "requests",
            none.clone(),
            &["direction", "peer", "agent", "class", "outcome"],
            "Requests that ended, by the peer or node they came from or went to (empty: none), the agent they were \
             for (empty: none named), the class of the status and how they ended",
            Count::default,
        );
        let in_flight = define.family(
            "requests_in_flight",
            none.clone(),
            &["direction"],
            "Requests whose answer is not complete",
            Level::default,
        );
        let durations = define.family(
            "request_duration",
            Some(Unit::Seconds),
            &["direction"],
            "Time from a request's headers to the end of its answer",
            TracedDurations::default,
        );
        let first_bytes = define.family(
            "time_to_first_byte",
            Some(Unit::Seconds),
            &["direction"],
            "Time from a request's headers to those of its answer",
            Durations::default,
        );
        let bytes = define.family(
            "body",
            Some(Unit::Bytes),
            &["direction", "way"],
            "Bytes of bodies of ended requests: in: read from the caller, out: passed to it",
            Count::default,
        );
        let sidecar_errors = define.metric(
            "sidecar_errors",
            none.clone(),
            "Error answers made by this sidecar",
            Count::default(),
        );
        let errors = define.family(
            "errors",
            none.clone(),
            &["code"],
            "Error answers made by this sidecar, by the code that they have in x-mesh-error",
            Count::default,
        );

        // Connections.
        let connections = define.family(
            "connections_open",
            none.clone(),
            &["direction", "side"],
            "Open connections: downstream: on which requests come, upstream: on which they are sent",
            Level::default,
        );
        let connections_total = define.family(
            "connections",
            none.clone(),
            &["direction", "side"],
            "Connections that were opened",
            Count::default,
        );
        let streams = define.family(
            "h2_streams_open",
            none.clone(),
            &["direction", "side"],
            "Open HTTP/2 streams",
            Level::default,
        );
        let streams_total = define.family(
            "h2_streams",
            none.clone(),
            &["direction", "side"],
            "HTTP/2 streams that were opened",
            Count::default,
        );
        let inbound_connections = define.metric(
            "inbound_connections",
            none.clone(),
            "Connections of peers whose handshake succeeded",
            Count::default(),
        );
        let inbound_handshake_failures = define.metric(
            "inbound_handshake_failures",
            none.clone(),
            "Connections of peers whose handshake failed",
            Count::default(),
        );
        let outbound_dials =
            define.metric("outbound_dials", none.clone(), "Connections made to peers", Count::default());
        let outbound_dial_failures = define.metric(
            "outbound_dial_failures",
            none.clone(),
            "Connections to peers that could not be made",
            Count::default(),
        );
        let handshakes = define.family(
            "handshakes",
            none.clone(),
            &["direction", "result", "reason", "resumption"],
            "TLS handshakes; result is ok or failed, reason says why it failed, resumption whether a session was \
             resumed",
            Count::default,
        );

        // Limits.
        let slots_used = define.family(
            "slots_used",
            none.clone(),
            &["limit"],
            "What is in use of what a limit bounds; of limits for each peer, address or node the sum",
            Level::default,
        );
        let slots_max = define.family(
            "slots_max",
            none.clone(),
            &["limit"],
            "What a limit allows; of limits for each peer, address or node what one of them may use",
            Level::default,
        );
        let slots_refused = define.family(
            "slots_refused",
            none.clone(),
            &["limit"],
            "What was refused because a limit was reached",
            Count::default,
        );
        let policy = define.family(
            "policy_decisions",
            none.clone(),
            &["direction", "verdict"],
            "Requests that the rules of proxy.policy and proxy.outbound.policy refused, would have refused in audit mode, \
             or audited",
            Count::default,
        );

        // Upstream.
        let retries = define.family(
            "retries",
            none.clone(),
            &["reason"],
            "Requests that were sent again because nothing of them had been processed",
            Count::default,
        );
        let retries_refused = define.family(
            "retries_refused",
            none.clone(),
            &["reason"],
            "Requests that could have been sent again and were not",
            Count::default,
        );
        let ejections = define.family(
            "ejections",
            none.clone(),
            &["node"],
            "How often an endpoint of the node was taken out of use because calls failed",
            Count::default,
        );
        let ejected = define.family(
            "ejected",
            none.clone(),
            &["node"],
            "Endpoints of the node that are out of use now",
            Level::default,
        );

        // This process.
        let certificate_end = define.metric(
            "certificate_not_after_timestamp",
            Some(Unit::Seconds),
            "When this node's certificate ends, in epoch seconds",
            Stamp::default(),
        );
        let renewals = define.family(
            "certificate_renewals",
            none.clone(),
            &["outcome"],
            "Attempts to renew this node's certificate, by how they ended; renewed is the good one",
            Count::default,
        );
        let next_renewal = define.metric(
            "certificate_next_renewal_timestamp",
            Some(Unit::Seconds),
            "When this node's certificate is to be renewed, or that is tried again, in epoch seconds; missing without mesh.ca.node",
            Stamp::default(),
        );
        let crl_end = define.metric(
            "crl_next_update_timestamp",
            Some(Unit::Seconds),
            "When the first of the revocation lists ends, in epoch seconds; missing without lists",
            Stamp::default(),
        );
        let lists = define.family(
            "revocation_lists",
            none.clone(),
            &["source", "verdict"],
            "Revocation lists that peers pushed, that were pulled from peers, or that the CA gave, and what became of them",
            Count::default,
        );
        let reload_time = define.metric(
            "last_reload_timestamp",
            Some(Unit::Seconds),
            "When configuration and certificates were last read, in epoch seconds",
            Stamp::default(),
        );
        let reload_successful = define.metric(
            "last_reload_successful",
            none.clone(),
            "1 if what was last read is in use, 0 if it was refused",
            Level::default(),
        );
        let credential_reload_failures = define.metric(
            "credential_reload_failures",
            none.clone(),
            "Reloads that were refused",
            Count::default(),
        );
        let roster_age = define.metric(
            "roster_age",
            Some(Unit::Seconds),
            "Time since registryd was last heard; missing before the first time",
            Age::new(),
        );
        let worker_lag = define.metric(
            "worker_lag",
            Some(Unit::Seconds),
            "How late the latest of the worker threads is for its next turn",
            Seconds::default(),
        );
        define.metric(
            "log_lines_dropped",
            none.clone(),
            "Log lines that were dropped because the log was not read fast enough",
            CountedElsewhere(mesh_shared::logging::dropped_lines),
        );
        define.metric(
            "spans_exported",
            none.clone(),
            "Spans that the collector of telemetry.otlp took",
            CountedElsewhere(mesh_telemetry::exported),
        );
        define.metric(
            "spans_dropped",
            none,
            "Spans that were dropped because the collector did not take them, or not fast enough",
            CountedElsewhere(mesh_telemetry::dropped),
        );

        reload_successful.set(1);
        Self {
            peers: Peers::new(),
            accepted,
            inbound_connections,
            inbound_handshake_failures,
            outbound_dials,
            outbound_dial_failures,
            sidecar_errors,
            errors,
            credential_reload_failures,
            requests,
            in_flight: by_direction(|direction| in_flight.with([direction])),
            durations: by_direction(|direction| durations.with([direction])),
            first_bytes: by_direction(|direction| first_bytes.with([direction])),
            bytes: by_direction(|direction| each(Way::ALL, |way| bytes.with([direction, way.as_str()]))),
            connections: by_direction(|direction| {
                each(Side::ALL, |side| connections.with([direction, side.as_str()]))
            }),
            connections_total: by_direction(|direction| {
                each(Side::ALL, |side| connections_total.with([direction, side.as_str()]))
            }),
            streams: by_direction(|direction| {
                each(Side::ALL, |side| streams.with([direction, side.as_str()]))
            }),
            streams_total: by_direction(|direction| {
                each(Side::ALL, |side| streams_total.with([direction, side.as_str()]))
            }),
            slots_used: each(Limit::ALL, |limit| slots_used.with([limit.as_str()])),
            slots_max,
            slots_refused: each(Limit::ALL, |limit| slots_refused.with([limit.as_str()])),
            policy: by_direction(|direction| {
                each(PolicyVerdict::ALL, |verdict| policy.with([direction, verdict.as_str()]))
            }),
            handshakes_done: by_direction(|direction| {
                each(Resumption::ALL, |how| handshakes.with([direction, "ok", "", how.as_str()]))
            }),
            handshakes_failed: by_direction(|direction| {
                each(HandshakeFailure::ALL, |why| handshakes.with([direction, "failed", why.as_str(), ""]))
            }),
            retries: each(RetryReason::ALL, |reason| retries.with([reason.as_str()])),
            retries_refused: each(RetryRefusal::ALL, |reason| retries_refused.with([reason.as_str()])),
            ejections,
            ejected,
            certificate_end,
            renewals: each(Renewal::ALL, |outcome| renewals.with([outcome.as_str()])),
            next_renewal,
            crl_end,
            lists: each(ListWay::ALL, |way| {
                each(ListVerdict::ALL, |verdict| lists.with([way.as_str(), verdict.as_str()]))
            }),
            reload_time,
            reload_successful,
            roster_age,
            worker_lag,
            registry: define.registry,
            definitions: define.all,
        }
    }

    /// The text for `GET /metrics`, in the OpenMetrics form, which Prometheus reads since 2.5.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// What each metric is, for the documentation.
    pub fn definitions(&self) -> &[Definition] {
        &self.definitions
    }
}

fn each<L: Copy, M, const N: usize>(values: &'static [L], new: impl Fn(L) -> M) -> [M; N] {
    std::array::from_fn(|index| new(values[index]))
}

fn by_direction<M, const N: usize>(new: impl Fn(&'static str) -> M) -> [M; N] {
    each(Direction::ALL, |direction| new(direction.as_str()))
}

/// Requests.
impl Metrics {
    /// A request begins; it is in flight until what this returns is dropped.
    pub fn request(&'static self, direction: Direction) -> Held {
        self.accepted[direction.index()].add_one();
        self.in_flight[direction.index()].hold()
    }

    /// The counters of requests from or to `name`: a verified peer's node, or a node of the roster. To be looked up
    /// once for each connection or endpoint.
    pub fn peer(&'static self, direction: Direction, name: &str) -> Arc<PeerMetrics> {
        self.peers.by_name(self, direction, name)
    }

    /// The counters of requests from a verified peer, by its node, or by the device's name.
    pub fn peer_of(&'static self, identity: &Identity) -> Arc<PeerMetrics> {
        match identity.node() {
            Some(node) => self.peer(Direction::Inbound, node.as_str()),
            None => self.peer(Direction::Inbound, &identity.to_string()),
        }
    }

    /// The counters of requests that ended before a peer was chosen.
    pub fn no_peer(&'static self, direction: Direction) -> Arc<PeerMetrics> {
        self.peer(direction, "")
    }

    /// This sidecar made an answer itself, an error with this code.
    pub fn error(&self, code: &'static str) {
        self.sidecar_errors.add_one();
        self.errors.with([code]).add_one();
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The answer's status; `None`: no answer began.
    pub status: Option<u16>,
    /// How it ended, and by whom.
    pub outcome: Outcome,
    /// From the request's headers to the end.
    pub took: Duration,
    /// From the request's headers to the answer's; `None`: no answer began.
    pub first_byte: Option<Duration>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Its trace, if that is recorded.
    pub trace: Option<TraceId>,
}

/// The counters of one peer in one direction.
pub struct PeerMetrics {
    metrics: &'static Metrics,
    direction: Direction,
    name: Arc<str>,
    /// By agent. Few, and read without a lock.
    agents: ArcSwap<Vec<Arc<AgentMetrics>>>,
    ejections: OnceLock<(Count, Level)>,
}

impl PeerMetrics {
    /// Whom it counts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An exchange with this peer ended; `agent` is one that is known here, or empty.
    pub fn ended(&self, agent: &str, end: &Ended) {
        self.agent(agent).count(self, CodeClass::of(end.status), end.outcome);
        let (metrics, direction) = (self.metrics, self.direction.index());
        metrics.durations[direction].observe(end.took, end.trace);
        if let Some(first_byte) = end.first_byte {
            metrics.first_bytes[direction].observe(first_byte);
        }
        metrics.bytes[direction][Way::In.index()].add(end.bytes_in);
        metrics.bytes[direction][Way::Out.index()].add(end.bytes_out);
    }

    /// An endpoint of this node was taken out of use.
    pub fn ejected(&self) {
        let (count, now) = self.ejections();
        count.add_one();
        now.rise();
    }

    /// An endpoint that was out of use is in use again.
    pub fn returned(&self) {
        self.ejections().1.fall();
    }

    fn ejections(&self) -> &(Count, Level) {
        let Metrics { ejections, ejected, .. } = self.metrics;
        self.ejections.get_or_init(|| (ejections.with([&*self.name]), ejected.with([&*self.name])))
    }

    fn agent(&self, name: &str) -> Arc<AgentMetrics> {
        let agents = self.agents.load();
        if let Some(agent) = agents.iter().find(|agent| *agent.name == *name) {
            return agent.clone();
        }
        drop(agents);
        self.metrics.peers.agent(self, name)
    }
}

/// The counters of one agent at one peer.
struct AgentMetrics {
    peer: Arc<str>,
    name: Arc<str>,
    /// Made when they are needed; most never are.
    by_end: [[OnceLock<Count>; Outcome::ALL.len()]; CodeClass::ALL.len()],
}

impl AgentMetrics {
    fn new(peer: Arc<str>, name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { peer, name, by_end: Default::default() })
    }

    fn count(&self, peer: &PeerMetrics, class: CodeClass, outcome: Outcome) {
        let new = || {
            let direction = peer.direction.as_str();
            let labels = [direction, &self.peer, &self.name, class.as_str(), outcome.as_str()];
            peer.metrics.requests.with(labels)
        };
        self.by_end[class.index()][outcome.index()].get_or_init(new).add_one();
    }
}

/// Peers and agents that are distinguished.
struct Peers {
    /// Read without a lock, as a new peer is rare.
    by_name: [ArcSwap<HashMap<Arc<str>, Arc<PeerMetrics>>>; Direction::ALL.len()],
    /// Held while a peer or an agent is added, so that none is added twice.
    adding: Mutex<()>,
    /// Pairs of a peer and an agent so far.
    sets: AtomicUsize,
    /// For those beyond the cap.
    other: [Arc<AgentMetrics>; Direction::ALL.len()],
}

impl Peers {
    fn new() -> Self {
        let other = || AgentMetrics::new(OTHER.into(), OTHER.into());
        Self {
            by_name: Default::default(),
            adding: Mutex::default(),
            sets: AtomicUsize::new(0),
            other: [other(), other()],
        }
    }

    fn by_name(&self, metrics: &'static Metrics, direction: Direction, name: &str) -> Arc<PeerMetrics> {
        let by_name = &self.by_name[direction.index()];
        if let Some(peer) = by_name.load().get(name) {
            return peer.clone();
        }
        let _adding = self.adding.lock();
        let known = by_name.load_full();
        let name = if known.len() < MAX_PEERS { name } else { OTHER };
        if let Some(peer) = known.get(name) {
            return peer.clone();
        }
        let name = Arc::<str>::from(name);
        let peer = Arc::new(PeerMetrics {
            metrics,
            direction,
            name: name.clone(),
            agents: ArcSwap::default(),
            ejections: OnceLock::new(),
        });
        let mut peers = HashMap::clone(&known);
        peers.insert(name, peer.clone());
        by_name.store(Arc::new(peers));
        peer
    }

    fn agent(&self, peer: &PeerMetrics, name: &str) -> Arc<AgentMetrics> {
        let _adding = self.adding.lock();
        let agents = peer.agents.load_full();
        if let Some(agent) = agents.iter().find(|agent| *agent.name == *name) {
            return agent.clone();
        }
        if self.sets.fetch_add(1, Ordering::Relaxed) >= MAX_LABEL_SETS {
            self.sets.fetch_sub(1, Ordering::Relaxed);
            return self.other[peer.direction.index()].clone();
        }
        let agent = AgentMetrics::new(peer.name.clone(), name.into());
        peer.agents.store(Arc::new(agents.iter().cloned().chain([agent.clone()]).collect()));
        agent
    }
}

/// Connections, streams, handshakes.
impl Metrics {
    /// A connection was opened; it is open until what this returns is dropped.
    pub fn connection(&'static self, direction: Direction, side: Side) -> Held {
        self.connections_total[direction.index()][side.index()].add_one();
        self.connections[direction.index()][side.index()].hold()
    }

    /// An HTTP/2 stream was opened; it is open until what this returns is dropped.
    pub fn stream(&'static self, direction: Direction, side: Side) -> Held {
        self.streams_total[direction.index()][side.index()].add_one();
        self.streams[direction.index()][side.index()].hold()
    }

    /// A TLS handshake succeeded, with a peer that came in or that was dialled.
    pub fn handshake_done(&self, direction: Direction, resumption: Resumption) {
        self.handshakes_done[direction.index()][resumption.index()].add_one();
        match direction {
            Direction::Inbound => self.inbound_connections.add_one(),
            Direction::Outbound => self.outbound_dials.add_one(),
        }
    }

    /// A TLS handshake failed, or a peer could not be dialled.
    pub fn handshake_failed(&self, direction: Direction, why: HandshakeFailure) {
        self.handshakes_failed[direction.index()][why.index()].add_one();
        match direction {
            Direction::Inbound => self.inbound_handshake_failures.add_one(),
            Direction::Outbound => self.outbound_dial_failures.add_one(),
        }
    }
}

/// Limits.
impl Metrics {
    /// One more of what `limit` bounds is in use until what this returns is dropped.
    pub fn slot(&'static self, limit: Limit) -> Held {
        self.slots_used[limit.index()].hold()
    }

    /// Something was refused because `limit` was reached.
    pub fn refused(&self, limit: Limit) {
        self.slots_refused[limit.index()].add_one();
    }

    /// Rules decided about a request, other than to allow it.
    pub fn policy(&self, direction: Direction, verdict: PolicyVerdict) {
        self.policy[direction.index()][verdict.index()].add_one();
    }

    /// What the configured limits allow.
    pub fn set_limits(&self, proxy: &Proxy) {
        let (limits, backend) = (&proxy.limits, &proxy.backend);
        let servers = backend.addresses().len();
        for (limit, most) in [
            (Limit::Connections, limits.max_connections),
            (Limit::LocalConnections, limits.max_connections),
            (Limit::ConnectionsPerPeer, limits.max_connections_per_peer),
            (Limit::Handshakes, limits.max_handshakes),
            (Limit::HandshakesPerAddress, limits.max_handshakes_per_address),
            (Limit::RequestsPerPeer, limits.max_requests_per_peer),
            (Limit::BackendRequests, backend.max_requests * servers),
            (Limit::BackendQueue, backend.max_queue * servers),
            (Limit::BackendEventStreams, backend.max_event_streams * servers),
            (Limit::RequestsPerNode, proxy.outbound.max_requests_per_node),
        ] {
            self.set_limit(limit, most);
        }
        if let Some(most) = limits.max_requests_per_second_per_peer {
            self.set_limit(Limit::RequestRatePerPeer, most as usize);
        }
    }

    /// What `limit` allows.
    pub fn set_limit(&self, limit: Limit, most: usize) {
        self.slots_max.with([limit.as_str()]).set(most.try_into().unwrap_or(i64::MAX));
    }
}

/// Retries; for ejections see [`PeerMetrics::ejected`].
impl Metrics {
    /// A request was sent again.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason.index()].add_one();
    }

    /// A request that could have been sent again was not.
    pub fn not_retried(&self, reason: RetryRefusal) {
        self.retries_refused[reason.index()].add_one();
    }
}

/// This process.
impl Metrics {
    /// Configuration and certificates were read again and are used now (or were refused).
    pub fn reloaded(&self, successful: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.reload_time.set(i64::try_from(now.as_secs()).ok());
        self.reload_successful.set(successful.into());
        if !successful {
            self.credential_reload_failures.add_one();
        }
    }

    /// When the certificate in use ends, in epoch seconds.
    pub fn set_certificate_end(&self, epoch_seconds: i64) {
        self.certificate_end.set(Some(epoch_seconds));
    }

    /// An attempt to renew the certificate ended.
    pub fn renewal(&self, outcome: Renewal) {
        self.renewals[outcome.index()].add_one();
    }

    /// When the next attempt is due, in epoch seconds.
    pub fn set_next_renewal(&self, epoch_seconds: i64) {
        self.next_renewal.set(Some(epoch_seconds));
    }

    /// When the first of the revocation lists in use ends, in epoch seconds; `None`: there are none.
    pub fn set_crl_end(&self, epoch_seconds: Option<i64>) {
        self.crl_end.set(epoch_seconds);
    }

    /// A revocation list came from elsewhere.
    pub fn list_offered(&self, way: ListWay, verdict: ListVerdict) {
        self.lists[way.index()][verdict.index()].add_one();
    }

    /// registryd was heard: a view of the mesh, or that there is no other.
    pub fn roster_heard(&self) {
        self.roster_age.renew();
    }

    /// How late the latest of the worker threads is for its next turn.
    pub fn set_worker_lag(&self, lag: Duration) {
        self.worker_lag.set(lag);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn metrics() -> &'static Metrics {
        Box::leak(Box::default())
    }

    const END: Ended = Ended {
        status: Some(200),
        outcome: Outcome::Complete,
        took: Duration::from_millis(12),
        first_byte: Some(Duration::from_millis(3)),
        bytes_in: 10,
        bytes_out: 2000,
        trace: None,
    };

    #[test]
    fn an_exchange_is_counted_by_whom_for_whom_and_how_it_ended() {
        let metrics = metrics();
        let held = metrics.request(Direction::Inbound);
        let peer = metrics.peer_of(&"grok@ct111".parse().unwrap());
        peer.ended("opus", &END);
        peer.ended("opus", &END);
        peer.ended("opus", &Ended { status: None, outcome: Outcome::CutByCaller, first_byte: None, ..END });
        let text = metrics.render();
        for line in [
            r#"mesh_proxy_inbound_requests_total 1"#,
            r#"mesh_proxy_requests_in_flight{direction="inbound"} 1"#,
            r#"mesh_proxy_requests_total{direction="inbound",peer="ct111",agent="opus",class="2xx",outcome="complete"} 2"#,
            r#"mesh_proxy_requests_total{direction="inbound",peer="ct111",agent="opus",class="none",outcome="cut_by_caller"} 1"#,
            r#"mesh_proxy_request_duration_seconds_bucket{le="0.01",direction="inbound"} 0"#,
            r#"mesh_proxy_request_duration_seconds_bucket{le="0.025",direction="inbound"} 3"#,
            r#"mesh_proxy_request_duration_seconds_count{direction="inbound"} 3"#,
            r#"mesh_proxy_time_to_first_byte_seconds_count{direction="inbound"} 2"#,
            r#"mesh_proxy_body_bytes_total{direction="inbound",way="out"} 6000"#,
        ] {
            assert!(
                text.lines().any(|each| each == line),
                "no {line}
{text}"
            );
        }
        drop(held);
        assert!(metrics.render().contains("mesh_proxy_requests_in_flight{direction=\"inbound\"} 0\n"));
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = metrics();
        for peer in 0..MAX_PEERS + 100 {
            let peer = metrics.peer(Direction::Inbound, &format!("ct{peer}"));
            for agent in 0..3 {
                peer.ended(&format!("agent{agent}"), &END);
            }
            peer.ejected();
        }
        let text = metrics.render();
        let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series("mesh_proxy_requests_total{"), MAX_LABEL_SETS + 1);
        assert_eq!(series("mesh_proxy_ejections_total{"), MAX_PEERS + 1);
        // Nothing is lost.
        let requests = text.lines().filter(|line| line.starts_with("mesh_proxy_requests_total{"));
        let sum: u64 = requests.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, 3 * (MAX_PEERS as u64 + 100));
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let metrics = metrics();
        for name in ["crl_next_update", "certificate_next_renewal", "roster_age", "last_reload_timestamp"] {
            assert!(!metrics.render().contains(&format!("mesh_proxy_{name}")), "{name}");
        }
        metrics.set_crl_end(Some(1_800_000_000));
        metrics.roster_heard();
        metrics.reloaded(false);
        let text = metrics.render();
        assert!(
            text.contains(
                "mesh_proxy_crl_next_update_timestamp_seconds 1800000000
"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "mesh_proxy_last_reload_successful 0
"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "mesh_proxy_credential_reload_failures_total 1
"
            ),
            "{text}"
        );
        assert!(text.contains("mesh_proxy_roster_age_seconds 0."), "{text}");
    }

    /// A line of the text is one of the table's metrics, with its labels and no others.
    #[test]
    fn the_text_follows_from_the_definitions() {
        let metrics = metrics();
        metrics.peer(Direction::Outbound, "ct111").ended("grok", &END);
        metrics.peer(Direction::Outbound, "ct111").ejected();
        metrics.error("peer_busy");
        metrics.set_limit(Limit::Dials, 8);
        metrics.set_certificate_end(1);
        metrics.set_next_renewal(1);
        metrics.set_crl_end(Some(1));
        metrics.roster_heard();
        metrics.reloaded(true);
        let text = metrics.render();
        assert!(text.ends_with(
            "# EOF
"
        ));
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = |definition: &&Definition| match definition.kind {
                "histogram" => Some(&*definition.name) == histogram,
                _ => definition.name == name,
            };
            let definition = metrics.definitions().iter().find(known).expect(line);
            let labels: HashSet<_> = labels
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0))
                .filter(|name| *name != "le")
                .collect();
            assert_eq!(labels, definition.labels.iter().copied().collect(), "{line}");
            seen.insert(&*definition.name);
        }
        for definition in metrics.definitions() {
            assert!(seen.contains(&*definition.name), "{} shows nothing", definition.name);
        }
    }

    #[test]
    fn a_duration_names_its_trace_if_that_is_recorded() {
        let metrics = metrics();
        let peer = metrics.peer(Direction::Inbound, "ct111");
        peer.ended("opus", &END);
        assert!(!metrics.render().contains("trace_id"));
        peer.ended("opus", &Ended { trace: Some(TraceId(7)), ..END });
        let text = metrics.render();
        let bucket = "mesh_proxy_request_duration_seconds_bucket{le=\"0.025\",direction=\"inbound\"} 2";
        let exemplar = format!(" # {{trace_id=\"{:032x}\"}} 0.012 ", 7);
        let line = text.lines().find(|line| line.starts_with(bucket)).expect(&text);
        assert!(line.starts_with(&format!("{bucket}{exemplar}")), "{line}");
    }

    /// deploy/docs/metrics.md has a row for each metric, and no other.
    #[test]
    fn the_documentation_lists_the_metrics() {
        let rows = metrics().definitions().iter().map(|Definition { name, kind, labels, help }| {
            format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
        });
        let rows = rows.collect::<Vec<_>>().join("\n");
        let documented = include_str!("../../deploy/docs/metrics.md").lines();
        let documented: Vec<_> = documented.filter(|line| line.starts_with("| `mesh_proxy_")).collect();
        assert_eq!(documented.join("\n"), rows, "the table ought to be:\n{rows}\n");
    }
}
