//! Making a signing request, as a host that keeps its key does.

use std::path::Path;

use mesh_shared::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use zeroize::Zeroizing;

use crate::error::{CaError, make};
use crate::key::{KeyType, read_pair};

/// A new key and the request for a certificate of it.
pub struct NewRequest {
    /// The private key, PKCS#8 in PEM; zeroed when dropped.
    pub key_pem: Zeroizing<String>,
    /// The request in PEM.
    pub request_pem: String,
}

impl NewRequest {
    /// Makes a key and asks for a certificate of `identity` with it.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn make(identity: &Identity, key_type: KeyType) -> Result<Self, CaError> {
        let pair = key_type.generate()?;
        let request_pem = request(identity, &pair)?;
        Ok(Self { key_pem: Zeroizing::new(pair.serialize_pem()), request_pem })
    }

    /// Asks for a certificate of `identity` with the key in a file.
    ///
    /// # Errors
    /// The key cannot be read or used.
    pub fn of_key(identity: &Identity, key: &Path) -> Result<String, CaError> {
        request(identity, &read_pair(key)?)
    }
}

fn request(identity: &Identity, pair: &KeyPair) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, identity.to_string());
    params.distinguished_name = subject;
    let request = params.serialize_request(pair).map_err(make("the signing request"))?;
    request.pem().map_err(make("the signing request"))
}
