//! A host that joins: what it presents is judged, and what it gets is made. All of it blocks.

use mesh_ca::{Ca, CaError, Digest, Order, SigningRequest, hex, sha256};
use mesh_shared::certificate::read_certificates;
use mesh_shared::enrolment::{EnrolRequest, Enrolled};
use mesh_shared::identity::Identity;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Office, epoch_seconds};
use crate::invites::{Claim, Rejection};
use crate::token::Secret;

/// What becomes of a request to enrol.
pub(super) enum Outcome {
    Enrolled(Box<Enrolled>),
    /// For whatever reason; the log has it.
    Refused,
    /// The fault is the CA's.
    Unavailable,
}

impl Office {
    /// Judges a request's body (`None`: it was too long or broke off) and, if all is well, issues a certificate. Each
    /// outcome is a line in the log, none of which shows the secret.
    pub(super) fn enrol(&self, body: Option<&[u8]>, from: &str) -> Outcome {
        let refused = |reason: &str| {
            tracing::warn!(target: "Enrolment", "refused from={from}: {reason}");
            Outcome::Refused
        };
        let unavailable = |who: &Identity, error: &CaError| {
            tracing::error!(target: "Enrolment", "cannot enrol {who} from={from}: {error}");
            Outcome::Unavailable
        };
        let request = body.and_then(|body| serde_json::from_slice::<EnrolRequest>(body).ok());
        let Some(request) = request else { return refused("not a request to enrol") };
        let asked = match SigningRequest::from_pem(&request.csr) {
            Ok(asked) => asked,
            Err(error) => return refused(&format!("the certificate request cannot be used: {error}")),
        };
        let who = asked.identity();
        let Some(secret) = Secret::from_text(&request.secret) else {
            return refused(&format!("{who} asked with something that is not a secret"));
        };
        let key = asked.key_digest();
        let claim = match self.invites.claim(&secret, who, &key, from, epoch_seconds()) {
            Ok(claim) => claim,
            Err(Rejection::Store(error)) => {
                tracing::error!(target: "Enrolment", "cannot enrol {who} from={from}: {error}");
                return Outcome::Unavailable;
            }
            Err(rejection) => return refused(&format!("{who} asked: {rejection}")),
        };
        let id = claim.id.clone();
        let certificate = match self.issue(&asked, &claim, from) {
            Ok(certificate) => certificate,
            Err(error @ CaError::KeyUsed) => {
                return refused(&format!("{who} asked with invitation {id}: {error}"));
            }
            Err(error) => return unavailable(who, &error),
        };
        let (bundle, trust_domain) =
            match self.ca.bundle().and_then(|bundle| Ok((bundle, self.ca.trust_domain()?))) {
                Ok(both) => both,
                Err(error) => return unavailable(who, &error),
            };
        let again = if claim.again { " again" } else { "" };
        tracing::info!(target: "Enrolment", "enrolled{again} {who} from={from} invitation={id} key={}", hex(&key));
        let here = (self.here)();
        Outcome::Enrolled(Box::new(Enrolled {
            certificate,
            chain: bundle.chain_pem,
            crl: bundle.crl_pem,
            trust_domain,
            ca_node: here.node,
            seed: here.seed,
        }))
    }

    /// The certificate for a claim, with its chain: the one that this key has got already, else a new one.
    fn issue(&self, asked: &SigningRequest, claim: &Claim, from: &str) -> Result<String, CaError> {
        let offer = &claim.offer;
        if claim.again
            && let Some(chain) = issued_before(&self.ca, &offer.identity, &asked.key_digest())
        {
            return Ok(chain);
        }
        let order = Order {
            days: offer.days,
            agents: offer.agents.clone(),
            ..Order::new(offer.identity.clone(), offer.alternative_names.clone())
        };
        let ca = self.ca.clone().acting_for(format!("invitation {} from {from}", claim.id));
        Ok(ca.sign(asked, &order)?.chain_pem)
    }
}

/// The certificate that was issued last under this name, with its chain, if it is one for this key.
pub(super) fn issued_before(ca: &Ca, identity: &Identity, key: &Digest) -> Option<String> {
    let (path, _) = ca.issued_paths(&identity.to_string());
    let chain = read_certificates("certificate", &path).ok()?;
    match key_of(&chain[0])? == *key {
        true => std::fs::read_to_string(&path).ok(),
        false => None,
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(sha256(certificate.public_key().raw))
}
