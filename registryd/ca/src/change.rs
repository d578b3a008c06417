//! What every change of a CA's folder begins with: the lock, and the end of what was interrupted.
//!
//! A certificate and its key are two files, which cannot be replaced at once. So a new key waits next to the old one under a
//! name of its own (`<name>.key.new`) while its certificate is put in place, and takes the old one's name after that. Whoever
//! reads the pair looks for a key there that fits ([`mesh_shared::certificate::join_key`]), so the pair works at every instant.

use std::fs::{self, File};
use std::path::Path;

use mesh_shared::atomic_file;
use mesh_shared::certificate::{self, fresh_key};
use rustls::pki_types::UnixTime;

use crate::authority::Authority;
use crate::certificate::Certificate;
use crate::error::CaError;
use crate::files::{self, replace, write_new};
use crate::index::Index;
use crate::key::read_pair;
use crate::lists::Lists;
use crate::lock::Lock;
use crate::model::Ca;
use crate::record::Event;

/// How long copies of certificates that have ended are kept: 30 days.
const KEPT_SECONDS: i64 = 30 * 86_400;

/// The right to change a CA's folder, and what was found in it.
pub(crate) struct Change<'c> {
    ca: &'c Ca,
    _lock: Lock,
    /// The certificates of `ca-chain.pem`.
    pub(crate) authorities: Vec<Authority>,
    pub(crate) lists: Lists,
    pub(crate) index: Index,
}

impl Ca {
    /// Waits until nobody else changes the folder, ends what was interrupted, and takes into the index what is missing there.
    pub(crate) fn change(&self) -> Result<Change<'_>, CaError> {
        let lock = self.lock()?;
        self.end_what_was_interrupted()?;
        let (authorities, lists) = (self.authorities()?, self.lists()?);
        let (mut index, missing) = self.survey(&authorities, &lists)?;
        self.append(&mut index, &missing)?;
        self.clear_superseded(&index);
        Ok(Change { ca: self, _lock: lock, authorities, lists, index })
    }

    /// Ends what was interrupted, and takes into the index what is missing there; nothing else.
    ///
    /// # Errors
    /// There is no CA, or the folder cannot be written.
    pub fn mend(&self) -> Result<(), CaError> {
        self.change().map(drop)
    }

    /// Removes copies of certificates that ended a while ago: the index knows them, and nobody has to revoke them.
    fn clear_superseded(&self, index: &Index) {
        let (folder, now) = (self.superseded_dir(), UnixTime::now().as_secs() as i64);
        for entry in &index.entries {
            if let Some(path) = entry.path.as_ref().filter(|path| path.starts_with(&folder))
                && entry.issuance.not_after < now - KEPT_SECONDS
            {
                // One that stays does no harm.
                let _ = files::remove(path).and_then(|()| files::remove(&path.with_extension("key")));
            }
        }
    }

    /// The one lock over every change of the folder: everything here that changes it takes it; see [`Lock`] for
    /// what must not be done meanwhile.
    ///
    /// # Errors
    /// There is no CA; the lock's file cannot be made; somebody has held it for a minute.
    pub(crate) fn lock(&self) -> Result<Lock, CaError> {
        // A CA that is not there is told as such.
        self.authorities()?;
        Lock::acquire(&self.dir.join("intermediate/.lock"), &self.actor())
    }

    /// Ends changes of this folder that were interrupted. Needs the lock.
    pub(crate) fn end_what_was_interrupted(&self) -> Result<(), CaError> {
        for path in files::listed(&self.dir.join("issued"))? {
            let name = path.to_string_lossy();
            if let Some(key) = name.strip_suffix(".key.new") {
                let key = format!("{key}.key");
                end_swap(Path::new(&key), &path)?;
            }
        }
        for folder in ["", "intermediate", "issued", "issued/superseded"] {
            for path in files::listed(&self.dir.join(folder))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                // All that write here hold the lock, so whoever made it is gone.
                if name.starts_with('.') && name.contains(files::WRITER) && name.ends_with(".tmp") {
                    let _ = files::remove(&path);
                }
            }
        }
        Ok(())
    }
}

impl Change<'_> {
    /// Enters events in the index, on disk when this returns.
    pub(crate) fn record(&mut self, events: &[Event]) -> Result<(), CaError> {
        self.ca.append(&mut self.index, events)
    }
}

/// Puts a certificate and its key in place of those that are there, if any; at every instant, also after a crash, there is a
/// pair that belongs together.
pub(crate) fn put_pair(certificate: &Path, chain: &str, key: &Path, key_pem: &str) -> Result<(), CaError> {
    let fresh = fresh_key(key);
    write_new(&fresh, key_pem, 0o600)?;
    // Before its certificate is there: whoever may read the old key must be able to read this one.
    if let Ok(file) = File::open(&fresh) {
        atomic_file::keep_owner(&file, key);
    }
    match certificate.exists() {
        true => replace(certificate, chain, 0o644)?,
        false => write_new(certificate, chain, 0o644)?,
    }
    files::rename(&fresh, key)
}

fn end_swap(key: &Path, fresh: &Path) -> Result<(), CaError> {
    let certificate = key.with_extension("crt");
    let named = match fs::exists(&certificate) {
        Ok(true) => match certificate::read_certificates("certificate", &certificate) {
            Ok(chain) => Certificate::of(&chain[0]),
            // Whose key it is cannot be told.
            Err(_) => return Ok(()),
        },
        _ => Certificate::default(),
    };
    match read_pair(fresh) {
        Ok(pair) if named.has_key(&pair) => files::rename(fresh, key),
        // Its certificate never came, so nobody has it.
        Ok(_) => files::remove(fresh),
        // Another user's, perhaps: it may be the only one that fits.
        Err(_) => Ok(()),
    }
}
