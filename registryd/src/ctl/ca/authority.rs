//! The certificates that sign: making root and intermediate, replacing the intermediate, finding the one in use.

use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, MaterialError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{self, make_dir, pem_blocks, replace, write_new};
use super::revoke::Lists;
use super::{Ca, CaError, ErrorKind, KeyType, absolute, dated, examine, make, random, read_pair};

const ROOT_DAYS: i64 = 3653;
/// Validity of an intermediate, in days.
pub(super) const INTERMEDIATE_DAYS: i64 = 1826;

/// A certificate of `ca-chain.pem`.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    /// Its PEM block, with a final newline.
    pub(super) pem: String,
    /// The same as DER.
    pub(super) der: CertificateDer<'static>,
}

impl Authority {
    /// Its common name, or what stands for one.
    pub(super) fn cn(&self) -> String {
        examine::common_name(&self.der).unwrap_or_else(|| "?".into())
    }

    /// Whole days until it ends; negative once it has.
    pub(super) fn days_left(&self, now: UnixTime) -> i64 {
        (examine::not_after(&self.der).unwrap_or_default() - now.as_secs() as i64).div_euclid(86_400)
    }

    /// Whether it is a root: its own issuer.
    pub(super) fn is_root(&self) -> bool {
        X509Certificate::from_der(&self.der)
            .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
    }
}

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
    pub fn init(&self, root_dir: &Path, key_type: KeyType) -> Result<Option<PathBuf>, CaError> {
        let (root_cert, root_key) = (root_dir.join("root.crt"), root_dir.join("root.key"));
        let (chain, crl, intermediate_key) = (self.chain_path(), self.crl_path(), self.signing_key_path());
        let dir = absolute(&self.dir)?;
        if absolute(root_dir)?.starts_with(&dir) {
            return Err(CaError::RootInside { root: root_dir.into(), dir: self.dir.clone() });
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
        match (root_cert.exists(), root_key.exists()) {
            (false, false) => {}
            (true, false) => {
                let dir = self.dir.clone();
                return Err(CaError::RootHalfMade { found: root_cert, missing: root_key, dir });
            }
            (false, true) => return Err(CaError::RootKeyAlone { key: root_key, missing: root_cert }),
            (true, true) => {
                let (root, _) = load_root(root_dir)?;
                let cn = examine::common_name(&root).unwrap_or_else(|| "?".into());
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
        let intermediate = Authority { pem: intermediate.pem(), der: intermediate.der().clone() };
        let mut lists = Lists::default();
        lists.publish(&intermediate, &pair, &[])?;

        let made = dir.ancestors().skip(1).take_while(|folder| !folder.exists()).last().map(Path::to_owned);
        make_dir(root_dir, 0o700)?;
        make_dir(&self.dir.join("intermediate"), 0o755)?;
        make_dir(&self.dir.join("issued"), 0o755)?;
        write_new(&root_key, &root_pair.serialize_pem(), 0o600)?;
        write_new(&root_cert, &root.pem(), 0o644)?;
        write_new(&intermediate_key, &pair.serialize_pem(), 0o600)?;
        write_new(&crl, &lists.text(), 0o644)?;
        write_new(&chain, &format!("{}{}", intermediate.pem, root.pem()), 0o644)?;
        Ok(made)
    }

    /// Makes a new intermediate with a key of its own (of the old one's kind unless told), which signs from now
    /// on. The old one stays trusted until it ends, and its key is kept beside the new one, because its
    /// certificates can only be revoked with it.
    ///
    /// # Errors
    /// No root key in `root_dir` or one of another CA, no signing key at the usual place (one that was named
    /// may be missing: then it is lost, and made anew there). An interruption leaves a CA that works as before;
    /// the next call goes on from there.
    pub fn renew_intermediate(
        &self,
        root_dir: &Path,
        key_type: Option<KeyType>,
    ) -> Result<NewIntermediate, CaError> {
        let _lock = self.lock()?;
        let authorities = self.authorities()?;
        let (root, root_pair) = load_root(root_dir)?;
        if !authorities.iter().any(|authority| authority.der == root) {
            return Err(CaError::OtherRoot { root: root_dir.join("root.crt"), chain: self.chain_path() });
        }
        let path = self.signing_key_path();
        let former = match path.exists() || self.signing_key.is_none() {
            true => Some(self.signer(&authorities)?.0),
            false => None,
        };
        if former.is_some_and(|former| former.der == root) {
            return Err(CaError::RootKeyNamed { path });
        }

        let mut fresh = path.clone().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let pair = match fresh.exists() {
            true => read_pair(&fresh)?,
            false => {
                let kind = former.or(authorities.first()).and_then(|authority| KeyType::of(&authority.der));
                let pair = key_type.or(kind).unwrap_or_default().generate()?;
                write_new(&fresh, &pair.serialize_pem(), 0o600)?;
                pair
            }
        };
        let known = authorities.iter().find(|authority| authority.has_key(&pair)).cloned();
        let intermediate = match known {
            Some(intermediate) => intermediate,
            None => self.sign_intermediate(root_dir, &root, &root_pair, &pair)?,
        };
        let mut chain = vec![intermediate.clone()];
        let now = UnixTime::now();
        chain.extend(
            authorities
                .iter()
                .filter(|old| old.der != intermediate.der)
                .filter(|old| {
                    let ended = old.days_left(now) < 0;
                    old.is_root() || !ended
                })
                .cloned(),
        );
        // A sidecar with a list refuses what is covered by none. One that names nobody in the chain yet is harmless.
        let crl = self.crl_path();
        if crl.exists() {
            let mut lists = Lists::read(&crl)?;
            if !lists.covers(&intermediate) {
                lists.publish(&intermediate, &pair, &[])?;
            }
            lists.keep_only(&chain);
            replace(&crl, &lists.text(), 0o644)?;
        }
        let text: String = chain.iter().map(|authority| authority.pem.as_str()).collect();
        replace(&self.chain_path(), &text, 0o644)?;
        // Up to here the old key signs, and its certificate is still in the chain.
        let former_key = match former {
            Some(former) => Some(self.keep_former_key(&path, former)?),
            None => None,
        };
        files::rename(&fresh, &path)?;
        Ok(NewIntermediate {
            cn: intermediate.cn(),
            not_after: examine::not_after(&intermediate.der).unwrap_or_default(),
            former_key,
        })
    }

    fn sign_intermediate(
        &self,
        root_dir: &Path,
        root: &CertificateDer<'static>,
        root_pair: &KeyPair,
        pair: &KeyPair,
    ) -> Result<Authority, CaError> {
        let ends = examine::not_after(root).unwrap_or_default();
        let days_left = (ends - UnixTime::now().as_secs() as i64).div_euclid(86_400);
        let root_end = OffsetDateTime::from_unix_timestamp(ends).ok().filter(|_| days_left >= 1);
        let Some(root_end) = root_end else {
            return Err(CaError::RootEnds { path: root_dir.into(), when: examine::ends(days_left) });
        };
        let params = intermediate_params(&mark()?, root_end)?;
        let issuer = Issuer::from_ca_cert_der(root, root_pair).map_err(make("a signature of the root"))?;
        let signed = params.signed_by(pair, &issuer).map_err(make("the intermediate"))?;
        Ok(Authority { pem: signed.pem(), der: signed.der().clone() })
    }

    /// Writes the signing key under a name of its own.
    fn keep_former_key(&self, path: &Path, former: &Authority) -> Result<PathBuf, CaError> {
        let serial = examine::serial(&former.der).unwrap_or_default();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let kept = path.with_file_name(format!("{stem}-{}.key", &serial[..serial.len().min(8)]));
        let content = files::read(path)?;
        match write_new(&kept, &content, 0o600) {
            // An earlier call was interrupted right behind this.
            Err(CaError::Exists { .. }) if read_pair(&kept).is_ok_and(|pair| former.has_key(&pair)) => {
                Ok(kept)
            }
            outcome => outcome.map(|()| kept),
        }
    }

    /// The certificates of `ca-chain.pem`, as they stand there.
    pub(super) fn authorities(&self) -> Result<Vec<Authority>, CaError> {
        let path = self.chain_path();
        let what = "trust bundle";
        let text = match files::read(&path) {
            Ok(text) => text,
            Err(CaError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let key = self.dir.join("intermediate/intermediate.key");
                return Err(match key.exists() {
                    true => CaError::HalfMade { found: key, missing: path },
                    false => CaError::NoCa { dir: self.dir.clone(), missing: path },
                });
            }
            Err(error) => return Err(error),
        };
        let mut authorities = Vec::new();
        for pem in pem_blocks(&text, "CERTIFICATE") {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| MaterialError::Pem {
                what,
                path: path.clone(),
                reason: error.to_string(),
            })?;
            authorities.push(Authority { pem, der });
        }
        match authorities.is_empty() {
            true => Err(MaterialError::Empty { what, path, expected: "-----BEGIN CERTIFICATE-----" }.into()),
            false => Ok(authorities),
        }
    }

    /// The one of these whose key signs, ready to sign.
    pub(super) fn signer<'a>(
        &self,
        authorities: &'a [Authority],
    ) -> Result<(&'a Authority, Issuer<'static, KeyPair>), CaError> {
        let path = self.signing_key_path();
        let pair = read_pair(&path).map_err(|error| match error {
            CaError::Material(MaterialError::Unreadable { source, .. })
                if source.kind() == ErrorKind::NotFound =>
            {
                CaError::NoSigningKey { path: path.clone() }
            }
            other => other,
        })?;
        match authorities.iter().find(|authority| authority.has_key(&pair)) {
            Some(found) => {
                let issuer = Issuer::from_ca_cert_der(&found.der, pair).map_err(make("a signature"))?;
                Ok((found, issuer))
            }
            None => Err(CaError::OtherKey { key: path, certificate: self.chain_path() }),
        }
    }

    /// The key of an authority: the one that signs, or one that was kept beside it or in the CA's folder.
    pub(super) fn key_of(&self, authority: &Authority) -> Result<KeyPair, CaError> {
        let signing = self.signing_key_path();
        let stem = signing.file_stem().unwrap_or_default().to_string_lossy().into_owned() + "-";
        let keys = |folder: Option<&Path>, prefix: &str| -> Vec<PathBuf> {
            let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
            let paths = entries.flatten().map(|entry| entry.path());
            paths
                .filter(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.starts_with(prefix) && name.ends_with(".key")
                })
                .collect()
        };
        let mut places = vec![signing.clone()];
        places.extend(keys(signing.parent(), &stem));
        places.extend(keys(self.chain_path().parent(), ""));
        let mut pairs = places.iter().filter_map(|path| read_pair(path).ok());
        match pairs.find(|pair| authority.has_key(pair)) {
            Some(pair) => Ok(pair),
            None if !signing.exists() => Err(CaError::NoSigningKey { path: signing }),
            None => Err(CaError::NoFormerKey { cn: authority.cn(), signing_key: signing }),
        }
    }

    /// Held while files are changed that another call may change as well.
    pub(super) fn lock(&self) -> Result<std::fs::File, CaError> {
        // A CA that is not there is told as such.
        self.authorities()?;
        files::lock(&self.dir.join("intermediate/.lock"))
    }
}

impl Authority {
    fn has_key(&self, pair: &KeyPair) -> bool {
        examine::public_key(&self.der) == Some(pair.subject_public_key_info())
    }
}

/// The root's certificate and its key, which belong together.
fn load_root(root_dir: &Path) -> Result<(CertificateDer<'static>, KeyPair), CaError> {
    let (cert_path, key_path) = (root_dir.join("root.crt"), root_dir.join("root.key"));
    for path in [&cert_path, &key_path] {
        if !path.exists() {
            return Err(CaError::NoRoot { missing: path.clone() });
        }
    }
    let root = certificate::read_certificates("root", &cert_path)?.swap_remove(0);
    let pair = read_pair(&key_path)?;
    match examine::public_key(&root) == Some(pair.subject_public_key_info()) {
        true => Ok((root, pair)),
        false => Err(CaError::OtherKey { key: key_path, certificate: cert_path }),
    }
}

/// Without a mark of its own, every CA made here would have the same name, and a certificate of another one would
/// be "badly signed" instead of "from an unknown issuer".
fn mark() -> Result<String, CaError> {
    let mut mark = [0; 4];
    random(&mut mark)?;
    Ok(format!("{:08x}", u32::from_be_bytes(mark)))
}

fn intermediate_params(mark: &str, root_end: OffsetDateTime) -> Result<CertificateParams, CaError> {
    let end = (OffsetDateTime::now_utc() + Duration::days(INTERMEDIATE_DAYS)).min(root_end);
    authority(&format!("Mesh Intermediate CA {mark}"), end, BasicConstraints::Constrained(0))
}

fn authority(
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
