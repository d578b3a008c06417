//! Signing requests (PKCS#10, RFC 2986) as the CA reads them: a host asks for a certificate without giving its key away.
//!
//! Of a request only two things count: its public key, whose holder signed it, and the identity that its CN names.
//! Everything else that it asks for is ignored.

use mesh_shared::identity::{Identity, IdentityError};
use mesh_shared::pem::{self, Mistake};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::digest::sha256;

/// The longest text that is looked at, in bytes; the longest key's request takes a third of it.
const LONGEST: usize = 16 * 1024;
/// Bits of RSA keys that peers accept.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A request whose own signature was verified: whoever made it has the private key.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    identity: Identity,
    public_key: SubjectPublicKeyInfo,
    /// SubjectPublicKeyInfo as DER.
    spki: Vec<u8>,
    der: Vec<u8>,
}

/// Why a text is not a usable request. In words that follow "the signing request".
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum RequestError {
    #[error("is longer than {LONGEST} bytes")]
    TooLong,
    #[error("cannot be read: {0}")]
    Pem(#[from] Mistake),
    #[error(
        "is missing: there must be exactly one \"-----BEGIN CERTIFICATE REQUEST-----\", and {0} were found"
    )]
    Count(usize),
    #[error("is not PKCS#10 ({0})")]
    Der(String),
    #[error("is not signed with the key that it is for")]
    Signature,
    #[error("has a key that is not accepted; use EC P-256, P-384, Ed25519, or RSA of 2048 to 8192 bits")]
    Key,
    #[error("must have exactly one common name, and has {0}")]
    CommonNames(usize),
    #[error("names nobody in the mesh: its {0}")]
    Identity(#[from] IdentityError),
}

impl SigningRequest {
    /// Reads a request in PEM, and verifies that its key signed it.
    ///
    /// # Errors
    /// Anything but one well-formed request with one common name that names an identity, for a key that peers accept.
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        if text.len() > LONGEST {
            return Err(RequestError::TooLong);
        }
        let mut blocks = pem::blocks(text)?;
        blocks.retain(|block| matches!(block.label, "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"));
        let [block] = blocks.as_slice() else { return Err(RequestError::Count(blocks.len())) };
        Self::from_der(&block.der()?)
    }

    fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|error| RequestError::Der(error.to_string()))?;
        if !rest.is_empty() {
            return Err(RequestError::Der("there is something behind it".into()));
        }
        let info = &request.certification_request_info;
        let spki = info.subject_pki.raw.to_vec();
        let public_key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| RequestError::Key)?;
        let is_accepted = match info.subject_pki.parsed() {
            Ok(PublicKey::RSA(key)) => RSA_BITS.contains(&key.key_size()),
            _ => [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519]
                .contains(&public_key.algorithm()),
        };
        // What is signed is made from the parsed key; it must be the one that the request was signed with.
        if !is_accepted || public_key.subject_public_key_info() != spki {
            return Err(RequestError::Key);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let names: Vec<_> = info.subject.iter_common_name().collect();
        let [name] = names.as_slice() else { return Err(RequestError::CommonNames(names.len())) };
        let name = name.as_str().map_err(|error| RequestError::Der(error.to_string()))?;
        Ok(Self { identity: name.parse()?, public_key, spki, der: der.to_vec() })
    }

    /// Whom the common name names. A claim: the CA signs only for whom it was told to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The SHA-256 digest of its SubjectPublicKeyInfo.
    pub fn key_digest(&self) -> [u8; 32] {
        sha256(&self.spki)
    }

    /// The request itself, over which a renewal is signed.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }

    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }
}
