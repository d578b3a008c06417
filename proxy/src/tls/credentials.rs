//! Certificate, key, trust bundle and revocation lists as one immutable snapshot.
//!
//! A snapshot is built whole, judged by the verifiers that peers use, and only then published; a failed
//! reload leaves the one in use as it is. Each handshake sees exactly one snapshot.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use mesh_shared::certificate::{Material, MaterialError, provider};
use mesh_shared::config::Config;
use rustls::pki_types::UnixTime;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::metrics::METRICS;
use crate::tls::verify::{ClientVerifier, ServerVerifier};

/// HTTP/2, as negotiated in TLS (RFC 9113, section 3.1).
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1, as negotiated in TLS (RFC 7301, section 6).
pub const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// Everything both directions need for TLS.
pub struct Credentials {
    /// For peers that call in: a client certificate is required and verified in the handshake.
    pub server: Arc<ServerConfig>,
    /// For calls to peers: offers h2 and http/1.1.
    pub client: Arc<ClientConfig>,
    /// For calls that need HTTP/1.1, such as protocol upgrades.
    pub client_http1: Arc<ClientConfig>,
    /// Judges peers that call in, also those that are connected already.
    pub clients: Arc<ClientVerifier>,
    /// Judges peers that are called, also those that are connected already.
    pub servers: Arc<ServerVerifier>,
    /// When each revocation list ends, epoch seconds.
    pub crl_ends: Vec<i64>,
    /// End of the own certificate's validity, epoch seconds.
    pub not_after: i64,
}

/// Why no snapshot could be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file, or what it holds.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// rustls takes none of it; the files are individually fine.
    #[error("cannot set up TLS with these certificates: {0}")]
    Tls(String),
}

impl Credentials {
    /// Reads the configured files.
    ///
    /// # Errors
    /// Whatever would make peers refuse this node, or this node unable to verify peers. Fails closed.
    pub fn load(config: &Config) -> Result<Self, CredentialsError> {
        let tls = |error: &dyn std::fmt::Display| CredentialsError::Tls(error.to_string());
        let material = Material::load(config)?;
        material.names_node(&config.mesh.node_name)?;
        material.accepted_by_peers(&config.mesh.node_name, UnixTime::now())?;
        let key = Arc::new(SingleCertAndKey::from(material.with_key(&config.mesh.tls.key_path)?));

        let clients = Arc::new(ClientVerifier::new(material.client_verifier()?));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(key.clone());
        server.alpn_protocols = vec![ALPN_H2.into(), ALPN_HTTP_1_1.into()];
        // Tickets carry the session, so resumption costs no memory here. Their keys live and die with this
        // snapshot: after a reload nobody resumes past new certificates or revocations.
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| tls(&error))?;
        server.send_tls13_tickets = 1;

        let servers = Arc::new(ServerVerifier::new(material.server_verifier()?));
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .dangerous() // rustls' word for any verifier that is not its own; ours wraps its own.
            .with_custom_certificate_verifier(servers.clone())
            .with_client_cert_resolver(key);
        client.alpn_protocols = vec![ALPN_H2.into(), ALPN_HTTP_1_1.into()];
        let mut client_http1 = client.clone();
        client_http1.alpn_protocols = vec![ALPN_HTTP_1_1.into()];

        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            client_http1: Arc::new(client_http1),
            clients,
            servers,
            crl_ends: material.crls.lists.iter().filter_map(|list| list.next_update).collect(),
            not_after: material.leaf.not_after,
        })
    }

    /// Shows in the metrics when it ends.
    fn show(&self) {
        METRICS.set_certificate_end(self.not_after);
        METRICS.set_crl_end(self.crl_ends.iter().copied().min());
    }
}

/// The snapshot in use, and word of each new one.
pub struct CredentialStore {
    current: ArcSwap<Credentials>,
    replaced: watch::Sender<()>,
}

impl CredentialStore {
    /// Starts with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        credentials.show();
        Self { current: ArcSwap::from_pointee(credentials), replaced: watch::Sender::new(()) }
    }

    /// The snapshot in use.
    pub fn load(&self) -> Guard<Arc<Credentials>> {
        self.current.load()
    }

    /// The snapshot in use, for longer than a moment.
    pub fn load_full(&self) -> Arc<Credentials> {
        self.current.load_full()
    }

    /// Uses `credentials` from now on.
    pub fn replace(&self, credentials: Credentials) {
        credentials.show();
        self.current.store(Arc::new(credentials));
        self.replaced.send_replace(());
    }

    /// Wakes at each snapshot from now on.
    pub fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}
