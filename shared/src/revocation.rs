//! Revocation lists as files, and which of several is used.
//!
//! Of all lists of one issuer only the newest counts, wherever it comes from and in whatever order they stand: an older
//! one would take revocations back. A list from the future is not used before its date.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::certificate::{self, MaterialError, TrustBundle};
use crate::pem::{self, Block, Mistake};

const WHAT: &str = "revocation list";
/// How the file is called where `meshctl ca` or RivetOS keeps it.
const FILE: &str = "crl.pem";

/// A revocation list and what it says. Its signature is checked where it is used, in the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// The list itself.
    pub der: CertificateRevocationListDer<'static>,
    /// Its block by itself, with a final newline.
    pub pem: String,
    /// The issuer's name as DER.
    pub issuer: Vec<u8>,
    /// The issuer's name as text.
    pub issuer_name: String,
    /// Which of the issuer's certificates it is about, as its extension (RFC 5280, section 5.2.5) has it; empty: all.
    pub scope: Vec<u8>,
    /// Its number, big-endian without leading zeros; empty where it has none.
    pub number: Vec<u8>,
    /// When it was made, epoch seconds.
    pub this_update: i64,
    /// When it ends, epoch seconds; `None`: never.
    pub next_update: Option<i64>,
    /// How many certificates it revokes.
    pub revoked: usize,
}

impl RevocationList {
    fn parse(block: &Block<'_>) -> Result<Self, Mistake> {
        let der = CertificateRevocationListDer::from(block.der()?.to_vec());
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| block.mistake(format!("it is not a revocation list ({error})")))?;
        if !rest.is_empty() {
            return Err(block.mistake("there is something behind the revocation list in its block"));
        }
        let number = list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
        let scope = list.extensions().iter().find(|each| each.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
        Ok(Self {
            scope: scope.map(|scope| scope.value.to_vec()).unwrap_or_default(),
            issuer: list.issuer().as_raw().to_vec(),
            issuer_name: list.issuer().to_string(),
            number: number.into_iter().skip_while(|byte| *byte == 0).collect(),
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|end| end.timestamp()),
            revoked: list.iter_revoked_certificates().count(),
            pem: block.text().to_string(),
            der,
        })
    }

    /// Whether it was signed with the key of this SubjectPublicKeyInfo. Fails closed: what cannot be read was not.
    fn is_signed_with(&self, public_key: &[u8]) -> bool {
        let verify = || {
            let (list, _) = element(&self.der)?;
            let (_, after_content) = element(list)?;
            let content = &list[..list.len() - after_content.len()];
            let (algorithm, rest) = element(after_content)?;
            let (signature, _) = element(rest)?;
            let (key, _) = element(public_key)?;
            let (key_algorithm, rest) = element(key)?;
            let (key, _) = element(rest)?;
            // Bit strings begin with the number of unused bits.
            let (signature, key) = (signature.strip_prefix(&[0])?, key.strip_prefix(&[0])?);
            let provider = certificate::provider();
            let mut fitting = provider.signature_verification_algorithms.all.iter().filter(|each| {
                each.public_key_alg_id().as_ref() == key_algorithm
                    && each.signature_alg_id().as_ref() == algorithm
            });
            fitting.any(|each| each.verify_signature(key, content, signature).is_ok()).then_some(())
        };
        verify().is_some()
    }

    /// Whether a CA of the bundle signed it that may sign lists. Fails closed: what cannot be read was not.
    pub fn is_signed_by(&self, bundle: &TrustBundle) -> bool {
        let mut issuers = bundle.anchors().iter().filter(|anchor| anchor.subject == self.issuer);
        issuers.any(|anchor| anchor.may_sign_lists && self.is_signed_with(&anchor.public_key))
    }

    /// Whether verifiers can judge by it: they refuse forms that they do not know, such as a list of differences.
    pub fn is_understood(&self, bundle: &TrustBundle) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(bundle.anchors().iter().map(|anchor| anchor.der.clone()));
        WebPkiClientVerifier::builder_with_provider(roots.into(), certificate::provider())
            .with_crls([self.der.clone()])
            .build()
            .is_ok()
    }

    /// Whether one of the two is to replace the other one.
    pub fn is_about_the_same_as(&self, other: &Self) -> bool {
        (&self.issuer, &self.scope) == (&other.issuer, &other.scope)
    }

    /// Whether it counts instead of the other one, which has the same issuer: it was made later or, in the same second,
    /// has the higher number or, without numbers, revokes more. Time comes first: numbers of other CAs
    /// than ours may begin again where a folder is restored.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let rank = |list: &Self| (list.this_update, list.number.len(), list.number.clone(), list.revoked);
        rank(self) > rank(other)
    }
}

/// The content of the first DER element, and what is behind the element.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.get(1..)?.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        // Lengths of BER that DER does not have, or too long for any list.
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Reads all revocation lists of a PEM file, at least one.
///
/// # Errors
/// An unreadable or malformed file, or none in it.
pub fn read(path: &Path) -> Result<Vec<RevocationList>, MaterialError> {
    let text = certificate::read(WHAT, path)?;
    let lists =
        parse(&text).map_err(|mistake| MaterialError::Pem { what: WHAT, path: path.into(), mistake })?;
    match lists.is_empty() {
        true => {
            let expected = "-----BEGIN X509 CRL-----";
            Err(MaterialError::Empty { what: WHAT, path: path.into(), expected })
        }
        false => Ok(lists),
    }
}

/// Where revocation lists lie that no configuration names: next to the trust bundle or, as RivetOS has them, one folder up.
pub fn beside(ca_path: &Path) -> [PathBuf; 2] {
    let folder = ca_path.parent().unwrap_or(Path::new(""));
    [folder.join(FILE), folder.join("..").join(FILE)]
}

/// The revocation lists of a PEM text.
///
/// # Errors
/// The first block that cannot be read.
pub fn parse(text: &str) -> Result<Vec<RevocationList>, Mistake> {
    let blocks = pem::blocks(text)?;
    blocks.iter().filter(|block| block.label == "X509 CRL").map(RevocationList::parse).collect()
}

/// The lists that count, and those that do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InForce {
    /// The newest list of each issuer, and of each scope where lists have one.
    pub lists: Vec<RevocationList>,
    /// Lists that say they were made in the future.
    pub coming: Vec<RevocationList>,
    /// Lists in the name of a trusted CA that this CA did not sign, or that it may not sign.
    pub forged: Vec<RevocationList>,
}

/// Of each issuer, the newest list that was made before `now`. Of one that is in the bundle, the signature is checked here, so
/// that a forged list displaces none; of others it is in the handshake.
pub fn in_force(lists: &[RevocationList], bundle: &TrustBundle, now: UnixTime) -> InForce {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut found = InForce::default();
    for list in lists {
        let in_bundle = bundle.anchors().iter().any(|anchor| anchor.subject == list.issuer);
        if in_bundle && !list.is_signed_by(bundle) {
            found.forged.push(list.clone());
        } else if list.this_update > now {
            found.coming.push(list.clone());
        } else {
            match found.lists.iter_mut().find(|known| known.is_about_the_same_as(list)) {
                Some(known) if list.is_newer_than(known) => *known = list.clone(),
                Some(_) => {}
                None => found.lists.push(list.clone()),
            }
        }
    }
    found
}

impl InForce {
    /// All that may count, now or later.
    pub fn known(self) -> Vec<RevocationList> {
        self.lists.into_iter().chain(self.coming).collect()
    }

    /// The lists as verifiers take them.
    pub fn as_der(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone()).collect()
    }

    /// How many certificates they revoke.
    pub fn revoked(&self) -> usize {
        self.lists.iter().map(|list| list.revoked).sum()
    }

    /// When the first of them ends, epoch seconds.
    pub fn first_end(&self) -> Option<i64> {
        self.lists.iter().filter_map(|list| list.next_update).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(issuer: &str, this_update: i64, number: &[u8]) -> RevocationList {
        RevocationList {
            der: CertificateRevocationListDer::from(vec![]),
            pem: String::new(),
            issuer: issuer.into(),
            issuer_name: issuer.into(),
            scope: Vec::new(),
            number: number.to_vec(),
            this_update,
            next_update: None,
            revoked: 0,
        }
    }

    #[test]
    fn of_one_issuer_the_newest_counts_in_any_order() {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(100));
        let bundle = TrustBundle::of(Path::new("none"), &[]).unwrap();
        let (old, new) = (list("a", 10, &[9]), list("a", 20, &[1]));
        let same_second = list("a", 20, &[1, 0]);
        let (other, coming) = (list("b", 5, &[1]), list("a", 101, &[9, 9, 9]));
        for all in [[&old, &new, &same_second, &other, &coming], [&coming, &other, &same_second, &new, &old]]
        {
            let mut found = in_force(&all.map(Clone::clone), &bundle, now);
            found.lists.sort_by(|one, other| one.issuer.cmp(&other.issuer));
            assert_eq!(found.lists, [same_second.clone(), other.clone()]);
            assert_eq!(found.coming, std::slice::from_ref(&coming));
        }
    }

    #[test]
    fn a_list_that_another_key_signed_displaces_none() {
        use rcgen::{
            BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
            KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
        };
        let list_of = |issuer: &Issuer<'_, KeyPair>, year| {
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(year, 1, 1),
                next_update: date_time_ymd(2090, 1, 1),
                crl_number: SerialNumber::from(1u64),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            parse(&list.signed_by(issuer).unwrap().pem().unwrap()).unwrap().remove(0)
        };
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "CA");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate_for(algorithm).unwrap();
            let der = params.self_signed(&key).unwrap().der().clone();
            let located = certificate::Located { der, line: 1, pem: String::new() };
            let bundle = TrustBundle::of(Path::new("bundle"), &[located]).unwrap();
            let good = list_of(&Issuer::new(params.clone(), key), 2025);
            let forged = list_of(&Issuer::new(params, KeyPair::generate_for(algorithm).unwrap()), 2026);
            let found = in_force(&[good.clone(), forged.clone()], &bundle, UnixTime::now());
            assert_eq!((found.lists, found.forged), (vec![good], vec![forged]));
        }
    }
}
