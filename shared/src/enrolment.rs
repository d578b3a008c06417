//! What hosts and the CA's process say to each other: joining (`POST /enroll` on the enrolment port) and renewing
//! (`POST /api/mesh/ca/renew`, `GET /api/mesh/ca/bundle` through the sidecar of the CA's host, which says in
//! [`PEER_CN`](crate::local_api::PEER_CN) who asks). JSON in UTF-8.
//!
//! Parsing only: certificates, requests and signatures in here are text that nobody has verified.

use serde::{Deserialize, Serialize};

use crate::name::NodeName;
use crate::spiffe::TrustDomain;

/// Where the CA's process listens for hosts that join, unless told otherwise.
pub const DEFAULT_PORT: u16 = 3005;
/// Where it listens for the sidecar of its host, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mesh-ca/ca.sock";
/// The longest body, in bytes, of everything here.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// On the enrolment port: an [`EnrolRequest`] for an [`Enrolled`].
pub const ENROL_PATH: &str = "/enroll";
/// On the mesh: a [`RenewalRequest`] for a [`Renewed`].
pub const RENEW_PATH: &str = "/api/mesh/ca/renew";
/// On the mesh: the [`Bundle`], with `ETag`.
pub const BUNDLE_PATH: &str = "/api/mesh/ca/bundle";

/// `code` of the one answer (403) to everything that may not enrol.
pub const ENROLMENT_REFUSED: &str = "enrolment_refused";
/// `code` where a renewal is refused (403).
pub const RENEWAL_REFUSED: &str = "renewal_refused";
/// `code` where an identity renews too often (429, with `Retry-After`).
pub const RENEWAL_TOO_SOON: &str = "renewal_too_soon";
/// `code` where the CA cannot sign at present (503).
pub const CA_UNAVAILABLE: &str = "ca_unavailable";

/// What the holder of an invitation sends.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The invitation's one-time secret, base64url without padding.
    pub secret: String,
    /// PKCS#10, PEM.
    pub csr: String,
}

/// Never shows the secret.
impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("csr", &self.csr).finish_non_exhaustive()
    }
}

/// What a host has to know to be of the mesh. Fields that a later CA adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    /// Leaf and intermediate, PEM.
    pub certificate: String,
    /// `ca-chain.pem`.
    pub chain: String,
    /// `crl.pem`; empty where the CA has no list.
    #[serde(default)]
    pub crl: String,
    /// `mesh.trust_domain`.
    pub trust_domain: TrustDomain,
    /// `mesh.ca.node`: whose sidecar forwards renewals; `None` where the CA's host is not a node.
    #[serde(default)]
    pub ca_node: Option<NodeName>,
    /// Where to find the mesh.
    #[serde(default)]
    pub seed: Option<SeedAddress>,
}

/// A node that is asked for the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedAddress {
    /// Its name; its certificate must say the same.
    pub node: NodeName,
    /// Address or host name to dial.
    pub host: String,
    /// Its inbound port.
    pub port: u16,
}

/// What a host sends whose certificate nears its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// The leaf in use with its intermediate, PEM.
    pub certificate: String,
    /// PKCS#10 with a new key, PEM.
    pub csr: String,
    /// Made with the key of the certificate in use over [`renewal_message`]; base64 with padding.
    pub signature: String,
    /// Which TLS `SignatureScheme` the signature is (RFC 8446, section 4.2.3).
    pub scheme: u16,
}

/// What the key of the certificate in use signs: a fixed prefix, so that no signature made for another purpose
/// counts here, and the request (DER).
pub fn renewal_message(csr: &[u8]) -> Vec<u8> {
    [b"mesh-renew-v1\n", csr].concat()
}

/// The answer to a [`RenewalRequest`]. Fields that a later CA adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Leaf and intermediate, PEM.
    pub certificate: String,
    /// `ca-chain.pem`.
    pub chain: String,
    /// `crl.pem`; empty where the CA has no list.
    #[serde(default)]
    pub crl: String,
}

/// What every node trusts, and what is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// `ca-chain.pem`.
    pub chain: String,
    /// `crl.pem`; empty where the CA has no list.
    #[serde(default)]
    pub crl: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_as_the_contract_has_it() {
        let text = r#"{"certificate":"C","chain":"B","crl":"","trustDomain":"mesh","caNode":"ct110",
            "seed":{"node":"ct110","host":"192.168.10.110","port":3000},"later":1}"#;
        let enrolled: Enrolled = serde_json::from_str(text).unwrap();
        assert_eq!(enrolled.ca_node.as_ref().unwrap().as_str(), "ct110");
        assert_eq!(enrolled.seed.as_ref().unwrap().port, 3000);
        let again: Enrolled = serde_json::from_str(&serde_json::to_string(&enrolled).unwrap()).unwrap();
        assert_eq!(again, enrolled);
        let least = r#"{"certificate":"C","chain":"B","trustDomain":"mesh","caNode":null,"seed":null}"#;
        assert_eq!(serde_json::from_str::<Enrolled>(least).unwrap().seed, None);
        assert!(serde_json::from_str::<Enrolled>(&least.replace("mesh", "a b")).is_err());
    }

    #[test]
    fn a_secret_is_not_shown() {
        let request = EnrolRequest { secret: "s3cret".into(), csr: "csr".into() };
        assert!(!format!("{request:?}").contains("s3cret"));
    }
}
