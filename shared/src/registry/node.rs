//! What an entry says of a node.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use crate::name::NodeName;

/// The key in `metadata` below which this project keeps what it publishes.
pub const MESH_METADATA: &str = "mesh";
const TTL: &str = "ttlMs";
const AGENTS_DOWN: &str = "agentsDown";
/// Thresholds that any node can have, in ms; as for `mesh.stale_threshold_ms`.
pub const TTL_MS: RangeInclusive<u64> = 200..=604_800_000;

/// A node as it is in the registry. Nothing in it is verified: names, hosts and addresses are
/// claims that a handshake has yet to confirm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The key of the entry; stays the same for as long as the node is registered.
    #[serde(default, deserialize_with = "lenient::text")]
    pub id: String,
    /// The node's name, as in its certificate.
    pub name: String,
    /// `agent` unless said otherwise. Only agents heartbeat.
    #[serde(default, deserialize_with = "lenient::role", skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Names of the agents that live there.
    #[serde(default, deserialize_with = "lenient::list")]
    pub agents: Vec<String>,
    /// The address other nodes dial when `<name>.mesh` does not resolve.
    pub host: String,
    /// The sidecar's inbound port; 0 where the entry has none that can be dialled.
    #[serde(default, deserialize_with = "lenient::port")]
    pub port: u16,
    /// Model providers in use there.
    #[serde(default, deserialize_with = "lenient::list")]
    pub providers: Vec<String>,
    /// Models in use there.
    #[serde(default, deserialize_with = "lenient::list")]
    pub models: Vec<String>,
    /// What the node can do, in the operator's words.
    #[serde(default, deserialize_with = "lenient::list")]
    pub capabilities: Vec<String>,
    /// Last known state.
    #[serde(default, deserialize_with = "lenient::word")]
    pub status: Status,
    /// The last heartbeat, epoch ms on the node's own clock.
    #[serde(default, deserialize_with = "lenient::epoch_ms")]
    pub last_seen: u64,
    /// The first registration, epoch ms.
    #[serde(default, deserialize_with = "lenient::epoch_ms")]
    pub registered_at: u64,
    /// The version of the software that registered the node.
    #[serde(default, deserialize_with = "lenient::text")]
    pub version: String,
    /// Anything else the operator wants to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// Fields of other programs, kept as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Node {
    /// The name as a valid one; `None` where another program wrote something else.
    pub fn node_name(&self) -> Option<NodeName> {
        self.name.parse().ok()
    }

    /// Whether its role is `agent`, as it is unless said otherwise.
    pub fn is_agent(&self) -> bool {
        self.role.as_deref().is_none_or(|role| role == "agent")
    }

    /// Whether this node heartbeats and can go stale: agents do, and whoever says after which time.
    pub fn heartbeats(&self) -> bool {
        self.is_agent() || self.ttl().is_some()
    }

    /// The silence after which this node counts as offline, by its own account (`metadata.mesh.ttlMs`).
    pub fn ttl(&self) -> Option<Duration> {
        let ms = self.metadata.as_ref()?.get(MESH_METADATA)?.get(TTL)?.as_u64()?;
        Some(Duration::from_millis(ms.clamp(*TTL_MS.start(), *TTL_MS.end())))
    }

    /// Says after which silence this node counts as offline. Metadata that is not an object stays as it is.
    pub fn set_ttl(&mut self, ttl: Duration) {
        self.set_published(TTL, Some((ttl.as_millis() as u64).into()));
    }

    /// Says which of this node's agents do not answer.
    pub fn set_agents_down(&mut self, agents: &[String]) {
        self.set_published(AGENTS_DOWN, (!agents.is_empty()).then(|| agents.into()));
    }

    fn set_published(&mut self, key: &str, value: Option<Value>) {
        let metadata = self.metadata.get_or_insert_with(|| Value::Object(Map::new()));
        let Some(metadata) = metadata.as_object_mut() else { return };
        let ours = metadata.entry(MESH_METADATA).or_insert_with(|| Value::Object(Map::new()));
        if let Some(ours) = ours.as_object_mut() {
            match value {
                Some(value) => drop(ours.insert(key.into(), value)),
                None => drop(ours.remove(key)),
            }
        }
    }

    /// Whether a registryd published this entry, rather than another program.
    pub fn is_of_registryd(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.get(MESH_METADATA).is_some())
    }
}

/// A node's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Heartbeats arrive.
    Online,
    /// Its sidecar runs, its agent does not answer.
    Degraded,
    /// Being updated; takes no tasks.
    Updating,
    /// No heartbeat for longer than the threshold, or it said goodbye; also any word not known here.
    #[default]
    #[serde(other)]
    Offline,
}

impl Status {
    /// The word used in `mesh.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Degraded => "degraded",
            Self::Updating => "updating",
        }
    }
}
