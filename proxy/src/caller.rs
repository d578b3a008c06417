//! Who sends requests, and what the requests of one connection share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use mesh_shared::{AgentName, NodeName};
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::http::body::Drains;
use crate::http::progress::Progress;
use crate::http::upgrade::Tunnel;
use crate::metrics::{Direction, Held, METRICS, PeerMetrics, Side};
use crate::tls::verify::PeerIdentity;

/// Who sent a request.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A peer, as its certificate proved.
    Peer(Arc<PeerIdentity>),
    /// A program of this host.
    Program(Program),
}

/// A program of this host, as far as its connection shows it.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Its address; `None` on a unix socket.
    pub address: Option<Box<str>>,
    /// Whom it acts as; `None`: the node.
    pub acts_as: Option<Arc<ActingAgent>>,
}

/// An agent of this node that listeners of its own stand for.
#[derive(Debug)]
pub struct ActingAgent {
    /// The agent.
    pub name: AgentName,
    /// `<agent>@<node>`.
    pub identity: String,
    /// Value of `x-mesh-from-agent`.
    pub header: HeaderValue,
}

impl ActingAgent {
    /// The agent `name` of `node`.
    pub fn new(name: AgentName, node: &NodeName) -> Self {
        // A name is always a valid value.
        let header = HeaderValue::from_str(name.as_str()).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { identity: format!("{name}@{node}"), header, name }
    }
}

impl Caller {
    /// Which way its requests go.
    pub fn direction(&self) -> Direction {
        match self {
            Self::Peer(_) => Direction::Inbound,
            Self::Program(_) => Direction::Outbound,
        }
    }
}

/// A connection on which requests come, as far as they share it.
pub struct Connection {
    /// Who sends them.
    pub caller: Caller,
    /// What the connection carries once it has left HTTP.
    pub tunnel: Tunnel,
    /// Whether its side still takes new work.
    pub drain: Drain,
    /// Whether a request has come.
    begun: AtomicBool,
    /// How far it has got, where it speaks HTTP/1.1.
    pub progress: Progress,
    /// Why this sidecar ends the connection in the middle of what it does.
    cut: OnceLock<&'static str>,
    /// Places for requests that are read to their end although they were refused.
    pub drains: Drains,
    /// Where requests are counted that were sent to no other node.
    pub counters: Arc<PeerMetrics>,
    /// `None` inside a tunnel: the connection that carries it is counted.
    open: Option<Held>,
}

impl Connection {
    /// A connection of `caller` to a side that may drain.
    pub fn new(caller: Caller, drain: Drain) -> Self {
        let direction = caller.direction();
        let counters = match &caller {
            Caller::Peer(peer) => METRICS.peer_of(peer.identity()),
            Caller::Program(_) => METRICS.no_peer(Direction::Outbound),
        };
        let drains = Drains::new(match direction {
            Direction::Inbound => &OF_PEERS,
            Direction::Outbound => &OF_PROGRAMS,
        });
        Self::begin(caller, drain, drains, counters, Some(METRICS.connection(direction, Side::Downstream)))
    }

    /// What is said inside a tunnel on the connection `outer`.
    pub fn inside(outer: &Self) -> Self {
        let (drains, counters) = (outer.drains.clone(), outer.counters.clone());
        Self::begin(outer.caller.clone(), outer.drain.clone(), drains, counters, None)
    }

    fn begin(
        caller: Caller,
        drain: Drain,
        drains: Drains,
        counters: Arc<PeerMetrics>,
        open: Option<Held>,
    ) -> Self {
        Self {
            caller,
            tunnel: Tunnel::default(),
            drain,
            begun: AtomicBool::new(false),
            progress: Progress::default(),
            cut: OnceLock::new(),
            drains,
            counters,
            open,
        }
    }

    /// Whether this is the inside of a tunnel.
    pub fn is_inside(&self) -> bool {
        self.open.is_none()
    }

    /// Notes that a request has come.
    pub fn begins(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether a request has come.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Why this sidecar ended the connection, or all of them; `None` where it did not.
    pub fn why_cut(&self) -> Option<&'static str> {
        self.cut.get().or_else(|| STOPPED.get()).copied()
    }

    /// Notes why the connection is about to be ended from here; what is under way on it then says so.
    pub fn cut(&self, why: &'static str) {
        // The first reason stays.
        let _ = self.cut.set(why);
    }
}

/// Places for the refused requests of peers.
static OF_PEERS: Semaphore = Drains::of_side();
/// The same of this host's programs, from which peers can take none.
static OF_PROGRAMS: Semaphore = Drains::of_side();

/// Why all that is still under way ends now, once the time for stopping is over.
static STOPPED: OnceLock<&'static str> = OnceLock::new();

/// Notes that what is still under way is cut off because the sidecar ends.
pub fn all_cut(why: &'static str) {
    let _ = STOPPED.set(why);
}
