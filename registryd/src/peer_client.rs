//! Questions to other nodes, asked through the own sidecar: it verifies who answers.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use mesh_client::{Answer, ClientError, Daemon};
use mesh_shared::json;
use mesh_shared::local_api::{self, AgentList, JoinAnswer, Problem};
use mesh_shared::logging::Excerpt;
use mesh_shared::registry::{Node, Status};
use mesh_shared::{LoopbackAddr, NodeName};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::discovery::Candidate;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Largest answer taken, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Most of a refusal's text that is shown.
const MAX_REASON_CHARS: usize = 300;
/// How often and after which pause to ask again when the sidecar does not know the new roster yet.
const ROSTER_RETRIES: u32 = 6;
const ROSTER_PAUSE: Duration = Duration::from_millis(150);

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum AskError {
    #[error("this node's own sidecar at {outbound} does not answer ({reason}); is mesh-proxy running?")]
    NoSidecar { outbound: LoopbackAddr, reason: String },
    #[error("{peer} does not answer: {reason}")]
    Refused { peer: NodeName, status: u16, code: Option<String>, reason: String },
    #[error("{peer} did not answer within {} s", LIMIT.as_secs())]
    Timeout { peer: NodeName },
    #[error(
        "{peer} answers with more than {max_bytes} bytes, which no registry needs; what it says is not taken"
    )]
    TooLarge { peer: NodeName, max_bytes: usize },
    #[error("{peer} broke off its answer: {reason}")]
    Cut { peer: NodeName, reason: String },
    #[error("{peer} answers with something that is not a registry: {reason}")]
    Nonsense { peer: NodeName, reason: String },
}

impl AskError {
    /// Whether the node answers, but not this question.
    fn lacks_this(&self) -> bool {
        matches!(self, Self::Refused { status: 404 | 405 | 501, code: None, .. })
    }

    /// Whether the far sidecar answered, and only its registryd cannot be reached, as while it is restarted.
    pub fn only_registryd_is_away(&self) -> bool {
        matches!(self, Self::Refused { code: Some(code), .. } if code == "registry_unavailable")
    }

    /// Whether this says something of the peer, rather than of this host.
    pub fn tells_of_the_peer(&self) -> bool {
        match self {
            Self::NoSidecar { .. } => false,
            Self::Refused { status, .. } => *status >= 500 && !self.roster_lags(),
            Self::Timeout { .. } | Self::TooLarge { .. } | Self::Cut { .. } | Self::Nonsense { .. } => true,
        }
    }

    fn roster_lags(&self) -> bool {
        let Self::Refused { code: Some(code), .. } = self else { return false };
        matches!(code.as_str(), "unknown_node" | "node_offline" | "no_roster" | "peer_unresolved")
    }
}

/// The way to other nodes.
#[derive(Debug, Clone)]
pub struct PeerClient {
    outbound: LoopbackAddr,
}

impl PeerClient {
    /// Asks through the sidecar's outbound listener.
    pub fn new(outbound: LoopbackAddr) -> Self {
        Self { outbound }
    }

    /// Introduces `own` to a peer and learns all nodes that it knows, itself among them.
    ///
    /// A peer that knows no join (not every program in the mesh does) is only asked.
    ///
    /// # Errors
    /// No sidecar, no peer, or no registry in its answer.
    pub async fn exchange(&self, peer: &Candidate, own: &Node) -> Result<Vec<Node>, AskError> {
        let body = serde_json::to_vec(own).unwrap_or_default();
        let mut retries = 0;
        let joined = loop {
            match self.ask::<JoinAnswer>(&peer.name, Method::POST, local_api::JOIN, body.clone()).await {
                // The sidecar learns of a new candidate at the same moment as this question is asked.
                Err(error) if error.roster_lags() && retries < ROSTER_RETRIES => retries += 1,
                outcome => break outcome,
            }
            tokio::time::sleep(ROSTER_PAUSE).await;
        };
        match joined {
            Ok(answer) => Ok(answer.nodes),
            Err(error) if error.lacks_this() => self.only_ask(peer).await,
            Err(error) => Err(error),
        }
    }

    async fn only_ask(&self, peer: &Candidate) -> Result<Vec<Node>, AskError> {
        let answer: Value = self.ask(&peer.name, Method::GET, local_api::MESH, Vec::new()).await?;
        // An array as documented; or the registry file as it is, as some programs answer.
        let entries: Vec<Value> = match answer {
            Value::Array(entries) => entries,
            Value::Object(mut top) => match top.remove("nodes") {
                Some(Value::Array(entries)) => entries,
                Some(Value::Object(entries)) => entries.into_iter().map(|(_, entry)| entry).collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let mut nodes: Vec<Node> =
            entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect();
        if !nodes.iter().any(|node| node.node_name().as_ref() == Some(&peer.name)) {
            let agents: AgentList = self.ask(&peer.name, Method::GET, local_api::AGENTS, Vec::new()).await?;
            nodes.push(Node {
                name: peer.name.to_string(),
                agents: agents.agents.into_iter().map(|agent| agent.name).collect(),
                host: peer.host.clone(),
                port: peer.port,
                status: Status::Online,
                last_seen: crate::state::State::now().epoch_ms,
                ..Node::default()
            });
        }
        Ok(nodes)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        peer: &NodeName,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, AskError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let sidecar = Daemon::Sidecar(self.outbound.socket_addr());
        let path = format!("/nodes/{peer}{path}");
        let answer = sidecar.send_within(LIMIT, MAX_ANSWER_BYTES, method, &path, headers, body.into()).await;
        let Answer { status, headers, body } = answer.map_err(|error| self.unanswered(peer, error))?;
        let code = headers.get(local_api::MESH_ERROR).and_then(|code| code.to_str().ok()).map(str::to_owned);
        if status != StatusCode::OK {
            let reason = match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => Excerpt { text: &problem.detail, max_chars: MAX_REASON_CHARS }.to_string(),
                // Another program, with an answer of its own kind.
                Err(_) => {
                    let text = String::from_utf8_lossy(&body);
                    match text.trim() {
                        "" => format!("status {status}"),
                        said => format!(
                            "status {status}: {}",
                            Excerpt { text: said, max_chars: MAX_REASON_CHARS }
                        ),
                    }
                }
            };
            return Err(AskError::Refused { peer: peer.clone(), status: status.as_u16(), code, reason });
        }
        let nonsense =
            |error: serde_json::Error| AskError::Nonsense { peer: peer.clone(), reason: error.to_string() };
        json::read_bytes(&body).map_err(nonsense)
    }

    fn unanswered(&self, peer: &NodeName, error: ClientError) -> AskError {
        let peer = peer.clone();
        match error {
            ClientError::Timeout { .. } => AskError::Timeout { peer },
            ClientError::TooLarge { max_bytes, .. } => AskError::TooLarge { peer, max_bytes },
            ClientError::Cut { reason, .. } => AskError::Cut { peer, reason },
            ClientError::Unreachable { source, .. } => self.no_sidecar(&source),
            other => self.no_sidecar(&other),
        }
    }

    fn no_sidecar(&self, reason: &dyn std::fmt::Display) -> AskError {
        AskError::NoSidecar { outbound: self.outbound, reason: reason.to_string() }
    }
}
