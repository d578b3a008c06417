//! The model of `mesh.json`, the registry that all nodes share.
//!
//! Other programs write this file too, so what is not understood here is kept: unknown fields on
//! nodes and at the top, and whole entries that are not nodes.

mod entry;
mod lenient;
mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::json;
use crate::name::NodeName;

pub use entry::Entry;
pub use lenient::END_OF_TIME_MS;
use lenient::Time;
pub use node::{MESH_METADATA, Node, Status, TTL_MS};

/// The only version of the file format there is.
pub const VERSION: u64 = 1;
/// Largest content that is read as a registry, in bytes: far above what any mesh fills.
pub const MAX_BYTES: u64 = 64 << 20;
/// The whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    /// Always [`VERSION`].
    pub version: u64,
    /// Entries by node id.
    pub nodes: BTreeMap<String, Entry>,
    /// When the file was last changed, epoch ms.
    pub updated_at: u64,
    /// Fields of other programs: key and value as they stand in the file.
    further: Vec<(String, String)>,
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
        Self { version: VERSION, nodes: BTreeMap::new(), updated_at: 0, further: Vec::new() }
    }

    /// Reads the content of `mesh.json`.
    ///
    /// # Errors
    /// Whatever is not wholly a version 1 registry is an error; nothing is ever read as empty.
    pub fn parse(content: &[u8]) -> Result<Self, RegistryError> {
        Self::parse_after(content, &Self::empty())
    }

    /// As [`Self::parse`]. Entries that stand there as they do in `before` are shared with it and cost little.
    ///
    /// # Errors
    /// As there.
    pub fn parse_after(content: &[u8], before: &Self) -> Result<Self, RegistryError> {
        if content.len() as u64 > MAX_BYTES {
            return Err(RegistryError::TooLarge(content.len() as u64));
        }
        let content = json::without_mark(content);
        if content.trim_ascii().is_empty() {
            return Err(RegistryError::Empty);
        }
        let text = match std::str::from_utf8(content) {
            Ok(text) => text,
            // It says where.
            Err(_) => {
                let error = serde_json::from_slice::<Value>(content).err();
                return Err(
                    error.map_or_else(|| RegistryError::Shape("it is not UTF-8".into()), RegistryError::Json)
                );
            }
        };
        json::check(text).map_err(RegistryError::Json)?;
        let Some(members) = json::members(text) else {
            return Err(match text.trim_ascii().starts_with('[') {
                true => RegistryError::FlatArray,
                false => RegistryError::Shape("it is not an object".into()),
            });
        };
        let mut registry = Self::empty();
        let (mut version, mut nodes) = (None, None);
        for (key, value) in members {
            match json::key_text(key).as_str() {
                "version" => version = Some(value),
                "nodes" => nodes = Some(value),
                "updatedAt" => registry.updated_at = json::read::<Time>(value).map_or(0, |time| time.0),
                _ => registry.further.push((key.into(), value.into())),
            }
        }
        match version.map(|version| json::read::<Value>(version).unwrap_or_default()) {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(other) => return Err(RegistryError::Version(other)),
            None => return Err(RegistryError::Shape("it has no version".into())),
        }
        let nodes = nodes.ok_or_else(|| RegistryError::Shape("it has no nodes".into()))?;
        let Some(entries) = json::members(nodes) else {
            return Err(RegistryError::Shape("its nodes are not an object".into()));
        };
        for (key, raw) in entries {
            let id = json::key_text(key);
            let key = (quoted(&id) != key).then(|| key.to_owned());
            let known =
                before.nodes.get(&id).filter(|known| known.text() == raw && known.key() == key.as_ref());
            let entry = known.cloned().unwrap_or_else(|| Entry::read(raw, key));
            registry.nodes.insert(id, entry);
        }
        Ok(registry)
    }

    /// The content to write: indented, with a final newline, so that people can read it.
    pub fn to_json(&self) -> Vec<u8> {
        let keys: Vec<String> =
            self.nodes.iter().map(|(id, entry)| entry.key().cloned().unwrap_or_else(|| quoted(id))).collect();
        let entries = keys.iter().zip(self.nodes.values()).map(|(key, entry)| (key.as_str(), entry.text()));
        let nodes = json::object(entries, 2);
        let (version, updated_at) = (self.version.to_string(), self.updated_at.to_string());
        let ours = [("\"version\"", &version), ("\"nodes\"", &nodes), ("\"updatedAt\"", &updated_at)];
        let further = self.further.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let all = ours.into_iter().map(|(key, value)| (key, value.as_str())).chain(further);
        let mut content = json::object(all, 0).into_bytes();
        content.push(b'\n');
        content
    }

    /// A field at the top that another program keeps there.
    pub fn further(&self, name: &str) -> Option<Value> {
        let found = self.further.iter().find(|(key, _)| json::key_text(key) == name)?;
        json::read(&found.1).ok()
    }

    /// The entries that are not shared with `before`: those that were written or read since.
    pub fn entries_since<'r>(&'r self, before: &Self) -> impl Iterator<Item = &'r Entry> {
        let shared = |(id, entry): &(&String, &Entry)| {
            before.nodes.get(*id).is_some_and(|other| other.is_shared_with(entry))
        };
        self.nodes.iter().filter(move |entry| !shared(entry)).map(|(_, entry)| entry)
    }

    /// All entries that are nodes, with their ids.
    pub fn iter_nodes(&self) -> impl Iterator<Item = (&String, &Arc<Node>)> {
        self.nodes.iter().filter_map(|(id, entry)| Some((id, entry.node()?)))
    }

    /// The nodes by name, each with its id. Of several entries of one name the one seen last counts, the first of
    /// equals.
    pub fn by_name(&self) -> BTreeMap<NodeName, (&String, &Arc<Node>)> {
        let mut by_name: BTreeMap<NodeName, (&String, &Arc<Node>)> = BTreeMap::new();
        for (id, entry) in &self.nodes {
            let Some((name, node)) = entry.node_name().zip(entry.node()) else { continue };
            let held = by_name.entry(name.clone()).or_insert((id, node));
            *held = later(*held, (id, node));
        }
        by_name
    }

    /// The node of this name with its id; the same of several as [`Self::by_name`] has.
    pub fn named(&self, name: &NodeName) -> Option<(&String, &Arc<Node>)> {
        let entries = self.nodes.iter().filter(|(_, entry)| entry.node_name() == Some(name));
        entries.filter_map(|(id, entry)| Some((id, entry.node()?))).reduce(later)
    }
}

fn later<'a>(
    held: (&'a String, &'a Arc<Node>),
    next: (&'a String, &'a Arc<Node>),
) -> (&'a String, &'a Arc<Node>) {
    if next.1.last_seen > held.1.last_seen { next } else { held }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
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
        assert_eq!(again.further("owner").unwrap(), "rivet");
        let node = again.nodes["a"].node().unwrap();
        assert_eq!(node.extra["tags"]["rack"], 3);
        assert_eq!(node.last_seen, 1_700_000_000_000);
        assert!(node.agents.is_empty());
        assert!(again.nodes["b"].node().is_none());
        assert_eq!(again.nodes["b"].text(), r#"{"note":"not a node"}"#);
        assert!(again.nodes["a"].text().contains(r#""lastSeen":1.7e12"#));
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
        let odd = r#"{"agents":null,"host":"h","lastSeen":1.7e12,"load":31.245270191439438,"name":"ct110","status":"online","note":"\ud83d","x":[0.30000000000000004,18446744073709551615,1e400]}"#;
        let mut registry =
            Registry::parse(format!(r#"{{"version":1,"nodes":{{"a":{odd}}}}}"#).as_bytes()).unwrap();
        let entry = registry.nodes.get_mut("a").unwrap();
        entry.mark_offline(None);
        assert_eq!(entry.node().unwrap().status, Status::Offline);
        let again = Registry::parse(&registry.to_json()).unwrap();
        let expected: Value = json::read(&odd.replace("online", "offline")).unwrap();
        assert_eq!(json::read::<Value>(again.nodes["a"].text()).unwrap(), expected);
        for kept in [
            r#""load": 31.245270191439438,"#,
            "[0.30000000000000004,18446744073709551615,1e400]",
            r#""\ud83d""#,
        ] {
            assert!(again.nodes["a"].text().contains(kept), "{}", again.nodes["a"].text());
        }
    }

    #[test]
    fn one_odd_entry_costs_the_others_nothing_and_comes_back_as_it_was() {
        let file = "\u{feff}{\"version\":1,\"nodes\":{\
            \"a\":{\"id\":null,\"name\":\"ct110\",\"host\":\"h\",\"port\":null,\"version\":3,\"status\":7,\"lastSeen\":5},\
            \"b\":{\"name\":\"ct111\",\"host\":null},\
            \"\\ud83d\":{\"name\":\"ct112\",\"host\":\"x\",\"port\":3000.0,\"big\":1e400}},\"n\":123456789012345678901234567890}";
        let registry = Registry::parse(file.as_bytes()).unwrap();
        let nodes: Vec<_> = registry.iter_nodes().map(|(_, node)| (node.name.as_str(), node.port)).collect();
        assert_eq!(nodes, [("ct110", 0), ("ct112", 3000)]);
        assert!(registry.nodes["b"].problem().is_some() && registry.nodes["a"].problem().is_none());
        let written = String::from_utf8(registry.to_json()).unwrap();
        for kept in [
            "\"port\":null,\"version\":3,\"status\":7",
            "\"\\ud83d\": {",
            "1e400",
            "\"n\": 123456789012345678901234567890",
        ] {
            assert!(written.contains(kept), "{kept} in {written}");
        }
        assert_eq!(Registry::parse(written.as_bytes()).unwrap(), registry);
    }

    #[test]
    fn what_stands_there_as_before_is_shared() {
        let node = |id: &str, port: u16| Node {
            id: id.into(),
            name: id.into(),
            host: "h".into(),
            port,
            ..Node::default()
        };
        let file = |port| {
            let mut registry = Registry::empty();
            for node in [node("a", 3000), node("b", port)] {
                registry.nodes.insert(node.id.clone(), node.into());
            }
            registry.to_json()
        };
        let before = Registry::parse(&file(3000)).unwrap();
        let after = Registry::parse_after(&file(3001), &before).unwrap();
        assert_eq!(after, Registry::parse(&file(3001)).unwrap());
        let shared =
            |id: &str| Arc::ptr_eq(before.nodes[id].node().unwrap(), after.nodes[id].node().unwrap());
        assert!(shared("a") && !shared("b"));
        let since: Vec<_> = after.entries_since(&before).filter_map(Entry::node).collect();
        assert_eq!(since.iter().map(|node| node.port).collect::<Vec<_>>(), [3001]);
        // A copy that is changed leaves the other as it was.
        let mut copy = after.clone();
        copy.nodes.get_mut("a").unwrap().mark_offline(Some(7));
        assert_eq!(after, Registry::parse(&file(3001)).unwrap());
        assert_eq!(copy.nodes["a"].node().unwrap().last_seen, 7);
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
