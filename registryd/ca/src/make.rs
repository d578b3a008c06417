//! Making a CA, and replacing its intermediate.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file;
use mesh_shared::certificate;
use mesh_shared::spiffe::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::UnixTime;
use time::{Duration, OffsetDateTime};

use crate::authority::{Authority, dated};
use crate::certificate::ends;
use crate::error::{CaError, make};
use crate::files::{self, absolute, make_dir, replace, write_new};
use crate::key::{KeyType, random, read_pair};
use crate::lists::Lists;
use crate::model::{CRL_DAYS, Ca};

pub(crate) const ROOT_DAYS: i64 = 3653;
/// Validity of an intermediate, in days.
pub const INTERMEDIATE_DAYS: i64 = 1826;

/// What [`Ca::renew_intermediate`] did.
#[derive(Debug)]
pub struct NewIntermediate {
    /// The new intermediate's common name.
    pub cn: String,
    /// Its end, epoch seconds.
    pub not_after: i64,
    /// Where the key of the one before lies now, if there was one.
    pub former_key: Option<PathBuf>,
}

impl Ca {
    /// Makes a CA: root, intermediate, an empty revocation list and the folder for what will be issued. Returns
    /// the topmost folder that had to be made above the CA's own.
    ///
    /// # Errors
    /// Any of its files exists already, or a folder cannot be written. An interruption leaves a CA that
    /// every later command calls half made.
    pub fn init(
        &self,
        root_dir: &Path,
        key_type: KeyType,
        trust_domain: &TrustDomain,
    ) -> Result<Option<PathBuf>, CaError> {
        let (root_cert, root_key) = (root_dir.join("root.crt"), root_dir.join("root.key"));
        let (chain, crl, intermediate_key) = (self.chain_path(), self.crl_path(), self.signing_key_path());
        let dir = absolute(&self.dir)?;
        if absolute(root_dir)?.starts_with(&dir) {
            return Err(CaError::RootInside { root: root_dir.into(), dir: self.dir.clone() });
        }
        if self.is_of_rivetos() {
            return Err(CaError::RivetOs { dir: self.dir.clone(), found: chain });
        }
        if chain.exists() {
            return Err(CaError::Exists {
                path: chain,
                hint: "; this CA is complete, use it or choose another --dir",
            });
        }
        for found in [&intermediate_key, &crl] {
            if found.exists() {
                return Err(CaError::HalfMade { found: found.clone(), missing: chain });
            }
        }
        let issued = files::listed(&self.dir.join("issued"))?;
        if let Some(found) = issued.into_iter().find(|path| path.extension() == Some(OsStr::new("crt"))) {
            return Err(CaError::IssuedByNone { dir: self.dir.clone(), found, missing: chain });
        }
        match (root_cert.exists(), root_key.exists()) {
            (false, false) => {}
            (true, false) => {
                let dir = self.dir.clone();
                return Err(CaError::RootHalfMade { found: root_cert, missing: root_key, dir });
            }
            (false, true) => return Err(CaError::RootKeyAlone { key: root_key, missing: root_cert }),
            (true, true) => {
                let (root, _) = load_root(root_dir)?;
                let cn = root.certificate.shown();
                return Err(CaError::RootExists { cn, root_dir: root_dir.into(), missing: chain });
            }
        }

        let mark = mark()?;
        let root_pair = key_type.generate()?;
        let root_end = OffsetDateTime::now_utc() + Duration::days(ROOT_DAYS);
        let root_params =
            authority(&format!("Mesh Root CA {mark}"), root_end, BasicConstraints::Unconstrained)?;
        let root = root_params.self_signed(&root_pair).map_err(make("the root"))?;
        let pair = key_type.generate()?;
        let params = intermediate_params(&mark, root_end)?;
        let issuer = Issuer::from_params(&root_params, &root_pair);
        let intermediate = params.signed_by(&pair, &issuer).map_err(make("the intermediate"))?;
        let intermediate = Authority::new(intermediate.pem(), intermediate.der());
        let mut lists = Lists::default();
        lists.publish(&intermediate, &pair, &[], CRL_DAYS)?;

        let made = dir.ancestors().skip(1).take_while(|folder| !folder.exists()).last().map(Path::to_owned);
        make_dir(root_dir, 0o700)?;
        make_dir(&self.dir.join("intermediate"), 0o755)?;
        make_dir(&self.dir.join("issued"), 0o755)?;
        replace(&self.trust_domain_path(), &format!("{trust_domain}\n"), 0o644)?;
        write_new(&root_key, &root_pair.serialize_pem(), 0o600)?;
        write_new(&root_cert, &root.pem(), 0o644)?;
        write_new(&intermediate_key, &pair.serialize_pem(), 0o600)?;
        write_new(&crl, &lists.text(), 0o644)?;
        write_new(&chain, &format!("{}{}", intermediate.pem, root.pem()), 0o644)?;
        Ok(made)
    }

    /// Makes a new intermediate with a key of its own (of the old one's kind unless told), which signs from now
    /// on. The old one stays trusted until it ends, and its key is kept next to the new one, because its
    /// certificates can only be revoked with it.
    ///
    /// # Errors
    /// No root key in `root_dir` or one of another CA, no signing key at the usual place (one that was named
    /// may be missing: then it is lost, and made again there). An interruption leaves a CA that works as before;
    /// the next call continues from there.
    pub fn renew_intermediate(
        &self,
        root_dir: &Path,
        key_type: Option<KeyType>,
    ) -> Result<NewIntermediate, CaError> {
        let change = self.change()?;
        let authorities = &change.authorities;
        let (root, root_pair) = load_root(root_dir)?;
        if !authorities.iter().any(|authority| authority.der() == root.der()) {
            return Err(CaError::OtherRoot { root: root_dir.join("root.crt"), chain: self.chain_path() });
        }
        let path = self.signing_key_path();
        let former = match path.exists() || self.signing_key.is_none() {
            true => Some(self.signer(authorities)?.0),
            false => None,
        };
        if former.is_some_and(|former| former.der() == root.der()) {
            return Err(CaError::RootKeyNamed { path });
        }

        let mut fresh = path.clone().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let pair = match fresh.exists() {
            true => read_pair(&fresh)?,
            false => {
                let kind =
                    former.or(authorities.first()).and_then(|authority| authority.certificate.key_type);
                let pair = key_type.or(kind).unwrap_or_default().generate()?;
                write_new(&fresh, &pair.serialize_pem(), 0o600)?;
                pair
            }
        };
        let known = authorities.iter().find(|authority| authority.certificate.has_key(&pair)).cloned();
        let intermediate = match known {
            Some(intermediate) => intermediate,
            None => self.sign_intermediate(root_dir, &root, &root_pair, &pair)?,
        };
        let mut chain = vec![intermediate.clone()];
        let now = UnixTime::now();
        chain.extend(
            authorities
                .iter()
                .filter(|old| old.der() != intermediate.der() && old.certificate.not_a_ca.is_none())
                .filter(|old| {
                    let ended = old.certificate.days_left(now) < 0;
                    old.certificate.is_root() || !ended
                })
                .cloned(),
        );
        // A sidecar with a list refuses what is covered by none. One that names nobody in the chain yet is harmless.
        if self.crl_paths().iter().any(|crl| crl.exists()) {
            let mut lists = self.lists()?;
            if !lists.covers(&intermediate) {
                lists.publish(&intermediate, &pair, &[], CRL_DAYS)?;
            }
            lists.keep_only(&chain);
            self.write_lists(&lists)?;
        }
        self.write_chain(&chain)?;
        let of_rivetos = self.dir.join("intermediate/int.crt");
        if of_rivetos.exists() {
            replace(&of_rivetos, &intermediate.pem, 0o644)?;
        }
        // Up to here the old key signs, and its certificate is still in the chain.
        let former_key = match former {
            Some(former) => Some(self.keep_former_key(&path, former)?),
            None => None,
        };
        files::rename(&fresh, &path)?;
        Ok(NewIntermediate {
            cn: intermediate.certificate.shown(),
            not_after: intermediate.certificate.not_after,
            former_key,
        })
    }

    fn sign_intermediate(
        &self,
        root_dir: &Path,
        root: &Authority,
        root_pair: &KeyPair,
        pair: &KeyPair,
    ) -> Result<Authority, CaError> {
        let (last, days_left) = (root.certificate.not_after, root.certificate.days_left(UnixTime::now()));
        let root_end = OffsetDateTime::from_unix_timestamp(last).ok().filter(|_| days_left >= 1);
        let Some(root_end) = root_end else {
            return Err(CaError::RootEnds { path: root_dir.into(), when: ends(days_left) });
        };
        let params = intermediate_params(&mark()?, root_end)?;
        let issuer =
            Issuer::from_ca_cert_der(root.der(), root_pair).map_err(make("a signature of the root"))?;
        let signed = params.signed_by(pair, &issuer).map_err(make("the intermediate"))?;
        Ok(Authority::new(signed.pem(), signed.der()))
    }

    /// Writes the signing key under a name of its own.
    fn keep_former_key(&self, path: &Path, former: &Authority) -> Result<PathBuf, CaError> {
        let serial = former.certificate.serial_text();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let kept = path.with_file_name(format!("{stem}-{}.key", &serial[..serial.len().min(8)]));
        let content = files::read(path)?;
        let written = write_new(&kept, &content, 0o600);
        if written.is_ok()
            && let Ok(file) = File::open(&kept)
        {
            // Whoever signs lists with the one must be able to do so with the other.
            atomic_file::keep_owner(&file, path);
        }
        match written {
            // An earlier call was interrupted right behind this.
            Err(CaError::Exists { .. })
                if read_pair(&kept).is_ok_and(|pair| former.certificate.has_key(&pair)) =>
            {
                Ok(kept)
            }
            outcome => outcome.map(|()| kept),
        }
    }
}

/// The root's certificate and its key, by RivetOS's names where only those are there.
pub(crate) fn root_paths(root_dir: &Path) -> (PathBuf, PathBuf) {
    let (own, of_rivetos) = (["root.crt", "root.key"], ["ca.crt", "ca.key"]);
    let [certificate, key] = match !root_dir.join(own[0]).exists() && root_dir.join(of_rivetos[0]).exists() {
        true => of_rivetos,
        false => own,
    };
    (root_dir.join(certificate), root_dir.join(key))
}

/// The root's certificate and its key, which belong together. While they are replaced, or where that was interrupted, the key is
/// the one that waits next to the old one.
pub(crate) fn load_root(root_dir: &Path) -> Result<(Authority, KeyPair), CaError> {
    let (cert_path, key_path) = root_paths(root_dir);
    for path in [&cert_path, &key_path] {
        if !path.exists() {
            return Err(CaError::NoRoot { missing: path.clone() });
        }
    }
    let der = certificate::read_certificates("root", &cert_path)?.swap_remove(0);
    let root = Authority::new(String::new(), &der);
    let pair = read_pair(&key_path)?;
    if root.certificate.has_key(&pair) {
        return Ok((root, pair));
    }
    match read_pair(&certificate::fresh_key(&key_path)) {
        Ok(pair) if root.certificate.has_key(&pair) => Ok((root, pair)),
        _ => Err(CaError::OtherKey { key: key_path, certificate: cert_path }),
    }
}

/// Without a mark of its own, every CA made here would have the same name, and a certificate of another one would
/// be "badly signed" instead of "from an unknown issuer".
pub(crate) fn mark() -> Result<String, CaError> {
    let mut mark = [0; 4];
    random(&mut mark)?;
    Ok(format!("{:08x}", u32::from_be_bytes(mark)))
}

fn intermediate_params(mark: &str, root_end: OffsetDateTime) -> Result<CertificateParams, CaError> {
    let end = (OffsetDateTime::now_utc() + Duration::days(INTERMEDIATE_DAYS)).min(root_end);
    authority(&format!("Mesh Intermediate CA {mark}"), end, BasicConstraints::Constrained(0))
}

pub(crate) fn authority(
    name: &str,
    end: OffsetDateTime,
    constraints: BasicConstraints,
) -> Result<CertificateParams, CaError> {
    let mut params = dated(name)?;
    params.not_after = end;
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}
