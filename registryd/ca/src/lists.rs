//! The lists in `crl.pem`, one for each intermediate, in the form that `proxy.crl_path` takes.
//!
//! A sidecar with lists refuses everything whose issuer none of them covers, so an intermediate without
//! revocations has an empty one. A list ends after days, so that nobody can hide a newer one for long by passing on an
//! older; a list that is past half of its life is signed again by [`Ca::refresh_lists`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::MaterialError;
use mesh_shared::revocation;
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls::pki_types::UnixTime;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer};
use x509_parser::revocation_list::RevokedCertificate;

use crate::authority::{Authority, BACKDATE};
use crate::certificate::unpadded;
use crate::error::{CaError, make};
use crate::files::replace;
use crate::model::Ca;
use crate::reason::Reason;
use crate::rivetos;

/// A clock that is behind by so much makes lists that are newer than the one before all the same.
const SKEW: Duration = Duration::days(1);

/// The revocation lists of a CA.
#[derive(Debug, Default)]
pub(crate) struct Lists(Vec<List>);

#[derive(Debug)]
struct List {
    /// The name of whose certificates are in it, as DER.
    issuer: Vec<u8>,
    entries: Vec<RevokedCertParams>,
    /// When it was made, epoch seconds.
    this_update: i64,
    /// When it ends, epoch seconds; `None`: never.
    next_update: Option<i64>,
    number: u128,
    pem: String,
}

/// A certificate to enter in a list.
pub(crate) struct NewEntry {
    pub(crate) serial: Vec<u8>,
    /// Since when, epoch seconds.
    pub(crate) at: i64,
    pub(crate) reason: Reason,
}

impl Lists {
    /// Reads files; one that does not exist holds none.
    ///
    /// # Errors
    /// One cannot be read: what is in it must not get lost.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, CaError> {
        let mut all = Self::default();
        for path in paths {
            for list in Self::read_one(path)?.0 {
                if !all.0.iter().any(|known| known.pem == list.pem) {
                    all.0.push(list);
                }
            }
        }
        Ok(all)
    }

    fn read_one(path: &Path) -> Result<Self, CaError> {
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
            let number = list.number.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
            let (this_update, pem) = (list.this_update, list.pem);
            let next_update = list.next_update;
            found.push(List { issuer: list.issuer, entries, this_update, next_update, number, pem });
        }
        Ok(Self(found))
    }

    /// Since when the certificate with this issuer and serial number is revoked, epoch seconds, and why.
    pub(crate) fn find(&self, issuer: &[u8], serial: &[u8]) -> Option<(i64, Reason)> {
        let mut entries = self.0.iter().filter(|list| list.issuer == issuer).flat_map(|list| &list.entries);
        let found = entries.find(|entry| unpadded(entry.serial_number.as_ref()) == unpadded(serial))?;
        Some((
            found.revocation_time.unix_timestamp(),
            found.reason_code.map_or(Reason::Unspecified, |code| Reason::of_code(code as u8)),
        ))
    }

    /// Whether there is a list of this authority's certificates.
    pub(crate) fn covers(&self, authority: &Authority) -> bool {
        self.0.iter().any(|list| authority.certificate.subject == list.issuer)
    }

    /// The newest list of this authority's certificates.
    fn newest(&self, authority: &Authority) -> Option<&List> {
        let own = self.0.iter().filter(|list| authority.certificate.subject == list.issuer);
        own.max_by_key(|list| (list.this_update, list.number))
    }

    /// When the list of this authority's certificates ends, epoch seconds.
    pub(crate) fn end_of(&self, authority: &Authority) -> Option<i64> {
        self.newest(authority)?.next_update
    }

    /// Whether this authority's list has half its life behind it, is missing, or is split among several.
    pub(crate) fn is_due(&self, authority: &Authority, now: UnixTime) -> bool {
        let several = self.0.iter().filter(|list| authority.certificate.subject == list.issuer).count() > 1;
        let Some(list) = self.newest(authority) else { return true };
        let half = list.next_update.map(|end| list.this_update + (end - list.this_update) / 2);
        several || half.is_some_and(|half| half <= now.as_secs() as i64)
    }

    /// Puts a list with these entries, and all that it had before, in place of the authority's old one. It counts for so many
    /// days, and not longer than the authority.
    pub(crate) fn publish(
        &mut self,
        authority: &Authority,
        key: &KeyPair,
        new: &[NewEntry],
        days: u32,
    ) -> Result<(), CaError> {
        let now = OffsetDateTime::now_utc();
        let name = authority.certificate.subject.clone();
        let old: Vec<_> = self.0.extract_if(.., |list| list.issuer == name).collect();
        let last = old.iter().map(|list| list.this_update).max();
        let last_number = old.iter().map(|list| list.number).max();
        let mut entries: Vec<RevokedCertParams> = Vec::new();
        for entry in old.into_iter().flat_map(|list| list.entries) {
            if !entries.iter().any(|known| known.serial_number == entry.serial_number) {
                entries.push(entry);
            }
        }
        entries.extend(new.iter().map(|new| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&new.serial),
            revocation_time: OffsetDateTime::from_unix_timestamp(new.at).unwrap_or(now),
            reason_code: new.reason.code(),
            invalidity_date: None,
        }));
        let ends = (now + Duration::days(days.into())).unix_timestamp().min(authority.certificate.not_after);
        let identifier =
            authority.certificate.subject_key.clone().map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
        // By time, so that it rises although an older folder was put back; and past the old one, which may count otherwise.
        let time = u128::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let number = last_number.map_or(time, |last| time.max(last.saturating_add(1)));
        // Sidecars take the list that was made last. One whose clock was wrong by more than that, they do not use.
        let second = now.unix_timestamp();
        let this_update = match last {
            Some(last) if last > second && last - second <= SKEW.whole_seconds() => last,
            Some(_) => second,
            // The first one counts at once also where a clock is behind, as certificates do.
            None => (now - BACKDATE).unix_timestamp(),
        };
        let params = CertificateRevocationListParams {
            this_update: OffsetDateTime::from_unix_timestamp(this_update).unwrap_or(now),
            next_update: OffsetDateTime::from_unix_timestamp(ends).unwrap_or(now),
            crl_number: SerialNumber::from_slice(unpadded(&number.to_be_bytes())),
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
        self.0.push(List { issuer: name, entries, this_update, next_update: Some(ends), number, pem });
        Ok(())
    }

    /// The highest number of all.
    pub(crate) fn last_number(&self) -> u128 {
        self.0.iter().map(|list| list.number).max().unwrap_or_default()
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

impl Ca {
    /// All lists of this CA, in whichever file.
    pub(crate) fn lists(&self) -> Result<Lists, CaError> {
        Lists::read(&self.crl_paths())
    }

    /// Writes the lists to every file that has some.
    pub(crate) fn write_lists(&self, lists: &Lists) -> Result<(), CaError> {
        for path in self.crl_paths() {
            replace(&path, &lists.text(), 0o644)?;
        }
        rivetos::keep_number(&self.dir, lists.last_number())
    }
}

fn entry(revoked: &RevokedCertificate<'_>) -> RevokedCertParams {
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(revoked.raw_serial()),
        revocation_time: time(revoked.revocation_date.timestamp()),
        reason_code: revoked.reason_code().and_then(|(_, code)| Reason::of_code(code.0).code()),
        invalidity_date: revoked.invalidity_date().map(|(_, date)| time(date.timestamp())),
    }
}
