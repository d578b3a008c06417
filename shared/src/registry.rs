//! The model of `mesh.json`, the registry that all nodes share.
//!
//! Other programs write this file too, so what is not understood here is kept: unknown fields on
//! nodes and at the top, and whole entries that are not nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::name::NodeName;

/// The only version of the file format there is.
pub const VERSION: u64 = 1;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Always [`VERSION`].
    pub version: u64,
    /// Entries by node id.
    pub nodes: BTreeMap<String, Entry>,
    /// When the file was last changed, epoch ms.
    #[serde(default, deserialize_with = "epoch_ms")]
    pub updated_at: u64,
    /// Fields of other programs, kept as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One entry: a node, or something that another program put there.
///
/// An entry that is not replaced is written back exactly as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    raw: Value,
    node: Option<Node>,
}

impl Entry {
    /// The node, if this entry has at least a name and a host.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
}

impl From<Node> for Entry {
    fn from(node: Node) -> Self {
        // A struct of texts and numbers cannot fail to serialize.
        Self { raw: serde_json::to_value(&node).unwrap_or_default(), node: Some(node) }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        Ok(Self { node: Node::deserialize(&raw).ok(), raw })
    }
}

/// A node as it stands in the registry. Nothing in it is verified: names, hosts and addresses are
/// claims that a handshake has yet to confirm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The key of the entry; stays the same for as long as the node is registered.
    #[serde(default)]
    pub id: String,
    /// The node's name, as in its certificate.
    pub name: String,
    /// `agent` unless said otherwise. Only agents heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Names of the agents that live there.
    #[serde(default, deserialize_with = "lenient_list")]
    pub agents: Vec<String>,
    /// The address other nodes dial when `<name>.mesh` does not resolve.
    pub host: String,
    /// The sidecar's inbound port.
    #[serde(default)]
    pub port: u16,
    /// Model providers in use there.
    #[serde(default, deserialize_with = "lenient_list")]
    pub providers: Vec<String>,
    /// Models in use there.
    #[serde(default, deserialize_with = "lenient_list")]
    pub models: Vec<String>,
    /// What the node can do, in the operator's words.
    #[serde(default, deserialize_with = "lenient_list")]
    pub capabilities: Vec<String>,
    /// Last known state.
    #[serde(default)]
    pub status: Status,
    /// The last heartbeat, epoch ms on the node's own clock.
    #[serde(default, deserialize_with = "epoch_ms")]
    pub last_seen: u64,
    /// The first registration, epoch ms.
    #[serde(default, deserialize_with = "epoch_ms")]
    pub registered_at: u64,
    /// The version of the software that registered the node.
    #[serde(default)]
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

    /// Whether this node heartbeats and can go stale.
    pub fn is_agent(&self) -> bool {
        self.role.as_deref().is_none_or(|role| role == "agent")
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

/// Why a text is not a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not JSON, or half of it.
    #[error("is not valid JSON ({0}); another program may be in the middle of writing it")]
    Json(#[source] serde_json::Error),
    /// The form before version 1.
    #[error(
        "is the old flat-array form; this version reads {{\"version\": 1, \"nodes\": {{…}}}}. \
         Convert it, or move it away and let the nodes register anew"
    )]
    FlatArray,
    /// A registry of a version that is not known here, so perhaps of a newer program.
    #[error(
        "has version {0}, and this program knows version {VERSION} only; update it, or move the file away"
    )]
    Version(Value),
    /// Valid JSON of another shape.
    #[error("is not a mesh registry ({0}); expected {{\"version\": 1, \"nodes\": {{…}}}}")]
    Shape(String),
}

impl Registry {
    /// A registry without nodes.
    pub fn empty() -> Self {
        Self { version: VERSION, nodes: BTreeMap::new(), updated_at: 0, extra: Map::new() }
    }

    /// Reads the content of `mesh.json`.
    ///
    /// # Errors
    /// Whatever is not wholly a version 1 registry is an error; nothing is ever read as empty.
    pub fn parse(content: &[u8]) -> Result<Self, RegistryError> {
        let value: Value = serde_json::from_slice(content).map_err(RegistryError::Json)?;
        match &value {
            Value::Array(_) => return Err(RegistryError::FlatArray),
            Value::Object(top) => match top.get("version").map(|v| (v, v.as_u64())) {
                Some((_, Some(VERSION))) => {}
                Some((other, _)) => {
                    return Err(RegistryError::Version(other.clone()));
                }
                None => return Err(RegistryError::Shape("it has no version".into())),
            },
            _ => return Err(RegistryError::Shape("it is no object".into())),
        }
        serde_json::from_value(value).map_err(|error| RegistryError::Shape(error.to_string()))
    }

    /// The content to write: indented, with a final newline, so that people can read it.
    pub fn to_json(&self) -> Vec<u8> {
        // A map with text keys and no foreign Serialize cannot fail to serialize.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// All entries that are nodes, with their ids.
    pub fn iter_nodes(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter().filter_map(|(id, entry)| Some((id, entry.node()?)))
    }

    /// The id under which the node of this name is registered, if it is.
    pub fn id_of(&self, name: &NodeName) -> Option<&str> {
        self.iter_nodes()
            .find(|(_, node)| node.name.eq_ignore_ascii_case(name.as_str()))
            .map(|(id, _)| id.as_str())
    }
}

/// Times that other programs write as `1.7e12` or leave `null` still count.
fn epoch_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(n) => n.as_u64().or_else(|| n.as_f64().map(|ms| ms.max(0.0) as u64)),
        _ => None,
    }
    .unwrap_or(0))
}

/// A missing array, `null`, or members that are no texts read as what is left of them.
fn lenient_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(items) => items
            .into_iter()
            .filter_map(|item| match item {
                Value::String(text) => Some(text),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"version":1,"updatedAt":5,"owner":"rivet","nodes":{
        "a":{"id":"a","name":"ct110","host":"10.0.0.1","port":3000,"status":"online","lastSeen":1.7e12,
             "tags":{"rack":3},"agents":null},
        "b":{"note":"not a node"}}}"#;

    #[test]
    fn what_is_not_understood_survives_a_round_trip() {
        let registry = Registry::parse(FILE.as_bytes()).unwrap();
        let again = Registry::parse(&registry.to_json()).unwrap();
        assert_eq!(registry, again);
        assert_eq!(again.extra["owner"], "rivet");
        let node = again.nodes["a"].node().unwrap();
        assert_eq!(node.extra["tags"]["rack"], 3);
        assert_eq!(node.last_seen, 1_700_000_000_000);
        assert!(node.agents.is_empty());
        assert!(again.nodes["b"].node().is_none());
        assert_eq!(again.nodes["b"].raw["note"], "not a node");
        assert_eq!(again.nodes["a"].raw["lastSeen"], 1.7e12);
    }

    #[test]
    fn nothing_but_a_registry_is_read_as_one() {
        for bad in [
            "",
            "{",
            "null",
            "{}",
            "[]",
            r#"{"nodes":{}}"#,
            r#"{"version":1}"#,
            r#"{"version":2,"nodes":{}}"#,
            r#"{"version":1,"nodes":[]}"#,
        ] {
            assert!(Registry::parse(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
        assert!(matches!(Registry::parse(b"[{}]"), Err(RegistryError::FlatArray)));
    }
}
