//! Keys: their kinds, and reading one.

use std::path::Path;

use mesh_shared::certificate;
use rcgen::{KeyPair, RsaKeySize};
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::error::{CaError, make};

/// Kinds of key that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[allow(missing_docs)] // the names say it
pub enum KeyType {
    #[default]
    EcP256,
    EcP384,
    Ed25519,
    #[value(name = "rsa-2048")]
    Rsa2048,
    #[value(name = "rsa-3072")]
    Rsa3072,
    #[value(name = "rsa-4096")]
    Rsa4096,
}

impl KeyType {
    /// A new key of this kind.
    pub(crate) fn generate(self) -> Result<KeyPair, CaError> {
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        match self {
            Self::EcP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Self::EcP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Self::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Self::Rsa2048 => rsa(RsaKeySize::_2048),
            Self::Rsa3072 => rsa(RsaKeySize::_3072),
            Self::Rsa4096 => rsa(RsaKeySize::_4096),
        }
        .map_err(make("a key"))
    }

    /// The kind of a certificate's key, as far as it can be made here. A short RSA key counts as the shortest
    /// that peers accept.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let key = certificate.public_key();
        let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        match (key.parsed().ok()?, curve.map(|oid| oid.to_id_string()).as_deref()) {
            (PublicKey::RSA(rsa), _) => Some(match rsa.key_size() {
                ..=2048 => Self::Rsa2048,
                2049..=3072 => Self::Rsa3072,
                _ => Self::Rsa4096,
            }),
            (PublicKey::EC(_), Some("1.2.840.10045.3.1.7")) => Some(Self::EcP256),
            (PublicKey::EC(_), Some("1.3.132.0.34")) => Some(Self::EcP384),
            _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// Fills a buffer with random numbers.
pub(crate) fn random(buffer: &mut [u8]) -> Result<(), CaError> {
    certificate::provider().secure_random.fill(buffer).map_err(|_| CaError::Random)
}

/// The private key in a file.
pub(crate) fn read_pair(path: &Path) -> Result<KeyPair, CaError> {
    let der = certificate::read_key(path)?;
    KeyPair::try_from(&*der).map_err(make("a signature with this key"))
}
