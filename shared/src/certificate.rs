//! Certificates as files: reading PEM, what a leaf says, and whether it can work for a node.
//!
//! The checks use the verifiers that peers use, so what passes here passes there. Private keys are read by
//! [`read_key`] alone; only `mesh-proxy` (and `meshctl`, which makes them) calls it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use crate::config::Config;
use crate::identity::{Identity, IdentityError};
use crate::name::{AgentName, NodeName};
use crate::pem::{self, Mistake};
use crate::revocation::{self, InForce, RevocationList};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain};

/// What is wrong with a certificate, a key or one of their files.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum MaterialError {
    #[error("{what} {}: {source}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what} {}: {mistake}", path.display())]
    Pem { what: &'static str, path: PathBuf, mistake: Mistake },
    #[error("{what} {}: holds no {expected}", path.display())]
    Empty { what: &'static str, path: PathBuf, expected: &'static str },
    #[error(
        "private key {}: the key at line {line} is encrypted; decrypt it with `openssl pkey -in {} -out <file>` and \
         let only the owner read that file",
        path.display(), path.display()
    )]
    EncryptedKey { path: PathBuf, line: usize },
    #[error(
        "private key {}: holds {} private keys (lines {}); leave only the one that belongs to the certificate",
        path.display(), lines.len(), listed(lines)
    )]
    SeveralKeys { path: PathBuf, lines: Vec<usize> },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: LeafError },
    #[error(
        "trust bundle {}: line {line}: the certificate of {name} {reason}, so it must not be trusted to sign; take it out",
        path.display()
    )]
    Anchor { path: PathBuf, line: usize, name: String, reason: String },
    #[error(
        "trust bundle {}: none of its CA certificates is valid now: they have ended, or begin later (is the clock right?)",
        path.display()
    )]
    NoneValid { path: PathBuf },
    #[error("revocation list {}: {reason}", path.display())]
    Crl { path: PathBuf, reason: String },
    #[error(
        "certificate {}: CN {cn:?} names {found}, but mesh.node_name is {node}; \
         they must be the same (correct node_name, or issue a certificate for {node})",
        path.display()
    )]
    OtherNode { path: PathBuf, cn: String, found: String, node: NodeName },
    #[error("certificate {}: {reason}", path.display())]
    Untrusted { path: PathBuf, reason: String },
    #[error(
        "certificate {}: no subject alternative name {node}.mesh (it has {names}); peers verify that name, \
         so issue the certificate anew with it",
        path.display()
    )]
    NoMeshName { path: PathBuf, node: NodeName, names: String },
    #[error("private key {}: does not belong to the certificate {}", path.display(), certificate.display())]
    KeyMismatch { path: PathBuf, certificate: PathBuf },
    #[error("private key {}: {reason}", path.display())]
    Key { path: PathBuf, reason: String },
}

fn listed(lines: &[usize]) -> String {
    lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a leaf certificate names nobody in the mesh. In words that follow `certificate …:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LeafError {
    #[error("it is not an X.509 certificate ({0})")]
    Der(String),
    #[error("its subject has no common name")]
    NoCommonName,
    #[error("its subject has no common name, and its SPIFFE ID {0} is nobody's in proxy.tls.spiffe")]
    UnknownSpiffeId(SpiffeId),
    #[error("its subject has no common name, and {0} URIs in place of one; exactly one is allowed")]
    SeveralUris(usize),
    #[error("its subject has no common name, and its URI is not a SPIFFE ID: {0}")]
    NotSpiffe(SpiffeError),
    #[error("its subject has {0} common names; exactly one is allowed")]
    SeveralCommonNames(usize),
    #[error("its common name is not text")]
    NotText,
    #[error("its {0}")]
    Identity(#[from] IdentityError),
}

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

/// The public parts of a node's credentials, read together.
#[derive(Debug, Clone)]
pub struct Material {
    /// The certificate's file, for messages.
    pub cert_path: PathBuf,
    /// The leaf first, then what else the file holds.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the leaf says.
    pub leaf: Leaf,
    /// The CA certificates that are trusted.
    pub bundle: Arc<TrustBundle>,
    /// All revocation lists that are known.
    pub crls: Vec<RevocationList>,
    /// What they mean for certificates about which they tell nothing.
    pub coverage: Coverage,
}

/// What becomes of a certificate about which no revocation list tells anything now: none is of its CA, or that one has
/// ended. What a list revokes is refused in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// It is refused: the operator named lists (`proxy.crl_path`) and keeps them current.
    Required,
    /// It is accepted: lists were found, or came from peers. A mesh must not end with a file that nobody thinks of.
    Optional,
}

impl Coverage {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        if config.proxy.crl_path.is_some() { Self::Required } else { Self::Optional }
    }
}

impl Material {
    /// Reads certificate, trust bundle and, where configured, revocation lists.
    ///
    /// # Errors
    /// The first file that cannot be used. Fails closed: a revocation list that is configured must load. Lists that are
    /// found without being configured ([`revocation::beside`]) are not among them.
    pub fn load(config: &Config) -> Result<Self, MaterialError> {
        let tls = &config.mesh.tls;
        let (chain, leaf) = read_leaf(&tls.cert_path)?;
        Ok(Self {
            cert_path: tls.cert_path.clone(),
            chain,
            leaf,
            bundle: Arc::new(TrustBundle::read(&tls.ca_path)?),
            crls: config.proxy.crl_path.as_deref().map(revocation::read).transpose()?.unwrap_or_default(),
            coverage: Coverage::of(config),
        })
    }

    /// Checks that the CN names `node` itself.
    ///
    /// # Errors
    /// A certificate of somebody else, an agent or a device.
    pub fn names_node(&self, node: &NodeName) -> Result<(), MaterialError> {
        self.leaf.names_node(node, &self.cert_path)
    }

    /// The revocation lists that count at `now`.
    pub fn revocations(&self, now: UnixTime) -> InForce {
        revocation::in_force(&self.crls, &self.bundle, now)
    }

    /// The revocation lists for verifiers. They check nothing where there is none, so where lists are required there must be one.
    fn counting(&self, now: UnixTime) -> Result<Vec<CertificateRevocationListDer<'static>>, MaterialError> {
        let lists = self.revocations(now).as_der();
        match self.coverage == Coverage::Required && lists.is_empty() {
            true => {
                let reason = "no revocation list counts now (proxy.crl_path): its CA did not sign it, or it is from the future";
                Err(self.untrusted(reason.into()))
            }
            false => Ok(lists),
        }
    }

    /// What judges clients at `now` and until [`Material::next_change`], by the trust bundle and the revocation lists. Where
    /// they must cover everybody, a list that has ended tells nothing any more, so then all whom it concerns are refused.
    ///
    /// # Errors
    /// A bundle or list that is not understood, or a bundle of which nothing is valid. Fails closed.
    pub fn client_verifier(&self, now: UnixTime) -> Result<Arc<dyn ClientCertVerifier>, MaterialError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.bundle.valid_at(now)?.into(), provider())
                .with_crls(self.counting(now)?);
        let verifier = match self.coverage {
            Coverage::Required => verifier.enforce_revocation_expiration(),
            Coverage::Optional => verifier.allow_unknown_revocation_status(),
        };
        verifier.build().map_err(|error| self.untrusted(error.to_string()))
    }

    /// What judges servers, as [`Material::client_verifier`] does clients.
    ///
    /// # Errors
    /// As there.
    pub fn server_verifier(&self, now: UnixTime) -> Result<Arc<WebPkiServerVerifier>, MaterialError> {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.bundle.valid_at(now)?.into(), provider())
                .with_crls(self.counting(now)?);
        let verifier = match self.coverage {
            Coverage::Required => verifier.enforce_revocation_expiration(),
            Coverage::Optional => verifier.allow_unknown_revocation_status(),
        };
        verifier.build().map_err(|error| self.untrusted(error.to_string()))
    }

    /// When, after `now`, other CA certificates or other revocation lists count, epoch seconds.
    pub fn next_change(&self, now: UnixTime) -> Option<i64> {
        let coming = self.crls.iter().map(|list| list.this_update);
        let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.bundle.changes().chain(coming).filter(|change| *change > at).min()
    }

    /// Checks that peers will accept the certificate when it dials.
    ///
    /// # Errors
    /// No chain to the trust bundle, not valid now, revoked, or not for clients.
    pub fn accepted_as_client(&self, now: UnixTime) -> Result<(), MaterialError> {
        self.client_verifier(now)?
            .verify_client_cert(&self.chain[0], &self.chain[1..], now)
            .map_err(|error| self.untrusted(describe(&error, Role::Client)))?;
        Ok(())
    }

    /// Checks that peers will accept the certificate, as a client and as the server `<node>.mesh`.
    ///
    /// # Errors
    /// No chain to the trust bundle, not valid now, revoked, wrong usage, or without the mesh name.
    pub fn accepted_by_peers(&self, node: &NodeName, now: UnixTime) -> Result<(), MaterialError> {
        self.accepted_as_client(now)?;
        let server = self.server_verifier(now)?;
        let (leaf, rest) = (&self.chain[0], &self.chain[1..]);
        let name = ServerName::try_from(node.mesh_host())
            .map_err(|error| self.untrusted(format!("{node}.mesh is not a server name: {error}")))?;
        match server.verify_server_cert(leaf, rest, &name, &[], now) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Err(MaterialError::NoMeshName {
                path: self.cert_path.clone(),
                node: node.clone(),
                names: match self.leaf.dns_names.as_slice() {
                    [] => "no DNS name".into(),
                    names => names.join(", "),
                },
            }),
            Err(error) => Err(self.untrusted(describe(&error, Role::Server))),
        }
    }

    /// Whether peers accept the certificate at `now`, in the roles that its identity has: a node's as server and client, an
    /// agent's or device's as client.
    ///
    /// # Errors
    /// They do not.
    pub fn accepted_in_its_role(&self, now: UnixTime) -> Result<(), MaterialError> {
        match &self.leaf.identity {
            Identity::Node(node) => self.accepted_by_peers(node, now),
            Identity::Agent(..) | Identity::Device(_) => self.accepted_as_client(now),
        }
    }

    /// The same trust and lists for another certificate of this node.
    ///
    /// # Errors
    /// An unreadable or malformed file, none in it, or one that names nobody in the mesh.
    pub fn with_certificate(&self, path: &Path) -> Result<Self, MaterialError> {
        let (chain, leaf) = read_leaf(path)?;
        Ok(Self { cert_path: path.into(), chain, leaf, ..self.clone() })
    }

    /// The same for one that was read before; `path` is for messages.
    ///
    /// # Errors
    /// None in it, or one that names nobody in the mesh.
    pub fn with_chain(
        &self,
        path: PathBuf,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, MaterialError> {
        let leaf = chain.first().ok_or_else(|| LeafError::Der("there is none".into())).and_then(Leaf::parse);
        let leaf = leaf.map_err(|source| MaterialError::Parse { path: path.clone(), source })?;
        Ok(Self { cert_path: path, chain, leaf, ..self.clone() })
    }

    fn untrusted(&self, reason: String) -> MaterialError {
        MaterialError::Untrusted { path: self.cert_path.clone(), reason }
    }

    /// Joins the chain with its private key, see [`join_key`].
    ///
    /// # Errors
    /// A key that cannot be read or used, or of another certificate.
    pub fn with_key(&self, path: &Path) -> Result<CertifiedKey, MaterialError> {
        join_key(&self.chain, &self.cert_path, path)
    }
}

/// The cryptography of all programs here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Which side of a connection a certificate is used on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It dials.
    Client,
    /// It is dialled.
    Server,
}

/// A failed verification in words that follow "certificate …:" or "TLS handshake failed from …:".
pub fn describe(error: &rustls::Error, role: Role) -> String {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(cause) = error else {
        return error.to_string();
    };
    match cause {
        E::UnknownIssuer => "certificate is from an unknown issuer (no chain to the mesh CA)".into(),
        E::Expired | E::ExpiredContext { .. } => "certificate has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "certificate is not valid yet (is a clock wrong?)".into()
        }
        E::Revoked => "certificate is revoked".into(),
        E::UnknownRevocationStatus => {
            "certificate's issuer is covered by no revocation list (proxy.crl_path needs one for each CA)"
                .into()
        }
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
            "the revocation list has expired; publish a new one".into()
        }
        E::BadSignature => "certificate has a bad signature".into(),
        E::BadEncoding => "certificate cannot be read".into(),
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "certificate is not for the name that was dialled".into()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => match role {
            Role::Client => "certificate is not for TLS clients (extended key usage clientAuth)".into(),
            Role::Server => "certificate is not for TLS servers (extended key usage serverAuth)".into(),
        },
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "certificate is signed in a way that is not accepted (it takes SHA-256 or better, with EC P-256 or P-384, Ed25519, \
             or RSA of 2048 bits)"
                .into()
        }
        E::Other(other) => {
            let cause = other.0.to_string();
            match in_words(&cause) {
                Some(words) => words.into(),
                None => format!("certificate refused: {cause}"),
            }
        }
        other => format!("certificate refused: {other:?}"),
    }
}

/// What webpki's errors that rustls passes on as they are mean.
fn in_words(error: &str) -> Option<&'static str> {
    Some(match error {
        "CaUsedAsEndEntity" => "certificate is that of a CA, with which no peer can come",
        "EndEntityUsedAsCa" => "certificate was signed by one that is not a CA's",
        "NameConstraintViolation" => "certificate names what its CA may not issue (name constraints)",
        "PathLenConstraintViolated" => {
            "certificate has more CAs above it than one of them allows (path length)"
        }
        "MaximumPathDepthExceeded" => "certificate has too many CAs above it",
        "MaximumSignatureChecksExceeded"
        | "MaximumPathBuildCallsExceeded"
        | "MaximumNameConstraintComparisonsExceeded" => "certificate's chain takes too much work to verify",
        "UnsupportedCriticalExtension" => {
            "certificate has an extension that must be understood and is not (critical)"
        }
        "UnsupportedCertVersion" => "certificate is not X.509 version 3",
        "ExtensionValueInvalid" => "certificate has an extension twice, or one that cannot be read",
        _ => return None,
    })
}

/// Reads all certificates of a PEM file, at least one.
///
/// # Errors
/// An unreadable or malformed file, or none in it.
pub fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let located = read_located(what, path)?;
    Ok(located.into_iter().map(|located| located.der).collect())
}

/// A certificate and where it stands in its file.
#[derive(Debug, Clone)]
pub struct Located {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The first line of its block, counted from 1.
    pub line: usize,
    /// Its block by itself, with a final newline.
    pub pem: String,
}

/// Reads all certificates of a PEM file, at least one, each with its place.
///
/// # Errors
/// An unreadable or malformed file, or none in it.
pub fn read_located(what: &'static str, path: &Path) -> Result<Vec<Located>, MaterialError> {
    let text = read(what, path)?;
    let located =
        located(&text).map_err(|mistake| MaterialError::Pem { what, path: path.into(), mistake })?;
    match located.is_empty() {
        true => {
            Err(MaterialError::Empty { what, path: path.into(), expected: "-----BEGIN CERTIFICATE-----" })
        }
        false => Ok(located),
    }
}

/// The certificates of a PEM text.
///
/// # Errors
/// The first block that cannot be read.
pub fn located(text: &str) -> Result<Vec<Located>, Mistake> {
    let mut located = Vec::new();
    for block in pem::blocks(text)? {
        if block.is_certificate()? {
            let der = CertificateDer::from(block.der()?.to_vec());
            located.push(Located { der, line: block.line, pem: block.text().to_string() });
        }
    }
    Ok(located)
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

/// The CA certificates of `ca-chain.pem`. Each is an anchor while it is valid, so a peer may send its leaf alone.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    path: PathBuf,
    anchors: Vec<Anchor>,
}

/// A CA certificate that is trusted.
#[derive(Debug, Clone)]
pub struct Anchor {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its subject as text.
    pub name: String,
    /// Its subject as DER.
    pub subject: Vec<u8>,
    /// Its SubjectPublicKeyInfo as DER.
    pub public_key: Vec<u8>,
    /// Whether it may sign revocation lists (RFC 5280, section 4.2.1.3).
    pub may_sign_lists: bool,
    /// Start of validity, epoch seconds.
    pub not_before: i64,
    /// End of validity, epoch seconds; it is valid in that second.
    pub not_after: i64,
}

impl TrustBundle {
    /// Reads a file.
    ///
    /// # Errors
    /// An unreadable or malformed file, none in it, or a certificate that is not a CA's: with it, the holder of its key
    /// could issue for the whole mesh.
    pub fn read(path: &Path) -> Result<Self, MaterialError> {
        Self::of(path, &read_located("trust bundle", path)?)
    }

    /// The bundle with these certificates; `path` is for messages.
    ///
    /// # Errors
    /// One that is not a CA's.
    pub fn of(path: &Path, certificates: &[Located]) -> Result<Self, MaterialError> {
        let anchors = certificates.iter().map(|Located { der, line, .. }| {
            let fail = |name: String, reason: String| MaterialError::Anchor {
                path: path.into(),
                line: *line,
                name,
                reason,
            };
            let (_, parsed) = X509Certificate::from_der(der)
                .map_err(|error| fail("?".into(), format!("cannot be parsed ({error})")))?;
            let name = parsed.subject().to_string();
            if let Some(reason) = why_not_a_ca(&parsed) {
                return Err(fail(name, reason.into()));
            }
            if let Err(error) = RootCertStore::empty().add(der.clone()) {
                return Err(fail(name, format!("cannot be an anchor ({error})")));
            }
            Ok(Anchor {
                der: der.clone(),
                name,
                subject: parsed.subject().as_raw().to_vec(),
                public_key: parsed.public_key().raw.to_vec(),
                may_sign_lists: parsed
                    .key_usage()
                    .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign())),
                not_before: parsed.validity().not_before.timestamp(),
                not_after: parsed.validity().not_after.timestamp(),
            })
        });
        Ok(Self { path: path.into(), anchors: anchors.collect::<Result<_, _>>()? })
    }

    /// All of them, valid or not.
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// Those that are valid at `now`.
    ///
    /// # Errors
    /// None of them is.
    pub fn valid_at(&self, now: UnixTime) -> Result<RootCertStore, MaterialError> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut roots = RootCertStore::empty();
        let valid =
            self.anchors.iter().filter(|anchor| (anchor.not_before..=anchor.not_after).contains(&now));
        roots.add_parsable_certificates(valid.map(|anchor| anchor.der.clone()));
        match roots.is_empty() {
            true => Err(MaterialError::NoneValid { path: self.path.clone() }),
            false => Ok(roots),
        }
    }

    /// When one of them begins or ceases to be valid, epoch seconds.
    fn changes(&self) -> impl Iterator<Item = i64> {
        self.anchors.iter().flat_map(|anchor| [anchor.not_before, anchor.not_after.saturating_add(1)])
    }
}

/// Why a certificate may not sign others, in words that follow "the certificate of …"; `None`: it may.
pub fn why_not_a_ca(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    match (certificate.basic_constraints(), certificate.key_usage()) {
        (Err(_), _) | (_, Err(_)) => Some("has extensions that cannot be read"),
        (Ok(Some(constraints)), _) if !constraints.value.ca => Some("is not a CA's (CA:FALSE)"),
        (Ok(None), _) => Some("is not a CA's (it has no basic constraints CA:TRUE)"),
        (_, Ok(Some(usage))) if !usage.value.key_cert_sign() => {
            Some("is not for signing certificates (its key usage lacks keyCertSign)")
        }
        _ => None,
    }
}

/// When a certificate's validity ends, in epoch seconds; `None` for what is no certificate.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Who signed a certificate, as it says itself; `None` for what is no certificate.
pub fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.issuer().to_string())
}

/// Reads the only private key of a file: PKCS#8, PKCS#1 or SEC1 in PEM. It is zeroed once it is dropped.
///
/// # Errors
/// An unreadable or malformed file, an encrypted key, several, or none in it.
pub fn read_key(path: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, MaterialError> {
    let what = "private key";
    let text = read(what, path)?;
    let fail = |mistake| MaterialError::Pem { what, path: path.into(), mistake };
    let mut blocks = pem::blocks(&text).map_err(fail)?;
    blocks.retain(pem::Block::is_private_key);
    let block = match blocks.as_slice() {
        [one] => one,
        [] => {
            let expected = "-----BEGIN PRIVATE KEY-----";
            return Err(MaterialError::Empty { what, path: path.into(), expected });
        }
        several => {
            let lines = several.iter().map(|block| block.line).collect();
            return Err(MaterialError::SeveralKeys { path: path.into(), lines });
        }
    };
    if block.is_encrypted() {
        return Err(MaterialError::EncryptedKey { path: path.into(), line: block.line });
    }
    let mut der = block.der().map_err(fail)?;
    // Moved, not copied: what stays behind is empty.
    let der = std::mem::take(&mut *der);
    Ok(Zeroizing::new(match block.label {
        "PRIVATE KEY" => PrivateKeyDer::Pkcs8(der.into()),
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(der.into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(der.into()),
        label => {
            let mut der = der;
            der.zeroize();
            let reason = format!(
                "\"{label}\" is not a form of key that can be used; write it out as PKCS#8 (`openssl pkey -in {} -out <file>`)",
                path.display()
            );
            return Err(fail(block.mistake(reason)));
        }
    }))
}

/// Where the next key waits while its certificate is put in place of the old one: two files cannot be replaced at once.
pub fn fresh_key(key: &Path) -> PathBuf {
    let mut fresh = key.as_os_str().to_owned();
    fresh.push(".new");
    fresh.into()
}

/// Joins a certificate's chain with its private key; both files are named in messages. While the two are replaced, or where that
/// was interrupted, the key is the one that [waits](fresh_key) beside it.
///
/// # Errors
/// A key that cannot be read or used, or of another certificate.
pub fn join_key(
    chain: &[CertificateDer<'static>],
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, MaterialError> {
    join_one(chain, certificate, key)
        .or_else(|error| join_one(chain, certificate, &fresh_key(key)).map_err(|_| error))
}

fn join_one(
    chain: &[CertificateDer<'static>],
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, MaterialError> {
    let fail = |reason: String| MaterialError::Key { path: key.into(), reason };
    // The signer keeps the key in aws-lc's own memory, which is zeroed when it is freed.
    let signer = any_supported_type(&*read_key(key)?)
        .map_err(|error| fail(format!("unusable ({error}); use an EC P-256, P-384, Ed25519 or RSA key")))?;
    let certified = CertifiedKey::new(chain.to_vec(), signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(MaterialError::KeyMismatch { path: key.into(), certificate: certificate.into() })
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// In words, whom a private key's file is open to beyond its owner and a group that may read it; `None`: nobody,
/// or there is no such file.
pub fn exposure(key: &Path) -> Option<String> {
    let mode = key.metadata().ok()?.permissions().mode() & 0o777;
    let open = match (mode & 0o007, mode & 0o030) {
        (0, 0) => return None,
        (0, _) => "changed by its group",
        _ => "read by everyone",
    };
    Some(format!("key {} can be {open} (mode {mode:04o}); chmod 600 it", key.display()))
}

/// A file's text. What is not UTF-8 in it lies outside the PEM blocks, or is named as a mistake in one.
pub(crate) fn read(what: &'static str, path: &Path) -> Result<Zeroizing<String>, MaterialError> {
    let bytes = std::fs::read(path).map_err(|source| MaterialError::Unreadable {
        what,
        path: path.into(),
        source,
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            let bytes = Zeroizing::new(error.into_bytes());
            Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}

/// Who, beside the owners, could replace the file at `path` by replacing it or a folder above it; a sentence that says
/// what to do. `None`: nobody, as far as it can be seen.
///
/// In a sticky folder only owners can rename what is theirs. A group of the owner's own number is taken for one that the
/// owner has alone.
pub fn replaceable(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let path = path.canonicalize().ok()?;
    let mut below = path.as_path();
    for folder in path.ancestors().skip(1) {
        let found = folder.metadata().ok()?;
        let (mode, sticky) = (found.mode(), found.mode() & 0o1000 != 0);
        let by_group = mode & 0o020 != 0 && found.gid() != 0 && found.gid() != found.uid();
        let who = match (mode & 0o002 != 0, by_group) {
            (true, _) => Some("everyone on this host".to_owned()),
            (false, true) => Some(format!("every member of group {}", found.gid())),
            (false, false) => None,
        };
        if let Some(who) = who.filter(|_| !sticky) {
            return Some(format!(
                "{who} can replace {} in {}, and with it what this node trusts: let root alone write {}, and keep mesh.json \
                 in a folder of its own (mesh.storage_dir; deploy/docs/by-hand.md)",
                below.display(),
                folder.display(),
                folder.display()
            ));
        }
        below = folder;
    }
    None
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
