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
/// Largest content that is read as a registry, in bytes: far above what any mesh fills.
pub const MAX_BYTES: u64 = 64 << 20;
/// No time is that late, epoch ms. Such a number reads as none: not every program has it exactly, and counting on
/// from it would end.
pub const END_OF_TIME_MS: u64 = 1 << 53;

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

    /// Marks the node offline, as of `last_seen` if given, and leaves everything else as another program wrote it.
    pub fn mark_offline(&mut self, last_seen: Option<u64>) {
        let (Some(node), Some(raw)) = (&mut self.node, self.raw.as_object_mut()) else { return };
        node.status = Status::Offline;
        raw.insert("status".into(), Status::Offline.as_str().into());
        if let Some(last_seen) = last_seen {
            node.last_seen = last_seen;
            raw.insert("lastSeen".into(), last_seen.into());
        }
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
    /// Nothing, or white space only: what truncating leaves, and a host that lost power.
    #[error("is empty; another program may be in the middle of writing it")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("has {0} bytes, more than the {MAX_BYTES} that any registry needs")]
    TooLarge(u64),
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
        if content.len() as u64 > MAX_BYTES {
            return Err(RegistryError::TooLarge(content.len() as u64));
        }
        if content.trim_ascii().is_empty() {
            return Err(RegistryError::Empty);
        }
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

    /// The nodes by name, each with its id. Of several entries of one name the one seen last counts, the first of
    /// equals.
    pub fn by_name(&self) -> BTreeMap<NodeName, (&String, &Node)> {
        let mut by_name: BTreeMap<NodeName, (&String, &Node)> = BTreeMap::new();
        for (id, node) in self.iter_nodes() {
            let Some(name) = node.node_name() else { continue };
            let held = by_name.entry(name).or_insert((id, node));
            *held = later(*held, (id, node));
        }
        by_name
    }

    /// The node of this name with its id; the same of several as [`Self::by_name`] has.
    pub fn named(&self, name: &NodeName) -> Option<(&String, &Node)> {
        self.iter_nodes().filter(|(_, node)| node.name.eq_ignore_ascii_case(name.as_str())).reduce(later)
    }
}

fn later<'a>(held: (&'a String, &'a Node), next: (&'a String, &'a Node)) -> (&'a String, &'a Node) {
    if next.1.last_seen > held.1.last_seen { next } else { held }
}

/// Times that other programs write as `1.7e12` still count; `null` and what is no time read as 0.
fn epoch_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(n) => n.as_u64().or_else(|| n.as_f64().map(|ms| ms.max(0.0) as u64)),
        _ => None,
    }
    .filter(|ms| *ms < END_OF_TIME_MS)
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
            " \n",
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
        assert!(matches!(Registry::parse(b"\n"), Err(RegistryError::Empty)));
    }

    #[test]
    fn marking_a_node_offline_changes_nothing_else_of_another_programs_entry() {
        // The load comes back as another number unless it is read with care.
        let odd = r#"{"agents":null,"host":"h","lastSeen":1.7e12,"load":31.245270191439438,"name":"ct110","status":"online","x":[0.30000000000000004,18446744073709551615]}"#;
        let mut registry =
            Registry::parse(format!(r#"{{"version":1,"nodes":{{"a":{odd}}}}}"#).as_bytes()).unwrap();
        let entry = registry.nodes.get_mut("a").unwrap();
        entry.mark_offline(None);
        assert_eq!(entry.node().unwrap().status, Status::Offline);
        let again = Registry::parse(&registry.to_json()).unwrap();
        let expected = serde_json::from_str::<Value>(&odd.replace("online", "offline")).unwrap();
        assert_eq!(again.nodes["a"].raw, expected);
        assert_eq!(again.nodes["a"].raw["load"].to_string(), "31.245270191439438");
    }

    #[test]
    fn of_entries_with_one_name_the_one_seen_last_counts() {
        let nodes = [("a", 5), ("b", 9), ("c", 9), ("d", END_OF_TIME_MS)]
            .map(|(id, seen)| format!(r#""{id}":{{"name":"CT110","host":"{id}","lastSeen":{seen}}}"#));
        let registry = format!(r#"{{"version":1,"nodes":{{{}}}}}"#, nodes.join(","));
        let registry = Registry::parse(registry.as_bytes()).unwrap();
        let name: NodeName = "ct110".parse().unwrap();
        assert_eq!(registry.named(&name).unwrap().0, "b");
        assert_eq!(registry.by_name()[&name].0, "b");
    }
}
