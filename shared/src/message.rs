//! The delegation that agents exchange over `POST /api/message`. The sidecar passes it through; it
//! is spelled out here for the tools and example agents.

use serde::{Deserialize, Serialize};

/// A task for another agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageRequest {
    /// The agent that asks.
    pub from_agent: String,
    /// The task.
    pub message: String,
    /// Whether the caller waits for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_response: Option<bool>,
    /// How long the caller waits, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How many delegations led to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_depth: Option<u32>,
    /// The model that the answering agent should use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// The answer to a [`MessageRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageResponse {
    /// What the agent says.
    pub response: String,
    /// The agent that answers.
    pub agent: String,
    /// How long it took, in ms.
    pub duration_ms: u64,
}
