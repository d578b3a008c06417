//! A node's certificate together with what it trusts, and whether it can work for that node.
//!
//! The checks use the verifiers that peers use, so what passes here passes there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use crate::certificate::{
    Leaf, LeafError, MaterialError, Role, TrustBundle, describe, join_key, provider, read_leaf,
};
use crate::config::Config;
use crate::identity::Identity;
use crate::name::NodeName;
use crate::revocation::{self, InForce, RevocationList};

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
