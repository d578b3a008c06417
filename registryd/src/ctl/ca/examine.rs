//! What lies in a CA's folder, and whether peers will accept it.

use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, Material, MaterialError};
use mesh_shared::identity::Identity;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::authority::Authority;
use super::revoke::{self, Lists};
use super::{Ca, CaError, ErrorKind, LEAF_DAYS};

/// A certificate that ends within so many days deserves a word.
const SOON_DAYS: i64 = 14;
/// The same of one that signs: what it signs cannot last longer.
const AUTHORITY_SOON_DAYS: i64 = LEAF_DAYS as i64;
/// Peers accept no shorter RSA keys.
const RSA_BITS: usize = 2048;

/// One certificate of the CA's folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examined {
    /// What it is for.
    pub kind: Kind,
    /// Its file.
    pub path: PathBuf,
    /// Its common name, where it can be read.
    pub cn: Option<String>,
    /// Its serial number in hexadecimal, where it can be read.
    pub serial: Option<String>,
    /// Its host names and addresses.
    pub alternative_names: Vec<String>,
    /// Its end, epoch seconds.
    pub not_after: Option<i64>,
    /// Whole days until then; negative once it has passed.
    pub days_left: Option<i64>,
    /// How it is with it in a word.
    pub state: State,
    /// Why it cannot work; empty if it can, and if it is not to.
    pub problems: Vec<String>,
    /// What will become a problem.
    pub remarks: Vec<String>,
    /// Whom it names, if its file is named alike.
    #[serde(skip)]
    pub identity: Option<Identity>,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it
pub enum Kind {
    Authority,
    Node,
    Agent,
    Device,
    Unknown,
}

impl Kind {
    /// The word shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Node => "node",
            Self::Agent => "agent",
            Self::Device => "device",
            Self::Unknown => "?",
        }
    }
}

/// How it is with a certificate: the first thing that keeps it from working.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Nothing does.
    Ok,
    /// Nothing does, for a few days.
    EndsSoon,
    /// Its time is over.
    Expired,
    /// It is in the revocation list.
    Revoked,
    /// No chain to this CA, not valid yet, or not for what it is issued for.
    Untrusted,
    /// Its file names somebody else.
    Misnamed,
    /// The key beside it is another one's.
    WrongKey,
    /// The key beside it can be read by everyone.
    KeyExposed,
    /// Its key is too short.
    WeakKey,
    /// It or its key cannot be read.
    Unreadable,
}

impl State {
    /// The words shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::EndsSoon => "ends soon",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Untrusted => "untrusted",
            Self::Misnamed => "misnamed",
            Self::WrongKey => "wrong key",
            Self::KeyExposed => "key exposed",
            Self::WeakKey => "weak key",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Examined {
    fn new(kind: Kind, path: &Path) -> Self {
        Self {
            kind,
            path: path.into(),
            cn: None,
            serial: None,
            alternative_names: Vec::new(),
            not_after: None,
            days_left: None,
            state: State::Ok,
            problems: Vec::new(),
            remarks: Vec::new(),
            identity: None,
        }
    }

    fn fail(&mut self, state: State, problem: String) {
        if matches!(self.state, State::Ok | State::EndsSoon) {
            self.state = state;
        }
        self.problems.push(problem);
    }

    /// Notes the end; `remedy` is what to do about one that is near or past.
    fn ends(&mut self, not_after: i64, now: UnixTime, soon_days: i64, remedy: &str) {
        let days = (not_after - now.as_secs() as i64).div_euclid(86_400);
        (self.not_after, self.days_left) = (Some(not_after), Some(days));
        let text = format!("{}; {remedy}", ends(days));
        if days < 0 {
            self.fail(State::Expired, text);
        } else if days < soon_days {
            self.state = State::EndsSoon;
            self.remarks.push(text);
        }
    }
}

/// So many whole days before an end, as in "ends in 9 days" or "ended 98 days ago".
pub(super) fn ends(days_left: i64) -> String {
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

impl Ca {
    /// Every certificate in the folder: those of the chain, then what was issued, by name.
    ///
    /// # Errors
    /// There is no complete CA, or the folder or the revocation list cannot be read. A certificate that is wrong
    /// is no error here, but has `problems`.
    pub fn examine(&self, now: UnixTime) -> Result<Vec<Examined>, CaError> {
        let authorities = self.authorities()?;
        let lists = Lists::read(&self.crl_path())?;
        let mut all: Vec<_> = authorities
            .iter()
            .map(|authority| examine_authority(&self.chain_path(), authority, &authorities, now))
            .collect();
        if self.crl_path().exists() {
            for (authority, examined) in authorities.iter().zip(&mut all) {
                if !authority.is_root() && examined.state != State::Expired && !lists.covers(authority) {
                    examined.remarks.push(
                        "crl.pem holds no list of it, so hosts with proxy.crl_path refuse what it signed; the next \
                         `meshctl ca revoke` adds one"
                            .into(),
                    );
                }
            }
        }
        let folder = self.dir.join("issued");
        let fail = |source| CaError::File { what: "read the folder", path: folder.clone(), source };
        let mut issued = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            issued.push(entry.map_err(fail)?.path());
        }
        issued.sort();
        for path in issued.iter().filter(|path| path.extension().is_some_and(|ext| ext == "crt")) {
            all.push(self.examine_issued(path, &lists, now));
        }
        for key in issued.iter().filter(|path| path.extension().is_some_and(|ext| ext == "key")) {
            if !issued.contains(&key.with_extension("crt")) {
                let mut orphan = Examined::new(Kind::Unknown, key);
                orphan.fail(
                    State::Unreadable,
                    "a key without a certificate: issuing was interrupted; remove it and issue again".into(),
                );
                all.push(orphan);
            }
        }
        Ok(all)
    }

    fn examine_issued(&self, path: &Path, lists: &Lists, now: UnixTime) -> Examined {
        let mut examined = Examined::new(Kind::Unknown, path);
        let loaded = || {
            let chain = certificate::read_certificates("certificate", path)?;
            let leaf = Leaf::parse(&chain[0])
                .map_err(|source| MaterialError::Parse { path: path.into(), source })?;
            let roots = certificate::read_trust_bundle(&self.chain_path())?.into();
            Ok::<_, MaterialError>(Material { cert_path: path.into(), chain, leaf, roots, crls: Vec::new() })
        };
        let material = match loaded() {
            Ok(material) => material,
            Err(error) => {
                examined.fail(State::Unreadable, error.to_string());
                return examined;
            }
        };
        let leaf = &material.leaf;
        examined.kind = match leaf.identity {
            Identity::Node(_) => Kind::Node,
            Identity::Agent(..) => Kind::Agent,
            Identity::Device(_) => Kind::Device,
        };
        examined.cn = Some(leaf.common_name.clone());
        examined.serial = serial(&material.chain[0]);
        examined.alternative_names =
            leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
        if let Some(since) = revoked_since(&material.chain[0], lists) {
            // As it should be: nothing more is asked of it.
            examined.state = State::Revoked;
            examined.not_after = Some(leaf.not_after);
            examined.days_left = Some(leaf.days_left(now));
            examined.remarks.push(format!(
                "revoked on {}; `meshctl ca renew {}` gives it a new certificate, else its files can go",
                crate::ctl::output::day(since),
                leaf.identity
            ));
            return examined;
        }
        let named = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if named.as_ref() == Some(&leaf.identity) {
            examined.identity = named;
        }
        examined.ends(leaf.not_after, now, SOON_DAYS, &format!("`meshctl ca renew {}` it", leaf.identity));
        let strong = check_strength(&material.chain[0], &mut examined);
        if examined.state != State::Expired
            && let Err(error) = accepted(&material, now)
        {
            examined.fail(State::Untrusted, error.to_string());
        }
        if examined.identity.is_none() {
            examined.fail(
                State::Misnamed,
                format!("the file's name and the certificate's CN {} are not the same", leaf.common_name),
            );
        }
        if strong {
            examine_key(&material, &path.with_extension("key"), &mut examined);
        }
        examined
    }
}

fn examine_authority(path: &Path, authority: &Authority, all: &[Authority], now: UnixTime) -> Examined {
    let mut examined = Examined::new(Kind::Authority, path);
    let Ok((_, parsed)) = X509Certificate::from_der(&authority.der) else {
        examined.fail(State::Unreadable, "no X.509 certificate".into());
        return examined;
    };
    examined.cn = common_name(&authority.der);
    examined.serial = serial(&authority.der);
    let not_after = parsed.validity().not_after.timestamp();
    let successor =
        |other: &&Authority| !other.is_root() && super::examine::not_after(&other.der) > Some(not_after);
    if authority.is_root() {
        let remedy = "with it ends all that it signed: make a new CA with another --dir and --root-dir";
        examined.ends(not_after, now, AUTHORITY_SOON_DAYS, remedy);
    } else if all.iter().find(successor).is_none() {
        let remedy = "with it ends all that it signed: `meshctl ca renew-intermediate` makes the next one";
        examined.ends(not_after, now, AUTHORITY_SOON_DAYS, remedy);
    } else {
        // Its successor signs; this one is only there for what it has signed.
        let days = authority.days_left(now);
        (examined.not_after, examined.days_left) = (Some(not_after), Some(days));
        if days < 0 {
            examined.state = State::Expired;
            examined.remarks.push(format!("{}, and its successor signs since", ends(days)));
        }
    }
    if !parsed.is_ca() {
        examined
            .fail(State::Untrusted, "is not a CA certificate and does not belong into ca-chain.pem".into());
    }
    check_strength(&authority.der, &mut examined);
    examined
}

fn examine_key(material: &Material, key: &Path, examined: &mut Examined) {
    if !key.exists() {
        examined.remarks.push("its key is not here".into());
        return;
    }
    if let Some(exposure) = certificate::exposure(key) {
        examined.fail(State::KeyExposed, exposure);
    }
    match material.with_key(key) {
        Ok(_) => {}
        Err(MaterialError::Unreadable { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            examined.remarks.push("its key was not looked at (no permission)".into());
        }
        Err(error @ MaterialError::KeyMismatch { .. }) => examined.fail(State::WrongKey, error.to_string()),
        Err(error) => examined.fail(State::Unreadable, error.to_string()),
    }
}

/// Whether the key is long enough for peers.
fn check_strength(certificate: &CertificateDer<'_>, examined: &mut Examined) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return true };
    match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS => {
            let bits = key.key_size();
            examined.fail(
                State::WeakKey,
                format!("its RSA key has {bits} bits; RSA needs {RSA_BITS} bits or more"),
            );
            false
        }
        _ => true,
    }
}

/// Whether peers accept the certificate, in the roles that its identity has.
pub(super) fn accepted(material: &Material, now: UnixTime) -> Result<(), MaterialError> {
    match &material.leaf.identity {
        Identity::Node(node) => material.accepted_by_peers(node, now),
        Identity::Agent(..) | Identity::Device(_) => material.accepted_as_client(now),
    }
}

fn revoked_since(certificate: &CertificateDer<'_>, lists: &Lists) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    lists.since(parsed.issuer().as_raw(), parsed.raw_serial())
}

/// The first common name.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).map(Into::into)
}

/// The serial number in hexadecimal.
pub(super) fn serial(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(revoke::hex(parsed.raw_serial()))
}

/// End of validity, epoch seconds.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The SubjectPublicKeyInfo as DER.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}
