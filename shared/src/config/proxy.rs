//! The `proxy:` section: the sidecar. Every key has a default that works.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::yaml::Section;
use crate::address::LoopbackAddr;
use crate::identity::Identity;
use crate::name::NodeName;

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where peers come in.
    pub inbound: Inbound,
    /// Where this host's programs go out.
    pub outbound: Outbound,
    /// The agent's server.
    pub backend: Backend,
    /// How much one client may take.
    pub limits: Limits,
    /// How long one client may take.
    pub timeouts: Timeouts,
    /// Which peers may come in.
    pub policy: Policy,
    /// Where to serve `/healthz`, `/readyz` and `/metrics`; `None`: nowhere.
    pub admin: Option<LoopbackAddr>,
    /// Revocation lists (PEM) to enforce in both directions; `None`: there are none.
    pub crl_path: Option<PathBuf>,
    /// Where the last known roster is kept for the next start.
    pub state_dir: PathBuf,
    /// Threads that carry requests. Each keeps connections of its own to every peer it talks to, and one carries
    /// more than the agents of one host produce.
    pub threads: usize,
    /// How many characters of a task its log line shows; 0: none.
    pub task_preview_chars: usize,
}

/// Where peers come in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The address to listen on; the port is `mesh.agent_channel_port`. `::` stands for all, IPv4 too.
    pub address: IpAddr,
}

/// Where this host's programs go out.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Plain HTTP for all destinations.
    pub listen: LoopbackAddr,
    /// Plain HTTP for one node each.
    pub listeners: Vec<OutboundListener>,
    /// Most requests of this host to one node at once.
    pub max_requests_per_node: usize,
    /// How often a request is sent at most, the first time included, as long as nothing of it was processed.
    pub max_attempts: u32,
}

/// A listener whose requests all go to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundListener {
    /// Its place in the file, such as `proxy.outbound.listeners[0]`.
    pub key: String,
    /// Where to listen.
    pub listen: LoopbackAddr,
    /// Where everything goes.
    pub node: NodeName,
}

/// The agent's server.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Plain HTTP/1.1.
    pub address: LoopbackAddr,
    /// Most requests that the agent gets at once.
    pub max_requests: usize,
    /// Most requests that wait for one of those to end.
    pub max_queue: usize,
    /// How long a request waits.
    pub queue: Duration,
    /// Most event streams and upgraded connections at once; they take no place of requests.
    pub max_event_streams: usize,
}

/// How much one client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body, in bytes. What comes once the answer has begun, and gRPC, is not counted.
    pub max_body_bytes: u64,
    /// Largest header block, in bytes.
    pub max_header_bytes: u32,
    /// Most connections of peers at once; this host's programs may have as many again.
    pub max_connections: usize,
    /// Most connections of one peer at once.
    pub max_connections_per_peer: usize,
    /// Most requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Most requests of one peer at once.
    pub max_requests_per_peer: usize,
    /// Most requests of one peer in a second, over a few seconds; `None`: any number.
    pub max_requests_per_second_per_peer: Option<u32>,
    /// Most TLS handshakes under way with peers.
    pub max_handshakes: usize,
    /// Most of them with one address (for IPv6: one /64).
    pub max_handshakes_per_address: usize,
    /// The slowest that the body of a request may arrive once [`Timeouts::body`] is over, in bytes a second.
    pub min_body_bytes_per_second: u32,
}

/// How long one client may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// TCP connect and TLS handshake, each way.
    pub handshake: Duration,
    /// For a peer on HTTP/1.1: until a request's header block is complete, counted from the request before.
    pub header: Duration,
    /// From a peer's handshake until its first request is there.
    pub first_request: Duration,
    /// How long the body of a request may keep the agent waiting before its answer begins, beyond what
    /// [`Limits::min_body_bytes_per_second`] allows.
    pub body: Duration,
    /// Silence within an answer after which it is given up; `None`: never.
    pub stream_idle: Option<Duration>,
    /// How long a client may read nothing of an answer that waits for it; `None`: for ever.
    pub unread: Option<Duration>,
    /// How long an unused connection to a peer or the backend is kept.
    pub pool_idle: Duration,
    /// How long requests in flight may go on after SIGTERM.
    pub drain: Duration,
}

/// Which peers may come in: all that the CA vouches for, unless narrowed here.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Only these; `None`: every one.
    pub allow: Option<Vec<Identity>>,
    /// Never these.
    pub deny: Vec<Identity>,
}

pub(super) fn read(section: Section<'_>) -> Proxy {
    let inbound = section.section("inbound");
    let address = inbound
        .parsed("address")
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |InboundAddress(address)| address);
    inbound.finish();

    let outbound = outbound(section.section("outbound"));

    let backend = section.section("backend");
    let backend_read = Backend {
        address: backend.parsed("address").unwrap_or(LoopbackAddr::v4(8080)),
        max_requests: backend.number("max_requests", 1..=100_000).unwrap_or(256) as usize,
        max_queue: backend.number("max_queue", 0..=100_000).unwrap_or(256) as usize,
        queue: Duration::from_millis(backend.number("queue_ms", 0..=86_400_000).unwrap_or(5_000)),
        max_event_streams: backend.number("max_event_streams", 0..=100_000).unwrap_or(1_024) as usize,
    };
    backend.finish();

    let limits = section.section("limits");
    let max_connections = limits.number("max_connections", 1..=1_000_000).unwrap_or(10_000) as usize;
    let count = |key, default: usize| {
        limits.number(key, 1..=1_000_000).map_or(default.max(1), |given| given as usize)
    };
    let max_handshakes = count("max_handshakes", (max_connections / 10).max(8));
    let limits_read = Limits {
        max_body_bytes: limits.number("max_body_bytes", 1..=1 << 40).unwrap_or(10 * 1024 * 1024),
        max_header_bytes: limits.number("max_header_bytes", 8192..=1 << 20).unwrap_or(64 * 1024) as u32,
        max_connections,
        max_connections_per_peer: count(
            "max_connections_per_peer",
            (max_connections / 2).max(max_connections.min(2)),
        ),
        max_streams: limits.number("max_streams", 1..=10_000).unwrap_or(250) as u32,
        max_requests_per_peer: count("max_requests_per_peer", 1_000),
        max_requests_per_second_per_peer: match limits
            .number("max_requests_per_second_per_peer", 0..=10_000_000)
            .unwrap_or(2_000)
        {
            0 => None,
            most => Some(most as u32),
        },
        max_handshakes,
        max_handshakes_per_address: count("max_handshakes_per_address", max_handshakes / 2),
        min_body_bytes_per_second: limits.number("min_body_bytes_per_second", 0..=1 << 30).unwrap_or(100)
            as u32,
    };
    limits.finish();

    let timeouts = section.section("timeouts");
    let ms = |key, default| Duration::from_millis(timeouts.number(key, 10..=86_400_000).unwrap_or(default));
    let ms_or_never = |key, default| match timeouts.number(key, 0..=86_400_000).unwrap_or(default) {
        0 => None,
        ms => Some(Duration::from_millis(ms)),
    };
    let timeouts_read = Timeouts {
        handshake: ms("handshake_ms", 10_000),
        header: ms("header_ms", 30_000),
        first_request: ms("first_request_ms", 30_000),
        body: ms("body_ms", 60_000),
        stream_idle: ms_or_never("stream_idle_ms", 0),
        unread: ms_or_never("unread_ms", 300_000),
        pool_idle: ms("pool_idle_ms", 90_000),
        drain: ms("drain_ms", 30_000),
    };
    timeouts.finish();

    let policy = section.section("policy");
    if policy.is_empty("allow") {
        policy.mistake("allow", "is empty; write [] for nobody, or remove the key for everybody");
    }
    let policy_read = Policy { allow: policy.list("allow"), deny: policy.list("deny").unwrap_or_default() };
    policy.finish();

    let admin = section.section("admin");
    let admin_listen = admin.parsed("listen");
    admin.finish();

    let log = section.section("log");
    let task_preview_chars = log.number("task_preview_chars", 0..=10_000).unwrap_or(100) as usize;
    log.finish();

    let proxy = Proxy {
        inbound: Inbound { address },
        outbound,
        backend: backend_read,
        limits: limits_read,
        timeouts: timeouts_read,
        policy: policy_read,
        admin: admin_listen,
        crl_path: section.string("crl_path").map(PathBuf::from),
        state_dir: section.string("state_dir").map_or_else(|| "/var/lib/mesh-proxy".into(), PathBuf::from),
        threads: section.number("threads", 1..=256).unwrap_or(1) as usize,
        task_preview_chars,
    };
    section.finish();
    proxy
}

fn outbound(section: Section<'_>) -> Outbound {
    const EXPECTED: &str = "{listen: 127.0.0.1:3111, node: ct111}";
    let listen = section.parsed("listen").unwrap_or(LoopbackAddr::v4(3001));
    let mut listeners = Vec::new();
    for (i, item) in section.sections("listeners", EXPECTED) {
        let given = (item.parsed("listen"), item.parsed("node"));
        if !(item.has("listen") && item.has("node")) {
            section.mistake_at("listeners", i, format!("expected {EXPECTED}"));
        }
        item.finish();
        if let (Some(listen), Some(node)) = given {
            let key = format!("proxy.outbound.listeners[{i}]");
            listeners.push(OutboundListener { key, listen, node });
        }
    }
    let max_requests_per_node =
        section.number("max_requests_per_node", 1..=1_000_000).unwrap_or(4_096) as usize;
    let max_attempts = section.number("max_attempts", 1..=10).unwrap_or(3) as u32;
    section.finish();
    Outbound { listen, listeners, max_requests_per_node, max_attempts }
}

/// An address whose port is said elsewhere.
struct InboundAddress(IpAddr);

impl FromStr for InboundAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| match text.parse::<SocketAddr>() {
            Ok(_) => format!(
                "expected an address without a port, found {text:?}; the port is mesh.agent_channel_port"
            ),
            Err(_) => format!("{text:?} is no IP address such as 0.0.0.0 or ::"),
        })
    }
}
