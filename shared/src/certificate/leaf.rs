//! What a leaf certificate says. Nothing here is verified.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{LeafError, MaterialError};
use super::files::read_certificates;
use crate::identity::Identity;
use crate::name::{AgentName, NodeName};
use crate::spiffe::{SpiffeId, TrustDomain};

/// What a leaf certificate says. Nothing here is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The only common name, as it stands; empty where a SPIFFE ID stands in for it ([`Leaf::parse_with`]).
    pub common_name: String,
    /// Whom the common name, or else the SPIFFE ID, names.
    pub identity: Identity,
    /// DNS subject alternative names.
    pub dns_names: Vec<String>,
    /// Address subject alternative names.
    pub addresses: Vec<IpAddr>,
    /// SPIFFE IDs among the URI subject alternative names.
    pub spiffe_ids: Vec<SpiffeId>,
    /// Start of validity, epoch seconds.
    pub not_before: i64,
    /// End of validity, epoch seconds.
    pub not_after: i64,
}

impl Leaf {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Anything but exactly one common name that names a node, an agent or a device.
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self, LeafError> {
        Self::parse_with(certificate, &BTreeMap::new())
    }

    /// Reads a certificate, which may have no common name where its only URI is one of `spiffe`: those of SPIFFE's own
    /// authorities are made so.
    ///
    /// # Errors
    /// As [`Leaf::parse`]. Fails closed: a common name is never passed over, and of several URIs none is chosen.
    pub fn parse_with(
        certificate: &CertificateDer<'_>,
        spiffe: &BTreeMap<SpiffeId, Identity>,
    ) -> Result<Self, LeafError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| LeafError::Der(error.to_string()))?;
        let names: Vec<_> = parsed.subject().iter_common_name().collect();
        let common_name = match names.as_slice() {
            [one] => Some(one.as_str().map_err(|_| LeafError::NotText)?.to_owned()),
            [] => None,
            several => return Err(LeafError::SeveralCommonNames(several.len())),
        };
        let (mut dns_names, mut addresses, mut spiffe_ids) = (Vec::new(), Vec::new(), Vec::new());
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let alternative = || alternative.iter().flat_map(|extension| &extension.value.general_names);
        let identity = match &common_name {
            Some(common_name) => common_name.parse()?,
            None => {
                let uris = alternative().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(*uri),
                    _ => None,
                });
                by_spiffe_id(&uris.collect::<Vec<_>>(), spiffe)?
            }
        };
        for name in alternative() {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                GeneralName::URI(uri) => spiffe_ids.extend(uri.parse::<SpiffeId>()),
                _ => {}
            }
        }
        let validity = parsed.validity();
        Ok(Self {
            common_name: common_name.unwrap_or_default(),
            identity,
            dns_names,
            addresses,
            spiffe_ids,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// Checks that the CN names `node` itself; `path` is the certificate's file.
    ///
    /// # Errors
    /// A certificate of somebody else, an agent or a device.
    pub fn names_node(&self, node: &NodeName, path: &Path) -> Result<(), MaterialError> {
        if self.identity == Identity::Node(node.clone()) {
            return Ok(());
        }
        Err(MaterialError::OtherNode {
            path: path.into(),
            cn: self.common_name.clone(),
            found: match &self.identity {
                Identity::Node(other) => format!("node {other}"),
                Identity::Agent(agent, other) => format!("agent {agent} on {other}"),
                Identity::Device(device) => format!("device {device}"),
            },
            node: node.clone(),
        })
    }

    /// The agents that its SPIFFE IDs name for this node in whatever trust domain, as the CA hands them on when it renews
    /// the certificate; none of anybody but a node.
    pub fn agents(&self) -> Vec<AgentName> {
        let mut agents = Vec::new();
        for (_, agent) in self.named_agents() {
            if !agents.contains(&agent) {
                agents.push(agent);
            }
        }
        agents
    }

    /// The agents that this node may host as peers of `trust_domain` see it: IDs of other domains mean nothing to them.
    pub fn hosts(&self, trust_domain: &TrustDomain) -> Vec<AgentName> {
        self.named_agents().filter(|(domain, _)| *domain == trust_domain).map(|(_, agent)| agent).collect()
    }

    /// The agents of this node in its SPIFFE IDs, each with who answers for the name.
    fn named_agents(&self) -> impl Iterator<Item = (&TrustDomain, AgentName)> {
        self.spiffe_ids.iter().filter_map(|id| match id.identity()? {
            Identity::Agent(agent, node) if self.identity == Identity::Node(node.clone()) => {
                Some((&id.trust_domain, agent))
            }
            _ => None,
        })
    }

    /// Whole days until the end of validity; negative once it has passed.
    pub fn days_left(&self, now: UnixTime) -> i64 {
        (self.not_after - now.as_secs() as i64).div_euclid(86_400)
    }
}

/// Whom a certificate without a common name names by its URIs.
fn by_spiffe_id(uris: &[&str], spiffe: &BTreeMap<SpiffeId, Identity>) -> Result<Identity, LeafError> {
    match uris {
        [] => Err(LeafError::NoCommonName),
        [one] => {
            let id: SpiffeId = one.parse().map_err(LeafError::NotSpiffe)?;
            spiffe.get(&id).cloned().ok_or(LeafError::UnknownSpiffeId(id))
        }
        several => Err(LeafError::SeveralUris(several.len())),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
/// Reads a certificate with its chain, and what the leaf, which is the first, says.
///
/// # Errors
/// An unreadable or malformed file, none in it, or one that names nobody in the mesh.
pub fn read_leaf(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Leaf), MaterialError> {
    let chain = read_certificates("certificate", path)?;
    let leaf = Leaf::parse(&chain[0]).map_err(|source| MaterialError::Parse { path: path.into(), source })?;
    Ok((chain, leaf))
}

/// When a certificate's validity ends, in epoch seconds; `None` for input that is not a certificate.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Who signed a certificate, as it says itself; `None` for input that is not a certificate.
pub fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.issuer().to_string())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};

    use super::*;

    fn leaf_with(names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["ct110.mesh".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_leaf_names_exactly_one_identity() {
        let leaf = Leaf::parse(&leaf_with(&["ct110.mesh"])).unwrap();
        assert_eq!(leaf.identity, Identity::Node("ct110".parse().unwrap()));
        assert_eq!(leaf.dns_names, ["ct110.mesh"]);
        assert_eq!(Leaf::parse(&leaf_with(&[])), Err(LeafError::NoCommonName));
        assert!(matches!(Leaf::parse(&leaf_with(&["a b"])), Err(LeafError::Identity(_))));
        assert!(matches!(Leaf::parse(&CertificateDer::from(vec![1, 2])), Err(LeafError::Der(_))));
    }

    #[test]
    fn a_spiffe_id_stands_in_for_a_common_name_only_where_it_is_mapped_and_alone() {
        let web = "spiffe://example.org/ns/default/sa/web";
        let known = BTreeMap::from([(web.parse().unwrap(), "ct115".parse().unwrap())]);
        let parse = |cn: Option<&str>, uris: &[&str]| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            if let Some(cn) = cn {
                params.distinguished_name.push(DnType::CommonName, cn);
            }
            let uris = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()));
            params.subject_alt_names = uris.collect();
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            Leaf::parse_with(certificate.der(), &known).map(|leaf| leaf.identity.to_string())
        };
        assert_eq!(parse(None, &[web]).as_deref(), Ok("ct115"));
        assert_eq!(parse(Some("ct110"), &[web]).as_deref(), Ok("ct110"), "the common name counts");
        assert_eq!(parse(None, &[]), Err(LeafError::NoCommonName));
        assert_eq!(parse(None, &[web, web]), Err(LeafError::SeveralUris(2)));
        assert_eq!(parse(None, &[web, "https://example.org/"]), Err(LeafError::SeveralUris(2)));
        let other = "spiffe://example.org/ns/default/sa/other";
        assert_eq!(parse(None, &[other]), Err(LeafError::UnknownSpiffeId(other.parse().unwrap())));
        for odd in ["https://example.org/", "spiffe://example.org/ns/default/sa/%77eb"] {
            assert!(matches!(parse(None, &[odd]), Err(LeafError::NotSpiffe(_))), "{odd}");
        }
        // The mesh's own shape proves nothing without a mapping.
        assert!(parse(None, &["spiffe://mesh/node/ct110"]).is_err());
    }
}
