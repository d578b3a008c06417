//! The live view: what a sidecar carries at the moment, and what has just ended.
//!
//! | Method, path | Where | For |
//! |---|---|---|
//! | GET [`LOCAL_LIVE`] | the sidecar's own unix socket, `proxy.admin.socket` | whoever may open it; with `?node=<node>`, that node's sidecar is asked over the mesh |
//! | GET [`MESH_LIVE`] | inbound | the peers that `proxy.live.peers` names; others get 403 [`NOT_PERMITTED`] |
//!
//! Both answer with [`CONTENT_TYPE`]: one [`LiveUpdate`] a line, the first at once, then one each second for as long as the
//! reader stays. A line without news is sent too, so that silence means that something is wrong.
//!
//! What is told is metadata only: no query strings, no headers, no bodies. Paths, methods, reasons and names of peers are text
//! that other hosts chose; whoever shows them has to make sure that they cannot steer a terminal or a browser.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::{AgentName, NodeName};

/// On the sidecar's own socket.
pub const LOCAL_LIVE: &str = "/v1/live";
/// On the mesh.
pub const MESH_LIVE: &str = "/api/mesh/live";
/// What both answer with.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// `code` where the peer that asks is not named in `proxy.live.peers` (403), and where a program of this host asks for
/// [`MESH_LIVE`] by an ordinary listener (403).
pub const NOT_PERMITTED: &str = "live_not_permitted";
/// `code` where [`MAX_READERS`] read already (503).
pub const TOO_MANY_READERS: &str = "live_too_many_readers";
/// `code` where the node that is asked for by `?node=` has no live view (502).
pub const UNSUPPORTED: &str = "live_unsupported";

/// Readers of one sidecar at once.
pub const MAX_READERS: usize = 16;
/// How many of them may be on other nodes, so that its own operators always find a place.
pub const MAX_PEERS_READERS: usize = 12;
/// Connections to the sidecar's own socket at once: its readers, and those whom it passes on to other nodes.
pub const MAX_CONNECTIONS: usize = 64;
/// Exchanges in flight that one line shows.
pub const MAX_IN_FLIGHT: usize = 500;
/// Exchanges that ended that one line shows.
pub const MAX_ENDED: usize = 1000;
/// Refused connections that one line shows.
pub const MAX_REFUSED: usize = 100;
/// Characters of a path that are shown.
pub const MAX_PATH_CHARS: usize = 200;
/// Characters of a method that are shown.
pub const MAX_METHOD_CHARS: usize = 32;
/// Characters of a reason that are shown.
pub const MAX_REASON_CHARS: usize = 200;
/// Tries of one exchange that are shown.
pub const MAX_TRIES: usize = 8;

/// One line: how things are, and what ended since the line before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveUpdate {
    /// When it was made, epoch ms by the clock of `node`.
    pub at_ms: u64,
    /// Whose sidecar tells it.
    pub node: NodeName,
    /// The sidecar's version.
    pub version: String,
    /// What is in flight: the oldest first, at most [`MAX_IN_FLIGHT`].
    pub in_flight: Vec<LiveExchange>,
    /// How many are in flight, shown or not.
    pub in_flight_total: u64,
    /// What ended since the line before, in that order, at most [`MAX_ENDED`]. Empty in the first line.
    pub ended: Vec<EndedExchange>,
    /// How many more ended that are not shown, because there were too many or the reader was too slow.
    pub ended_omitted: u64,
    /// Connections of peers that were refused since the line before, in that order, at most [`MAX_REFUSED`]. As in the log, of
    /// each reason the first eight in ten seconds are told, the others counted. Sidecars that know no refusals leave it out.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// How many more were refused that are not shown.
    #[serde(default)]
    pub refused_omitted: u64,
}

/// A peer's connection that was refused before it made a request: its handshake failed, or the peer may not connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Tells it from all other refusals of the same sidecar's process.
    pub id: u64,
    /// When, epoch ms.
    pub at_ms: u64,
    /// Where the connection came from.
    pub address: IpAddr,
    /// The verified common name of the peer, where the handshake succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The kind of reason: as the label `reason` of the metric `mesh_proxy_handshakes_total`, or `policy` where
    /// `proxy.policy` does not let the peer in, or `limit` where it has or all have as many connections as there may be. A
    /// later version may have more.
    pub cause: String,
    /// Why, in words for a person, as in the log; at most [`MAX_REASON_CHARS`] characters.
    pub reason: String,
}

/// Which way an exchange goes, as seen from the agent of the node that tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A peer calls the agent.
    Inbound,
    /// A program of the node calls a peer.
    Outbound,
}

impl Direction {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A request and its answer, as far as they have come. Optional fields are left out while they are not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveExchange {
    /// Tells it from all others of the same sidecar's process, in flight and ended.
    pub id: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// Inbound: the verified common name of the peer that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Outbound: whom the program acts as, such as `opus@ct110`, where it is not the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_agent: Option<String>,
    /// Outbound: the node that it was sent to, or last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// The agent that it is for, where it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// The method.
    pub method: String,
    /// The path without the query, at most [`MAX_PATH_CHARS`] characters and `...`; of a CONNECT, the host and port.
    pub path: String,
    /// The trace that it belongs to: 32 hexadecimal digits (W3C Trace Context, section 3.2.2.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// When its head had come, epoch ms.
    pub began_ms: u64,
    /// The answer's status, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the request's body that have passed.
    pub bytes_in: u64,
    /// Bytes of the answer's body that have passed.
    pub bytes_out: u64,
    /// How often it was sent or tried. Inbound: 0.
    pub attempts: u32,
    /// Whether it is one that sidecars and registries exchange by themselves (pings, joins, rosters, lists, renewals).
    /// Readers leave these out unless asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub routine: bool,
}

/// An exchange that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedExchange {
    /// What was known of it at its end.
    #[serde(flatten)]
    pub exchange: LiveExchange,
    /// As `ended` in the access line: `complete`, `error` (this sidecar made the answer), `cut_by_caller`,
    /// `cut_by_upstream` or `cut_by_sidecar`. A later version may have more.
    pub outcome: String,
    /// The code of the error, where a sidecar made the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why it did not end well, in words for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From its head until its end, in ms.
    pub duration_ms: u64,
    /// From its head until the head of its answer, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u64>,
    /// Outbound: how long it waited for a new connection, in ms, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u64>,
    /// Outbound: where it was sent, in order, at most [`MAX_TRIES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tries: Vec<Try>,
}

impl EndedExchange {
    /// Whether it failed: a sidecar made its answer (it has a code), the agent answered with 500 or above, or its answer was cut
    /// by anyone but the caller. A caller that goes away is nothing unusual, and an agent's own 4xx is an answer.
    pub fn failed(&self) -> bool {
        self.code.is_some()
            || self.exchange.status.is_some_and(|status| status >= 500)
            || !matches!(self.outcome.as_str(), "complete" | "cut_by_caller")
    }
}

/// One attempt to send a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// To this node.
    pub node: NodeName,
    /// The code of the error with which it failed; `None`: it was answered, or given up by the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let exchange = LiveExchange {
            id: 7,
            direction: Direction::Outbound,
            peer: None,
            as_agent: Some("opus@ct110".into()),
            node: Some("ct112".parse().unwrap()),
            agent: Some("grok".parse().unwrap()),
            method: "POST".into(),
            path: "/api/message".into(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            began_ms: 1_700_000_000_000,
            status: Some(200),
            bytes_in: 120,
            bytes_out: 4096,
            attempts: 2,
            routine: false,
        };
        let bare = LiveExchange {
            direction: Direction::Inbound,
            peer: Some("ct111".into()),
            as_agent: None,
            node: None,
            agent: None,
            trace_id: None,
            status: None,
            routine: true,
            ..exchange.clone()
        };
        let ended = EndedExchange {
            exchange: exchange.clone(),
            outcome: "complete".into(),
            code: None,
            reason: None,
            duration_ms: 12,
            first_byte_ms: Some(5),
            connect_ms: None,
            tries: vec![
                Try { node: "ct111".parse().unwrap(), error: Some("peer_unreachable".into()) },
                Try { node: "ct112".parse().unwrap(), error: None },
            ],
        };
        let update = LiveUpdate {
            at_ms: 1_700_000_000_100,
            node: "ct110".parse().unwrap(),
            version: "1.2.3".into(),
            in_flight: vec![bare],
            in_flight_total: 1,
            ended: vec![ended],
            ended_omitted: 3,
            refused: vec![Refusal {
                id: 1,
                at_ms: 1_700_000_000_050,
                address: "192.168.10.112".parse().unwrap(),
                peer: None,
                cause: "revoked".into(),
                reason: "certificate is revoked".into(),
            }],
            refused_omitted: 9,
        };
        let written = serde_json::to_value(&update).unwrap();
        let expected = json!({
            "atMs": 1_700_000_000_100_u64, "node": "ct110", "version": "1.2.3",
            "inFlight": [{
                "id": 7, "direction": "inbound", "peer": "ct111", "method": "POST", "path": "/api/message",
                "beganMs": 1_700_000_000_000_u64, "bytesIn": 120, "bytesOut": 4096, "attempts": 2, "routine": true,
            }],
            "inFlightTotal": 1,
            "ended": [{
                "id": 7, "direction": "outbound", "asAgent": "opus@ct110", "node": "ct112", "agent": "grok",
                "method": "POST", "path": "/api/message", "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                "beganMs": 1_700_000_000_000_u64, "status": 200, "bytesIn": 120, "bytesOut": 4096, "attempts": 2,
                "outcome": "complete", "durationMs": 12, "firstByteMs": 5,
                "tries": [{"node": "ct111", "error": "peer_unreachable"}, {"node": "ct112"}],
            }],
            "endedOmitted": 3,
            "refused": [{
                "id": 1, "atMs": 1_700_000_000_050_u64, "address": "192.168.10.112", "cause": "revoked",
                "reason": "certificate is revoked",
            }],
            "refusedOmitted": 9,
        });
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_value::<LiveUpdate>(written.clone()).unwrap(), update);
        let mut of_older = written;
        for key in ["refused", "refusedOmitted"] {
            of_older.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(serde_json::from_value::<LiveUpdate>(of_older).unwrap().refused, []);
    }

    #[test]
    fn a_failure_is_what_a_sidecar_or_the_agent_reports_as_one() {
        for (more, expected) in [
            (json!({}), false),
            (json!({ "outcome": "cut_by_caller", "status": null }), false),
            (json!({ "status": 404 }), false),
            (json!({ "status": 500 }), true),
            (json!({ "status": 403, "code": "request_not_allowed" }), true),
            (json!({ "status": 404, "outcome": "error", "code": "unknown_agent" }), true),
            (json!({ "outcome": "cut_by_upstream" }), true),
            (json!({ "outcome": "of a later version" }), true),
        ] {
            let mut ended = json!({
                "id": 1, "direction": "outbound", "method": "GET", "path": "/", "beganMs": 1, "status": 200, "bytesIn": 0,
                "bytesOut": 0, "attempts": 1, "outcome": "complete", "durationMs": 1,
            });
            for (key, value) in more.as_object().unwrap() {
                ended[key] = value.clone();
            }
            let ended: EndedExchange = serde_json::from_value(ended).unwrap();
            assert_eq!(ended.failed(), expected, "{more}");
        }
    }
}
