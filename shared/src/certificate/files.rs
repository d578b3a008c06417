//! Certificates in PEM files.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::error::MaterialError;
use crate::pem::{self, Mistake};

/// Reads all certificates of a PEM file, at least one.
///
/// # Errors
/// An unreadable or malformed file, or none in it.
pub fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let located = read_located(what, path)?;
    Ok(located.into_iter().map(|located| located.der).collect())
}

/// A certificate and where it is in its file.
#[derive(Debug, Clone)]
pub struct Located {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The first line of its block, counted from 1.
    pub line: usize,
    /// Its block by itself, with a final newline.
    pub pem: String,
}

/// Reads all certificates of a PEM file, at least one, each with its place.
///
/// # Errors
/// An unreadable or malformed file, or none in it.
pub fn read_located(what: &'static str, path: &Path) -> Result<Vec<Located>, MaterialError> {
    let text = read(what, path)?;
    let located =
        located(&text).map_err(|mistake| MaterialError::Pem { what, path: path.into(), mistake })?;
    match located.is_empty() {
        true => {
            Err(MaterialError::Empty { what, path: path.into(), expected: "-----BEGIN CERTIFICATE-----" })
        }
        false => Ok(located),
    }
}

/// The certificates of a PEM text.
///
/// # Errors
/// The first block that cannot be read.
pub fn located(text: &str) -> Result<Vec<Located>, Mistake> {
    let mut located = Vec::new();
    for block in pem::blocks(text)? {
        if block.is_certificate()? {
            let der = CertificateDer::from(block.der()?.to_vec());
            located.push(Located { der, line: block.line, pem: block.text().to_string() });
        }
    }
    Ok(located)
}
/// A file's text. What is not UTF-8 in it is outside the PEM blocks, or is named as a mistake in one.
pub(crate) fn read(what: &'static str, path: &Path) -> Result<Zeroizing<String>, MaterialError> {
    let bytes = std::fs::read(path).map_err(|source| MaterialError::Unreadable {
        what,
        path: path.into(),
        source,
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            let bytes = Zeroizing::new(error.into_bytes());
            Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}
