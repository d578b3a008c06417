//! `proxy.limits` and `proxy.timeouts`: how much one client may take, and how long.

use std::time::Duration;

use super::super::yaml::Section;

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
    /// How long an unused connection to a peer is kept; one of HTTP/1.1 for less, by what the peer says.
    pub pool_idle: Duration,
    /// How long requests in flight may go on after SIGTERM.
    pub drain: Duration,
}

pub(super) fn read_limits(section: Section<'_>) -> Limits {
    let max_connections = section.number("max_connections").unwrap_or(10_000) as usize;
    let count = |key, default: usize| section.number(key).map_or(default.max(1), |given| given as usize);
    let max_handshakes = count("max_handshakes", (max_connections / 10).max(8));
    let limits = Limits {
        max_body_bytes: section.number("max_body_bytes").unwrap_or(10 * 1024 * 1024),
        max_header_bytes: section.number("max_header_bytes").unwrap_or(64 * 1024) as u32,
        max_connections,
        max_connections_per_peer: count(
            "max_connections_per_peer",
            (max_connections / 2).max(max_connections.min(2)),
        ),
        max_streams: section.number("max_streams").unwrap_or(250) as u32,
        max_requests_per_peer: count("max_requests_per_peer", 1_000),
        max_requests_per_second_per_peer: match section
            .number("max_requests_per_second_per_peer")
            .unwrap_or(2_000)
        {
            0 => None,
            most => Some(most as u32),
        },
        max_handshakes,
        max_handshakes_per_address: count("max_handshakes_per_address", max_handshakes / 2),
        min_body_bytes_per_second: section.number("min_body_bytes_per_second").unwrap_or(100) as u32,
    };
    section.finish();
    limits
}

pub(super) fn read_timeouts(section: Section<'_>) -> Timeouts {
    let ms = |key, default| Duration::from_millis(section.number(key).unwrap_or(default));
    let ms_or_never = |key, default| match section.number(key).unwrap_or(default) {
        0 => None,
        ms => Some(Duration::from_millis(ms)),
    };
    let timeouts = Timeouts {
        handshake: ms("handshake_ms", 10_000),
        header: ms("header_ms", 30_000),
        first_request: ms("first_request_ms", 30_000),
        body: ms("body_ms", 60_000),
        stream_idle: ms_or_never("stream_idle_ms", 0),
        unread: ms_or_never("unread_ms", 300_000),
        pool_idle: ms("pool_idle_ms", 90_000),
        drain: ms("drain_ms", 30_000),
    };
    section.finish();
    timeouts
}
