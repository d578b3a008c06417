//! TLS 1.3 of the enrolment port: the server shows a certificate that the CA made for it alone, the client trusts the
//! one certificate that its token names and nothing else.

use std::sync::{Arc, PoisonError, RwLock};

use mesh_ca::{Ca, CaError, Digest, sha256};
use mesh_shared::certificate::{self, Leaf};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

/// The name of the CA's process in its certificate. It is nobody's in the mesh: node names have no dots.
pub const ENROLMENT_NAME: &str = mesh_ca::ENROLMENT_NAME;
/// Validity of the certificate that the server shows, whose key is in this process alone.
const SERVING_DAYS: u32 = 7;

/// What the enrolment port shows to those who connect; a new key and certificate with each start and each renewal.
#[derive(Debug)]
pub struct Shown {
    ca: Ca,
    current: RwLock<Arc<CertifiedKey>>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum ShownError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("cannot use the enrolment port's key: {0}")]
    Key(#[from] Error),
}

impl Shown {
    /// Has the CA make a first one.
    ///
    /// # Errors
    /// The CA cannot sign.
    pub fn new(ca: Ca) -> Result<Self, ShownError> {
        let current = RwLock::new(made(&ca)?);
        Ok(Self { ca, current })
    }

    /// Has the CA make another one, in place of the old: by its key that signs now, with the chain as it is now.
    ///
    /// # Errors
    /// The CA cannot sign; the old one stays.
    pub fn renew(&self) -> Result<(), ShownError> {
        let fresh = made(&self.ca)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

fn made(ca: &Ca) -> Result<Arc<CertifiedKey>, ShownError> {
    let serving = ca.serving_certificate(SERVING_DAYS)?;
    let key = any_supported_type(&serving.key)?;
    Ok(Arc::new(CertifiedKey::new(serving.chain, key)))
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// TLS of the server. Each connection is a full handshake.
///
/// # Errors
/// Only a cryptography provider without TLS 1.3.
pub fn server_config(shown: Arc<Shown>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(certificate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS of a client that trusts the certificate with this digest to vouch for [`ENROLMENT_NAME`], and nothing else.
///
/// # Errors
/// Only a cryptography provider without TLS 1.3.
pub fn client_config(root: Digest) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(certificate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { root, provider: certificate::provider() }))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Takes the certificate with this digest out of what the server sends, and lets webpki verify the chain up to it.
/// Fails closed: without that certificate nothing is trusted.
#[derive(Debug)]
struct Pinned {
    root: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.root)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        // Whatever names it came to have, a member's certificate is not the CA's: no node may stand in for it.
        match Leaf::parse(end_entity) {
            Err(_) => Ok(verified),
            Ok(_) => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
