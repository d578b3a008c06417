//! SPIFFE IDs as they stand in the URI names of certificates (SPIFFE-ID, section 2).
//!
//! Those of the mesh name an identity or say which agents a node may host. Parsing only: what an ID claims counts once
//! a verified handshake has tied its certificate to a connection.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::name::{AgentName, NodeName};

/// The trust domain where none is configured.
const DEFAULT_TRUST_DOMAIN: &str = "mesh";
/// The longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
const LONGEST: usize = 2048;

/// A valid trust domain, such as `mesh` or `example.org`: 1 to 255 lower-case letters, digits, '.', '-' and '_'.
///
/// Cloning is cheap (a reference count).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// As in a URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Not usable as a trust domain.
    #[error(
        "{0:?} is not a trust domain: 1 to 255 lower-case letters, digits, '.', '-' and '_' (as in example.org)"
    )]
    TrustDomain(String),
    /// Another scheme, no path, or one with empty or dotted segments.
    #[error("{0:?} is not a SPIFFE ID (as in spiffe://example.org/node/ct110)")]
    Id(String),
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        match (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text.into())),
            false => Err(SpiffeError::TrustDomain(text.into())),
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, SpiffeError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().into()
    }
}

/// A SPIFFE ID: who, in which trust domain. Equal IDs are equal bytes, as the standard compares them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Who answers for the name.
    pub trust_domain: TrustDomain,
    /// What follows the domain, from its '/' on.
    path: String,
}

impl SpiffeId {
    /// Of an identity of the mesh: `/node/ct110`, `/agent/opus@ct110`, `/device/phone-1`.
    pub fn of(trust_domain: &TrustDomain, identity: &Identity) -> Self {
        let path = match identity {
            Identity::Node(node) => format!("/node/{node}"),
            Identity::Agent(agent, node) => format!("/agent/{agent}@{node}"),
            Identity::Device(device) => format!("/device/{device}"),
        };
        Self { trust_domain: trust_domain.clone(), path }
    }

    /// That `agent` may be hosted on `node`; is in the node's certificate.
    pub fn of_hosted(trust_domain: &TrustDomain, agent: &AgentName, node: &NodeName) -> Self {
        Self::of(trust_domain, &Identity::Agent(agent.clone(), node.clone()))
    }

    /// Which identity of the mesh it names; `None` where its path has none of those shapes.
    pub fn identity(&self) -> Option<Identity> {
        let (kind, name) = self.path.strip_prefix('/')?.split_once('/')?;
        match kind {
            "node" => Some(Identity::Node(name.parse().ok()?)),
            "agent" => {
                let (agent, node) = name.split_once('@')?;
                Some(Identity::Agent(agent.parse().ok()?, node.parse().ok()?))
            }
            "device" => format!("device:{name}").parse().ok(),
            _ => None,
        }
    }

    /// What follows the trust domain, from its '/' on.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    /// More lenient than the standard in one point: '@' and ':' are allowed in the path, because the mesh's own have them.
    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let bad = || SpiffeError::Id(text.into());
        let rest = text.strip_prefix("spiffe://").filter(|_| text.len() <= LONGEST).ok_or_else(bad)?;
        let (domain, path) = rest.split_at(rest.find('/').ok_or_else(bad)?);
        let segment = |segment: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_@:".contains(&byte);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
        };
        match path.split('/').skip(1).all(segment) {
            true => Ok(Self { trust_domain: domain.parse()?, path: path.into() }),
            false => Err(bad()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_mesh_name_its_identities() {
        for (identity, id) in [
            ("ct110", "spiffe://mesh/node/ct110"),
            ("opus@ct110", "spiffe://mesh/agent/opus@ct110"),
            ("device:phone-1", "spiffe://mesh/device/phone-1"),
        ] {
            let identity: Identity = identity.parse().unwrap();
            let made = SpiffeId::of(&TrustDomain::default(), &identity);
            assert_eq!(made.to_string(), id);
            assert_eq!(id.parse::<SpiffeId>().unwrap(), made);
            assert_eq!(made.identity(), Some(identity));
        }
    }

    #[test]
    fn an_id_is_one_way_to_write_it() {
        for bad in [
            "",
            "spiffe://mesh",
            "spiffe://mesh/",
            "spiffe:///node/a",
            "SPIFFE://mesh/node/a",
            "https://mesh/node/a",
            "spiffe://Mesh/node/a",
            "spiffe://mesh:1/node/a",
            "spiffe://mesh//node/a",
            "spiffe://mesh/node/../a",
            "spiffe://mesh/node/./a",
            "spiffe://mesh/node/a/",
            "spiffe://mesh/node/%61",
            "spiffe://mesh/node/a?x",
            "spiffe://mesh/node/a#x",
            "spiffe://me@sh/node/a",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was accepted");
        }
        let other: SpiffeId = "spiffe://example.org/ns/default/sa/web".parse().unwrap();
        assert_eq!(other.identity(), None);
    }
}
