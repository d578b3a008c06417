//! What a certificate's common name claims. Parsing only: nothing here is trusted until a verified
//! handshake has tied it to a connection (`mesh-proxy`'s `PeerIdentity`).

use std::fmt;
use std::str::FromStr;

use crate::name::{AgentName, NameError, NodeName};

/// The kinds of identity that the mesh CA issues, distinguished by the shape of the CN.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// `ct110` or `ct110.mesh`.
    Node(NodeName),
    /// `opus@ct110`.
    Agent(AgentName, NodeName),
    /// `device:<name>`; the name may hold letters, digits, '.', '_', ':' and '-'.
    Device(String),
}

/// Why a CN names no identity of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The CN has none of the three shapes.
    #[error("CN {cn:?} names neither a node, nor <agent>@<node>, nor device:<name>: {source}")]
    Shape {
        /// The common name as it is in the certificate.
        cn: String,
        /// What the nearest shape misses.
        source: NameError,
    },
    /// `device:` without a usable name behind it.
    #[error("CN {0:?}: a device name is 1 to 64 letters, digits, '.', '_', ':' and '-'")]
    Device(String),
}

impl Identity {
    /// The node this identity is or lives on; `None` for devices.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Node(node) | Self::Agent(_, node) => Some(node),
            Self::Device(_) => None,
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(cn: &str) -> Result<Self, IdentityError> {
        let shape = |source| IdentityError::Shape { cn: cn.into(), source };
        if let Some(device) = cn.strip_prefix("device:") {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
            if !(1..=64).contains(&device.len()) || !device.bytes().all(allowed) {
                return Err(IdentityError::Device(cn.into()));
            }
            return Ok(Self::Device(device.into()));
        }
        if let Some((agent, node)) = cn.split_once('@') {
            let agent = agent.parse().map_err(shape)?;
            return Ok(Self::Agent(agent, node_of(node).map_err(shape)?));
        }
        Ok(Self::Node(node_of(cn).map_err(shape)?))
    }
}

/// `ct110` and `ct110.mesh` name the same node.
fn node_of(text: &str) -> Result<NodeName, NameError> {
    NodeName::from_mesh_host(text).map_or_else(|| text.parse(), Ok)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Agent(agent, node) => write!(f, "{agent}@{node}"),
            Self::Device(device) => write!(f, "device:{device}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_decides_the_kind() {
        let shown = |cn: &str| cn.parse::<Identity>().map(|identity| identity.to_string());
        assert_eq!(shown("ct110").as_deref(), Ok("ct110"));
        assert_eq!(shown("ct110.mesh").as_deref(), Ok("ct110"));
        assert_eq!(shown("opus@ct110.mesh").as_deref(), Ok("opus@ct110"));
        assert_eq!(shown("device:phone-1").as_deref(), Ok("device:phone-1"));
        for bad in ["", "ct110.example", "@ct110", "opus@", "a@b@c", "device:", "device:a b", "*.mesh"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was accepted");
        }
    }
}
