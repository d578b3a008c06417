//! The other side of a sidecar's mutual TLS, in the test's hands: clients that dial it, servers it dials.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Request;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_shared::certificate::provider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::agent::Example;
use crate::ca::{Ca, Issued};
use crate::web::{Answer, Body, Connection};
use crate::{loopback, within};

/// A client of a sidecar's inbound side.
pub struct Client {
    config: ClientConfig,
}

impl Client {
    /// Presents a leaf with its intermediate.
    pub fn new(ca: &Ca, identity: &Issued) -> Self {
        Self::build(ca.roots(), Some((identity.chain(), identity.key())), rustls::ALL_VERSIONS)
    }

    /// Presents a leaf alone.
    pub fn leaf_alone(ca: &Ca, identity: &Issued) -> Self {
        Self::build(ca.roots(), Some((identity.leaf(), identity.key())), rustls::ALL_VERSIONS)
    }

    /// Presents a leaf and speaks only the given versions.
    pub fn versions(ca: &Ca, identity: &Issued, versions: &[&'static SupportedProtocolVersion]) -> Self {
        Self::build(ca.roots(), Some((identity.chain(), identity.key())), versions)
    }

    /// Trusts the certificates of a PEM text and presents a leaf.
    pub fn trusting(bundle_pem: &str, identity: &Issued) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        Self::build(roots, Some((identity.chain(), identity.key())), rustls::ALL_VERSIONS)
    }

    /// Presents nothing.
    pub fn anonymous(ca: &Ca) -> Self {
        Self::build(ca.roots(), None, rustls::ALL_VERSIONS)
    }

    fn build(
        roots: RootCertStore,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((chain, key)) => builder.with_client_cert_resolver(presenting(chain, &key)),
            None => builder.with_no_client_auth(),
        };
        Self { config }
    }

    /// Offers these protocols.
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Handshakes with `<node>.mesh` at `addr`. With TLS 1.3 a refusal shows only at the first read.
    pub async fn connect(&self, addr: SocketAddr, node: &str) -> io::Result<TlsStream<TcpStream>> {
        self.over(within("connect", TcpStream::connect(addr)).await?, node).await
    }

    /// As [`Client::connect`], on a connection that is made already.
    pub async fn over(&self, stream: TcpStream, node: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(format!("{node}.mesh")).unwrap();
        let handshake = TlsConnector::from(Arc::new(self.config.clone())).connect(name, stream);
        within("TLS handshake", handshake).await
    }

    /// A connection for HTTP/1.1 requests.
    pub async fn http(&self, addr: SocketAddr, node: &str) -> Connection {
        Connection::over(self.connect(addr, node).await.unwrap()).await
    }

    /// Sends one HTTP/1.1 request and reads the answer.
    pub async fn send(&self, addr: SocketAddr, node: &str, request: Request<Body>) -> Answer {
        self.http(addr, node).await.send(request).await
    }

    /// Handshakes and sends a request, which must get no answer. Returns how it failed.
    pub async fn refused(&self, addr: SocketAddr, node: &str) -> String {
        let mut stream = match self.connect(addr, node).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        let mut answer = Vec::new();
        let outcome = within("end of a refused connection", async {
            stream
                .write_all(b"GET /api/mesh/ping HTTP/1.1\r\nhost: x.mesh\r\nconnection: close\r\n\r\n")
                .await?;
            stream.read_to_end(&mut answer).await
        })
        .await;
        assert!(answer.is_empty(), "answered: {}", crate::process::text(&answer));
        outcome.map_or_else(|error| error.to_string(), |_| "closed".into())
    }
}

/// Presents certificates as they are, however bad, also with a key that belongs to none of them.
fn presenting(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Arc<SingleCertAndKey> {
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signer)))
}

/// How a [`Peer`] behaves.
pub struct PeerOptions {
    /// What it presents.
    pub identity: Issued,
    /// The protocols it speaks, best first.
    pub alpn: Vec<&'static str>,
    /// Whose clients it accepts.
    pub clients_of: RootCertStore,
    /// The TLS versions it speaks.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// Whether it resets each connection as soon as its handshake is done.
    pub resets: bool,
}

impl PeerOptions {
    /// A good peer that speaks h2 and http/1.1.
    pub fn good(ca: &Ca, node: &str) -> Self {
        Self {
            identity: ca.node(node),
            alpn: vec!["h2", "http/1.1"],
            clients_of: ca.roots(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            resets: false,
        }
    }

    /// What does the handshakes.
    pub fn acceptor(&self) -> TlsAcceptor {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.clients_of.clone().into(), provider())
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(presenting(self.identity.chain(), &self.identity.key()));
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What was negotiated on an accepted connection.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The protocol; `None` if the client offered none.
    pub alpn: Option<String>,
    /// Whether a session was resumed.
    pub resumed: bool,
    /// The name the client asked for.
    pub server_name: Option<String>,
}

/// A mesh node's public side without a sidecar: mutual TLS with an [`Example`] directly behind it.
pub struct Peer {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it answers and saw.
    pub example: Arc<Example>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    task: JoinHandle<()>,
}

impl Peer {
    /// Listens on `addr`.
    pub async fn start(addr: SocketAddr, name: &str, options: PeerOptions) -> Self {
        let example = Example::new(name);
        let accepted: Arc<Mutex<Vec<Accepted>>> = Arc::default();
        let listener = loopback::listen(addr).await;
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(accept(
            listener,
            options.acceptor(),
            example.clone(),
            accepted.clone(),
            options.resets,
        ));
        Self { addr, example, accepted, task }
    }

    /// The connections whose handshake succeeded.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap().clone()
    }

    /// Ends it: afterwards its address is free and its connections are closed.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    example: Arc<Example>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    resets: bool,
) {
    // Aborts its tasks when it is dropped.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        example.connected();
        let (acceptor, example, accepted) = (acceptor.clone(), example.clone(), accepted.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let session = stream.get_ref().1;
            let alpn = session.alpn_protocol().map(crate::process::text);
            accepted.lock().unwrap().push(Accepted {
                alpn: alpn.clone(),
                resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                server_name: session.server_name().map(Into::into),
            });
            if resets {
                stream.get_ref().0.set_zero_linger().unwrap();
                return;
            }
            let service = service_fn(|request| example.clone().answer(request));
            let io = TokioIo::new(stream);
            if alpn.as_deref() == Some("h2") {
                let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            } else {
                let _ = http1::Builder::new().serve_connection(io, service).with_upgrades().await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
