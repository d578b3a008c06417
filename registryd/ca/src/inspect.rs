//! What is in a CA's folder, and whether peers will accept it.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_shared::certificate::{self, Leaf, MaterialError, TrustBundle};
use mesh_shared::identity::Identity;
use mesh_shared::material::{Coverage, Material};
use mesh_shared::name::AgentName;
use rustls::pki_types::UnixTime;
use serde::Serialize;

use crate::authority::Authority;
use crate::certificate::{Certificate, day, days_until, ends};
use crate::error::CaError;
use crate::index::Index;
use crate::key::read_pair;
use crate::lists::Lists;
use crate::model::{Ca, LEAF_DAYS};
use crate::reason::Reason;
use crate::record::Origin;

/// A certificate that ends within so many days deserves a word.
const SOON_DAYS: i64 = 14;
/// The same of one that signs: what it signs cannot last longer.
const AUTHORITY_SOON_DAYS: i64 = LEAF_DAYS as i64;
/// A revocation list that ends within so many days deserves one too; sidecars warn from then on.
const LIST_SOON_DAYS: i64 = 3;
/// Peers accept no shorter RSA keys.
const RSA_BITS: usize = 2048;

/// One certificate of the CA's folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examined {
    /// What it is for.
    pub kind: Kind,
    /// Its file; `None` where only the index knows it.
    pub path: Option<PathBuf>,
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
    /// Since when it is revoked, if it is.
    pub revoked: Option<RevokedSince>,
    /// How it is with it in a word.
    pub state: State,
    /// Why it cannot work; empty if it can, and if it is not to.
    pub problems: Vec<String>,
    /// What will become a problem.
    pub remarks: Vec<String>,
    /// The agents that it lets its node host.
    pub agents: Vec<AgentName>,
    /// Whether its key was made where it is used, so that its owner renews it.
    pub key_elsewhere: bool,
    /// Whom it names, if its file is named alike.
    #[serde(skip)]
    pub identity: Option<Identity>,
}

/// That a certificate is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RevokedSince {
    /// Since when, epoch seconds.
    pub at: i64,
    /// Why.
    pub why: Reason,
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

impl From<&Identity> for Kind {
    fn from(identity: &Identity) -> Self {
        match identity {
            Identity::Node(_) => Self::Node,
            Identity::Agent(..) => Self::Agent,
            Identity::Device(_) => Self::Device,
        }
    }
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
    /// It still works, and a newer one has taken its place.
    Superseded,
    /// No chain to this CA, not valid yet, or not for what it is issued for.
    Untrusted,
    /// Its file names somebody else.
    Misnamed,
    /// The key next to it is another one's.
    WrongKey,
    /// The key next to it can be read by everyone.
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
            Self::Superseded => "superseded",
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
    pub(crate) fn new(kind: Kind, path: &Path) -> Self {
        Self {
            kind,
            path: Some(path.into()),
            cn: None,
            serial: None,
            alternative_names: Vec::new(),
            not_after: None,
            days_left: None,
            revoked: None,
            state: State::Ok,
            problems: Vec::new(),
            remarks: Vec::new(),
            agents: Vec::new(),
            key_elsewhere: false,
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
        let days = days_until(not_after, now);
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

impl Examined {
    /// Notes the end of an authority whose successor signs; it is only there for what it has signed.
    fn has_successor(&mut self, not_after: i64, now: UnixTime) {
        let days = days_until(not_after, now);
        (self.not_after, self.days_left) = (Some(not_after), Some(days));
        if days < 0 {
            self.state = State::Expired;
            self.remarks.push(format!("{}, and its successor signs since", ends(days)));
        }
    }
}

impl Ca {
    /// Every certificate in the folder: those of the chain, then what was issued, by name.
    ///
    /// # Errors
    /// There is no complete CA, or the folder or the revocation list cannot be read. A certificate that is wrong
    /// is not an error here, but has `problems`.
    pub fn examine(&self, now: UnixTime) -> Result<Vec<Examined>, CaError> {
        let authorities = self.authorities()?;
        let lists = self.lists()?;
        let cas: Vec<_> = self
            .located()?
            .into_iter()
            .filter(|each| Certificate::of(&each.der).not_a_ca.is_none())
            .collect();
        let (index, _) = self.survey(&authorities, &lists)?;
        let bundle = Arc::new(TrustBundle::of(&self.chain_path(), &cas)?);
        let mut all: Vec<_> = authorities
            .iter()
            .map(|authority| examine_authority(&self.chain_path(), authority, &authorities, now))
            .collect();
        self.examine_signing_keys(&authorities, &mut all);
        if self.crl_paths().iter().any(|path| path.exists()) {
            for (authority, examined) in authorities.iter().zip(&mut all) {
                let signs = !authority.certificate.is_root() && authority.certificate.not_a_ca.is_none();
                if !signs || examined.state == State::Expired {
                    continue;
                }
                let end = lists.end_of(authority).map(|end| days_until(end, now));
                let remark = match end.filter(|days| *days < LIST_SOON_DAYS) {
                    _ if !lists.covers(authority) => {
                        "crl.pem holds no list of it, so hosts with proxy.crl_path refuse what it signed; \
                         `meshctl ca refresh-lists` adds one"
                            .into()
                    }
                    Some(days) => format!(
                        "its revocation list {}; once it has, hosts with proxy.crl_path refuse what it signed: \
                         `meshctl ca refresh-lists`, or enable mesh-ca-renew.timer",
                        ends(days)
                    ),
                    None => continue,
                };
                examined.remarks.push(remark);
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
            all.push(self.examine_issued(path, &bundle, &lists, &index, now));
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
        if !index.damaged.is_empty() {
            let lines: Vec<_> = index.damaged.iter().map(ToString::to_string).collect();
            let mut damaged = Examined::new(Kind::Unknown, &self.index_path());
            damaged.remarks.push(format!(
                "line {} cannot be read; put it right from a copy if there is one",
                lines.join(", ")
            ));
            all.push(damaged);
        }
        Ok(all)
    }

    /// Who could sign in the CA's name: the modes of the keys, and whether they can be used.
    fn examine_signing_keys(&self, authorities: &[Authority], all: &mut Vec<Examined>) {
        for path in self.key_files() {
            let Ok(found) = path.metadata() else { continue };
            let mode = found.permissions().mode() & 0o777;
            let pair = read_pair(&path);
            let owner = pair.as_ref().ok().and_then(|pair| {
                authorities.iter().position(|authority| authority.certificate.has_key(pair))
            });
            let mut alone = Examined::new(Kind::Unknown, &path);
            let examined = match owner.and_then(|owner| all.get_mut(owner)) {
                Some(examined) => examined,
                None => &mut alone,
            };
            let shown = path.display();
            if mode & 0o077 != 0 {
                examined.fail(
                    State::KeyExposed,
                    format!(
                        "the signing key {shown} is open to others than its owner (mode {mode:04o}), and whoever has it can \
                         issue for every node; chmod 600 it"
                    ),
                );
            }
            match pair {
                Ok(_) if owner.is_some_and(|owner| authorities[owner].certificate.is_root()) => examined.fail(
                    State::KeyExposed,
                    format!("the root's key is in the CA's folder ({shown}); move it to one host, or take it offline"),
                ),
                Ok(_) => {}
                Err(CaError::Material(MaterialError::Unreadable { source, .. }))
                    if source.kind() == ErrorKind::PermissionDenied =>
                {
                    examined.remarks.push(format!("the signing key {shown} was not checked (no permission)"));
                }
                Err(error) => examined.fail(State::Unreadable, error.to_string()),
            }
            if !alone.problems.is_empty() {
                all.push(alone);
            }
        }
    }

    /// [`Ca::examine_once`], again if the pair was replaced between the readings of its two files.
    fn examine_issued(
        &self,
        path: &Path,
        bundle: &Arc<TrustBundle>,
        lists: &Lists,
        index: &Index,
        now: UnixTime,
    ) -> Examined {
        let serial = || {
            Some(
                Certificate::of(certificate::read_certificates("certificate", path).ok()?.first()?)
                    .serial_text(),
            )
        };
        loop {
            let examined = self.examine_once(path, bundle, lists, index, now);
            if examined.state != State::WrongKey || examined.serial == serial() {
                return examined;
            }
        }
    }

    fn examine_once(
        &self,
        path: &Path,
        bundle: &Arc<TrustBundle>,
        lists: &Lists,
        index: &Index,
        now: UnixTime,
    ) -> Examined {
        let mut examined = Examined::new(Kind::Unknown, path);
        let loaded = || {
            let chain = certificate::read_certificates("certificate", path)?;
            let leaf = Leaf::parse(&chain[0])
                .map_err(|source| MaterialError::Parse { path: path.into(), source })?;
            let bundle = bundle.clone();
            let (cert_path, crls, coverage) = (path.into(), Vec::new(), Coverage::Optional);
            Ok::<_, MaterialError>(Material { cert_path, chain, leaf, bundle, crls, coverage })
        };
        let material = match loaded() {
            Ok(material) => material,
            Err(error) => {
                examined.fail(State::Unreadable, error.to_string());
                return examined;
            }
        };
        let leaf = &material.leaf;
        examined.kind = Kind::from(&leaf.identity);
        examined.cn = Some(leaf.common_name.clone());
        let certificate = Certificate::of(&material.chain[0]);
        examined.serial = Some(certificate.serial_text());
        examined.agents = leaf.agents();
        examined.key_elsewhere =
            index.of(&certificate).is_some_and(|entry| entry.issuance.why == Origin::Signed);
        examined.alternative_names =
            leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
        if let Some((since, reason)) = lists.find(&certificate.issuer, &certificate.serial) {
            // As it should be: nothing more is asked of it.
            examined.state = State::Revoked;
            examined.revoked = Some(RevokedSince { at: since, why: reason });
            examined.not_after = Some(leaf.not_after);
            examined.days_left = Some(leaf.days_left(now));
            examined.remarks.push(format!(
                "revoked on {}{}; `meshctl ca renew {}` gives it a new certificate, else its files can go",
                day(since),
                match reason {
                    Reason::Unspecified => String::new(),
                    reason => format!(" ({})", reason.as_str()),
                },
                leaf.identity
            ));
            return examined;
        }
        if self.issued_paths(&leaf.identity.to_string()).0 == path
            || path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).as_ref() == Some(&leaf.identity)
        {
            examined.identity = Some(leaf.identity.clone());
        }
        let (soon_days, remedy) = match examined.key_elsewhere {
            false => (SOON_DAYS, format!("`meshctl ca renew {}` it", leaf.identity)),
            true => {
                let life = (leaf.not_after - leaf.not_before) / 86_400;
                let remedy = "its owner, who has the key, has not renewed it yet";
                (SOON_DAYS.min(life / 3), remedy.to_owned())
            }
        };
        examined.ends(leaf.not_after, now, soon_days, &remedy);
        let strong = check_strength(&certificate, &mut examined);
        if examined.state != State::Expired
            && let Err(error) = material.accepted_in_its_role(now)
        {
            examined.fail(State::Untrusted, error.to_string());
        }
        if examined.identity.is_none() {
            examined.fail(
                State::Misnamed,
                format!("the file's name and the certificate's CN {} are not the same", leaf.common_name),
            );
        }
        if strong && !examined.key_elsewhere {
            examine_key(&material, &path.with_extension("key"), &mut examined);
        }
        examined
    }
}

fn examine_authority(path: &Path, authority: &Authority, all: &[Authority], now: UnixTime) -> Examined {
    let mut examined = Examined::new(Kind::Authority, path);
    let certificate = &authority.certificate;
    if !certificate.parsed {
        examined.fail(State::Unreadable, "not an X.509 certificate".into());
        return examined;
    }
    examined.cn = certificate.cn.clone();
    examined.serial = Some(certificate.serial_text());
    let not_after = certificate.not_after;
    let successor =
        |other: &Authority| !other.certificate.is_root() && other.certificate.not_after > not_after;
    let successor_root =
        |other: &Authority| other.certificate.is_root() && other.certificate.not_after > not_after;
    if certificate.is_root() {
        if all.iter().any(successor_root) {
            examined.has_successor(not_after, now);
        } else {
            let remedy = "with it ends all that it signed: `meshctl ca renew-root` makes the next one";
            examined.ends(not_after, now, AUTHORITY_SOON_DAYS, remedy);
        }
    } else if !all.iter().any(successor) {
        let remedy = "with it ends all that it signed: `meshctl ca renew-intermediate` makes the next one";
        examined.ends(not_after, now, AUTHORITY_SOON_DAYS, remedy);
    } else {
        examined.has_successor(not_after, now);
    }
    if let Some(reason) = certificate.not_a_ca {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        examined
            .fail(State::Untrusted, format!("it {reason}; take it out of {file}, no node starts with it"));
    }
    check_strength(certificate, &mut examined);
    examined
}

fn examine_key(material: &Material, key: &Path, examined: &mut Examined) {
    if !key.exists() && !certificate::fresh_key(key).exists() {
        examined.remarks.push("its key is not here".into());
        return;
    }
    if let Some(exposure) = certificate::exposure(key) {
        examined.fail(State::KeyExposed, exposure);
    }
    match material.with_key(key) {
        Ok(_) => {}
        Err(MaterialError::Unreadable { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            examined.remarks.push("its key was not checked (no permission)".into());
        }
        Err(error @ MaterialError::KeyMismatch { .. }) => examined.fail(State::WrongKey, error.to_string()),
        Err(error) => examined.fail(State::Unreadable, error.to_string()),
    }
}

/// Whether the key is long enough for peers.
fn check_strength(certificate: &Certificate, examined: &mut Examined) -> bool {
    match certificate.rsa_bits {
        Some(bits) if bits < RSA_BITS => {
            examined.fail(
                State::WeakKey,
                format!("its RSA key has {bits} bits; RSA needs {RSA_BITS} bits or more"),
            );
            false
        }
        _ => true,
    }
}
