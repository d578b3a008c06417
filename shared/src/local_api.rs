//! The local socket between `mesh-proxy`, `registryd` and `meshctl`: HTTP/1.1 on a unix socket.
//!
//! | Method, path | For | Body |
//! |---|---|---|
//! | GET [`ROSTER_WATCH`] | mesh-proxy | one [`RosterUpdate`] per line: at once, then after every change. With `?since=<revision>` (0: none), differences where they can be had; without, as older sidecars ask, each line is whole |
//! | PUT [`SIDECAR`] | mesh-proxy | [`SidecarReport`] |
//! | GET [`STATUS`], PUT [`STATUS`] | meshctl | [`DaemonStatus`], [`StatusChange`] |
//! | POST [`FORGET`] | meshctl | [`Forget`] |
//! | GET [`MESH`], POST [`JOIN`], GET [`AGENTS`] | peers, through the sidecar | see the design |
//! | GET [`NODES`], [`ROSTER_AGENTS`], [`EVENTS`] | agents, through the sidecar; meshctl | [`NodeView`]s, [`AgentView`]s, server-sent events |
//!
//! Peers' requests carry [`PEER_CN`], set by the sidecar from the verified certificate; registryd trusts it from the
//! sidecar's user, root and its own user only (SO_PEERCRED). Other users of the socket's group may read.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::enrolment::{BUNDLE_PATH, RENEW_PATH};
use crate::live::MESH_LIVE;
use crate::name::{AgentName, NodeName};
use crate::registry::{Node, Status};

/// Stream of [`RosterUpdate`]s, one JSON document a line.
pub const ROSTER_WATCH: &str = "/v1/roster/watch";
/// What the sidecar tells registryd about itself.
pub const SIDECAR: &str = "/v1/sidecar";
/// registryd's own state; changing this node's status.
pub const STATUS: &str = "/v1/status";
/// The registry as a JSON array of nodes, for peers.
pub const MESH: &str = "/api/mesh";
/// Registration of the calling peer.
pub const JOIN: &str = "/api/mesh/join";
/// This node's agents.
pub const AGENTS: &str = "/api/agents";
/// The newest revocation lists of a sidecar, for peers and from them.
pub const CRL: &str = "/api/mesh/crl";
/// On the mesh: whether a node is there.
pub const PING: &str = "/api/mesh/ping";
/// All paths on which the mesh itself answers peers.
pub const OF_MESH: [&str; 8] = [PING, MESH, JOIN, AGENTS, CRL, RENEW_PATH, BUNDLE_PATH, MESH_LIVE];
/// All nodes, for agents and people.
pub const NODES: &str = "/mesh/nodes";
/// All agents with the nodes that host them.
pub const ROSTER_AGENTS: &str = "/mesh/agents";
/// What the sidecar saw of the nodes' certificates; answered by the sidecar on its outbound side, [`SeenCertificates`].
pub const CERTIFICATES: &str = "/mesh/certificates";
/// Takes a node out of the registry; body: [`Forget`].
pub const FORGET: &str = "/v1/forget";
/// Changes as server-sent events.
pub const EVENTS: &str = "/mesh/events";

/// Header: the verified CN of the peer that sent a request.
pub const PEER_CN: &str = "x-mesh-peer-cn";
/// Header: the agent a request is for.
pub const MESH_AGENT: &str = "x-mesh-agent";
/// Header: the node a request is for.
pub const MESH_NODE: &str = "x-mesh-node";
/// Header: the revision of the mesh that an answer of [`NODES`] shows; `?wait=` takes it.
pub const REVISION: &str = "x-mesh-revision";
/// Header: the stable code of an error that a sidecar or registryd made.
pub const MESH_ERROR: &str = "x-mesh-error";

/// Who can be reached now: the view from which mesh-proxy routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Roster {
    /// Rises with every change while registryd runs.
    pub revision: u64,
    /// All nodes with valid names, the own one among them, ordered by name.
    pub nodes: Vec<Arc<RosterNode>>,
    /// Whether registryd has not seen its registry yet, so that a node that is not in here may exist all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A roster, or how it differs from an earlier one. A whole one reads as a [`Roster`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RosterUpdate {
    /// The revision after it.
    pub revision: u64,
    /// The revision that it starts from; `None`: `nodes` are all that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The rows that are new or another one.
    pub nodes: Vec<Arc<RosterNode>>,
    /// Nodes that are no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<NodeName>,
    /// As in [`Roster`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A node as the sidecar needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RosterNode {
    /// The name to dial and verify.
    pub name: NodeName,
    /// The last known state.
    pub status: Status,
    /// The agents there.
    pub agents: Vec<String>,
    /// What `<name>.mesh` (or else the node's `host`) resolves to, in the order to try.
    pub addresses: Vec<IpAddr>,
    /// The inbound port.
    pub port: u16,
    /// Why `addresses` is empty, in words for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved: Option<String>,
}

/// What the sidecar tells registryd, at its start, on every change and every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarReport {
    /// Where peers reach this node.
    pub inbound: SocketAddr,
    /// Where this host's programs reach the mesh.
    pub outbound: SocketAddr,
    /// Whether the last contact with the agent's server succeeded; `None` before the first.
    pub backend_up: Option<bool>,
    /// This node's agents whose servers did not answer at the last contact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents_down: Vec<String>,
    /// When the node's certificate ends, epoch seconds.
    pub certificate_not_after: i64,
    /// Whether the sidecar has it renewed in time, and itself tells of a renewal that is late.
    #[serde(default)]
    pub renews: bool,
    /// The sidecar's process id, as its own namespace counts; `None`: an older sidecar, which does not say.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Whether it was told to stop: it takes no new work from peers, and finishes what it has.
    #[serde(default)]
    pub draining: bool,
    /// When the first of the revocation lists in use ends, epoch seconds; `None`: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_ends: Option<i64>,
    /// What is wrong with the certificates, keys and lists as their files are now, while earlier ones are in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_problems: Vec<String>,
    /// The last upgrade that was asked of this process and did not come about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_upgrade: Option<FailedUpgrade>,
}

/// An upgrade of the sidecar that did not come about; it continues as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedUpgrade {
    /// How many have failed in this process, to tell this one from an earlier one.
    pub count: u32,
    /// Why, in words for a person.
    pub reason: String,
}

/// registryd's answer to `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonStatus {
    /// This node.
    pub node: NodeName,
    /// Its state.
    pub status: Status,
    /// The program's version.
    pub version: String,
    /// The file in use, or the etcd cluster.
    pub registry_path: String,
    /// `static`, `seed`, `mdns` or `none`.
    pub discovery: String,
    /// Nodes known.
    pub nodes: usize,
    /// Nodes online.
    pub online: usize,
    /// What is wrong now, each in a sentence; empty when all is well.
    pub problems: Vec<String>,
    /// Names that two hosts have; each is among the problems as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<NodeName>,
    /// The sidecar's last report; `None` if none came within its lifetime.
    pub sidecar: Option<SidecarReport>,
    /// How long ago the last heartbeat was written, in ms.
    pub last_heartbeat_age_ms: Option<u64>,
}

/// Body of `PUT /v1/status`: what the operator wants this node to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusChange {
    /// `online` or `updating`.
    pub status: Status,
}

/// Body of `POST /v1/forget`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forget {
    /// The node; it must be offline.
    pub node: NodeName,
}

/// A node as shown to people and programs: the registry's entry and what this reader observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// The entry; its `status` is this reader's judgement.
    #[serde(flatten)]
    pub node: Node,
    /// How long ago this reader saw `lastSeen` move, in ms; `None` if it has not yet.
    pub age_ms: Option<u64>,
    /// The node's clock minus this host's, in ms, as far as it can be observed.
    pub skew_ms: Option<i64>,
    /// What its name resolves to.
    pub addresses: Vec<IpAddr>,
    /// Whether this is the node that answers.
    pub local: bool,
}

impl NodeView {
    /// Keys that an entry must not bring along: they say what this reader observed.
    const OBSERVED: [&str; 4] = ["ageMs", "skewMs", "addresses", "local"];

    /// A view of `node` without observations. Fields of its entry that other programs named like one are left out.
    pub fn of(mut node: Node) -> Self {
        for key in Self::OBSERVED {
            node.extra.remove(key);
        }
        Self { node, age_ms: None, skew_ms: None, addresses: Vec::new(), local: false }
    }
}

/// An agent and the nodes that can take its tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentView {
    /// The agent's name.
    pub name: String,
    /// Nodes that host it, usable ones first, the local one before others.
    pub nodes: Vec<AgentNode>,
}

/// One place where an agent lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentNode {
    /// The node.
    pub node: NodeName,
    /// Its state.
    pub status: Status,
    /// Whether it is this host.
    pub local: bool,
}

/// What a sidecar saw of the nodes' certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenCertificates {
    /// Whether it sends an agent's requests only to nodes whose certificates name the agent (`mesh.agents`).
    pub certified: bool,
    /// The nodes with which it has completed a handshake, by name.
    pub nodes: Vec<SeenCertificate>,
}

/// What a node's certificate said at the last handshake.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenCertificate {
    /// The node.
    pub node: NodeName,
    /// The agents that it may host.
    pub agents: Vec<AgentName>,
    /// When that was, epoch seconds.
    pub seen_at: u64,
    /// When the certificate begins, epoch seconds; `None`: an older sidecar, which does not say.
    #[serde(default)]
    pub not_before: Option<i64>,
    /// When the certificate ends, epoch seconds.
    pub not_after: i64,
}

/// One of this node's agents, as in `GET /api/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Stable identifier; the name unless configured.
    pub id: String,
    /// The name to address.
    pub name: String,
    /// The model's provider, where known.
    pub provider: Option<String>,
    /// The model, where known.
    pub model: Option<String>,
}

/// Body of `GET /api/agents`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentList {
    /// This node's agents.
    pub agents: Vec<Agent>,
}

/// Answer to a successful join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Always `ok`.
    pub status: String,
    /// All nodes known after the join.
    pub nodes: Vec<Node>,
}

/// An error that a sidecar or registryd made (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// Stable, for programs; also in the header [`MESH_ERROR`].
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// The kind of problem in a few words.
    pub title: String,
    /// What failed here and what to do.
    pub detail: String,
    /// The same once more, for clients of model providers. Nodes of an older version do not send it.
    #[serde(default)]
    pub error: ProblemError,
    /// More for programs, such as the nodes that would have been possible.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

/// The member `error` of a [`Problem`]: the form in which OpenAI's API gives its errors. Its SDKs, and the many that copy
/// them, show the text of `message` and read nothing else.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProblemError {
    /// The problem's detail.
    pub message: String,
    /// Whose business it is: `invalid_request_error`, `rate_limit_error` or `mesh_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The problem's code.
    pub code: String,
}

impl Problem {
    /// A problem in both forms.
    pub fn new(code: &str, status: u16, title: &str, detail: String) -> Self {
        let kind = match status {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "mesh_error",
        };
        let error = ProblemError { message: detail.clone(), kind: kind.into(), code: code.into() };
        Self { code: code.into(), status, title: title.into(), detail, error, extra: serde_json::Map::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_in_both_forms() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (413, "invalid_request_error"),
            (429, "rate_limit_error"),
            (502, "mesh_error"),
        ] {
            let problem = Problem::new("some_code", status, "A title", "what to do".into());
            let expected = serde_json::json!({
                "code": "some_code", "status": status, "title": "A title", "detail": "what to do",
                "error": {"message": "what to do", "type": kind, "code": "some_code"},
            });
            assert_eq!(serde_json::to_value(&problem).unwrap(), expected);
        }
        let older = r#"{"code": "c", "status": 400, "title": "t", "detail": "d"}"#;
        assert_eq!(serde_json::from_str::<Problem>(older).unwrap().detail, "d");
    }
}
