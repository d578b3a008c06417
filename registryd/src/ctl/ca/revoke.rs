//! Revocation: the lists in `crl.pem`, one for each intermediate, in the form that `proxy.crl_path` takes.
//!
//! A sidecar with lists refuses everything whose issuer none of them covers, so an intermediate without
//! revocations has an empty one. A list counts until the next one replaces it: its `nextUpdate` is the end of its
//! intermediate, because nothing here runs by the clock.

use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, MaterialError};
use mesh_shared::identity::Identity;
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::revocation_list::RevokedCertificate;

use super::authority::Authority;
use super::files::{self, pem_blocks, replace};
use super::{Ca, CaError, ErrorKind, examine, make};

/// Which certificates to revoke.
#[derive(Debug, Clone)]
pub enum Which {
    /// All of this identity that have not ended, those that were renewed since among them.
    Named(Identity),
    /// The one with this serial number (hexadecimal, with or without colons).
    Serial(String),
    /// The first one in this file.
    File(PathBuf),
}

/// A certificate that no peer with the list accepts any more.
#[derive(Debug)]
pub struct Revoked {
    /// Its common name.
    pub cn: String,
    /// Its serial number.
    pub serial: String,
    /// The file it was found in.
    pub path: PathBuf,
    /// Since when, if it was in the list already; epoch seconds.
    pub before: Option<i64>,
}

impl Ca {
    /// Enters certificates in `crl.pem`; what is in it stays in it.
    ///
    /// # Errors
    /// Nothing that fits and has not ended yet, a certificate of another CA, no key for a list that is needed.
    /// The file is replaced at once or not at all.
    pub fn revoke(&self, which: &Which) -> Result<Vec<Revoked>, CaError> {
        let _lock = self.lock()?;
        let authorities = self.authorities()?;
        let mut lists = Lists::read(&self.crl_path())?;
        let now = UnixTime::now();
        let wanted = self.find(which, now)?;
        for certificate in &wanted {
            if !authorities.iter().any(|authority| certificate.is_of(authority)) {
                return Err(CaError::NothingToRevoke(format!(
                    "{} was not issued by an intermediate in {}",
                    certificate.path.display(),
                    self.chain_path().display()
                )));
            }
        }
        let mut revoked = Vec::new();
        for authority in &authorities {
            let of_it: Vec<_> = wanted.iter().filter(|each| each.is_of(authority)).collect();
            let mut new = Vec::new();
            for each in &of_it {
                let before = lists.since(&each.issuer, &each.serial);
                if before.is_none() {
                    new.push(each.serial.as_slice());
                }
                let (cn, path) = (each.cn.clone(), each.path.clone());
                revoked.push(Revoked { cn, serial: hex(&each.serial), path, before });
            }
            let needed = !authority.is_root() && authority.days_left(now) >= 0 && !lists.covers(authority);
            if needed || !new.is_empty() {
                lists.publish(authority, &self.key_of(authority)?, &new)?;
            }
        }
        lists.keep_only(&authorities);
        replace(&self.crl_path(), &lists.text(), 0o644)?;
        Ok(revoked)
    }

    fn find(&self, which: &Which, now: UnixTime) -> Result<Vec<Issued>, CaError> {
        let nothing = |what: String| Err(CaError::NothingToRevoke(what));
        let (found, what) = match which {
            Which::File(path) => (vec![Issued::read(path)?], path.display().to_string()),
            Which::Named(identity) => {
                let mut all = self.all_issued()?;
                all.retain(|each| each.cn.parse().as_ref() == Ok(identity));
                (all, identity.to_string())
            }
            Which::Serial(serial) => {
                let digits = serial.replace(':', "").to_ascii_lowercase();
                let digits = digits.trim_start_matches('0');
                let mut all = self.all_issued()?;
                all.retain(|each| hex(&each.serial).trim_start_matches('0') == digits);
                (all, format!("serial number {serial}"))
            }
        };
        if found.is_empty() {
            return nothing(format!(
                "there is no certificate of {what} in {}; `meshctl ca list` shows those that are, and --file \
                 names one that lies elsewhere",
                self.dir.join("issued").display()
            ));
        }
        let last = found.iter().map(|each| each.not_after).max().unwrap_or_default();
        let mut running = found;
        running.retain(|each| each.not_after >= now.as_secs() as i64);
        if running.is_empty() {
            let days = (last - now.as_secs() as i64).div_euclid(86_400);
            return nothing(format!("{what} {}, so no peer accepts it anyway", examine::ends(days)));
        }
        Ok(running)
    }

    /// Every certificate in the CA's folder that can be read, those that were renewed too.
    fn all_issued(&self) -> Result<Vec<Issued>, CaError> {
        let mut all = Vec::new();
        for folder in [self.dir.join("issued"), self.superseded_dir()] {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(CaError::File { what: "read the folder", path: folder, source }),
            };
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
            all.extend(paths.iter().filter_map(|path| Issued::read(path).ok()));
        }
        Ok(all)
    }
}

/// What revoking needs to know of a certificate.
struct Issued {
    path: PathBuf,
    cn: String,
    serial: Vec<u8>,
    /// The issuer's name as DER.
    issuer: Vec<u8>,
    /// The issuer's key identifier, where it is given.
    issuer_key: Option<Vec<u8>>,
    not_after: i64,
}

impl Issued {
    fn read(path: &Path) -> Result<Self, CaError> {
        let der = certificate::read_certificates("certificate", path)?.swap_remove(0);
        let fail = |source| MaterialError::Parse { path: path.into(), source };
        let leaf = Leaf::parse(&der).map_err(fail)?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| fail(mesh_shared::certificate::LeafError::Der(error.to_string())))?;
        let issuer_key = parsed.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            path: path.into(),
            cn: leaf.common_name,
            serial: parsed.raw_serial().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            issuer_key,
            not_after: leaf.not_after,
        })
    }

    fn is_of(&self, authority: &Authority) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(&authority.der) else { return false };
        let same_key = match (&self.issuer_key, key_identifier(&parsed)) {
            (Some(one), Some(other)) => *one == other,
            _ => true,
        };
        parsed.subject().as_raw() == self.issuer && same_key
    }
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

/// The revocation lists of a file.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<List>);

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
    pub(super) fn read(path: &Path) -> Result<Self, CaError> {
        let text = match files::read(path) {
            Err(CaError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            text => text?,
        };
        let bad = |reason: String| MaterialError::Crl { path: path.into(), reason };
        let mut lists = Vec::new();
        for pem in pem_blocks(&text, "X509 CRL") {
            let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| bad(format!("not valid PEM ({error})")))?;
            let (_, parsed) = CertificateRevocationList::from_der(&der)
                .map_err(|error| bad(format!("not a revocation list ({error})")))?;
            lists.push(List {
                issuer: parsed.issuer().as_raw().to_vec(),
                entries: parsed.iter_revoked_certificates().map(entry).collect(),
                pem,
            });
        }
        Ok(Self(lists))
    }

    /// Since when the certificate with this issuer and serial number is revoked, epoch seconds.
    pub(super) fn since(&self, issuer: &[u8], serial: &[u8]) -> Option<i64> {
        let mut entries = self.0.iter().filter(|list| list.issuer == issuer).flat_map(|list| &list.entries);
        let found = entries.find(|entry| unpadded(entry.serial_number.as_ref()) == unpadded(serial))?;
        Some(found.revocation_time.unix_timestamp())
    }

    /// Whether there is a list of this authority's certificates.
    pub(super) fn covers(&self, authority: &Authority) -> bool {
        self.0.iter().any(|list| subject(&authority.der).as_deref() == Some(&list.issuer))
    }

    /// Puts a list with these serial numbers, and all that it had before, in place of the authority's old one.
    pub(super) fn publish(
        &mut self,
        authority: &Authority,
        key: &KeyPair,
        serials: &[&[u8]],
    ) -> Result<(), CaError> {
        let now = OffsetDateTime::now_utc();
        let name = subject(&authority.der).unwrap_or_default();
        let old = self.0.extract_if(.., |list| list.issuer == name);
        let mut entries: Vec<_> = old.flat_map(|list| list.entries).collect();
        entries.extend(serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }));
        let ends = examine::not_after(&authority.der).unwrap_or_default();
        let identifier = X509Certificate::from_der(&authority.der)
            .ok()
            .and_then(|(_, parsed)| key_identifier(&parsed))
            .map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
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
        let issuer = Issuer::from_ca_cert_der(&authority.der, key).map_err(make("a signature"))?;
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
    pub(super) fn keep_only(&mut self, authorities: &[Authority]) {
        let names: Vec<_> = authorities.iter().filter_map(|authority| subject(&authority.der)).collect();
        self.0.retain(|list| names.contains(&list.issuer));
    }

    /// The file's content.
    pub(super) fn text(&self) -> String {
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

fn subject(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.subject().as_raw().to_vec())
}

/// A DER integer's bytes without the zero that keeps it positive.
fn unpadded(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// A serial number as people write it.
pub(super) fn hex(serial: &[u8]) -> String {
    unpadded(serial).iter().map(|byte| format!("{byte:02x}")).collect()
}
