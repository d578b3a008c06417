//! What the index records of one certificate: that it was issued, and that it was revoked.

use mesh_shared::certificate::Leaf;
use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, hex};
use crate::digest;
use crate::reason::Reason;

/// A certificate that was issued. Times are epoch seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuance {
    /// When.
    pub at: i64,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The common name of who signed it.
    pub issuer: String,
    /// The identifier of that one's key in hexadecimal, where the certificate has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_key: Option<String>,
    /// Whom it names: `ct110`, `opus@ct110`, `device:phone-1`.
    pub name: String,
    /// Start of validity.
    pub not_before: i64,
    /// End of validity.
    pub not_after: i64,
    /// SHA-256 of its SubjectPublicKeyInfo in hexadecimal.
    pub key: String,
    /// Its host names, addresses and SPIFFE IDs.
    #[serde(default)]
    pub names: Vec<String>,
    /// How it came to be.
    pub why: Origin,
    /// Who asked for it.
    #[serde(default)]
    pub by: String,
}

/// How a certificate came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Made here with its key.
    Issued,
    /// The same, in place of an earlier one.
    Renewed,
    /// Signed for a key that its owner made and kept.
    Signed,
    /// It lay in the folder.
    Found,
}

/// That a certificate was revoked. Times are epoch seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// Since when.
    pub at: i64,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// The common name of who signed it.
    pub issuer: String,
    /// The identifier of that one's key in hexadecimal, where the certificate has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_key: Option<String>,
    /// Whom it names.
    pub name: String,
    /// Why.
    pub why: Reason,
    /// Who asked for it.
    #[serde(default)]
    pub by: String,
}

/// A line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub(crate) enum Event {
    Issued(Issuance),
    Revoked(Revocation),
    /// Of a later version.
    #[serde(other)]
    Other,
}

impl Issuance {
    /// What a leaf says; `at` is when it was issued.
    pub(crate) fn of(certificate: &Certificate, leaf: &Leaf, why: Origin, at: i64, by: &str) -> Self {
        let names = leaf.dns_names.iter().cloned();
        let names = names.chain(leaf.addresses.iter().map(ToString::to_string));
        Self {
            at,
            serial: certificate.serial_text(),
            issuer: certificate.issuer_cn.clone(),
            issuer_key: certificate.issuer_key.as_deref().map(hex),
            name: leaf.identity.to_string(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            key: digest::hex(&digest::sha256(&certificate.public_key)),
            names: names.chain(leaf.spiffe_ids.iter().map(ToString::to_string)).collect(),
            why,
            by: by.into(),
        }
    }
}

impl Revocation {
    /// That the certificate of an entry was revoked.
    pub(crate) fn of(issuance: &Issuance, at: i64, why: Reason, by: &str) -> Self {
        Self {
            at,
            serial: issuance.serial.clone(),
            issuer: issuance.issuer.clone(),
            issuer_key: issuance.issuer_key.clone(),
            name: issuance.name.clone(),
            why,
            by: by.into(),
        }
    }
}
