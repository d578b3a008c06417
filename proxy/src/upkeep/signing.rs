//! A new key, the request for its certificate, and the proof that the holder of the old one asks for it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_shared::certificate::{self, Leaf, LeafError};
use mesh_shared::enrolment::{RenewalRequest, renewal_message};
use mesh_shared::pem::Mistake;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, RsaKeySize, SignatureAlgorithm};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// How the old key may sign, the preferred way first.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// A key that has no certificate yet. It is asked for again with the same key where an answer was lost.
pub struct Wanted {
    /// PKCS#8, PEM.
    pub key: Zeroizing<String>,
    request: RenewalRequest,
}

/// Why there is no usable request or certificate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum SigningError {
    #[error("no key can be made: {0}")]
    Key(String),
    #[error("the key in use cannot sign: {0}")]
    Proof(String),
    #[error("the CA's answer cannot be read: {0}")]
    Pem(#[from] Mistake),
    #[error("the CA's answer holds no certificate")]
    Empty,
    #[error("the CA's answer holds a certificate of which {0}")]
    Leaf(#[from] LeafError),
    #[error("the CA's answer holds a certificate for another key")]
    OtherKey,
    #[error("the CA's answer holds a certificate of {0}")]
    OtherIdentity(String),
    #[error("the CA's answer lacks the name {0}, which the certificate in use has")]
    Lacks(String),
    #[error("the CA's answer holds a certificate that does not end later than the one in use")]
    NotLater,
}

impl Wanted {
    /// A key of the same type as the one in use, and a request that `used` signs. Making a key of RSA takes seconds.
    ///
    /// # Errors
    /// The key in use is of a type that nobody renews.
    pub fn new(used: &CertifiedKey, leaf: &Leaf) -> Result<Self, SigningError> {
        let failed = |error: &dyn std::fmt::Display| SigningError::Key(error.to_string());
        let pair = like(&used.cert[0])?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
        let csr = params.serialize_request(&pair).map_err(|error| failed(&error))?;
        let signer = used.key.choose_scheme(&SCHEMES);
        let signer = signer.ok_or_else(|| SigningError::Proof("it is of no type that is known".into()))?;
        let signature = signer.sign(&renewal_message(csr.der()));
        let signature = signature.map_err(|error| SigningError::Proof(error.to_string()))?;
        Ok(Self {
            key: Zeroizing::new(pair.serialize_pem()),
            request: RenewalRequest {
                certificate: used.cert.iter().map(as_pem).collect(),
                csr: csr.pem().map_err(|error| failed(&error))?,
                signature: STANDARD.encode(signature),
                scheme: u16::from(signer.scheme()),
            },
        })
    }

    /// What the CA is sent.
    pub fn request(&self) -> &RenewalRequest {
        &self.request
    }

    /// The new certificate with its key, once it says all that the one in use says, and for longer.
    ///
    /// # Errors
    /// Anything else.
    pub fn answered(&self, certificate: &str, used: &Leaf) -> Result<CertifiedKey, SigningError> {
        let chain: Vec<_> =
            certificate::located(certificate)?.into_iter().map(|located| located.der).collect();
        let leaf = Leaf::parse(chain.first().ok_or(SigningError::Empty)?)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map(Zeroizing::new);
        let key = key.map_err(|error| SigningError::Key(error.to_string()))?;
        let signer = any_supported_type(&key).map_err(|error| SigningError::Key(error.to_string()))?;
        let made = CertifiedKey::new(chain, signer);
        if made.keys_match().is_err() {
            return Err(SigningError::OtherKey);
        }
        if leaf.identity != used.identity {
            return Err(SigningError::OtherIdentity(leaf.identity.to_string()));
        }
        let names = used.dns_names.iter().filter(|name| !leaf.dns_names.contains(name)).cloned();
        let ids = used.spiffe_ids.iter().filter(|id| !leaf.spiffe_ids.contains(id)).map(ToString::to_string);
        if let Some(missing) = names.chain(ids).next() {
            return Err(SigningError::Lacks(missing));
        }
        match leaf.not_after > used.not_after {
            true => Ok(made),
            false => Err(SigningError::NotLater),
        }
    }
}

/// A new key of the type that a certificate is for.
fn like(certificate: &CertificateDer<'_>) -> Result<KeyPair, SigningError> {
    let failed = |error: &dyn std::fmt::Display| SigningError::Key(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| failed(&error))?;
    let made = match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let size = match key.key_size() {
                ..=2048 => RsaKeySize::_2048,
                2049..=3072 => RsaKeySize::_3072,
                _ => RsaKeySize::_4096,
            };
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size)
        }
        Ok(PublicKey::EC(point)) => {
            let algorithm: &SignatureAlgorithm = match point.key_size() {
                ..=256 => &rcgen::PKCS_ECDSA_P256_SHA256,
                _ => &rcgen::PKCS_ECDSA_P384_SHA384,
            };
            KeyPair::generate_for(algorithm)
        }
        // The only other one that certificates of a mesh have.
        _ => KeyPair::generate_for(&rcgen::PKCS_ED25519),
    };
    made.map_err(|error| failed(&error))
}

/// A certificate as PEM (RFC 7468).
pub fn as_pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The chain of a certificate as PEM.
pub fn chain_pem(key: &Arc<CertifiedKey>) -> String {
    key.cert.iter().map(as_pem).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{ExtendedKeyUsagePurpose, SanType};

    use super::*;

    fn leaf(key: &KeyPair, days: i64) -> (CertificateDer<'static>, Leaf) {
        let mut params = CertificateParams::new(vec!["ct110.mesh".into()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "ct110");
        params
            .subject_alt_names
            .push(SanType::URI("spiffe://mesh/node/ct110".to_owned().try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let der = params.self_signed(key).unwrap().der().clone();
        (der.clone(), Leaf::parse(&der).unwrap())
    }

    #[test]
    fn every_type_of_key_asks_for_its_like_and_takes_only_what_it_asked_for() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let old = KeyPair::generate_for(algorithm).unwrap();
            let (certificate, used) = leaf(&old, 1);
            let signer = any_supported_type(&PrivateKeyDer::try_from(old.serialize_der()).unwrap()).unwrap();
            let key = CertifiedKey::new(vec![certificate.clone()], signer);
            let wanted = Wanted::new(&key, &used).unwrap();
            let new = KeyPair::from_pem(&wanted.key).unwrap();
            assert!(new.is_compatible(algorithm));
            assert_ne!(new.public_key_raw(), old.public_key_raw());
            let (good, _) = leaf(&new, 2);
            assert!(wanted.answered(&as_pem(&good), &used).is_ok());
            let other = KeyPair::generate().unwrap();
            let error = |answer: &CertificateDer<'_>| wanted.answered(&as_pem(answer), &used).unwrap_err();
            assert!(matches!(error(&leaf(&other, 2).0), SigningError::OtherKey));
            assert!(matches!(error(&leaf(&new, 0).0), SigningError::NotLater));
            let more = Leaf { dns_names: vec!["x.mesh".into()], ..used.clone() };
            assert!(matches!(wanted.answered(&as_pem(&good), &more), Err(SigningError::Lacks(_))));
        }
    }
}
