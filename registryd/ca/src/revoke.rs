//! Revoking certificates, and keeping the lists that say so from ending.

use std::path::{Path, PathBuf};

use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rustls::pki_types::UnixTime;

use crate::authority::Authority;
use crate::certificate::{days_until, ends};
use crate::change::Change;
use crate::error::CaError;
use crate::index::{Entry, Index, read_leaf};
use crate::lists::NewEntry;
use crate::model::Ca;
use crate::reason::Reason;
use crate::record::{Event, Issuance, Origin, Revocation};
use crate::rivetos;

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
    /// Whom it names.
    pub cn: String,
    /// Its serial number.
    pub serial: String,
    /// The file it was found in; the index may know one whose file is gone.
    pub path: Option<PathBuf>,
    /// Since when, if it was in the list already; epoch seconds.
    pub before: Option<i64>,
}

/// What [`Ca::refresh_lists`] did.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// The common names of the authorities whose lists were signed again.
    pub signed: Vec<String>,
    /// Those whose lists should have been and could not, and why.
    pub failed: Vec<(String, CaError)>,
}

impl Ca {
    /// Enters certificates in `crl.pem`, in lists that count for so many days; what is in them stays in them.
    ///
    /// # Errors
    /// Nothing that fits and has not ended yet, a certificate of another CA, no key for a list that is needed.
    /// The file is replaced at once or not at all.
    pub fn revoke(&self, which: &Which, reason: Reason, days: u32) -> Result<Vec<Revoked>, CaError> {
        let mut change = self.change()?;
        let now = UnixTime::now();
        if let Which::File(path) = which {
            self.take_in(&mut change, path)?;
        }
        let wanted = self.find(&change.index, &change.authorities, which, now)?;
        let at = now.as_secs() as i64;
        let (mut revoked, mut events) = (Vec::new(), Vec::new());
        let authorities = std::mem::take(&mut change.authorities);
        for authority in authorities.iter().filter(|authority| issues(authority)) {
            let mut new = owed(&change, authority, &authorities);
            for entry in wanted.iter().filter(|entry| is_of(entry, authority, &authorities)) {
                let before = change.lists.find(&authority.certificate.subject, &entry.serial());
                if before.is_none() {
                    new.retain(|owed| owed.serial != entry.serial());
                    new.push(NewEntry { serial: entry.serial(), at, reason });
                    events.push(Event::Revoked(Revocation::of(&entry.issuance, at, reason, &self.actor())));
                }
                revoked.push(Revoked {
                    cn: entry.issuance.name.clone(),
                    serial: entry.issuance.serial.clone(),
                    path: entry.path.clone(),
                    before: before.map(|(since, _)| since),
                });
            }
            let needed = authority.certificate.days_left(now) >= 0 && !change.lists.covers(authority);
            if needed || !new.is_empty() {
                change.lists.publish(authority, &self.key_of(authority)?, &new, days)?;
            }
        }
        change.lists.keep_only(&authorities);
        // First the books: a list that openssl makes from them meanwhile has to have it too. Last the index, which takes from the
        // list what it lacks.
        let issuances: Vec<_> = wanted.iter().map(|entry| &entry.issuance).collect();
        rivetos::mark_revoked(&self.dir, &issuances, reason)?;
        self.write_lists(&change.lists)?;
        change.record(&events)?;
        Ok(revoked)
    }

    /// Signs the lists again that have half their life behind them, for so many days; also one that is missing, or lacks what
    /// the index says is revoked. Nothing where there are no lists at all.
    ///
    /// # Errors
    /// The folder cannot be read or written. A list whose key is not here keeps none of the others from it.
    pub fn refresh_lists(&self, days: u32) -> Result<Refreshed, CaError> {
        let mut change = self.change()?;
        let mut refreshed = Refreshed::default();
        if !self.crl_paths().iter().any(|path| path.exists()) {
            return Ok(refreshed);
        }
        let now = UnixTime::now();
        let authorities = std::mem::take(&mut change.authorities);
        for authority in authorities.iter().filter(|authority| issues(authority)) {
            if authority.certificate.days_left(now) < 0 {
                continue;
            }
            let owed = owed(&change, authority, &authorities);
            if owed.is_empty() && !change.lists.is_due(authority, now) {
                continue;
            }
            let signed =
                self.key_of(authority).and_then(|key| change.lists.publish(authority, &key, &owed, days));
            let cn = authority.certificate.shown();
            match signed {
                Ok(()) => refreshed.signed.push(cn),
                Err(error) => refreshed.failed.push((cn, error)),
            }
        }
        if !refreshed.signed.is_empty() {
            change.lists.keep_only(&authorities);
            self.write_lists(&change.lists)?;
        }
        Ok(refreshed)
    }

    /// When the first of the lists that count ends, epoch seconds; `None` where there are none.
    ///
    /// # Errors
    /// There is no CA, or a list cannot be read.
    pub fn lists_end(&self) -> Result<Option<i64>, CaError> {
        let (lists, now) = (self.lists()?, UnixTime::now());
        let authorities = self.authorities()?;
        let counting = authorities.iter().filter(|each| issues(each) && each.certificate.days_left(now) >= 0);
        Ok(counting.filter_map(|authority| lists.end_of(authority)).min())
    }

    /// The certificates of a node's agents that peers still accept: whoever has the node may have their keys too.
    ///
    /// # Errors
    /// The folder or the lists cannot be read.
    pub fn agents_of(&self, node: &NodeName) -> Result<Vec<Identity>, CaError> {
        let (authorities, now) = (self.authorities()?, UnixTime::now());
        let mut agents: Vec<Identity> = Vec::new();
        for entry in self.survey(&authorities, &self.lists()?)?.0.entries {
            let Some(identity @ Identity::Agent(..)) = entry.identity() else { continue };
            let works =
                !entry.has_ended(now) && entry.revoked.is_none() && entry.authority(&authorities).is_some();
            if works && identity.node() == Some(node) && !agents.contains(&identity) {
                agents.push(identity);
            }
        }
        Ok(agents)
    }

    /// Enters a certificate of this CA that is elsewhere in the index.
    fn take_in(&self, change: &mut Change<'_>, path: &Path) -> Result<(), CaError> {
        let (certificate, leaf) = read_leaf(path)?;
        let known = change.authorities.iter().any(|authority| certificate.is_of(&authority.certificate));
        if !known {
            return Err(CaError::NothingToRevoke(format!(
                "{} was not issued by an intermediate in {}",
                path.display(),
                self.chain_path().display()
            )));
        }
        match change.index.of(&certificate) {
            Some(_) => Ok(()),
            None => {
                let found = Issuance::of(&certificate, &leaf, Origin::Found, leaf.not_before, &self.actor());
                change.record(&[Event::Issued(found)])
            }
        }
    }

    fn find(
        &self,
        index: &Index,
        authorities: &[Authority],
        which: &Which,
        now: UnixTime,
    ) -> Result<Vec<Entry>, CaError> {
        let nothing = |what: String| Err(CaError::NothingToRevoke(what));
        let all = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<Entry> {
            index.entries.iter().filter(|entry| wanted(entry)).cloned().collect()
        };
        let (found, what) = match which {
            Which::File(path) => {
                let (certificate, _) = read_leaf(path)?;
                (index.of(&certificate).cloned().into_iter().collect(), path.display().to_string())
            }
            Which::Named(identity) => {
                (all(&|entry| entry.identity().as_ref() == Some(identity)), identity.to_string())
            }
            Which::Serial(serial) => {
                let digits = serial.replace(':', "").to_ascii_lowercase();
                let digits = digits.trim_start_matches('0');
                let same = |entry: &Entry| entry.issuance.serial.trim_start_matches('0') == digits;
                (all(&same), format!("serial number {serial}"))
            }
        };
        let mut running = found;
        running.retain(|entry| entry.authority(authorities).is_some());
        let last = running.iter().map(|entry| entry.issuance.not_after).max();
        let Some(last) = last else {
            return nothing(format!(
                "there is no certificate of {what} in {}; `meshctl ca list` shows those that are, and --file \
                 names one that lies elsewhere",
                self.dir.join("issued").display()
            ));
        };
        running.retain(|entry| !entry.has_ended(now));
        if running.is_empty() {
            let days = days_until(last, now);
            return nothing(format!("{what} {}, so no peer accepts it anyway", ends(days)));
        }
        Ok(running)
    }
}

/// Whether an authority signs leaves, and so has a list of its own. What is not a CA's has none, and must keep nobody from being
/// revoked.
fn issues(authority: &Authority) -> bool {
    !authority.certificate.is_root() && authority.certificate.not_a_ca.is_none()
}

fn is_of(entry: &Entry, authority: &Authority, all: &[Authority]) -> bool {
    entry.authority(all).is_some_and(|found| found.der() == authority.der())
}

/// What the index says is revoked and the list lacks: an old list was put back.
fn owed(change: &Change<'_>, authority: &Authority, all: &[Authority]) -> Vec<NewEntry> {
    let now = UnixTime::now();
    let missing = change.index.entries.iter().filter_map(|entry| {
        let revoked = entry.revoked.as_ref().filter(|_| !entry.has_ended(now))?;
        let serial = entry.serial();
        let is_owed = is_of(entry, authority, all)
            && change.lists.find(&authority.certificate.subject, &serial).is_none();
        is_owed.then_some(NewEntry { serial, at: revoked.at, reason: revoked.why })
    });
    missing.collect()
}
