//! What a peer may say of itself: limits on sizes and counts, and no name but its own. Pure; fails closed.

use mesh_shared::address::is_host;
use mesh_shared::registry::{Node, Status};
use mesh_shared::{AgentName, Identity, NodeName};
use serde_json::Value;

/// Largest body of a join, in bytes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Most entries of each list of a node.
pub const MAX_ITEMS: usize = 256;
/// Longest text in a node, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// Most bytes of `metadata` and unknown fields together, as JSON.
pub const MAX_EXTRA_BYTES: usize = 64 * 1024;
/// Most levels of arrays and objects in each of them: readers of JSON have limits, and what one of them cannot read
/// would be the whole registry.
const MAX_DEPTH: usize = 32;

/// Why a peer's word about itself is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum Refusal {
    #[error(
        "the request does not say which peer sends it; a node joins through its sidecar, with its certificate"
    )]
    NoIdentity,
    #[error("peer {peer} may register node {peer} only, not {named}")]
    OtherNode { peer: String, named: String },
    #[error(
        "node {node} gives {host:?} as its host, which is another node's name; give an address or {node}.mesh"
    )]
    CapturesName { node: NodeName, host: String },
    #[error("the body is no node: {0}")]
    NotANode(String),
    #[error("{0:?} is no node name")]
    Name(String),
    #[error("host {0:?} is neither an address nor a host name")]
    Host(String),
    #[error("port 0 cannot be dialled")]
    Port,
    #[error("{0:?} is no agent name")]
    AgentName(String),
    #[error("{count} {list} are more than the {MAX_ITEMS} that a node may have")]
    TooMany { list: &'static str, count: usize },
    #[error("{field} is longer than {MAX_TEXT_BYTES} bytes")]
    TooLong { field: &'static str },
    #[error("metadata and further fields take {bytes} bytes, more than {MAX_EXTRA_BYTES}")]
    ExtraTooLarge { bytes: usize },
    #[error("{field} is nested more than {MAX_DEPTH} levels deep")]
    TooDeep { field: String },
}

impl Refusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoIdentity | Self::OtherNode { .. } | Self::CapturesName { .. } => "join_other_node",
            Self::NotANode(_) => "bad_node",
            Self::Name(_) => "bad_node_name",
            Self::Host(_) => "bad_node_host",
            Self::Port => "bad_node_port",
            Self::AgentName(_) => "bad_agent_name",
            Self::TooMany { list: "agents", .. } => "too_many_agents",
            Self::TooMany { list: "providers", .. } => "too_many_providers",
            Self::TooMany { list: "models", .. } => "too_many_models",
            Self::TooMany { .. } => "too_many_capabilities",
            Self::TooLong { .. } => "node_text_too_long",
            Self::ExtraTooLarge { .. } => "node_metadata_too_large",
            Self::TooDeep { .. } => "node_nested_too_deep",
        }
    }

    /// The HTTP status: 403 where an identity is missing or another's is touched, else 400.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoIdentity | Self::OtherNode { .. } | Self::CapturesName { .. } => 403,
            _ => 400,
        }
    }
}

/// Reads and judges the body of a join by the peer whose verified CN is `peer_cn`.
///
/// `is_node` tells whether a name is another known node's.
///
/// # Errors
/// The first reason to refuse it.
pub fn admit(
    body: &[u8],
    peer_cn: Option<&str>,
    is_node: impl Fn(&NodeName) -> bool,
) -> Result<(NodeName, Node), Refusal> {
    let cn = peer_cn.ok_or(Refusal::NoIdentity)?;
    let not_a_node = |error: serde_json::Error| Refusal::NotANode(error.to_string());
    let mut value: Value = serde_json::from_slice(body).map_err(not_a_node)?;
    // Whoever joins is there; only one that says offline is leaving.
    if let Some(fields) = value.as_object_mut() {
        fields.entry("status").or_insert_with(|| Status::Online.as_str().into());
    }
    let node: Node = serde_json::from_value(value).map_err(not_a_node)?;
    let name = node.node_name().ok_or_else(|| Refusal::Name(shortened(&node.name)))?;
    match cn.parse() {
        Ok(Identity::Node(peer)) if peer == name => {}
        _ => return Err(Refusal::OtherNode { peer: cn.into(), named: name.to_string() }),
    }
    check(&name, &node, is_node)?;
    Ok((name, node))
}

/// Judges what a node says of itself, however it was asked.
///
/// # Errors
/// The first reason to refuse it.
pub fn check(name: &NodeName, node: &Node, is_node: impl Fn(&NodeName) -> bool) -> Result<(), Refusal> {
    let texts = [("id", &node.id), ("host", &node.host), ("version", &node.version)];
    if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.len() > MAX_TEXT_BYTES) {
        return Err(Refusal::TooLong { field });
    }
    if node.role.as_ref().is_some_and(|role| role.len() > MAX_TEXT_BYTES) {
        return Err(Refusal::TooLong { field: "role" });
    }
    let lists = [
        ("agents", &node.agents),
        ("providers", &node.providers),
        ("models", &node.models),
        ("capabilities", &node.capabilities),
    ];
    for (list, items) in lists {
        if items.len() > MAX_ITEMS {
            return Err(Refusal::TooMany { list, count: items.len() });
        }
        if items.iter().any(|item| item.len() > MAX_TEXT_BYTES) {
            return Err(Refusal::TooLong { field: list });
        }
    }
    if let Some(agent) = node.agents.iter().find(|agent| agent.parse::<AgentName>().is_err()) {
        return Err(Refusal::AgentName(shortened(agent)));
    }
    if !is_host(&node.host) {
        return Err(Refusal::Host(shortened(&node.host)));
    }
    let named = NodeName::from_mesh_host(&node.host);
    let bare = node.host.strip_suffix('.').unwrap_or(&node.host);
    let bare = bare.parse::<NodeName>().ok().filter(|bare| is_node(bare));
    if named.or(bare).is_some_and(|other| other != *name) {
        return Err(Refusal::CapturesName { node: name.clone(), host: node.host.clone() });
    }
    if node.port == 0 {
        return Err(Refusal::Port);
    }
    let metadata = node.metadata.iter().map(|value| ("metadata", value));
    let mut further = metadata.chain(node.extra.iter().map(|(key, value)| (key.as_str(), value)));
    if let Some((field, _)) = further.find(|(_, value)| is_deeper(value, MAX_DEPTH)) {
        return Err(Refusal::TooDeep { field: shortened(field) });
    }
    match extra_bytes(node) {
        bytes if bytes > MAX_EXTRA_BYTES => Err(Refusal::ExtraTooLarge { bytes }),
        _ => Ok(()),
    }
}

/// Judges the entry that would come of a node's word and what it holds already, in place of `held`.
///
/// # Errors
/// It would grow beyond the limit: what is never removed must not be added to without end.
pub fn check_successor(node: &Node, held: &Node) -> Result<(), Refusal> {
    match extra_bytes(node) {
        bytes if bytes > MAX_EXTRA_BYTES.max(extra_bytes(held)) => Err(Refusal::ExtraTooLarge { bytes }),
        _ => Ok(()),
    }
}

fn extra_bytes(node: &Node) -> usize {
    serde_json::to_vec(&(&node.metadata, &node.extra)).map_or(usize::MAX, |json| json.len())
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => return false,
    };
    levels == 0 || inner.any(|value| is_deeper(value, levels - 1))
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> Option<(&'static str, u16)> {
        let mut node = json!({"name": "ct112", "host": "10.0.0.112", "port": 3000, "agents": ["grok"]});
        change(&mut node);
        let known = |name: &NodeName| name.as_str() == "ct111";
        let outcome = admit(node.to_string().as_bytes(), Some("ct112"), known);
        outcome.err().map(|refusal| (refusal.code(), refusal.status()))
    }

    #[test]
    fn a_peer_registers_itself_and_nobody_else() {
        assert_eq!(refusal(|_| {}), None);
        assert_eq!(refusal(|node| node["host"] = json!("ct112.mesh")), None);
        assert_eq!(refusal(|node| node["name"] = json!("ct111")), Some(("join_other_node", 403)));
        assert_eq!(refusal(|node| node["host"] = json!("CT111.mesh.")), Some(("join_other_node", 403)));
        for bare in ["ct111", "ct111.", "CT111."] {
            assert_eq!(refusal(|node| node["host"] = json!(bare)), Some(("join_other_node", 403)), "{bare}");
        }
        let node = br#"{"name":"ct112","host":"10.0.0.112","port":3000}"#;
        for cn in [None, Some("opus@ct112"), Some("device:ct112"), Some("ct111"), Some("")] {
            assert!(admit(node, cn, |_| false).is_err(), "{cn:?} was accepted");
        }
        let (_, admitted) = admit(node, Some("ct112.mesh"), |_| false).unwrap();
        assert_eq!(admitted.status, Status::Online);
    }

    #[test]
    fn every_limit_has_its_own_error() {
        let many = json!((0..257).map(|i| format!("a{i}")).collect::<Vec<_>>());
        for (list, code) in [
            ("agents", "too_many_agents"),
            ("providers", "too_many_providers"),
            ("models", "too_many_models"),
            ("capabilities", "too_many_capabilities"),
        ] {
            assert_eq!(refusal(|node| node[list] = many.clone()), Some((code, 400)));
            assert_eq!(
                refusal(|node| node[list] = json!(["x".repeat(257)])),
                Some(("node_text_too_long", 400))
            );
        }
        assert_eq!(refusal(|node| node["name"] = json!("a b")), Some(("bad_node_name", 400)));
        assert_eq!(refusal(|node| node["host"] = json!("http://x")), Some(("bad_node_host", 400)));
        assert_eq!(refusal(|node| node["port"] = json!(0)), Some(("bad_node_port", 400)));
        assert_eq!(refusal(|node| node["port"] = json!(65536)), Some(("bad_node", 400)));
        assert_eq!(refusal(|node| node["agents"] = json!(["a/b"])), Some(("bad_agent_name", 400)));
        assert_eq!(
            refusal(|node| node["x"] = json!("x".repeat(70_000))),
            Some(("node_metadata_too_large", 400))
        );
        assert_eq!(refusal(|node| *node = json!([1])), Some(("bad_node", 400)));
        for field in ["metadata", "x"] {
            let nested = |levels| {
                (0..levels)
                    .fold(json!(1), |inner, i| if i % 2 == 0 { json!([inner]) } else { json!({"a": inner}) })
            };
            assert_eq!(refusal(|node| node[field] = nested(32)), None);
            assert_eq!(refusal(|node| node[field] = nested(33)), Some(("node_nested_too_deep", 400)));
        }
    }
}
