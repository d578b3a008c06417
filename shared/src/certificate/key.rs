//! Private keys: read, and joined with their certificate. Only `mesh-proxy` (and `meshctl`, which makes them) reads any.

use std::path::{Path, PathBuf};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::{Zeroize, Zeroizing};

use super::error::MaterialError;
use super::files::read;
use crate::pem;

/// Reads the only private key of a file: PKCS#8, PKCS#1 or SEC1 in PEM. It is zeroed once it is dropped.
///
/// # Errors
/// An unreadable or malformed file, an encrypted key, several, or none in it.
pub fn read_key(path: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, MaterialError> {
    let what = "private key";
    let text = read(what, path)?;
    let fail = |mistake| MaterialError::Pem { what, path: path.into(), mistake };
    let mut blocks = pem::blocks(&text).map_err(fail)?;
    blocks.retain(pem::Block::is_private_key);
    let block = match blocks.as_slice() {
        [one] => one,
        [] => {
            let expected = "-----BEGIN PRIVATE KEY-----";
            return Err(MaterialError::Empty { what, path: path.into(), expected });
        }
        several => {
            let lines = several.iter().map(|block| block.line).collect();
            return Err(MaterialError::SeveralKeys { path: path.into(), lines });
        }
    };
    if block.is_encrypted() {
        return Err(MaterialError::EncryptedKey { path: path.into(), line: block.line });
    }
    let mut der = block.der().map_err(fail)?;
    // Moved, not copied: what stays behind is empty.
    let der = std::mem::take(&mut *der);
    Ok(Zeroizing::new(match block.label {
        "PRIVATE KEY" => PrivateKeyDer::Pkcs8(der.into()),
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(der.into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(der.into()),
        label => {
            let mut der = der;
            der.zeroize();
            let reason = format!(
                "\"{label}\" is not a form of key that can be used; write it out as PKCS#8 (`openssl pkey -in {} -out <file>`)",
                path.display()
            );
            return Err(fail(block.mistake(reason)));
        }
    }))
}

/// Where the next key waits while its certificate is put in place of the old one: two files cannot be replaced at once.
pub fn fresh_key(key: &Path) -> PathBuf {
    let mut fresh = key.as_os_str().to_owned();
    fresh.push(".new");
    fresh.into()
}

/// Joins a certificate's chain with its private key; both files are named in messages. While the two are replaced, or where that
/// was interrupted, the key is the one that [waits](fresh_key) next to it.
///
/// # Errors
/// A key that cannot be read or used, or of another certificate.
pub fn join_key(
    chain: &[CertificateDer<'static>],
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, MaterialError> {
    join_one(chain, certificate, key)
        .or_else(|error| join_one(chain, certificate, &fresh_key(key)).map_err(|_| error))
}

fn join_one(
    chain: &[CertificateDer<'static>],
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, MaterialError> {
    let fail = |reason: String| MaterialError::Key { path: key.into(), reason };
    // The signer keeps the key in aws-lc's own memory, which is zeroed when it is freed.
    let signer = any_supported_type(&*read_key(key)?)
        .map_err(|error| fail(format!("unusable ({error}); use an EC P-256, P-384, Ed25519 or RSA key")))?;
    let certified = CertifiedKey::new(chain.to_vec(), signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(MaterialError::KeyMismatch { path: key.into(), certificate: certificate.into() })
        }
        Err(error) => Err(fail(error.to_string())),
    }
}
