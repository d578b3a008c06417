//! A look at whoever answers for a node, where the sidecar could not connect: TCP, and a handshake that presents nothing and
//! sends nothing, to see which certificate is shown there.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_shared::certificate::provider;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a connection, and then a handshake, may take.
pub const LIMIT: Duration = Duration::from_secs(3);

/// What came of a handshake.
#[derive(Debug)]
pub enum Shown {
    /// This chain, the leaf first; nothing of it is verified.
    Chain(Vec<CertificateDer<'static>>),
    /// No certificate, for this reason.
    Nothing(String),
    /// Nothing at all within [`LIMIT`].
    Silence,
}

/// Connects.
///
/// # Errors
/// Nobody accepts; `TimedOut` after [`LIMIT`].
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(LIMIT, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Which certificate is shown to whoever asks for `name` on this connection.
pub async fn certificate(stream: TcpStream, name: ServerName<'static>) -> Shown {
    let seen = Arc::new(Seen { chain: Mutex::new(None), provider: provider() });
    let config =
        ClientConfig::builder_with_provider(seen.provider.clone()).with_safe_default_protocol_versions();
    let mut config = match config {
        // Whatever is shown is to be seen. Nothing is sent on this connection, and the certificate is judged afterwards.
        Ok(builder) => {
            builder.dangerous().with_custom_certificate_verifier(seen.clone()).with_no_client_auth()
        }
        Err(error) => return Shown::Nothing(error.to_string()),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let handshake = timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    // The other side ends a handshake without a client's certificate, but not before it has shown its own.
    if let Some(chain) = seen.chain.lock().ok().and_then(|mut chain| chain.take()) {
        return Shown::Chain(chain);
    }
    match handshake {
        Ok(Ok(_)) => Shown::Nothing("it showed no certificate".into()),
        Ok(Err(error)) => Shown::Nothing(error.to_string()),
        Err(_) => Shown::Silence,
    }
}

/// A verifier that takes any certificate and remembers it.
#[derive(Debug)]
struct Seen {
    chain: Mutex<Option<Vec<CertificateDer<'static>>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(rest).map(|each| each.clone().into_owned()).collect();
        if let Ok(mut seen) = self.chain.lock() {
            *seen = Some(chain);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
