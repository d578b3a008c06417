//! A certificate, parsed once: everything that the rest of this crate asks of one.

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Name;

use crate::digest;
use crate::key::KeyType;

/// What a certificate says. All fields but `der` are empty where it cannot be parsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificate {
    /// The certificate itself.
    pub(crate) der: Option<CertificateDer<'static>>,
    /// Whether it could be parsed.
    pub(crate) parsed: bool,
    /// The first common name.
    pub(crate) cn: Option<String>,
    /// The serial number's bytes.
    pub(crate) serial: Vec<u8>,
    /// The subject's name as DER.
    pub(crate) subject: Vec<u8>,
    /// The issuer's name as DER.
    pub(crate) issuer: Vec<u8>,
    /// The common name of its issuer; empty where there is none.
    pub(crate) issuer_cn: String,
    /// The identifier of its own key, where it is given.
    pub(crate) subject_key: Option<Vec<u8>>,
    /// The identifier of its issuer's key, where it is given.
    pub(crate) issuer_key: Option<Vec<u8>>,
    /// End of validity, epoch seconds.
    pub(crate) not_after: i64,
    /// The SubjectPublicKeyInfo as DER.
    pub(crate) public_key: Vec<u8>,
    /// The kind of its key, where it can be made here.
    pub(crate) key_type: Option<KeyType>,
    /// Bits of its key, if that is an RSA key.
    pub(crate) rsa_bits: Option<usize>,
    /// Why it may not sign certificates, in words that follow its name; `None`: it may.
    pub(crate) not_a_ca: Option<&'static str>,
}

impl Certificate {
    /// Parses a certificate; see [`Self::parsed`].
    pub(crate) fn of(der: &CertificateDer<'_>) -> Self {
        let der_owned = Some(der.clone().into_owned());
        let empty = Self { der: der_owned, not_a_ca: Some("cannot be parsed"), ..Self::default() };
        let Ok((_, x509)) = X509Certificate::from_der(der) else { return empty };
        let (mut subject_key, mut issuer_key) = (None, None);
        for extension in x509.iter_extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject_key = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    issuer_key = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        let rsa_bits = match x509.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => Some(key.key_size()),
            _ => None,
        };
        Self {
            parsed: true,
            cn: common_name(x509.subject()),
            serial: x509.raw_serial().to_vec(),
            subject: x509.subject().as_raw().to_vec(),
            issuer: x509.issuer().as_raw().to_vec(),
            issuer_cn: common_name(x509.issuer()).unwrap_or_default(),
            subject_key,
            issuer_key,
            not_after: x509.validity().not_after.timestamp(),
            public_key: x509.public_key().raw.to_vec(),
            key_type: KeyType::of(&x509),
            rsa_bits,
            not_a_ca: mesh_shared::certificate::why_not_a_ca(&x509),
            ..empty
        }
    }

    /// Its common name, or what stands for one.
    pub(crate) fn shown(&self) -> String {
        self.cn.clone().unwrap_or_else(|| "?".into())
    }

    /// The serial number in hexadecimal.
    pub(crate) fn serial_text(&self) -> String {
        hex(&self.serial)
    }

    /// Whole days until it ends; negative once it has.
    pub(crate) fn days_left(&self, now: UnixTime) -> i64 {
        days_until(self.not_after, now)
    }

    /// Whether it is a root: its own issuer.
    pub(crate) fn is_root(&self) -> bool {
        self.parsed && self.subject == self.issuer
    }

    /// Whether it belongs to this key.
    pub(crate) fn has_key(&self, pair: &KeyPair) -> bool {
        self.parsed && self.public_key == pair.subject_public_key_info()
    }

    /// Whether the other one issued it, as far as names and key identifiers tell.
    pub(crate) fn is_of(&self, authority: &Self) -> bool {
        let same_key = match (&self.issuer_key, &authority.subject_key) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.parsed && authority.parsed && authority.subject == self.issuer && same_key
    }
}

/// The first common name.
fn common_name(name: &X509Name<'_>) -> Option<String> {
    name.iter_common_name().next().and_then(|cn| cn.as_str().ok()).map(Into::into)
}

/// Whole days until a moment in epoch seconds; negative once it has passed.
pub(crate) fn days_until(epoch_seconds: i64, now: UnixTime) -> i64 {
    (epoch_seconds - now.as_secs() as i64).div_euclid(86_400)
}

/// So many whole days before an end, as in "ends in 9 days" or "ended 98 days ago".
pub fn ends(days_left: i64) -> String {
    match days_left {
        0 => "ends in less than a day".into(),
        1 => "ends in 1 day".into(),
        2.. => format!("ends in {days_left} days"),
        // Counted up to the next whole day, so the first day after the end is -1.
        -1 => "ended less than a day ago".into(),
        -2 => "ended 1 day ago".into(),
        _ => format!("ended {} days ago", -days_left - 1),
    }
}

/// A DER integer's bytes without the zero that keeps it positive.
pub(crate) fn unpadded(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// A serial number as people write it.
pub(crate) fn hex(serial: &[u8]) -> String {
    digest::hex(unpadded(serial))
}

/// A day as in `2026-11-24` (UTC), from epoch seconds.
pub fn day(epoch_seconds: i64) -> String {
    let format = format_description!("[year]-[month]-[day]");
    OffsetDateTime::from_unix_timestamp(epoch_seconds)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| "?".into())
}
