//! What lies in a CA's folder, and whether peers will accept it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, Material, MaterialError};
use mesh_shared::identity::Identity;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, CaError};

/// A certificate that ends within so many days deserves a word.
const SOON_DAYS: i64 = 14;

/// One certificate of the CA's folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examined {
    /// What it is for.
    pub kind: Kind,
    /// Its file.
    pub path: PathBuf,
    /// Its common name, where it can be read.
    pub cn: Option<String>,
    /// Its host names and addresses.
    pub alternative_names: Vec<String>,
    /// Its end, epoch seconds.
    pub not_after: Option<i64>,
    /// Whole days until then; negative once it has passed.
    pub days_left: Option<i64>,
    /// Why it cannot work; empty if it can.
    pub problems: Vec<String>,
    /// What will become a problem.
    pub remarks: Vec<String>,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it
pub enum Kind {
    Authority,
    Node,
    Agent,
    Device,
    Unknown,
}

impl Kind {
    /// The word shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Node => "node",
            Self::Agent => "agent",
            Self::Device => "device",
            Self::Unknown => "?",
        }
    }
}

impl Examined {
    fn new(kind: Kind, path: &Path) -> Self {
        Self {
            kind,
            path: path.into(),
            cn: None,
            alternative_names: Vec::new(),
            not_after: None,
            days_left: None,
            problems: Vec::new(),
            remarks: Vec::new(),
        }
    }

    fn ends(&mut self, not_after: i64, now: UnixTime) {
        let days = (not_after - now.as_secs() as i64).div_euclid(86_400);
        (self.not_after, self.days_left) = (Some(not_after), Some(days));
        if (0..SOON_DAYS).contains(&days) {
            self.remarks.push(match self.kind {
                Kind::Authority => format!("ends in {days} days; make a new CA"),
                _ => format!("ends in {days} days; `meshctl ca renew` it"),
            });
        }
    }
}

impl Ca {
    /// Every certificate in the folder: those of the chain, then what was issued, by name.
    ///
    /// # Errors
    /// There is no complete CA, or the folder cannot be read. A certificate that is wrong is no error here,
    /// but has `problems`.
    pub fn examine(&self, now: UnixTime) -> Result<Vec<Examined>, CaError> {
        let path = self.chain_path();
        let mut all = Vec::new();
        for authority in &self.authorities()? {
            all.push(examine_authority(&path, authority, now));
        }
        let folder = self.dir.join("issued");
        let fail = |source| CaError::File { what: "read the folder", path: folder.clone(), source };
        let mut issued = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            issued.push(entry.map_err(fail)?.path());
        }
        issued.sort();
        for path in issued.iter().filter(|path| path.extension().is_some_and(|ext| ext == "crt")) {
            all.push(self.examine_issued(path, now));
        }
        for key in issued.iter().filter(|path| path.extension().is_some_and(|ext| ext == "key")) {
            if !issued.contains(&key.with_extension("crt")) {
                let mut orphan = Examined::new(Kind::Unknown, key);
                orphan.problems.push(
                    "a key without a certificate: issuing was interrupted; remove it and issue again".into(),
                );
                all.push(orphan);
            }
        }
        Ok(all)
    }

    fn examine_issued(&self, path: &Path, now: UnixTime) -> Examined {
        let mut examined = Examined::new(Kind::Unknown, path);
        let loaded = || {
            let chain = certificate::read_certificates("certificate", path)?;
            let leaf = Leaf::parse(&chain[0])
                .map_err(|source| MaterialError::Parse { path: path.into(), source })?;
            let roots = certificate::read_trust_bundle(&self.chain_path())?.into();
            Ok::<_, MaterialError>(Material { cert_path: path.into(), chain, leaf, roots, crls: Vec::new() })
        };
        let material = match loaded() {
            Ok(material) => material,
            Err(error) => {
                examined.problems.push(error.to_string());
                return examined;
            }
        };
        let leaf = &material.leaf;
        examined.kind = match leaf.identity {
            Identity::Node(_) => Kind::Node,
            Identity::Agent(..) => Kind::Agent,
            Identity::Device(_) => Kind::Device,
        };
        examined.cn = Some(leaf.common_name.clone());
        examined.alternative_names =
            leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
        examined.ends(leaf.not_after, now);
        let named = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if named.as_ref() != Some(&leaf.identity) {
            examined.problems.push(format!(
                "the file's name and the certificate's CN {} are not the same",
                leaf.common_name
            ));
        }
        examined.problems.extend(accepted(&material, now).err().map(|error| error.to_string()));
        examine_key(&material, &path.with_extension("key"), &mut examined);
        examined
    }
}

fn examine_authority(path: &Path, authority: &CertificateDer<'_>, now: UnixTime) -> Examined {
    let mut examined = Examined::new(Kind::Authority, path);
    let Ok((_, parsed)) = X509Certificate::from_der(authority) else {
        examined.problems.push("no X.509 certificate".into());
        return examined;
    };
    examined.cn = parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).map(Into::into);
    examined.ends(parsed.validity().not_after.timestamp(), now);
    if examined.days_left < Some(0) {
        examined.problems.push("has expired, and with it everything it signed; make a new CA".into());
    }
    if !parsed.is_ca() {
        examined.problems.push("is not a CA certificate and does not belong into ca-chain.pem".into());
    }
    examined
}

fn examine_key(material: &Material, key: &Path, examined: &mut Examined) {
    let mode = match key.metadata() {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(_) => {
            examined.remarks.push("its key is not here".into());
            return;
        }
    };
    if mode & 0o007 != 0 {
        examined
            .problems
            .push(format!("key {} can be read by everyone (mode {mode:04o}); chmod 600 it", key.display()));
    }
    match material.with_key(key) {
        Ok(_) => {}
        Err(MaterialError::Unreadable { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            examined.remarks.push("its key was not looked at (no permission)".into());
        }
        Err(error) => examined.problems.push(error.to_string()),
    }
}

/// Whether peers accept the certificate, in the roles that its identity has.
pub(super) fn accepted(material: &Material, now: UnixTime) -> Result<(), MaterialError> {
    match &material.leaf.identity {
        Identity::Node(node) => material.accepted_by_peers(node, now),
        Identity::Agent(..) | Identity::Device(_) => material.accepted_as_client(now),
    }
}

/// End of validity, epoch seconds.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The SubjectPublicKeyInfo as DER.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}
