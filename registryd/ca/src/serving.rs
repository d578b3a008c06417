//! The certificate that the CA's own process shows to hosts that join, and the root by which they know it.

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::authority::{Authority, dated};
use crate::certificate::ends;
use crate::error::{CaError, make};
use crate::key::KeyType;
use crate::model::Ca;

/// The name that the certificate is for, its CN too. It names nobody in the mesh, so no sidecar takes its holder for a
/// member, and no member's certificate may hold it.
pub const ENROLMENT_NAME: &str = "enrolment.ca.mesh";

/// A certificate with its key, which are nowhere on disk.
pub struct Serving {
    /// The leaf first, then what signed it, up to the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8; zeroed when dropped.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
}

impl Ca {
    /// Makes a certificate for [`ENROLMENT_NAME`] with a key of its own, for TLS servers only.
    ///
    /// # Errors
    /// No usable CA, or an intermediate that ends within a day.
    pub fn serving_certificate(&self, days: u32) -> Result<Serving, CaError> {
        let authorities = self.authorities()?;
        let (intermediate, issuer) = self.signer(&authorities)?;
        let days_left = intermediate.certificate.days_left(UnixTime::now());
        if days_left < 1 {
            let when = ends(days_left);
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when });
        }
        let mut params = dated(ENROLMENT_NAME)?;
        params.not_after = OffsetDateTime::now_utc() + Duration::days(i64::from(days).min(days_left));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let name = ENROLMENT_NAME.try_into().map_err(make("the enrolment port's name"))?;
        params.subject_alt_names = vec![SanType::DnsName(name)];
        let pair = KeyType::default().generate()?;
        let signed = params.signed_by(&pair, &issuer).map_err(make("the enrolment port's certificate"))?;
        let mut chain = vec![signed.der().clone()];
        chain.extend(path(intermediate, &authorities).into_iter().map(|authority| authority.der().clone()));
        Ok(Serving { chain, key: Zeroizing::new(PrivateKeyDer::Pkcs8(pair.serialize_der().into())) })
    }

    /// The certificate at the top of the chain that signs, by which hosts that join know the CA. Needs no key.
    ///
    /// # Errors
    /// There is no complete CA.
    pub fn root_certificate(&self) -> Result<CertificateDer<'static>, CaError> {
        let authorities = self.authorities()?;
        // The one that signs is the first in the file; there is at least one.
        let path = authorities.first().map(|first| path(first, &authorities)).unwrap_or_default();
        path.last()
            .map(|root| root.der().clone())
            .ok_or_else(|| CaError::NoCa { dir: self.dir.clone(), missing: self.chain_path() })
    }
}

/// An authority and those above it, as far as they are known, the topmost last.
fn path<'a>(of: &'a Authority, all: &'a [Authority]) -> Vec<&'a Authority> {
    let mut path = vec![of];
    let mut current = of;
    while let Some(above) = all.iter().find(|above| {
        current.certificate.is_of(&above.certificate) && !path.iter().any(|below| below.der() == above.der())
    }) {
        path.push(above);
        current = above;
    }
    path
}
