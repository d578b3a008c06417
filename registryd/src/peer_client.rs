//! Questions to other nodes, asked through the own sidecar: it verifies who answers.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::local_api::{self, AgentList, JoinAnswer, Problem};
use mesh_shared::registry::{Node, Status};
use mesh_shared::{LoopbackAddr, NodeName};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::discovery::Candidate;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Largest answer taken, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;
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
    #[error("{peer} answers something that is no registry: {reason}")]
    Nonsense { peer: NodeName, reason: String },
}

impl AskError {
    /// Whether the node answers, but not this question.
    fn lacks_this(&self) -> bool {
        matches!(self, Self::Refused { status: 404 | 405 | 501, code: None, .. })
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
        let request = Request::builder()
            .method(method)
            .uri(format!("/nodes/{peer}{path}"))
            .header(header::HOST, self.outbound.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| self.no_sidecar(&error))?;
        let answer = timeout(LIMIT, self.send(request)).await;
        let (status, code, body) = answer.map_err(|_| AskError::Timeout { peer: peer.clone() })??;
        if status != StatusCode::OK {
            let problem = serde_json::from_slice::<Problem>(&body);
            let reason = problem.map_or_else(|_| format!("status {status}"), |problem| problem.detail);
            return Err(AskError::Refused { peer: peer.clone(), status: status.as_u16(), code, reason });
        }
        let nonsense =
            |error: serde_json::Error| AskError::Nonsense { peer: peer.clone(), reason: error.to_string() };
        serde_json::from_slice(&body).map_err(nonsense)
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Option<String>, Bytes), AskError> {
        let stream =
            TcpStream::connect(self.outbound.socket_addr()).await.map_err(|error| self.no_sidecar(&error))?;
        let connected = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| self.no_sidecar(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| self.no_sidecar(&error))?;
            let code = answer.headers().get(local_api::MESH_ERROR).and_then(|code| code.to_str().ok());
            let (status, code) = (answer.status(), code.map(str::to_owned));
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, code, body.map_err(|error| self.no_sidecar(&error))?.to_bytes()))
        };
        // The connection is driven here rather than in a task, so that it ends with the question.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                outcome = &mut exchange => return outcome,
                _ = &mut connection, if open => open = false,
            }
        }
    }

    fn no_sidecar(&self, reason: &dyn std::fmt::Display) -> AskError {
        AskError::NoSidecar { outbound: self.outbound, reason: reason.to_string() }
    }
}
