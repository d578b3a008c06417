//! `proxy.tls`: TLS versions and groups, and mapped SPIFFE IDs.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::super::yaml::{Section, repeated};
use crate::identity::Identity;
use crate::spiffe::SpiffeId;

/// How strong a handshake has to be, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The oldest version that is accepted.
    pub min_version: TlsVersion,
    /// The groups for the key exchange, the preferred one first; at least one.
    pub groups: Vec<Group>,
    /// Whom certificates without a common name name, by the only URI in them.
    pub spiffe: BTreeMap<SpiffeId, Identity>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246; only with an extended master secret (RFC 7627).
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1.2" => Ok(Self::V1_2),
            "1.3" => Ok(Self::V1_3),
            other => Err(format!("expected 1.3 or 1.2, found {other:?}")),
        }
    }
}

/// A group for the key exchange, by its name in IANA's registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Group {
    X25519MlKem768,
    X25519,
    Secp256r1,
    Secp384r1,
}

impl Group {
    /// All of them, the preferred one first: the hybrid one is safe from quantum computers, and from flaws of ML-KEM.
    pub const ALL: [Self; 4] = [Self::X25519MlKem768, Self::X25519, Self::Secp256r1, Self::Secp384r1];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "x25519",
            Self::Secp256r1 => "secp256r1",
            Self::Secp384r1 => "secp384r1",
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|group| group.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            format!("expected one of {all}, found {text:?}")
        })
    }
}

pub(super) fn read(section: Section<'_>) -> Tls {
    let groups: Option<Vec<Group>> = section.list("groups");
    if section.is_empty("groups") || groups.as_ref().is_some_and(Vec::is_empty) {
        section.mistake("groups", "is empty, so no key could be exchanged; remove the key for all groups");
    }
    let groups = groups.unwrap_or_default();
    for (i, group) in repeated(groups.iter().map(|group| group.as_str()).enumerate().collect()) {
        section.mistake_at("groups", i, format!("{group} is listed twice"));
    }
    let min_version = section.parsed_number("min_version").unwrap_or(TlsVersion::V1_3);
    let spiffe = spiffe(&section);
    section.finish();
    Tls { min_version, groups: if groups.is_empty() { Group::ALL.into() } else { groups }, spiffe }
}

fn spiffe(section: &Section<'_>) -> BTreeMap<SpiffeId, Identity> {
    const EXPECTED: &str = "{id: \"spiffe://example.org/ns/default/sa/web\", identity: ct115}";
    let (mut known, mut ids) = (BTreeMap::new(), Vec::new());
    for (i, item) in section.sections("spiffe", EXPECTED) {
        let (id, identity): (Option<SpiffeId>, Option<Identity>) =
            (item.parsed("id"), item.parsed("identity"));
        for key in ["id", "identity"] {
            if !item.has(key) {
                item.mistake_here(format!("{key} is missing; expected {EXPECTED}"));
            }
        }
        item.finish();
        if let (Some(id), Some(identity)) = (id, identity) {
            ids.push((i, id.clone()));
            known.insert(id, identity);
        }
    }
    for (i, id) in repeated(ids) {
        section.mistake_at("spiffe", i, format!("{id} is listed twice"));
    }
    known
}
