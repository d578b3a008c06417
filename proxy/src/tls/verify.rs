//! Who the peer is: the only maker of [`PeerIdentity`].
//!
//! Both verifiers let rustls check chain, validity, usage and revocation first, then demand what the mesh
//! adds: exactly one common name, and on dialled peers the name that was dialled. They fail closed: what
//! cannot be read is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use mesh_shared::Identity;
use mesh_shared::certificate::{Leaf, LeafError, MaterialError, why_not_a_ca};
use mesh_shared::material::Material;
use mesh_shared::spiffe::SpiffeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A peer whose certificate was verified in the handshake of the connection it speaks on.
#[derive(Debug)]
pub struct PeerIdentity {
    identity: Identity,
    /// As it was presented, leaf first.
    chain: Vec<CertificateDer<'static>>,
    name: String,
    cn_header: HeaderValue,
    certificate_header: HeaderValue,
    address_header: HeaderValue,
    agent_header: Option<HeaderValue>,
}

impl PeerIdentity {
    /// The client of a connection whose handshake is complete.
    ///
    /// # Errors
    /// No certificate or an unusable one. Fails closed. Whether it is still trusted, which a resumed session does not
    /// say, is for [`ClientVerifier::still_trusts`].
    pub fn of_client(
        connection: &rustls::ServerConnection,
        verifier: &ClientVerifier,
        address: IpAddr,
    ) -> Result<Self, rustls::Error> {
        let chain = connection.peer_certificates().ok_or(rustls::Error::NoCertificatesPresented)?;
        let certificate = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let leaf = Leaf::parse_with(certificate, &verifier.spiffe).map_err(refused)?;
        let name = leaf.identity.to_string();
        // Identities hold none but visible ASCII characters, and no quotes.
        let header = |text: &str| HeaderValue::from_str(text).map_err(|_| unusable());
        let mut certificate_value = match leaf.common_name.as_str() {
            "" => "Subject=\"\"".to_owned(),
            name => format!("Subject=\"CN={name}\""),
        };
        for id in leaf.spiffe_ids.iter().filter(|id| names_itself(id, &leaf.identity)).take(MOST_URIS) {
            certificate_value.extend([";URI=", &id.to_string()]);
        }
        for dns_name in leaf.dns_names.iter().filter(|name| is_plain(name)) {
            certificate_value.extend([";DNS=", dns_name]);
        }
        Ok(Self {
            cn_header: header(&name)?,
            certificate_header: header(&certificate_value)?,
            address_header: header(&address.to_string())?,
            agent_header: match &leaf.identity {
                Identity::Agent(agent, _) => Some(header(agent.as_str())?),
                Identity::Node(_) | Identity::Device(_) => None,
            },
            chain: chain.to_vec(),
            identity: leaf.identity,
            name,
        })
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The identity as text, as in logs and in `cn` of the ping.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificates that it presented, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Value of `x-mesh-peer-cn`.
    pub fn cn_header(&self) -> HeaderValue {
        self.cn_header.clone()
    }

    /// Value of `x-forwarded-client-cert`, in Envoy's form.
    pub fn certificate_header(&self) -> HeaderValue {
        self.certificate_header.clone()
    }

    /// Value of `x-mesh-from-agent`, where the certificate is an agent's.
    pub fn agent_header(&self) -> Option<HeaderValue> {
        self.agent_header.clone()
    }

    /// Value of `x-forwarded-for`.
    pub fn address_header(&self) -> HeaderValue {
        self.address_header.clone()
    }
}

/// SPIFFE IDs that are shown of a certificate: headers have a limit.
const MOST_URIS: usize = 4;

/// Whether an ID says who `identity` is, and not which agents it may host.
fn names_itself(id: &SpiffeId, identity: &Identity) -> bool {
    id.identity().is_none_or(|named| named == *identity)
}

/// Names that cannot end a field of `x-forwarded-client-cert` early.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*".contains(&b))
}

fn unusable() -> rustls::Error {
    CertificateError::BadEncoding.into()
}

fn refused(error: LeafError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Whether a certificate is refused for having no name but SPIFFE IDs, which says more than that it lacks the dialled one.
fn lacks_a_name(error: &LeafError) -> bool {
    matches!(error, LeafError::UnknownSpiffeId(_) | LeafError::SeveralUris(_) | LeafError::NotSpiffe(_))
}

/// A certificate between the leaf and the CA that may not sign.
#[derive(Debug, thiserror::Error)]
#[error("the certificate of {name} in its chain {reason}")]
struct MayNotSign {
    name: String,
    reason: &'static str,
}

/// The certificates of a chain that may sign others, and the first that may not. webpki does not look at key usage.
fn that_may_sign<'c>(chain: &[CertificateDer<'c>]) -> (Vec<CertificateDer<'c>>, Option<MayNotSign>) {
    let (mut signing, mut other) = (Vec::with_capacity(chain.len()), None);
    for certificate in chain {
        match may_not_sign(certificate) {
            None => signing.push(certificate.clone()),
            Some(found) => other = other.or(Some(found)),
        }
    }
    (signing, other)
}

fn may_not_sign(certificate: &CertificateDer<'_>) -> Option<MayNotSign> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => {
            why_not_a_ca(&parsed).map(|reason| MayNotSign { name: parsed.subject().to_string(), reason })
        }
        Err(_) => Some(MayNotSign { name: "?".into(), reason: "cannot be parsed" }),
    }
}

/// Where no issuer was found, the certificate that might have been it is the reason.
fn blame(error: rustls::Error, other: Option<MayNotSign>) -> rustls::Error {
    match (error, other) {
        (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), Some(other)) => {
            CertificateError::Other(OtherError(Arc::new(other))).into()
        }
        (error, _) => error,
    }
}

/// The dialled peer proved to be somebody else: its certificate is valid, but not for the dialled name.
#[derive(Debug, thiserror::Error)]
#[error("it is the certificate of {found}, not of {expected}")]
pub struct WrongPeer {
    /// Whom the certificate names.
    pub found: Identity,
    /// The host name that was dialled.
    pub expected: String,
}

/// A verifier for any moment. CA certificates and revocation lists begin and end to count while nothing is read again.
struct Timed<V> {
    material: Arc<Material>,
    make: fn(&Material, UnixTime) -> Result<V, MaterialError>,
    /// For what depends on no moment: signatures, and the names of CAs.
    first: V,
    current: ArcSwap<Window<V>>,
}

/// A verifier and the time for which it is right.
struct Window<V> {
    from: u64,
    until: Option<i64>,
    verifier: V,
}

impl<V: Clone> Timed<V> {
    fn new(
        material: Arc<Material>,
        make: fn(&Material, UnixTime) -> Result<V, MaterialError>,
    ) -> Result<Self, MaterialError> {
        let now = UnixTime::now();
        let first = make(&material, now)?;
        let window =
            Window { from: now.as_secs(), until: material.next_change(now), verifier: first.clone() };
        Ok(Self { material, make, first, current: ArcSwap::from_pointee(window) })
    }

    /// The verifier that is right at `now`; fails closed where no CA certificate is valid then.
    fn at(&self, now: UnixTime) -> Result<V, rustls::Error> {
        let window = self.current.load();
        let ended = window.until.is_some_and(|end| i64::try_from(now.as_secs()).unwrap_or(i64::MAX) >= end);
        if window.from <= now.as_secs() && !ended {
            return Ok(window.verifier.clone());
        }
        let verifier = (self.make)(&self.material, now)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        let (from, until) = (now.as_secs(), self.material.next_change(now));
        self.current.store(Arc::new(Window { from, until, verifier: verifier.clone() }));
        Ok(verifier)
    }
}

impl<V> std::fmt::Debug for Timed<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timed").finish_non_exhaustive()
    }
}

/// Verifies clients of the inbound side.
#[derive(Debug)]
pub struct ClientVerifier {
    inner: Timed<Arc<dyn ClientCertVerifier>>,
    /// Whom certificates without a common name name.
    spiffe: Arc<BTreeMap<SpiffeId, Identity>>,
}

impl ClientVerifier {
    /// Judges by this trust bundle and these revocation lists, and adds the mesh's demands.
    ///
    /// # Errors
    /// A bundle or list that is not understood, or a bundle of which nothing is valid now.
    pub fn new(
        material: Arc<Material>,
        spiffe: Arc<BTreeMap<SpiffeId, Identity>>,
    ) -> Result<Self, MaterialError> {
        Ok(Self { inner: Timed::new(material, Material::client_verifier)?, spiffe })
    }

    /// Whether a connected peer would be let in now as well.
    ///
    /// # Errors
    /// Its certificate has ended or was revoked since, or its CA is no longer trusted. Fails closed.
    pub fn still_trusts(&self, peer: &PeerIdentity, now: UnixTime) -> Result<(), rustls::Error> {
        self.accepts(&peer.chain, now)
    }

    /// Whether a client with this chain would be let in; its leaf comes first.
    ///
    /// # Errors
    /// As [`ClientVerifier::still_trusts`].
    pub fn accepts(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verify_client_cert(leaf, intermediates, now).map(drop)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.first.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (signing, others) = that_may_sign(intermediates);
        let verified = self.inner.at(now)?.verify_client_cert(leaf, &signing, now);
        let verified = verified.map_err(|error| blame(error, others))?;
        Leaf::parse_with(leaf, &self.spiffe).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.first.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.first.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.first.supported_verify_schemes()
    }
}

/// Verifies servers of the outbound side: the SAN must match `<node>.mesh` and the CN name that node. A certificate without
/// a common name has a SPIFFE ID in place of both, and the configuration says that it is that node's.
#[derive(Debug)]
pub struct ServerVerifier {
    inner: Timed<Arc<WebPkiServerVerifier>>,
    spiffe: Arc<BTreeMap<SpiffeId, Identity>>,
}

impl ServerVerifier {
    /// As [`ClientVerifier::new`].
    ///
    /// # Errors
    /// As there.
    pub fn new(
        material: Arc<Material>,
        spiffe: Arc<BTreeMap<SpiffeId, Identity>>,
    ) -> Result<Self, MaterialError> {
        Ok(Self { inner: Timed::new(material, Material::server_verifier)?, spiffe })
    }

    /// What the certificate says of a peer that is connected.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, certificate: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
        Leaf::parse_with(certificate, &self.spiffe)
    }

    /// Whether a connected peer, dialled as `name`, would be accepted now as well.
    ///
    /// # Errors
    /// Its certificate or the revocation list has ended, it was revoked since, or its CA is no longer trusted. Fails closed.
    pub fn still_trusts(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verify_server_cert(leaf, intermediates, name, &[], now).map(drop)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (signing, others) = that_may_sign(intermediates);
        let verified = self.inner.at(now)?.verify_server_cert(leaf, &signing, dialled, ocsp, now);
        let parsed = Leaf::parse_with(leaf, &self.spiffe);
        let verified = match verified {
            // The name is what rustls looks at last: the chain, its validity and its revocation were in order. That the ID
            // is the dialled node's is for the comparison below.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if parsed.as_ref().map_or_else(lacks_a_name, |leaf| leaf.common_name.is_empty()) => {
                ServerCertVerified::assertion()
            }
            verified => verified.map_err(|error| blame(error, others))?,
        };
        let found = parsed.map_err(refused)?.identity;
        match &found {
            Identity::Node(node) if *dialled.to_str() == *node.mesh_host() => Ok(verified),
            _ => {
                let wrong = WrongPeer { found, expected: dialled.to_str().into_owned() };
                Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.first.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.first.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.first.supported_verify_schemes()
    }
}
