//! What this host observes of one node, on all its threads together: requests under way, how long its answers take,
//! whether it can be reached, and whether its sidecar reached the agent.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use mesh_shared::NodeName;
use mesh_shared::certificate::Leaf;
use parking_lot::Mutex;

use crate::metrics::{Direction, Held, Limit, METRICS, PeerMetrics};
use crate::roster::table::Route;
use crate::upstream::choose::{Latency, Readiness};
use crate::upstream::health::{Health, Standing};

/// The mesh's own paths, such as the ping, find these places when all others are taken.
pub const RESERVE: usize = 16;
/// For so long a node whose agent was away gets tasks only where there is no other.
const AGENT_AWAY: Duration = Duration::from_secs(1);

/// One node as it is observed at its present addresses.
pub struct Endpoint {
    node: NodeName,
    name_header: HeaderValue,
    in_flight: AtomicUsize,
    counters: Arc<PeerMetrics>,
    observed: Mutex<Observed>,
}

struct Observed {
    /// The route by which it was last used.
    route: Arc<Route>,
    latency: Latency,
    health: Health,
    /// Until when its agent counts as away.
    agent_away: Option<Instant>,
    /// What its certificate said at the last handshake, and when that was.
    certificate: Option<(Arc<Leaf>, SystemTime)>,
}

impl Endpoint {
    /// Nothing is known yet.
    pub fn new(route: Arc<Route>) -> Self {
        let observed = Observed {
            route: route.clone(),
            latency: Latency::default(),
            health: Health::default(),
            agent_away: None,
            certificate: None,
        };
        Self {
            node: route.node.clone(),
            // A name is always a valid value.
            name_header: HeaderValue::from_str(route.node.as_str())
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            in_flight: AtomicUsize::new(0),
            counters: METRICS.peer(Direction::Outbound, route.node.as_str()),
            observed: Mutex::new(observed),
        }
    }

    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The same for an answer.
    pub fn name_header(&self) -> HeaderValue {
        self.name_header.clone()
    }

    /// Where requests to it are counted.
    pub fn counters(&self) -> &Arc<PeerMetrics> {
        &self.counters
    }

    /// Whether `route` leads to what was observed here, and not to another address.
    pub fn is_reached_by(&self, route: &Arc<Route>) -> bool {
        let observed = &mut *self.observed.lock();
        if Arc::ptr_eq(&observed.route, route) {
            return true;
        }
        let continues = route.continues(&observed.route);
        if continues {
            observed.route = route.clone();
        }
        continues
    }

    /// Whether it can take a request.
    pub fn readiness(&self, most: usize, now: Instant) -> Readiness {
        match self.observed.lock().health.standing(now) {
            _ if self.in_flight() >= most => Readiness::Full,
            Standing::Well => Readiness::Ready,
            Standing::Ejected(until) | Standing::Due(until) => Readiness::Ejected(until),
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How long its answers took lately.
    pub fn latency(&self, now: Instant) -> Duration {
        self.observed.lock().latency.at(now)
    }

    /// A place for one more request; `None` when `most` are under way.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<RequestSlot> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < most {
            return Some(RequestSlot(self.clone(), METRICS.slot(Limit::RequestsPerNode)));
        }
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        METRICS.refused(Limit::RequestsPerNode);
        None
    }

    /// An answer's head came after `took`.
    pub fn answered(&self, took: Duration) {
        self.observed.lock().latency.observe(took, Instant::now());
    }

    /// Its sidecar said that an agent there does not accept connections.
    pub fn agent_away(&self) {
        self.observed.lock().agent_away = Some(Instant::now() + AGENT_AWAY);
    }

    /// Whether an agent there was away a moment ago.
    pub fn is_agent_away(&self, now: Instant) -> bool {
        self.observed.lock().agent_away.is_some_and(|until| until > now)
    }

    /// A handshake succeeded, with this certificate of the node's.
    pub fn showed(&self, certificate: Leaf) {
        self.observed.lock().certificate = Some((certificate.into(), SystemTime::now()));
    }

    /// What its certificate said at the last handshake, and when that was; `None`: there has been none.
    pub fn certificate(&self) -> Option<(Arc<Leaf>, SystemTime)> {
        self.observed.lock().certificate.clone()
    }

    /// A connection was made.
    pub fn reached(&self) {
        if self.observed.lock().health.succeeded() {
            self.counters.returned();
            tracing::info!(target: "Outbound", "{} can be reached again", self.node);
        }
    }

    /// A connection could not be made, or turned out to be dead.
    pub fn unreachable(&self, reason: &str) {
        let random = RandomState::new().hash_one(0);
        let (before, ejected) = {
            let health = &mut self.observed.lock().health;
            (health.is_ejected(), health.failed(Instant::now(), random))
        };
        if let Some(lasting) = ejected {
            if !before {
                self.counters.ejected();
            }
            tracing::warn!(
                target: "Outbound",
                "{} is not used for {} ms if another node can do the work: {reason}",
                self.node,
                lasting.as_millis()
            );
        }
    }

    /// Whether whoever asks is to find out if it can be reached again.
    pub fn begin_probe(&self) -> bool {
        self.observed.lock().health.begin_probe(Instant::now())
    }
}

/// A request's place at a node, given back on drop.
pub struct RequestSlot(Arc<Endpoint>, #[allow(dead_code, reason = "counts it while it is held")] Held);

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.observed.lock().health.is_ejected() {
            self.counters.returned();
        }
    }
}
