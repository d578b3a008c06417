//! The CA certificates that a node trusts.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::MaterialError;
use super::files::{Located, read_located};

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
    pub(crate) fn changes(&self) -> impl Iterator<Item = i64> {
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
