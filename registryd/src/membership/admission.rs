//! What a peer may say of itself: limits on sizes and counts, and no name but its own. Pure; fails closed.

use std::net::IpAddr;

use mesh_shared::address::{is_host, nobodys};
use mesh_shared::json;
use mesh_shared::logging::Excerpt;
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

/// What is known of others when a node's word is judged.
pub struct Surroundings<'a> {
    /// Whether a name is a known node's.
    pub is_node: &'a dyn Fn(&NodeName) -> bool,
    /// Which node that is not offline registered this address and port.
    pub lives_at: &'a dyn Fn(IpAddr, u16) -> Option<NodeName>,
    /// Whether nodes can be on this host's loopback, because this one is there too.
    pub loopback: bool,
}

impl Surroundings<'_> {
    /// Nobody else is known.
    pub const NOBODY: Self = Self { is_node: &|_| false, lives_at: &|_, _| None, loopback: false };
}

/// Why a peer's word about itself is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum Refusal {
    #[error(
        "the request does not say which peer sends it; a node joins through its sidecar, with its certificate"
    )]
    NoIdentity,
    #[error("{0:?} is not a node's identity, so it can register nothing")]
    NotANodesIdentity(String),
    #[error("peer {peer} may register node {peer} only, not {named}")]
    OtherNode { peer: String, named: String },
    #[error(
        "node {node} gives {host:?} as its host, which is another node's name; give an address or {node}.mesh"
    )]
    CapturesName { node: NodeName, host: String },
    #[error("the body is not a node: {0}")]
    NotANode(String),
    #[error("{0:?} is not a node name")]
    Name(String),
    #[error("host {0:?} is neither an address nor a host name")]
    Host(String),
    #[error("host {host} {reason}; give an address at which other nodes reach {node}, or {node}.mesh")]
    NobodysHost { node: NodeName, host: String, reason: &'static str },
    #[error("node {node} gives {host} port {port}, which is where node {other} is; give its own")]
    OthersAddress { node: NodeName, host: String, port: u16, other: NodeName },
    #[error("port 0 cannot be dialled")]
    Port,
    #[error("{0:?} is not an agent name")]
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
            Self::NoIdentity
            | Self::NotANodesIdentity(_)
            | Self::OtherNode { .. }
            | Self::CapturesName { .. }
            | Self::OthersAddress { .. } => "join_other_node",
            Self::NotANode(_) => "bad_node",
            Self::Name(_) => "bad_node_name",
            Self::Host(_) | Self::NobodysHost { .. } => "bad_node_host",
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
            Self::NoIdentity
            | Self::NotANodesIdentity(_)
            | Self::OtherNode { .. }
            | Self::CapturesName { .. }
            | Self::OthersAddress { .. } => 403,
            _ => 400,
        }
    }
}

/// The node that the peer with this verified CN may register.
///
/// # Errors
/// It says nobody, or somebody who is not a node and can register nothing.
pub fn registrant(peer_cn: Option<&str>) -> Result<NodeName, Refusal> {
    let cn = peer_cn.ok_or(Refusal::NoIdentity)?;
    match cn.parse() {
        Ok(Identity::Node(peer)) => Ok(peer),
        _ => Err(Refusal::NotANodesIdentity(shortened(cn))),
    }
}

/// Reads and judges the body of a join by a peer that is this node.
///
/// # Errors
/// The first reason to refuse it.
pub fn admit(body: &[u8], peer: &NodeName, others: &Surroundings<'_>) -> Result<Node, Refusal> {
    let not_a_node = |error: serde_json::Error| Refusal::NotANode(shortened(&error.to_string()));
    let mut value: Value = json::read_bytes(body).map_err(not_a_node)?;
    // Whoever joins is there; only one that says offline is leaving.
    if let Some(fields) = value.as_object_mut() {
        fields.entry("status").or_insert_with(|| Status::Online.as_str().into());
    }
    let node: Node = serde_json::from_value(value).map_err(not_a_node)?;
    let name = node.node_name().ok_or_else(|| Refusal::Name(shortened(&node.name)))?;
    if *peer != name {
        return Err(Refusal::OtherNode { peer: peer.to_string(), named: name.to_string() });
    }
    check(&name, &node, others)?;
    Ok(node)
}

/// Judges what a node says of itself, however it was asked.
///
/// # Errors
/// The first reason to refuse it.
pub fn check(name: &NodeName, node: &Node, others: &Surroundings<'_>) -> Result<(), Refusal> {
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
    let bare = bare.parse::<NodeName>().ok().filter(|bare| (others.is_node)(bare));
    if named.or(bare).is_some_and(|other| other != *name) {
        return Err(Refusal::CapturesName { node: name.clone(), host: node.host.clone() });
    }
    if node.port == 0 {
        return Err(Refusal::Port);
    }
    if let Ok(address) = node.host.parse::<IpAddr>() {
        let (node_name, host) = (name.clone(), node.host.clone());
        if let Some(reason) = nobodys(address, others.loopback) {
            return Err(Refusal::NobodysHost { node: node_name, host, reason });
        }
        if let Some(other) = (others.lives_at)(address, node.port).filter(|other| other != name) {
            return Err(Refusal::OthersAddress { node: node_name, host, port: node.port, other });
        }
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
    if (&node.metadata, &node.extra) == (&held.metadata, &held.extra) {
        return Ok(());
    }
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

/// A peer's text on its way into a sentence: short, and one line.
fn shortened(text: &str) -> String {
    Excerpt { text, max_chars: 80 }.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> Option<(&'static str, u16)> {
        let mut node = json!({"name": "ct112", "host": "10.0.0.112", "port": 3000, "agents": ["grok"]});
        change(&mut node);
        let known = |name: &NodeName| name.as_str() == "ct111";
        let lives_at = |address: IpAddr, port| {
            ((address.to_string(), port) == ("10.0.0.111".into(), 3000)).then(|| "ct111".parse().unwrap())
        };
        let others = Surroundings { is_node: &known, lives_at: &lives_at, loopback: false };
        let outcome = admit(node.to_string().as_bytes(), &"ct112".parse().unwrap(), &others);
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
        for cn in [None, Some("opus@ct112"), Some("device:ct112"), Some("")] {
            assert!(registrant(cn).is_err(), "{cn:?} was accepted");
        }
        assert!(admit(node, &registrant(Some("ct111")).unwrap(), &Surroundings::NOBODY).is_err());
        let admitted = admit(node, &registrant(Some("ct112.mesh")).unwrap(), &Surroundings::NOBODY).unwrap();
        assert_eq!(admitted.status, Status::Online);
        assert_eq!(refusal(|node| node["host"] = json!("10.0.0.111")), Some(("join_other_node", 403)));
        for nobody in
            ["0.0.0.0", "224.0.0.1", "169.254.169.254", "::", "fe80::1", "127.0.0.1", "::ffff:127.0.0.1"]
        {
            assert_eq!(
                refusal(|node| node["host"] = json!(nobody)),
                Some(("bad_node_host", 400)),
                "{nobody}"
            );
        }
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
        assert_eq!(refusal(|node| node["port"] = json!(65536)), Some(("bad_node_port", 400)));
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
