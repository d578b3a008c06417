//! The certificates that sign, and the keys that belong to them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Located, MaterialError};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, SerialNumber};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::certificate::Certificate;
use crate::error::{CaError, make};
use crate::key::{random, read_pair};
use crate::model::Ca;

/// Certificates begin this much earlier, so that a host whose clock is behind accepts them at once.
pub(crate) const BACKDATE: Duration = Duration::hours(1);

/// A certificate of `ca-chain.pem`.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    /// Its PEM block, with a final newline.
    pub(crate) pem: String,
    /// What it says.
    pub(crate) certificate: Certificate,
}

impl Authority {
    pub(crate) fn new(pem: String, der: &CertificateDer<'_>) -> Self {
        Self { pem, certificate: Certificate::of(der) }
    }

    /// The certificate itself.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        static NONE: CertificateDer<'static> = CertificateDer::from_slice(&[]);
        // `new` sets it.
        self.certificate.der.as_ref().unwrap_or(&NONE)
    }
}

impl Ca {
    /// The certificates of `ca-chain.pem`, as they stand there.
    pub(crate) fn authorities(&self) -> Result<Vec<Authority>, CaError> {
        Ok(self.located()?.into_iter().map(|each| Authority::new(each.pem, &each.der)).collect())
    }

    /// The certificates of `ca-chain.pem` with their lines.
    pub(crate) fn located(&self) -> Result<Vec<Located>, CaError> {
        let path = self.chain_path();
        let missing = |error: &MaterialError| matches!(error, MaterialError::Unreadable { source, .. } if source.kind() == ErrorKind::NotFound);
        certificate::read_located("trust bundle", &path).map_err(|error| match missing(&error) {
            false => error.into(),
            true => match self.signing_key_path() {
                key if key.starts_with(&self.dir) && key.exists() => {
                    CaError::HalfMade { found: key, missing: path }
                }
                _ => CaError::NoCa { dir: self.dir.clone(), missing: path },
            },
        })
    }

    /// How much of `spread` is left until every node has learned of the intermediate that took over from another one;
    /// `None`: they have, or it is the only one. Until then its leaves are refused here and there.
    ///
    /// # Errors
    /// There is no CA, or it cannot be read.
    pub fn spreading(&self, spread: std::time::Duration) -> Result<Option<std::time::Duration>, CaError> {
        let intermediates = self.authorities()?.into_iter().filter(|each| !each.certificate.is_root());
        if intermediates.count() < 2 {
            return Ok(None);
        }
        let path = self.chain_path();
        let changed = path.metadata().and_then(|found| found.modified());
        let changed = changed.map_err(|source| CaError::File { what: "look at", path, source })?;
        Ok(changed.elapsed().ok().and_then(|age| spread.checked_sub(age)))
    }

    /// The one of these whose key signs, ready to sign.
    pub(crate) fn signer<'a>(
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
        match authorities.iter().find(|authority| authority.certificate.has_key(&pair)) {
            Some(found) => {
                let issuer = Issuer::from_ca_cert_der(found.der(), pair).map_err(make("a signature"))?;
                Ok((found, issuer))
            }
            None => Err(CaError::OtherKey { key: path, certificate: self.chain_path() }),
        }
    }

    /// The key of an authority: the one that signs, or one that was kept next to it or in the CA's folder.
    pub(crate) fn key_of(&self, authority: &Authority) -> Result<KeyPair, CaError> {
        let signing = self.signing_key_path();
        let places = self.key_files();
        let mut pairs = places.iter().filter_map(|path| read_pair(path).ok());
        match pairs.find(|pair| authority.certificate.has_key(pair)) {
            Some(pair) => Ok(pair),
            None if !signing.exists() => Err(CaError::NoSigningKey { path: signing }),
            None => Err(CaError::NoFormerKey { cn: authority.certificate.shown(), signing_key: signing }),
        }
    }

    /// The files that may hold keys which sign: the one that does, and those next to it or in the CA's folder.
    pub(crate) fn key_files(&self) -> Vec<PathBuf> {
        let signing = self.signing_key_path();
        let stem = signing.file_stem().unwrap_or_default().to_string_lossy().into_owned() + "-";
        let keys = |folder: Option<&Path>, prefix: &str| -> Vec<PathBuf> {
            let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.retain(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(prefix) && (name.ends_with(".key") || name.ends_with(".key.new"))
            });
            paths.sort();
            paths
        };
        let mut places = vec![signing.clone()];
        places.extend(keys(signing.parent(), &stem));
        places.extend(keys(self.chain_path().parent(), ""));
        let mut known = Vec::new();
        places.retain(|path| {
            !known.contains(path) && {
                known.push(path.clone());
                true
            }
        });
        places
    }
}

/// What all certificates share. The end of validity is the caller's.
pub(crate) fn dated(name: &str) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = OffsetDateTime::now_utc() - BACKDATE;
    params.use_authority_key_identifier_extension = true;
    // RFC 5280, section 4.1.2.2: positive, at most 20 octets.
    let mut serial = [0; 20];
    random(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}
