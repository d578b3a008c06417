//! Revoking certificates.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, MaterialError};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rustls::pki_types::UnixTime;

use crate::certificate::{Certificate, days_until, ends};
use crate::error::CaError;
use crate::model::Ca;
use crate::rivetos;

/// Which certificates to revoke.
#[derive(Debug, Clone)]
pub enum Which {
    /// All of this identity that have not ended, those that were renewed since among them.
    Named(Identity),
    /// The one with this serial number (hexadecimal, with or without colons).
    Serial(String),
    /// The first one in this file.
    File(PathBuf),
}

/// A certificate that no peer with the list accepts any more.
#[derive(Debug)]
pub struct Revoked {
    /// Its common name.
    pub cn: String,
    /// Its serial number.
    pub serial: String,
    /// The file it was found in.
    pub path: PathBuf,
    /// Since when, if it was in the list already; epoch seconds.
    pub before: Option<i64>,
}

impl Ca {
    /// Enters certificates in `crl.pem`; what is in it stays in it.
    ///
    /// # Errors
    /// Nothing that fits and has not ended yet, a certificate of another CA, no key for a list that is needed.
    /// The file is replaced at once or not at all.
    pub fn revoke(&self, which: &Which) -> Result<Vec<Revoked>, CaError> {
        let _lock = self.lock()?;
        let authorities = self.authorities()?;
        let mut lists = self.lists()?;
        let now = UnixTime::now();
        let wanted = self.find(which, now)?;
        for certificate in &wanted {
            if !authorities.iter().any(|authority| certificate.certificate.is_of(&authority.certificate)) {
                return Err(CaError::NothingToRevoke(format!(
                    "{} was not issued by an intermediate in {}",
                    certificate.path.display(),
                    self.chain_path().display()
                )));
            }
        }
        let mut revoked = Vec::new();
        for authority in &authorities {
            let of_it: Vec<_> =
                wanted.iter().filter(|each| each.certificate.is_of(&authority.certificate)).collect();
            let mut new = Vec::new();
            for each in &of_it {
                let before = lists.since(&each.certificate.issuer, &each.certificate.serial);
                if before.is_none() {
                    new.push(each.certificate.serial.as_slice());
                }
                let (cn, path) = (each.cn.clone(), each.path.clone());
                revoked.push(Revoked { cn, serial: each.certificate.serial_text(), path, before });
            }
            // What is not a CA's has no list, and must keep nobody from being revoked.
            let needed = !authority.certificate.is_root()
                && authority.certificate.not_a_ca.is_none()
                && authority.certificate.days_left(now) >= 0
                && !lists.covers(authority);
            if needed || !new.is_empty() {
                lists.publish(authority, &self.key_of(authority)?, &new)?;
            }
        }
        lists.keep_only(&authorities);
        // First the books: a list that openssl makes from them meanwhile has to have it too.
        rivetos::mark_revoked(&self.dir, &wanted.iter().map(|each| &each.certificate).collect::<Vec<_>>())?;
        self.write_lists(&lists)?;
        Ok(revoked)
    }

    /// The certificates of a node's agents that peers still accept: whoever has the node may have their keys too.
    ///
    /// # Errors
    /// The folder or the lists cannot be read.
    pub fn agents_of(&self, node: &NodeName) -> Result<Vec<Identity>, CaError> {
        let (lists, now) = (self.lists()?, UnixTime::now());
        let mut agents: Vec<Identity> = Vec::new();
        for found in self.all_issued()? {
            let Ok(identity @ Identity::Agent(..)) = found.cn.parse::<Identity>() else { continue };
            let certificate = &found.certificate;
            let works = certificate.not_after >= now.as_secs() as i64
                && lists.since(&certificate.issuer, &certificate.serial).is_none();
            if works && identity.node() == Some(node) && !agents.contains(&identity) {
                agents.push(identity);
            }
        }
        Ok(agents)
    }

    fn find(&self, which: &Which, now: UnixTime) -> Result<Vec<Found>, CaError> {
        let nothing = |what: String| Err(CaError::NothingToRevoke(what));
        let (found, what) = match which {
            Which::File(path) => (vec![Found::read(path)?], path.display().to_string()),
            Which::Named(identity) => {
                let mut all = self.all_issued()?;
                all.retain(|each| each.cn.parse().as_ref() == Ok(identity));
                (all, identity.to_string())
            }
            Which::Serial(serial) => {
                let digits = serial.replace(':', "").to_ascii_lowercase();
                let digits = digits.trim_start_matches('0');
                let mut all = self.all_issued()?;
                all.retain(|each| each.certificate.serial_text().trim_start_matches('0') == digits);
                (all, format!("serial number {serial}"))
            }
        };
        if found.is_empty() {
            return nothing(format!(
                "there is no certificate of {what} in {}; `meshctl ca list` shows those that are, and --file \
                 names one that lies elsewhere",
                self.dir.join("issued").display()
            ));
        }
        let last = found.iter().map(|each| each.certificate.not_after).max().unwrap_or_default();
        let mut running = found;
        running.retain(|each| each.certificate.not_after >= now.as_secs() as i64);
        if running.is_empty() {
            let days = days_until(last, now);
            return nothing(format!("{what} {}, so no peer accepts it anyway", ends(days)));
        }
        Ok(running)
    }

    /// Every certificate in the CA's folder that can be read, those that were renewed too.
    pub(crate) fn all_issued(&self) -> Result<Vec<Found>, CaError> {
        let mut all: Vec<Found> = Vec::new();
        // openssl keeps a copy of each, by serial number, where RivetOS has its intermediate.
        let copies = self.dir.join("intermediate");
        for (folder, extension) in
            [(self.dir.join("issued"), "crt"), (self.superseded_dir(), "crt"), (copies, "pem")]
        {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(CaError::File { what: "read the folder", path: folder, source }),
            };
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            paths.retain(|path| path.extension().is_some_and(|found| found == extension));
            for found in paths.iter().filter_map(|path| Found::read(path).ok()) {
                let known = |other: &Found| other.certificate.der == found.certificate.der;
                if found.certificate.not_a_ca.is_some() && !all.iter().any(known) {
                    all.push(found);
                }
            }
        }
        Ok(all)
    }
}

/// A certificate in a file.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    cn: String,
    certificate: Certificate,
}

impl Found {
    fn read(path: &Path) -> Result<Self, CaError> {
        let der = certificate::read_certificates("certificate", path)?.swap_remove(0);
        let leaf = Leaf::parse(&der).map_err(|source| MaterialError::Parse { path: path.into(), source })?;
        Ok(Self { path: path.into(), cn: leaf.common_name, certificate: Certificate::of(&der) })
    }
}
