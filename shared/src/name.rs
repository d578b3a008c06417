//! Names of nodes and agents: the only place where they are parsed.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The zone in which every node has a host name.
pub const MESH_ZONE: &str = "mesh";
/// The zone in which every agent has one: `<agent>.agent.mesh`.
pub const AGENT_ZONE: &str = "agent.mesh";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not usable as the first label of a `.mesh` host name.
    #[error(
        "{0:?} is not a node name: 1 to 63 letters, digits and hyphens, \
         not starting or ending with a hyphen (as in ct110)"
    )]
    Node(String),
    /// Not usable as an agent's name.
    #[error(
        "{0:?} is not an agent name: 1 to 64 letters, digits, '.', '_' and '-', \
         starting with a letter or digit (as in opus)"
    )]
    Agent(String),
}

/// A valid node name: one DNS label, in lower case, so that equal names are equal bytes.
///
/// Cloning is cheap (a reference count).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Reads a host name of the form `<node>.mesh` (any case, with or without the final dot).
    ///
    /// `None` if it is anything else; a bare `ct110` is not a mesh host name.
    pub fn from_mesh_host(host: &str) -> Option<Self> {
        Self::label(host)?.parse().ok()
    }

    /// Whether [`from_mesh_host`](Self::from_mesh_host) would read this.
    pub fn is_mesh_host(host: &str) -> bool {
        Self::label(host).is_some_and(Self::is_valid)
    }

    fn label(host: &str) -> Option<&str> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let (node, zone) = host.rsplit_once('.')?;
        zone.eq_ignore_ascii_case(MESH_ZONE).then_some(node)
    }

    /// Whether this could be read as a name.
    pub fn is_valid(text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    }

    /// The host name under which peers dial and verify this node: `<node>.mesh`.
    pub fn mesh_host(&self) -> String {
        format!("{}.{MESH_ZONE}", self.0)
    }

    /// The bare name, as in `ct110`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !Self::is_valid(text) {
            return Err(NameError::Node(text.into()));
        }
        let in_lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(Self(if in_lower_case { text.into() } else { text.to_ascii_lowercase().into() }))
    }
}

/// A valid agent name, as in `opus`. Case matters.
///
/// Cloning is cheap (a reference count).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(Arc<str>);

impl AgentName {
    /// Reads a host name of the form `<agent>.agent.mesh` (any case of the zone, with or without the final dot).
    ///
    /// `None` if it is anything else.
    pub fn from_mesh_host(host: &str) -> Option<Self> {
        Self::labels(host)?.parse().ok()
    }

    /// Whether [`from_mesh_host`](Self::from_mesh_host) would read this.
    pub fn is_mesh_host(host: &str) -> bool {
        Self::labels(host).is_some_and(Self::is_valid)
    }

    fn labels(host: &str) -> Option<&str> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let end = host.len().checked_sub(AGENT_ZONE.len() + 1)?;
        let (agent, zone) = host.split_at_checked(end)?;
        zone.strip_prefix('.')?.eq_ignore_ascii_case(AGENT_ZONE).then_some(agent)
    }

    /// Whether this could be read as a name.
    pub fn is_valid(text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
    }

    /// The host name by which programs of a node name this agent: `<agent>.agent.mesh`.
    pub fn mesh_host(&self) -> String {
        format!("{}.{AGENT_ZONE}", self.0)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !Self::is_valid(text) {
            return Err(NameError::Agent(text.into()));
        }
        Ok(Self(text.into()))
    }
}

macro_rules! text_like {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().into()
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }
    };
}
text_like!(NodeName);
text_like!(AgentName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_dns_labels_in_lower_case() {
        assert_eq!("CT110".parse::<NodeName>().map(String::from), Ok("ct110".into()));
        for bad in ["", "-a", "a-", "a.b", "a_b", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn mesh_hosts_are_one_label_under_mesh() {
        let name = |host: &str| NodeName::from_mesh_host(host).map(String::from);
        assert_eq!(name("ct110.mesh"), Some("ct110".into()));
        assert_eq!(name("CT110.MESH."), Some("ct110".into()));
        for other in ["ct110", "a.ct110.mesh", "ct110.mesh.example", ".mesh", "mesh", "ct110.mesh.."] {
            assert_eq!(name(other), None, "{other:?}");
        }
    }

    #[test]
    fn agent_names_keep_their_case() {
        assert_eq!("Opus-4.1".parse::<AgentName>().map(String::from), Ok("Opus-4.1".into()));
        for bad in ["", ".a", "a/b", "a b", "a@b", "a\n"] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?} was accepted");
        }
    }
}
