//! The lists in `crl.pem`, one for each intermediate, in the form that `proxy.crl_path` takes.
//!
//! A sidecar with lists refuses everything whose issuer none of them covers, so an intermediate without
//! revocations has an empty one. A list counts until the next one replaces it: its `nextUpdate` is the end of its
//! intermediate, because nothing here runs by the clock.

use std::io::ErrorKind;
use std::path::Path;

use mesh_shared::certificate::MaterialError;
use mesh_shared::revocation;
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer};
use x509_parser::revocation_list::RevokedCertificate;

use crate::authority::Authority;
use crate::certificate::unpadded;
use crate::error::{CaError, make};

/// The revocation lists of a file.
#[derive(Debug, Default)]
pub(crate) struct Lists(Vec<List>);

#[derive(Debug)]
struct List {
    /// The name of whose certificates are in it, as DER.
    issuer: Vec<u8>,
    entries: Vec<RevokedCertParams>,
    pem: String,
}

impl Lists {
    /// Reads a file; one that does not exist holds none.
    ///
    /// # Errors
    /// It cannot be read: what is in it must not get lost.
    pub(crate) fn read(path: &Path) -> Result<Self, CaError> {
        let lists = match revocation::read(path) {
            Err(MaterialError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            lists => lists?,
        };
        let bad = |reason: String| MaterialError::Crl { path: path.into(), reason };
        let mut found = Vec::new();
        for list in lists {
            let (_, parsed) = CertificateRevocationList::from_der(&list.der)
                .map_err(|error| bad(format!("not a revocation list ({error})")))?;
            let entries = parsed.iter_revoked_certificates().map(entry).collect();
            found.push(List { issuer: list.issuer, entries, pem: list.pem });
        }
        Ok(Self(found))
    }

    /// Since when the certificate with this issuer and serial number is revoked, epoch seconds.
    pub(crate) fn since(&self, issuer: &[u8], serial: &[u8]) -> Option<i64> {
        let mut entries = self.0.iter().filter(|list| list.issuer == issuer).flat_map(|list| &list.entries);
        let found = entries.find(|entry| unpadded(entry.serial_number.as_ref()) == unpadded(serial))?;
        Some(found.revocation_time.unix_timestamp())
    }

    /// Whether there is a list of this authority's certificates.
    pub(crate) fn covers(&self, authority: &Authority) -> bool {
        self.0.iter().any(|list| authority.certificate.subject == list.issuer)
    }

    /// Puts a list with these serial numbers, and all that it had before, in place of the authority's old one.
    pub(crate) fn publish(
        &mut self,
        authority: &Authority,
        key: &KeyPair,
        serials: &[&[u8]],
    ) -> Result<(), CaError> {
        let now = OffsetDateTime::now_utc();
        let name = authority.certificate.subject.clone();
        let old = self.0.extract_if(.., |list| list.issuer == name);
        let mut entries: Vec<_> = old.flat_map(|list| list.entries).collect();
        entries.extend(serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }));
        let ends = authority.certificate.not_after;
        let identifier =
            authority.certificate.subject_key.clone().map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
        // Rises from list to list, without the old one at hand.
        let number = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: OffsetDateTime::from_unix_timestamp(ends).unwrap_or(now),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: entries.clone(),
            key_identifier_method: identifier,
        };
        let issuer = Issuer::from_ca_cert_der(authority.der(), key).map_err(make("a signature"))?;
        let signed = params.signed_by(&issuer).map_err(make("the revocation list"))?;
        // Peers compare names byte by byte.
        if CertificateRevocationList::from_der(signed.der())
            .ok()
            .map(|(_, list)| list.issuer().as_raw() == name)
            != Some(true)
        {
            let source = rcgen::Error::CouldNotParseCertificate;
            return Err(CaError::Make { what: "a revocation list that names its issuer alike", source });
        }
        let pem = signed.pem().map_err(make("the revocation list"))?;
        self.0.push(List { issuer: name, entries, pem });
        Ok(())
    }

    /// Drops the lists of authorities that are not among these.
    pub(crate) fn keep_only(&mut self, authorities: &[Authority]) {
        self.0
            .retain(|list| authorities.iter().any(|authority| authority.certificate.subject == list.issuer));
    }

    /// The file's content.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|list| list.pem.as_str()).collect()
    }
}

fn entry(revoked: &RevokedCertificate<'_>) -> RevokedCertParams {
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(revoked.raw_serial()),
        revocation_time: time(revoked.revocation_date.timestamp()),
        reason_code: revoked.reason_code().and_then(|(_, code)| reason(code.0)),
        invalidity_date: revoked.invalidity_date().map(|(_, date)| time(date.timestamp())),
    }
}

fn reason(code: u8) -> Option<RevocationReason> {
    use RevocationReason::*;
    [
        KeyCompromise,
        CaCompromise,
        AffiliationChanged,
        Superseded,
        CessationOfOperation,
        CertificateHold,
        RemoveFromCrl,
        PrivilegeWithdrawn,
        AaCompromise,
    ]
    .into_iter()
    .find(|reason| *reason as u8 == code)
}
