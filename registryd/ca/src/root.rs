//! Replacing the root, and removing authorities on which nothing depends any more from the trust bundle.

use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, fresh_key};
use rcgen::BasicConstraints;
use rustls::pki_types::UnixTime;
use time::{Duration, OffsetDateTime};

use crate::authority::Authority;
use crate::certificate::Certificate;
use crate::error::{CaError, make};
use crate::files::{self, replace, write_new};
use crate::index::Entry;
use crate::key::{KeyType, read_pair};
use crate::make::{ROOT_DAYS, authority, load_root, mark, root_paths};
use crate::model::Ca;

/// What [`Ca::renew_root`] did.
#[derive(Debug)]
pub struct NewRoot {
    /// The new root's common name.
    pub cn: String,
    /// Its end, epoch seconds.
    pub not_after: i64,
    /// Its key.
    pub key: PathBuf,
    /// The common name of the root before.
    pub former_cn: String,
    /// Where the key of that one lies now.
    pub former_key: PathBuf,
}

/// What [`Ca::retire`] did.
#[derive(Debug)]
pub struct Retired {
    /// The common name of what no node trusts any more, once it has the new `ca-chain.pem`.
    pub cn: String,
    /// Its serial number.
    pub serial: String,
    /// Its key, if that is here; nobody needs it any more.
    pub key: Option<PathBuf>,
}

impl Ca {
    /// Makes a new root (with a key of the old one's kind unless told) and puts it into `ca-chain.pem` next to the old one. What
    /// `renew-intermediate` makes from now on is signed by it; the old one stays trusted until it ends or is retired. Its files
    /// are kept next to the new ones.
    ///
    /// # Errors
    /// No root in `root_dir`, or that of another CA. An interruption leaves a CA that works as before; the next call continues
    /// from there.
    pub fn renew_root(&self, root_dir: &Path, key_type: Option<KeyType>) -> Result<NewRoot, CaError> {
        let change = self.change()?;
        let (cert_path, key_path) = root_paths(root_dir);
        let (fresh_cert, fresh_key) = (fresh_key(&cert_path), fresh_key(&key_path));
        let interrupted = fresh_key.exists() && !fresh_cert.exists();
        let (root, _) = load_root(root_dir)?;
        if !change.authorities.iter().any(|authority| authority.der() == root.der()) {
            return Err(CaError::OtherRoot { root: cert_path, chain: self.chain_path() });
        }
        // Its certificate has its name already, so only the key's name was left to change.
        if interrupted && root.certificate.has_key(&read_pair(&fresh_key)?) {
            files::rename(&fresh_key, &key_path)?;
            return self.new_root(root_dir, &root, &change.authorities);
        }

        let pair = match fresh_key.exists() {
            true => read_pair(&fresh_key)?,
            false => {
                let kind = key_type.or(root.certificate.key_type).unwrap_or_default();
                let pair = kind.generate()?;
                write_new(&fresh_key, &pair.serialize_pem(), 0o600)?;
                pair
            }
        };
        let known = certificate::read_located("root", &fresh_cert).ok().map(|mut all| all.swap_remove(0));
        let known = known.map(|found| Authority::new(found.pem, &found.der));
        let new = match known.filter(|known| known.certificate.has_key(&pair)) {
            Some(known) => known,
            None => {
                let end = OffsetDateTime::now_utc() + Duration::days(ROOT_DAYS);
                let params =
                    authority(&format!("Mesh Root CA {}", mark()?), end, BasicConstraints::Unconstrained)?;
                let signed = params.self_signed(&pair).map_err(make("the root"))?;
                replace(&fresh_cert, &signed.pem(), 0o644)?;
                Authority::new(signed.pem(), signed.der())
            }
        };
        let mut chain = change.authorities.clone();
        if !chain.iter().any(|authority| authority.der() == new.der()) {
            let at =
                chain.iter().position(|authority| authority.certificate.is_root()).unwrap_or(chain.len());
            chain.insert(at, new.clone());
            self.write_chain(&chain)?;
        }
        let (former_cert, former_key) = former_paths(&cert_path, &key_path, &root.certificate);
        for (from, to, mode) in [(&cert_path, &former_cert, 0o644), (&key_path, &former_key, 0o600)] {
            match write_new(to, &files::read(from)?, mode) {
                // An earlier call was interrupted behind this.
                Err(CaError::Exists { .. }) => {}
                outcome => outcome?,
            }
        }
        files::rename(&fresh_cert, &cert_path)?;
        files::rename(&fresh_key, &key_path)?;
        self.new_root(root_dir, &new, &chain)
    }

    fn new_root(&self, root_dir: &Path, new: &Authority, chain: &[Authority]) -> Result<NewRoot, CaError> {
        let (cert_path, key_path) = root_paths(root_dir);
        let roots = chain.iter().filter(|each| each.certificate.is_root() && each.der() != new.der());
        // The one that was made last stands first.
        let mut kept = roots.filter_map(|each| {
            let (_, key) = former_paths(&cert_path, &key_path, &each.certificate);
            key.exists().then_some((each, key))
        });
        let (former, former_key) =
            kept.next().ok_or_else(|| CaError::NoRoot { missing: root_dir.join("root-….key") })?;
        Ok(NewRoot {
            cn: new.certificate.shown(),
            not_after: new.certificate.not_after,
            key: key_path,
            former_cn: former.certificate.shown(),
            former_key,
        })
    }

    /// Takes an authority out of `ca-chain.pem`, named by its common name, the last word of it, or its serial number. Its
    /// revocation list goes with it.
    ///
    /// # Errors
    /// None or several of that name, the one that signs now, or (unless `force`) one on which certificates hang that have not
    /// ended and are not revoked: those that it signed, and of a root, intermediates that are still trusted.
    pub fn retire(&self, which: &str, force: bool) -> Result<Retired, CaError> {
        let change = self.change()?;
        let serial = which.replace(':', "").to_ascii_lowercase();
        let named = |each: &Certificate| {
            let cn = each.shown();
            cn == which || cn.rsplit(' ').next() == Some(which) || each.serial_text() == serial
        };
        let found: Vec<_> = change.authorities.iter().filter(|each| named(&each.certificate)).collect();
        let retired = match found.as_slice() {
            [one] => *one,
            [] => return Err(CaError::NothingToRetire { which: which.into(), chain: self.chain_path() }),
            several => {
                let serials = several.iter().map(|each| each.certificate.serial_text()).collect::<Vec<_>>();
                return Err(CaError::SeveralToRetire { which: which.into(), serials: serials.join(", ") });
            }
        };
        let (cn, serial) = (retired.certificate.shown(), retired.certificate.serial_text());
        // Where the key that signs is not here, the one that was made last stands first.
        let signing = self.signer(&change.authorities).ok().map(|(signing, _)| signing);
        if signing.or(change.authorities.first()).is_some_and(|signing| signing.der() == retired.der()) {
            return Err(CaError::StillSigns { cn });
        }
        let now = UnixTime::now();
        let is_it = |other: &Authority| other.der() == retired.der();
        let leaves = change.index.entries.iter().filter(|entry| {
            !entry.has_ended(now)
                && entry.revoked.is_none()
                && entry.authority(&change.authorities).is_some_and(is_it)
        });
        let told = |entry: &Entry| match entry.current {
            true => entry.issuance.name.clone(),
            false => format!("{} from before its renewal", entry.issuance.name),
        };
        let mut needed_by: Vec<String> = leaves.map(told).collect();
        if retired.certificate.is_root() {
            let below = change.authorities.iter().filter(|each| {
                !is_it(each)
                    && each.certificate.days_left(now) >= 0
                    && each.certificate.is_of(&retired.certificate)
            });
            needed_by.extend(below.map(|each| each.certificate.shown()));
        }
        if !needed_by.is_empty() && !force {
            let (count, first) =
                (needed_by.len(), needed_by.iter().take(5).cloned().collect::<Vec<_>>().join(", "));
            return Err(CaError::StillNeeded { cn, count, first });
        }
        let rest: Vec<_> = change.authorities.iter().filter(|each| !is_it(each)).cloned().collect();
        self.write_chain(&rest)?;
        let mut lists = change.lists;
        if lists.covers(retired) {
            lists.keep_only(&rest);
            self.write_lists(&lists)?;
        }
        let is_its = |path: &PathBuf| read_pair(path).is_ok_and(|pair| retired.certificate.has_key(&pair));
        let key = self.key_files().into_iter().rfind(is_its);
        Ok(Retired { cn, serial, key })
    }

    /// Writes what nodes trust.
    pub(crate) fn write_chain(&self, chain: &[Authority]) -> Result<(), CaError> {
        let text: String = chain.iter().map(|authority| authority.pem.as_str()).collect();
        replace(&self.chain_path(), &text, 0o644)?;
        // RivetOS reads this one.
        let path = self.dir.join("intermediate/chain.pem");
        match path.exists() && path != self.chain_path() {
            true => replace(&path, &text, 0o644),
            false => Ok(()),
        }
    }
}

/// Where the files of a former root are kept: `root-5f….crt` and `.key`.
fn former_paths(cert_path: &Path, key_path: &Path, root: &Certificate) -> (PathBuf, PathBuf) {
    let serial = root.serial_text();
    let kept = |path: &Path| {
        let (stem, extension) = (path.file_stem().unwrap_or_default(), path.extension().unwrap_or_default());
        let stem = stem.to_string_lossy();
        let mark = &serial[..serial.len().min(8)];
        path.with_file_name(format!("{stem}-{mark}.{}", extension.to_string_lossy()))
    };
    (kept(cert_path), kept(key_path))
}
