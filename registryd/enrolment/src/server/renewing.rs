//! A member whose certificate is about to expire: it proves with the current key that it may have the next certificate. All
//! functions block.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_ca::{CaError, Digest, LEAF_DAYS, SigningRequest, hex};
use mesh_shared::certificate::{self, Leaf, MaterialError};
use mesh_shared::enrolment::{Bundle, RenewalRequest, Renewed, renewal_message};
use mesh_shared::identity::Identity;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::Office;
use super::enrolling::{issued_before, key_of};

/// Most certificates in a request: the leaf and what is between it and the root.
const MAX_CHAIN: usize = 8;
/// Nodes fetch what the CA publishes at least once in 60 s, and read it at their next look.
const SPREAD: Duration = Duration::from_secs(120);
/// Signatures that count: those that TLS 1.3 has.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Why a renewal is not granted.
pub(super) enum NotRenewed {
    /// May not. In words for whoever asks, who has proven to be a member.
    Refused(String),
    /// May, but not yet: it has renewed too often, or the nodes do not all know who would sign.
    TooSoon(Duration),
    /// The fault is the CA's; the log has it.
    Unavailable,
}

impl Office {
    /// Judges a request of the peer with this verified CN and, if all is well, issues a certificate with the same names.
    /// Each outcome is a line in the log.
    pub(super) fn renew(&self, peer: &str, body: Option<&[u8]>) -> Result<Renewed, NotRenewed> {
        let outcome = self.judge_and_renew(peer, body);
        match &outcome {
            Ok((who, key, _)) => {
                tracing::info!(target: "Enrolment", "renewed {who} peer.cn={peer} key={}", hex(key));
            }
            Err(NotRenewed::Refused(reason)) => {
                tracing::warn!(target: "Enrolment", "renewal refused peer.cn={peer}: {reason}");
            }
            Err(NotRenewed::TooSoon(wait)) => {
                tracing::warn!(
                    target: "Enrolment", "renewal refused peer.cn={peer}: too early; the next one in {} s", wait.as_secs() + 1
                );
            }
            Err(NotRenewed::Unavailable) => {}
        }
        outcome.map(|(.., renewed)| renewed)
    }

    fn judge_and_renew(
        &self,
        peer: &str,
        body: Option<&[u8]>,
    ) -> Result<(Identity, Digest, Renewed), NotRenewed> {
        let refused = |reason: String| NotRenewed::Refused(reason);
        let request: RenewalRequest = body
            .and_then(|body| serde_json::from_slice(body).ok())
            .ok_or_else(|| refused("not a request to renew".into()))?;
        let asked = SigningRequest::from_pem(&request.csr)
            .map_err(|error| refused(format!("the certificate request cannot be used: {error}")))?;
        let (old, leaf) = self.held(&request, &asked)?;
        let who = leaf.identity.clone();
        let peer: Identity = peer.parse().map_err(|error| refused(format!("the peer's {error}")))?;
        let own = peer == who;
        let of_own_agent = match (&peer, &who) {
            (Identity::Node(node), Identity::Agent(_, of)) => node == of,
            _ => false,
        };
        if !own && !of_own_agent {
            return Err(refused(format!("{peer} presents the certificate of {who}")));
        }
        if *asked.identity() != who {
            return Err(refused(format!("{who} asks for a certificate of {}", asked.identity())));
        }
        let key = asked.key_digest();
        if key_of(&old) == Some(key) {
            return Err(refused(format!(
                "{who} asks with the key that it has; each certificate is for a new one"
            )));
        }
        let certificate = match issued_before(&self.ca, &who, &key) {
            // The answer was lost.
            Some(chain) => chain,
            None => self.renew_with(&asked, &old, &leaf, &peer)?,
        };
        let Bundle { chain, crl } = self.bundle()?;
        Ok((who, key, Renewed { certificate, chain, crl }))
    }

    /// The certificate in use and what it says, once it is shown that it counts and that its key's holder asks.
    fn held(
        &self,
        request: &RenewalRequest,
        asked: &SigningRequest,
    ) -> Result<(CertificateDer<'static>, Leaf), NotRenewed> {
        let refused = |reason: String| NotRenewed::Refused(reason);
        let chain = certificates(&request.certificate)
            .ok_or_else(|| refused("the certificate in use cannot be read".into()))?;
        let certificate = chain[0].clone();
        let leaf = self.ca.accepted(chain).map_err(|error| match error {
            CaError::Material(MaterialError::Untrusted { reason, .. }) => refused(format!("the {reason}")),
            CaError::Material(MaterialError::Parse { source, .. }) => {
                refused(format!("the certificate in use cannot be read: {source}"))
            }
            error => {
                tracing::error!(target: "Enrolment", "cannot judge a renewal: {error}");
                NotRenewed::Unavailable
            }
        })?;
        let signature = STANDARD.decode(&request.signature);
        let signature = signature.map_err(|_| refused("the signature is not base64".into()))?;
        let message = renewal_message(asked.der());
        match is_signed(&certificate, SignatureScheme::from(request.scheme), &message, &signature) {
            true => Ok((certificate, leaf)),
            false => Err(refused("the request is not signed with the key of the certificate in use".into())),
        }
    }

    /// A certificate with everything that the old one has.
    fn renew_with(
        &self,
        asked: &SigningRequest,
        old: &CertificateDer<'_>,
        leaf: &Leaf,
        peer: &Identity,
    ) -> Result<String, NotRenewed> {
        let who = &leaf.identity;
        // Held until it is signed, so that no two are counted as one. The folder lets in one at a time anyway.
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = renewals.wait(who, Instant::now());
        let spreading = self.ca.spreading(SPREAD).unwrap_or_default();
        let wait = wait.max(spreading.unwrap_or_default());
        if !wait.is_zero() {
            return Err(NotRenewed::TooSoon(wait));
        }
        // As long as the one before, which began a little before it was made.
        let days = u32::try_from((leaf.not_after - leaf.not_before) / 86_400).unwrap_or(LEAF_DAYS).max(1);
        let ca = self.ca.clone().acting_for(format!("renewal by {peer}"));
        let signed = ca.sign_renewal(asked, old, days).map_err(|error| match error {
            CaError::KeyUsed | CaError::Revoked { .. } => NotRenewed::Refused(format!("{who}: {error}")),
            error => {
                tracing::error!(target: "Enrolment", "cannot renew {who}: {error}");
                NotRenewed::Unavailable
            }
        })?;
        renewals.granted(who.clone(), Instant::now());
        Ok(signed.chain_pem)
    }

    /// What every node trusts, and what is revoked.
    pub(super) fn bundle(&self) -> Result<Bundle, NotRenewed> {
        match self.ca.bundle() {
            Ok(bundle) => Ok(Bundle { chain: bundle.chain_pem, crl: bundle.crl_pem }),
            Err(error) => {
                tracing::error!(target: "Enrolment", "cannot read what the CA has published: {error}");
                Err(NotRenewed::Unavailable)
            }
        }
    }
}

fn certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = certificate::located(text).ok()?.into_iter().map(|each| each.der).collect();
    (1..=MAX_CHAIN).contains(&chain.len()).then_some(chain)
}

/// Whether the key of this certificate made the signature over the message.
fn is_signed(
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let provider = certificate::provider();
    let known = provider.signature_verification_algorithms.mapping;
    let algorithms = known.iter().filter(|(known, _)| *known == scheme && SCHEMES.contains(known));
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    algorithms
        .flat_map(|(_, algorithms)| *algorithms)
        .any(|algorithm| certificate.verify_signature(*algorithm, message, signature).is_ok())
}
