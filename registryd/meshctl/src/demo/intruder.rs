//! Clients that must not get in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::certificate;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(10);

/// Tries to get an answer from `ct111` at `address` and returns how it was refused.
///
/// # Errors
/// It was not refused, or there was nobody to refuse it.
pub async fn refused(
    address: SocketAddr,
    roots: RootCertStore,
    credentials: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<String, String> {
    let builder = ClientConfig::builder_with_provider(certificate::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match credentials {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let signer = certificate::provider()
                .key_provider
                .load_private_key(key)
                .map_err(|error| error.to_string())?;
            // rustls itself would keep back a certificate whose issuer the server does not name.
            builder.with_client_cert_resolver(Arc::new(Insistent(Arc::new(CertifiedKey::new(chain, signer)))))
        }
    };
    tokio::time::timeout(PATIENCE, attempt(address, config))
        .await
        .map_err(|_| format!("{address} neither answered nor refused within {} s", PATIENCE.as_secs()))?
}

async fn attempt(address: SocketAddr, config: ClientConfig) -> Result<String, String> {
    let name = ServerName::try_from("ct111.mesh").map_err(|error| error.to_string())?;
    let stream =
        TcpStream::connect(address).await.map_err(|error| format!("cannot reach {address}: {error}"))?;
    let mut stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return Ok(error.to_string()),
    };
    // In TLS 1.3 the client is done before the server has seen its certificate: the refusal comes as an alert.
    let request = b"GET /api/mesh/ping HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request).await?;
        stream.read_to_end(&mut answer).await
    };
    match exchange.await {
        Err(error) if answer.is_empty() => Ok(error.to_string()),
        _ => Err(format!("it was not refused but answered with {:?}", String::from_utf8_lossy(&answer))),
    }
}

/// Shows its certificate whatever the server asks for.
#[derive(Debug)]
struct Insistent(Arc<CertifiedKey>);

impl ResolvesClientCert for Insistent {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
