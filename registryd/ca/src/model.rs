//! What the CA is asked and what it answers, and where its files lie.

use std::path::PathBuf;

use mesh_shared::certificate::Leaf;
use mesh_shared::identity::Identity;

use crate::key::KeyType;

/// Where the reference document keeps the CA.
pub const DEFAULT_DIR: &str = "/rivet-shared/rivet-ca";
/// Where the root key lies, on one host only.
pub const DEFAULT_ROOT_DIR: &str = "/etc/mesh/ca-root";
/// Validity of a leaf, in days.
pub const LEAF_DAYS: u32 = 90;
/// `meshctl ca renew --all` renews what ends within so many days.
pub const RENEW_WITHIN_DAYS: u32 = 30;

/// What to issue.
#[derive(Debug, Clone)]
pub struct Order {
    /// For whom; becomes the CN.
    pub identity: Identity,
    /// Host names and addresses beside `<node>.mesh`.
    pub alternative_names: Vec<String>,
    /// Validity from now, cut to that of the intermediate.
    pub days: u32,
    /// The new key.
    pub key_type: KeyType,
}

impl Order {
    /// An order with the usual validity and key.
    pub fn new(identity: Identity, alternative_names: Vec<String>) -> Self {
        Self { identity, alternative_names, days: LEAF_DAYS, key_type: KeyType::default() }
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

/// A CA's folder. Making one of these touches nothing.
#[derive(Debug, Clone)]
pub struct Ca {
    pub(crate) dir: PathBuf,
    pub(crate) signing_key: Option<PathBuf>,
}

impl Ca {
    /// The CA below `dir`, whether it exists or not.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), signing_key: None }
    }

    /// The same CA, whose signing key lies elsewhere than in its folder.
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
