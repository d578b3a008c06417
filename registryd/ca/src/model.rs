//! What the CA is asked and what it answers, and where its files lie.

use std::path::PathBuf;

use mesh_shared::certificate::Leaf;
use mesh_shared::identity::Identity;
use mesh_shared::name::AgentName;
use mesh_shared::spiffe::TrustDomain;

use crate::error::CaError;
use crate::files;
use crate::key::KeyType;

/// Where the reference document keeps the CA.
pub const DEFAULT_DIR: &str = "/rivet-shared/rivet-ca";
/// Where the root key lies, on one host only.
pub const DEFAULT_ROOT_DIR: &str = "/etc/mesh/ca-root";
/// Validity of a leaf, in days.
pub const LEAF_DAYS: u32 = 90;
/// `meshctl ca renew --all` renews what ends within so many days.
pub const RENEW_WITHIN_DAYS: u32 = 30;

/// For how many days a revocation list counts.
pub const CRL_DAYS: u32 = 14;

/// What to issue.
#[derive(Debug, Clone)]
pub struct Order {
    /// For whom; becomes the CN.
    pub identity: Identity,
    /// Host names and addresses beside `<node>.mesh`.
    pub alternative_names: Vec<String>,
    /// The agents that a node may host; none of anybody else.
    pub agents: Vec<AgentName>,
    /// Validity from now, cut to that of the intermediate.
    pub days: u32,
    /// The kind of the new key, where one is made.
    pub key_type: KeyType,
}

impl Order {
    /// An order with the usual validity and key.
    pub fn new(identity: Identity, alternative_names: Vec<String>) -> Self {
        let (agents, days, key_type) = (Vec::new(), LEAF_DAYS, KeyType::default());
        Self { identity, alternative_names, agents, days, key_type }
    }
}

/// How to renew a certificate.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// Validity from now, cut to that of the intermediate.
    pub days: u32,
    /// The kind of the new key; `None`: that of the old one.
    pub key_type: Option<KeyType>,
    /// The agents that the node may host from now on; `None`: those of before.
    pub agents: Option<Vec<AgentName>>,
}

impl Renewal {
    /// As it was, valid for so many days.
    pub fn of(days: u32) -> Self {
        Self { days, key_type: None, agents: None }
    }
}

/// What was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// What the certificate says.
    pub leaf: Leaf,
}

/// What was signed for a key that its owner keeps.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate's file in the CA's folder.
    pub certificate: PathBuf,
    /// The leaf and the intermediate, in PEM.
    pub chain_pem: String,
    /// What the certificate says.
    pub leaf: Leaf,
}

/// What nodes trust and what is revoked, for distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The CA certificates in PEM.
    pub chain_pem: String,
    /// The revocation lists in PEM; empty where there are none.
    pub crl_pem: String,
}

/// A CA's folder. Making one of these touches nothing.
#[derive(Debug, Clone)]
pub struct Ca {
    pub(crate) dir: PathBuf,
    pub(crate) signing_key: Option<PathBuf>,
    actor: Option<String>,
}

impl Ca {
    /// The CA below `dir`, whether it exists or not.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), signing_key: None, actor: None }
    }

    /// The same CA, whose index names somebody else than this process's user as who asked.
    pub fn acting_for(self, who: impl Into<String>) -> Self {
        Self { actor: Some(who.into()), ..self }
    }

    /// Who asks, for the index.
    pub(crate) fn actor(&self) -> String {
        self.actor.clone().unwrap_or_else(|| {
            let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
            let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{user}@{}", host.trim())
        })
    }

    /// In whose name its certificates carry SPIFFE IDs: what `init` was told, else `mesh`.
    ///
    /// # Errors
    /// The file that says so cannot be read.
    pub fn trust_domain(&self) -> Result<TrustDomain, CaError> {
        let path = self.trust_domain_path();
        match path.exists() {
            false => Ok(TrustDomain::default()),
            true => {
                let text = files::read(&path)?;
                text.trim().parse().map_err(|source| CaError::TrustDomain { path, source })
            }
        }
    }

    pub(crate) fn trust_domain_path(&self) -> PathBuf {
        self.dir.join("intermediate/trust-domain")
    }

    /// What nodes trust and what is revoked, as it is in the folder.
    ///
    /// # Errors
    /// There is no CA, or a file cannot be read.
    pub fn bundle(&self) -> Result<Bundle, CaError> {
        let chain_pem = self.authorities()?.iter().map(|authority| authority.pem.as_str()).collect();
        Ok(Bundle { chain_pem, crl_pem: self.lists()?.text() })
    }

    /// The same CA, whose signing key is elsewhere than in its folder.
    pub fn signing_with(self, key: Option<PathBuf>) -> Self {
        Self { signing_key: key, ..self }
    }

    /// What every node trusts.
    pub fn chain_path(&self) -> PathBuf {
        self.intermediate("ca-chain.pem", "chain.pem")
    }

    /// What is revoked, for `proxy.crl_path`.
    pub fn crl_path(&self) -> PathBuf {
        let own = self.dir.join("intermediate/crl.pem");
        match !own.exists() && self.is_of_rivetos() {
            true => self.dir.join("crl.pem"),
            false => own,
        }
    }

    /// Every file that says what is revoked: RivetOS and `meshctl` may each have made one.
    pub(crate) fn crl_paths(&self) -> Vec<PathBuf> {
        let other = self.dir.join("crl.pem");
        let mut paths = vec![self.crl_path()];
        if other.exists() && paths[0] != other {
            paths.push(other);
        }
        paths
    }

    /// The key that signs what is issued.
    pub fn signing_key_path(&self) -> PathBuf {
        self.signing_key.clone().unwrap_or_else(|| self.intermediate("intermediate.key", "int.key"))
    }

    /// The certificate and key issued under this name.
    pub fn issued_paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let issued = self.dir.join("issued");
        let files = |stem: &str| (issued.join(format!("{stem}.crt")), issued.join(format!("{stem}.key")));
        let own = files(name);
        match name.strip_prefix("device:") {
            Some(device) if !own.0.exists() => {
                let theirs = files(&format!("device-{device}"));
                if self.is_of_rivetos() || theirs.0.exists() { theirs } else { own }
            }
            _ => own,
        }
    }

    /// Whether RivetOS's `rivet-ca.sh` made it, which names its files otherwise and keeps books of its own.
    pub fn is_of_rivetos(&self) -> bool {
        ["chain.pem", "int.crt", "int.key"]
            .iter()
            .any(|file| self.dir.join("intermediate").join(file).exists())
    }

    /// A file below `intermediate/`, by RivetOS's name where only that one is there.
    fn intermediate(&self, own: &str, of_rivetos: &str) -> PathBuf {
        let folder = self.dir.join("intermediate");
        let (own, of_rivetos) = (folder.join(own), folder.join(of_rivetos));
        if !own.exists() && of_rivetos.exists() { of_rivetos } else { own }
    }

    /// Where certificates stay that were renewed: they work until they end, unless they are revoked.
    pub(crate) fn superseded_dir(&self) -> PathBuf {
        self.dir.join("issued/superseded")
    }
}
